//! The partition map on the wire.

use crate::convert::{BadMessage, required};
use crate::v1;
use cluster_core::collection::{
    BackfillSnapshot, Collection, CollectionSpec, CollectionState, Metric, Reconcile,
};
use cluster_core::ids::*;
use cluster_core::map::*;
use cluster_core::wal_position::Lsn;

impl From<&PartitionMap> for v1::PartitionMap {
    fn from(map: &PartitionMap) -> Self {
        Self {
            cluster_id: map.cluster_id.clone(),
            epoch: map.epoch.0,
            version: map.version.0,
            nodes: map.nodes.values().map(Into::into).collect(),
            sources: map.sources.values().map(Into::into).collect(),
            collections: map.collections.values().map(Into::into).collect(),
            partitions: map.partitions.values().map(Into::into).collect(),
            coordinators: map.coordinators.clone(),
            splits: map
                .splits
                .iter()
                .map(|(parent, split)| v1::Split {
                    parent_partition_id: parent.0,
                    low: Some((&split.low).into()),
                    high: Some((&split.high).into()),
                })
                .collect(),
        }
    }
}

impl TryFrom<v1::PartitionMap> for PartitionMap {
    type Error = BadMessage;

    fn try_from(wire: v1::PartitionMap) -> Result<Self, BadMessage> {
        let nodes = wire.nodes.into_iter().map(Node::from);
        let sources = wire.sources.into_iter().map(Source::from);
        let collections = wire
            .collections
            .into_iter()
            .map(|c| Collection::try_from(c).map(|c| (c.id, c)))
            .collect::<Result<_, _>>()?;
        let partitions = wire
            .partitions
            .into_iter()
            .map(|p| Partition::try_from(p).map(|p| (p.id, p)))
            .collect::<Result<_, _>>()?;
        let splits = wire
            .splits
            .into_iter()
            .map(|split| {
                let low = required(split.low, "low")?.try_into()?;
                let high = required(split.high, "high")?.try_into()?;
                Ok((PartitionId(split.parent_partition_id), Split { low, high }))
            })
            .collect::<Result<_, BadMessage>>()?;
        Ok(PartitionMap {
            cluster_id: wire.cluster_id,
            epoch: LeaseEpoch(wire.epoch),
            version: MapVersion(wire.version),
            nodes: nodes.map(|n| (n.id, n)).collect(),
            sources: sources.map(|s| (s.id, s)).collect(),
            collections,
            partitions,
            coordinators: wire.coordinators,
            splits,
        })
    }
}

impl From<&Node> for v1::NodeEntry {
    fn from(node: &Node) -> Self {
        Self {
            node_id: node.id.0,
            disk_uuid: node.disk_uuid.clone(),
            address: node.address.clone(),
            zone: node.zone.clone(),
            is_draining: node.is_draining,
        }
    }
}

impl From<v1::NodeEntry> for Node {
    fn from(wire: v1::NodeEntry) -> Self {
        Node {
            id: NodeId(wire.node_id),
            disk_uuid: wire.disk_uuid,
            address: wire.address,
            zone: wire.zone,
            is_draining: wire.is_draining,
        }
    }
}

impl From<&Slot> for v1::Slot {
    fn from(slot: &Slot) -> Self {
        Self {
            system_identifier: slot.system_identifier,
            database_oid: slot.database_oid,
            timeline: slot.timeline,
            consistent_point_lsn: slot.consistent_point.0,
            publication_oid: slot.publication.map_or(0, |p| p.publication),
            definitions_membership_oid: slot.publication.map_or(0, |p| p.definitions),
        }
    }
}

impl From<v1::Slot> for Slot {
    fn from(wire: v1::Slot) -> Self {
        Slot {
            system_identifier: wire.system_identifier,
            database_oid: wire.database_oid,
            timeline: wire.timeline,
            consistent_point: Lsn(wire.consistent_point_lsn),
            // No object of a server has the OID 0.
            publication: (wire.publication_oid != 0).then_some(PublicationId {
                publication: wire.publication_oid,
                definitions: wire.definitions_membership_oid,
            }),
        }
    }
}

