//! Follows the map: makes the replicas that it assigns to this node, and deletes
//! those that it has taken away.
//!
//! A replica that the map shows as a learner begins as one and stays what it has
//! become when the map lets it serve. One that was left behind (demoted or stale), or
//! gives its place away, keeps its data as long as its generation stands, and is never made anew.
//!
//! Data is deleted only under a held lease and a map at least as new as the one
//! that the lease was granted under: a node that was cut off, or asked a
//! coordinator left behind, must not throw away what may be the last copy.

use crate::node::Node;
use crate::partition::replicas::ReplicaError;
use crate::storage::PartitionMeta;
use cluster_core::collection::CollectionState;
use cluster_core::ids::*;
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::wal_position::WalPosition;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often what could not be done is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// What to do so that the disk holds what the map says.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub remove: Vec<PartitionId>,
    pub create: Vec<NewReplica>,
}

#[derive(Debug, PartialEq)]
pub struct NewReplica {
    pub partition: PartitionId,
    pub meta: PartitionMeta,
    /// It copies a peer. Otherwise it begins empty, with a new collection.
    pub is_learner: bool,
}

/// Compares the map with the replicas held. `None` as a generation: unreadable.
pub fn plan(
    map: &PartitionMap,
    node: NodeId,
    held: &BTreeMap<PartitionId, Option<Generation>>,
) -> Plan {
    let mut plan = Plan::default();
    let mut assigned = BTreeMap::new();
    for (partition, _) in map.held_partitions() {
        let Some(replica) = partition.replicas.iter().find(|r| r.node == node) else {
            continue;
        };
        assigned.insert(partition.id, replica.generation);
        let collection = map.collections.get(&partition.collection);
        let is_building =
            collection.is_some_and(|c| matches!(c.state, CollectionState::Building { .. }));
        let is_learner = match replica.state {
            ReplicaState::Learner => true,
            ReplicaState::Serving => false,
            // It may have been passed before its node ever knew of it.
            ReplicaState::Stale if is_building => false,
            ReplicaState::Demoted | ReplicaState::Stale | ReplicaState::Releasing => continue,
        };
        if held.contains_key(&partition.id) {
            continue;
        }
        let Some(collection) = collection else {
            continue;
        };
        let spec = &collection.spec;
        let meta = PartitionMeta {
            source: spec.source,
            collection: collection.id,
            generation: replica.generation,
            metric: spec.metric,
            dimensions: spec.dimensions,
            m: spec.m,
            ef_construction: spec.ef_construction,
            truncated: WalPosition::ZERO,
            stamp_high: WalPosition::ZERO,
            last_backfill: BackfillId(0),
            open_backfill: None,
            backfill_mark: None,
            trusted_from: None,
        };
        plan.create.push(NewReplica {
            partition: partition.id,
            meta,
            is_learner,
        });
    }
    for (partition, generation) in held {
        let keep = match (assigned.get(partition), generation) {
            (None, _) => false,
            // Unreadable data waits for an operator, or for the next assignment.
            (Some(_), None) => true,
            (Some(assigned), Some(held)) => assigned == held,
        };
        if !keep {
            plan.remove.push(*partition);
        }
    }
    plan
}

