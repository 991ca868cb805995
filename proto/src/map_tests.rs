#![allow(clippy::unwrap_used)]
use super::*;

fn map() -> PartitionMap {
    let spec = CollectionSpec {
        source: SourceId(1),
        index_oid: 16_400,
        definition_generation: 2,
        table_oid: 16_390,
        schema_name: "public".into(),
        table_name: "items".into(),
        index_name: "items_embedding_idx".into(),
        column_name: "embedding".into(),
        column_attnum: 3,
        key_attnums: vec![1],
        metric: Metric::Cosine,
        dimensions: 784,
        m: 16,
        ef_construction: 64,
    };
    let collection = |id, state| Collection {
        id: CollectionId(id),
        spec: spec.clone(),
        state,
        last_backfill: BackfillId(3),
        reconcile: None,
    };
    let collections = [
        collection(
            1,
            CollectionState::Building {
                backfill: BackfillId(3),
            },
        ),
        collection(
            2,
            CollectionState::Ready {
                snapshot: BackfillSnapshot {
                    xmax: 9,
                    running: vec![7, 8],
                    membership: Some(7),
                },
            },
        ),
        collection(
            3,
            CollectionState::Failed {
                reason: "column dropped".into(),
            },
        ),
    ];
    let partitions = HashRange::tile(2)
        .into_iter()
        .zip(1..)
        .map(|(range, id)| Partition {
            id: PartitionId(id),
            collection: CollectionId(2),
            range,
            replicas: vec![
                Replica {
                    node: NodeId(1),
                    generation: Generation(4),
                    state: ReplicaState::Serving,
                },
                Replica {
                    node: NodeId(2),
                    generation: Generation(5),
                    state: ReplicaState::Learner,
                },
                Replica {
                    node: NodeId(3),
                    generation: Generation(6),
                    state: ReplicaState::Stale,
                },
            ],
        });
    PartitionMap {
        cluster_id: "c".into(),
        epoch: LeaseEpoch(2),
        version: MapVersion(17),
        nodes: [(
            NodeId(1),
            Node {
                id: NodeId(1),
                disk_uuid: "u".into(),
                address: "h:1".into(),
                zone: "a".into(),
                is_draining: false,
            },
        )]
        .into(),
        sources: [(
            SourceId(1),
            Source {
                id: SourceId(1),
                name: "shop".into(),
                incarnation: Incarnation(1),
                server_start: Some(ServerStart(81)),
                slot_hold_limit_bytes: Some(5 << 30),
                slot: Some(Slot {
                    system_identifier: 77,
                    database_oid: 5,
                    timeline: 1,
                    consistent_point: Lsn(99),
                    publication: Some(PublicationId {
                        publication: 5,
                        definitions: 6,
                    }),
                }),
                slot_name: "s".into(),
                publication_name: "p".into(),
                problem: String::new(),
                consumer: Some(ConsumerId(4)),
                consumer_epoch: ConsumerEpoch(6),
                is_paused: true,
                dsn_version: DsnVersion(3),
            },
        )]
        .into(),
        collections: collections.into_iter().map(|c| (c.id, c)).collect(),
        partitions: partitions.map(|p| (p.id, p)).collect(),
        coordinators: vec!["h:7401".into()],
        splits: [(PartitionId(1), split())].into(),
    }
}

fn split() -> Split {
    let half = |id, range| Partition {
        id: PartitionId(id),
        collection: CollectionId(2),
        range,
        replicas: vec![Replica {
            node: NodeId(1),
            generation: Generation(6),
            state: ReplicaState::Learner,
        }],
    };
    Split {
        low: half(9, HashRange { lo: 0, hi: 9 }),
        high: half(10, HashRange { lo: 10, hi: 19 }),
    }
}

#[test]
fn a_map_survives_the_wire() {
    let wire = v1::PartitionMap::from(&map());
    assert_eq!(PartitionMap::try_from(wire).unwrap(), map());
}

#[test]
fn a_map_with_an_inverted_range_or_an_unknown_state_is_refused() {
    let mut inverted = v1::PartitionMap::from(&map());
    inverted.partitions[1].range = Some(v1::HashRange { lo: 5, hi: 4 });
    assert!(PartitionMap::try_from(inverted).is_err());
    let mut unknown = v1::PartitionMap::from(&map());
    unknown.partitions[0].replicas[0].state = 99;
    assert!(PartitionMap::try_from(unknown).is_err());
}