impl From<&Source> for v1::Source {
    fn from(source: &Source) -> Self {
        Self {
            source_id: source.id.0,
            name: source.name.clone(),
            incarnation: source.incarnation.0,
            slot: source.slot.as_ref().map(Into::into),
            server_start: source.server_start.map(|start| start.0),
            slot_hold_limit_bytes: source.slot_hold_limit_bytes,
            slot_name: source.slot_name.clone(),
            publication_name: source.publication_name.clone(),
            problem: source.problem.clone(),
            consumer_id: source.consumer.map(|c| c.0),
            consumer_epoch: source.consumer_epoch.0,
            is_paused: source.is_paused,
            dsn_version: source.dsn_version.0,
        }
    }
}

impl From<v1::Source> for Source {
    fn from(wire: v1::Source) -> Self {
        Source {
            id: SourceId(wire.source_id),
            name: wire.name,
            incarnation: Incarnation(wire.incarnation),
            slot: wire.slot.map(Into::into),
            server_start: wire.server_start.map(ServerStart),
            slot_hold_limit_bytes: wire.slot_hold_limit_bytes,
            slot_name: wire.slot_name,
            publication_name: wire.publication_name,
            problem: wire.problem,
            consumer: wire.consumer_id.map(ConsumerId),
            consumer_epoch: ConsumerEpoch(wire.consumer_epoch),
            is_paused: wire.is_paused,
            dsn_version: DsnVersion(wire.dsn_version),
        }
    }
}

impl From<&CollectionSpec> for v1::CollectionSpec {
    fn from(spec: &CollectionSpec) -> Self {
        Self {
            source_id: spec.source.0,
            index_oid: spec.index_oid,
            definition_generation: spec.definition_generation,
            table_oid: spec.table_oid,
            schema_name: spec.schema_name.clone(),
            table_name: spec.table_name.clone(),
            index_name: spec.index_name.clone(),
            column_name: spec.column_name.clone(),
            column_attnum: spec.column_attnum.into(),
            key_attnums: spec.key_attnums.iter().map(|&n| n.into()).collect(),
            metric: v1::Metric::from(spec.metric).into(),
            dimensions: spec.dimensions,
            m: spec.m,
            ef_construction: spec.ef_construction,
        }
    }
}

impl TryFrom<v1::CollectionSpec> for CollectionSpec {
    type Error = BadMessage;

    fn try_from(wire: v1::CollectionSpec) -> Result<Self, BadMessage> {
        let attnum = |n: i32| {
            i16::try_from(n).map_err(|_| BadMessage::OutOfRange("attribute number", n.to_string()))
        };
        Ok(CollectionSpec {
            source: SourceId(wire.source_id),
            index_oid: wire.index_oid,
            definition_generation: wire.definition_generation,
            table_oid: wire.table_oid,
            metric: Metric::try_from(wire.metric())?,
            column_attnum: attnum(wire.column_attnum)?,
            key_attnums: wire
                .key_attnums
                .iter()
                .map(|&n| attnum(n))
                .collect::<Result<_, _>>()?,
            schema_name: wire.schema_name,
            table_name: wire.table_name,
            index_name: wire.index_name,
            column_name: wire.column_name,
            dimensions: wire.dimensions,
            m: wire.m,
            ef_construction: wire.ef_construction,
        })
    }
}

impl From<&BackfillSnapshot> for v1::BackfillSnapshot {
    fn from(snapshot: &BackfillSnapshot) -> Self {
        Self {
            xmax: snapshot.xmax,
            running: snapshot.running.clone(),
            membership_oid: snapshot.membership,
        }
    }
}

impl From<v1::BackfillSnapshot> for BackfillSnapshot {
    fn from(wire: v1::BackfillSnapshot) -> Self {
        let mut running = wire.running;
        running.sort_unstable();
        BackfillSnapshot {
            xmax: wire.xmax,
            running,
            membership: wire.membership_oid,
        }
    }
}