/// Follows until `shutdown`.
pub async fn follow(node: Arc<Node>, shutdown: CancellationToken) {
    let mut map = node.watch_map();
    let mut owed = Vec::new();
    let mut reclaiming: Option<JoinHandle<()>> = None;
    loop {
        owed.extend(reconcile(&node).await);
        // One at a time, beside the rest; what a stop leaves RocksDB does in its time.
        if reclaiming.as_ref().is_none_or(JoinHandle::is_finished)
            && let Some(partition) = owed.pop()
        {
            let storage = node.storage.clone();
            let reclaim = move || storage.reclaim(partition);
            reclaiming = Some(tokio::task::spawn_blocking(reclaim));
        }
        tokio::select! {
            changed = map.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One comparison of map and disk. A replica of an older generation is removed
/// in one round and made anew in the next. Answers what was removed.
pub async fn reconcile(node: &Arc<Node>) -> Vec<PartitionId> {
    let map = node.map();
    let member = node.identity().and_then(|identity| identity.member);
    let mut removed = Vec::new();
    let Some((id, cluster_id)) = member else {
        return removed;
    };
    // A fresh process has an empty map, of no cluster.
    if map.cluster_id != cluster_id {
        return removed;
    }
    let held = || {
        let replicas = node.replicas.all().into_iter();
        let mut held: BTreeMap<_, _> = replicas
            .map(|r| (r.id.partition, Some(r.id.generation)))
            .collect();
        held.extend(node.replicas.unreadable().into_keys().map(|p| (p, None)));
        held
    };
    let removals = plan(&map, id, &held()).remove;
    if node.lease.is_held() && map.stamp() >= node.lease.map_floor() {
        for partition in removals {
            tracing::info!(%partition, version = %map.version, "deleting a partition that left this node");
            match node.replicas.remove(partition).await {
                Ok(()) => removed.push(partition),
                Err(error) => {
                    tracing::error!(%partition, %error, "the partition's data was not deleted");
                }
            }
        }
    }
    for new in plan(&map, id, &held()).create {
        let (partition, generation) = (new.partition, new.meta.generation);
        if let Err(error) = create(node, new).await {
            tracing::error!(%partition, %generation, %error, "the partition was not created");
        }
    }
    removed
}

async fn create(node: &Arc<Node>, new: NewReplica) -> Result<(), ReplicaError> {
    let replicas = node.replicas.clone();
    tokio::task::spawn_blocking(move || replicas.create(new.partition, new.meta, new.is_learner))
        .await
        .expect("creating a replica does not panic")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::boot_ms;
    use crate::testing::{PARTITION, TestNode, map as served_map};
    use cluster_core::collection::{Collection, CollectionSpec, Metric};
    use cluster_core::map::{HashRange, Partition, Replica};

    fn map(generation: u64) -> PartitionMap {
        let mut map = PartitionMap::default();
        let spec = CollectionSpec {
            source: SourceId(1),
            index_oid: 1,
            definition_generation: 1,
            table_oid: 1,
            schema_name: "public".into(),
            table_name: "t".into(),
            index_name: "i".into(),
            column_name: "c".into(),
            column_attnum: 2,
            key_attnums: vec![1],
            metric: Metric::L2,
            dimensions: 2,
            m: 16,
            ef_construction: 64,
        };
        map.collections.insert(
            CollectionId(2),
            Collection {
                id: CollectionId(2),
                spec,
                state: CollectionState::Building {
                    backfill: BackfillId(1),
                },
                last_backfill: BackfillId(1),
                reconcile: None,
            },
        );
        map.partitions.insert(
            PartitionId(3),
            Partition {
                id: PartitionId(3),
                collection: CollectionId(2),
                range: HashRange::WHOLE,
                replicas: vec![Replica {
                    node: NodeId(7),
                    generation: Generation(generation),
                    state: ReplicaState::Serving,
                }],
            },
        );
        map
    }

    #[test]
    fn p11_what_was_passed_before_its_node_knew_of_it_is_created_to_be_filled() {
        let mut passed = map(1);
        let partition = passed.partitions.get_mut(&PartitionId(3)).unwrap();
        partition.replicas[0].state = ReplicaState::Stale;
        let created = plan(&passed, NodeId(7), &BTreeMap::new());
        assert_eq!(created.create.len(), 1);
        assert!(!created.create[0].is_learner);
        let collection = passed.collections.get_mut(&CollectionId(2)).unwrap();
        collection.state = CollectionState::Ready {
            snapshot: Default::default(),
        };
        let nothing = plan(&passed, NodeId(7), &BTreeMap::new());
        assert!(nothing.create.is_empty(), "it would stand there empty");
    }

    #[test]
    fn a_partition_is_created_once_and_removed_when_its_generation_or_node_changes() {
        let nothing = BTreeMap::new();
        let created = plan(&map(1), NodeId(7), &nothing);
        assert_eq!(created.create[0].partition, PartitionId(3));
        assert_eq!(created.create[0].meta.generation, Generation(1));
        assert!(
            !created.create[0].is_learner,
            "a new collection waits for no copy"
        );
        assert_eq!(plan(&map(1), NodeId(8), &nothing), Plan::default());
        let held = BTreeMap::from([(PartitionId(3), Some(Generation(1)))]);
        assert_eq!(plan(&map(1), NodeId(7), &held), Plan::default());
        let removed = Plan {
            remove: vec![PartitionId(3)],
            create: vec![],
        };
        assert_eq!(plan(&map(2), NodeId(7), &held), removed);
        assert_eq!(plan(&map(1), NodeId(8), &held), removed);
    }

    #[test]
    fn a_learner_begins_as_one_and_what_is_demoted_or_given_away_is_kept_but_not_made() {
        let in_state = |state| {
            let mut map = map(1);
            let partition = map.partitions.get_mut(&PartitionId(3)).unwrap();
            partition.replicas[0].state = state;
            map
        };
        let nothing = BTreeMap::new();
        let held = BTreeMap::from([(PartitionId(3), Some(Generation(1)))]);
        let created = plan(&in_state(ReplicaState::Learner), NodeId(7), &nothing);
        assert!(created.create[0].is_learner);
        for state in [ReplicaState::Demoted, ReplicaState::Releasing] {
            let created = plan(&in_state(state), NodeId(7), &nothing);
            assert_eq!(created, Plan::default(), "{state:?}");
        }
        for state in [
            ReplicaState::Learner,
            ReplicaState::Serving,
            ReplicaState::Demoted,
            ReplicaState::Stale,
            ReplicaState::Releasing,
        ] {
            let kept = plan(&in_state(state), NodeId(7), &held);
            assert_eq!(kept, Plan::default(), "{state:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p6_a_map_older_than_the_lease_deletes_nothing_even_in_its_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let t = TestNode::start(dir.path()).await;
        let granted = (LeaseEpoch(1), MapVersion(3));
        t.node.lease.granted(granted, boot_ms(), 60_000);
        let lacking = |version| {
            let mut map = served_map();
            map.version = MapVersion(version);
            map.partitions.clear();
            Arc::new(map)
        };
        t.maps.send_replace(lacking(2));
        reconcile(&t.node).await;
        assert!(t.node.replicas.get(PARTITION).is_some());
        t.maps.send_replace(lacking(3));
        reconcile(&t.node).await;
        assert!(t.node.replicas.get(PARTITION).is_none());
    }
}