impl From<&Collection> for v1::Collection {
    fn from(collection: &Collection) -> Self {
        use v1::collection::State;
        Self {
            collection_id: collection.id.0,
            spec: Some((&collection.spec).into()),
            last_backfill_id: collection.last_backfill.0,
            reconcile: collection
                .reconcile
                .as_ref()
                .map(|reconcile| v1::Reconcile {
                    reason: reconcile.reason.clone(),
                    since_backfill_id: reconcile.since.map(|since| since.0),
                }),
            state: Some(match &collection.state {
                CollectionState::Building { backfill } => State::BuildingBackfillId(backfill.0),
                CollectionState::Ready { snapshot } => State::Ready(snapshot.into()),
                CollectionState::Failed { reason } => State::FailedReason(reason.clone()),
            }),
        }
    }
}

impl TryFrom<v1::Collection> for Collection {
    type Error = BadMessage;

    fn try_from(wire: v1::Collection) -> Result<Self, BadMessage> {
        use v1::collection::State;
        Ok(Collection {
            id: CollectionId(wire.collection_id),
            spec: required(wire.spec, "collection spec")?.try_into()?,
            last_backfill: BackfillId(wire.last_backfill_id),
            reconcile: wire.reconcile.map(|reconcile| Reconcile {
                reason: reconcile.reason,
                since: reconcile.since_backfill_id.map(BackfillId),
            }),
            state: match required(wire.state, "collection state")? {
                State::BuildingBackfillId(id) => CollectionState::Building {
                    backfill: BackfillId(id),
                },
                State::Ready(snapshot) => CollectionState::Ready {
                    snapshot: snapshot.into(),
                },
                State::FailedReason(reason) => CollectionState::Failed { reason },
            },
        })
    }
}

impl From<HashRange> for v1::HashRange {
    fn from(HashRange { lo, hi }: HashRange) -> Self {
        Self { lo, hi }
    }
}

impl TryFrom<v1::HashRange> for HashRange {
    type Error = BadMessage;

    fn try_from(v1::HashRange { lo, hi }: v1::HashRange) -> Result<Self, BadMessage> {
        if hi < lo {
            let problem = format!("{lo:x} > {hi:x}");
            return Err(BadMessage::OutOfRange("range", problem));
        }
        Ok(HashRange { lo, hi })
    }
}

impl From<&Partition> for v1::Partition {
    fn from(partition: &Partition) -> Self {
        Self {
            partition_id: partition.id.0,
            collection_id: partition.collection.0,
            range: Some(partition.range.into()),
            replicas: partition.replicas.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Partition> for Partition {
    type Error = BadMessage;

    fn try_from(wire: v1::Partition) -> Result<Self, BadMessage> {
        Ok(Partition {
            id: PartitionId(wire.partition_id),
            collection: CollectionId(wire.collection_id),
            range: required(wire.range, "range")?.try_into()?,
            replicas: wire
                .replicas
                .into_iter()
                .map(TryInto::try_into)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Replica> for v1::Replica {
    fn from(replica: &Replica) -> Self {
        Self {
            node_id: replica.node.0,
            generation: replica.generation.0,
            state: match replica.state {
                ReplicaState::Learner => v1::ReplicaState::Learner,
                ReplicaState::Serving => v1::ReplicaState::Serving,
                ReplicaState::Demoted => v1::ReplicaState::Demoted,
                ReplicaState::Releasing => v1::ReplicaState::Releasing,
                ReplicaState::Stale => v1::ReplicaState::Stale,
            }
            .into(),
        }
    }
}

impl TryFrom<v1::Replica> for Replica {
    type Error = BadMessage;

    fn try_from(wire: v1::Replica) -> Result<Self, BadMessage> {
        Ok(Replica {
            node: NodeId(wire.node_id),
            generation: Generation(wire.generation),
            state: match wire.state() {
                v1::ReplicaState::Learner => ReplicaState::Learner,
                v1::ReplicaState::Serving => ReplicaState::Serving,
                v1::ReplicaState::Demoted => ReplicaState::Demoted,
                v1::ReplicaState::Releasing => ReplicaState::Releasing,
                v1::ReplicaState::Stale => ReplicaState::Stale,
                v1::ReplicaState::Unspecified => return Err(BadMessage::Unknown("replica state")),
            },
        })
    }
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
