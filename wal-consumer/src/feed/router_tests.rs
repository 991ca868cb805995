#![allow(clippy::unwrap_used)]

use super::progress::{Following, Progress, Promotions};
use super::router::Router;
use crate::config::Config;
use crate::rows::tests::spec;
use cluster_core::change::{Change, PositionedChange, VectorColumn};
use cluster_core::collection::{BackfillSnapshot, Collection, CollectionState};
use cluster_core::ids::*;
use cluster_core::map::{HashRange, Node, Partition, PartitionMap, Replica, ReplicaState};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::v1;
use proto::v1::apply_request::Kind;
use std::sync::Arc;

pub(crate) const C: CollectionId = CollectionId(5);

pub(super) fn following() -> Following {
    Following {
        flushed: Lsn(u64::MAX),
        source: SourceId(1),
        token: ConsumerEpoch(1),
        incarnation: Incarnation(1),
        start: Lsn(10),
    }
}

/// Two partitions, both on nodes 1 and 2.
pub(crate) fn map(is_ready: bool) -> PartitionMap {
    let mut map = PartitionMap::default();
    let state = if is_ready {
        CollectionState::Ready {
            snapshot: BackfillSnapshot::default(),
        }
    } else {
        CollectionState::Building {
            backfill: BackfillId(1),
        }
    };
    let collection = Collection {
        id: C,
        spec: spec(),
        state,
        last_backfill: BackfillId(1),
        reconcile: None,
    };
    map.collections.insert(C, collection);
    for node in [1, 2] {
        let node = Node {
            id: NodeId(node),
            disk_uuid: String::new(),
            address: "127.0.0.1:1".into(),
            zone: String::new(),
            is_draining: false,
        };
        map.nodes.insert(node.id, node);
    }
    for (i, range) in HashRange::tile(2).into_iter().enumerate() {
        let replica = |node| Replica {
            node: NodeId(node),
            generation: Generation(1),
            state: ReplicaState::Serving,
        };
        let id = PartitionId(i as u64 + 1);
        let replicas = vec![replica(1), replica(2)];
        map.partitions.insert(
            id,
            Partition {
                id,
                collection: C,
                range,
                replicas,
            },
        );
    }
    map
}

pub(crate) fn set_state(map: &mut PartitionMap, id: PartitionId, node: u64, state: ReplicaState) {
    let partition = map.partitions.get_mut(&id).unwrap();
    let mut replicas = partition.replicas.iter_mut();
    let replica = replicas.find(|r| r.node == NodeId(node)).unwrap();
    replica.state = state;
}

fn router(config: Config, is_ready: bool) -> Router {
    let (progress, _ended) = Progress::new(following(), Promotions::default());
    let mut router = Router::new(Arc::new(config), progress);
    router.add_collection(&map(is_ready), C);
    assert_eq!(router.take_new_feeds().len(), 2);
    router
}

fn key(i: u64) -> RowKey {
    RowKey::from_columns([i.to_be_bytes().as_slice()]).unwrap()
}

fn at(lsn: u64, ordinal: u32, change: Change) -> PositionedChange {
    let position = WalPosition::new(Incarnation(1), Lsn(lsn), ordinal);
    PositionedChange {
        position,
        xid: 700,
        change,
    }
}

pub(super) fn upsert(lsn: u64, ordinal: u32, i: u64) -> PositionedChange {
    let vector = VectorColumn::Value(vec![1.0, 2.0].into());
    at(
        lsn,
        ordinal,
        Change::Upsert {
            key: key(i),
            vector,
        },
    )
}

fn sent(router: &Router, node: u64) -> Vec<Kind> {
    router.feed(NodeId(node)).unwrap().drain_for_test()
}

fn batches(kinds: Vec<Kind>, partition: u64) -> Vec<(WalPosition, WalPosition, usize)> {
    let of_partition = |kind| match kind {
        Kind::Batch(b) if b.partition_id == partition => Some((
            b.previous.unwrap().into(),
            b.to.unwrap().into(),
            b.changes.len(),
        )),
        _ => None,
    };
    kinds.into_iter().filter_map(of_partition).collect()
}

pub(super) fn end(lsn: u64) -> WalPosition {
    WalPosition::end_of(Incarnation(1), Lsn(lsn))
}

#[tokio::test]
async fn a_row_goes_to_the_partition_of_its_hash_on_every_replica() {
    let mut router = router(Config::default(), true);
    for i in 0..20 {
        router.route(C, upsert(20, i + 1, u64::from(i))).await;
    }
    router.flush(Lsn(20)).await;
    let kinds = sent(&router, 1);
    assert_eq!(kinds, sent(&router, 2));
    let mut rows = 0;
    for kind in kinds {
        let Kind::Batch(batch) = kind else { continue };
        assert_eq!(WalPosition::from(batch.to.unwrap()), end(20));
        for change in &batch.changes {
            let Some(v1::row_change::Change::Upsert(upsert)) = &change.change else {
                panic!()
            };
            let hash = RowKey::from_bytes(upsert.key.to_vec())
                .unwrap()
                .placement_hash();
            assert_eq!(
                router.partition_for(C, hash).unwrap().id.0,
                batch.partition_id
            );
            rows += 1;
        }
    }
    assert_eq!(rows, 20);
}

#[tokio::test]
async fn p4_batches_of_a_partition_join_without_gap_also_within_a_transaction() {
    let config = Config {
        batch_changes_max: 3,
        ..Config::default()
    };
    let mut router = router(config, true);
    let i = (0..).find(|i| {
        router
            .partition_for(C, key(*i).placement_hash())
            .unwrap()
            .id
            .0
            == 1
    });
    for ordinal in 1..=7 {
        router.route(C, upsert(20, ordinal, i.unwrap())).await;
    }
    router.flush(Lsn(20)).await;
    router.nothing_else(Lsn(20), None);
    let within = |ordinal| WalPosition::new(Incarnation(1), Lsn(20), ordinal);
    assert_eq!(
        batches(sent(&router, 1), 1),
        [
            (end(10), within(3), 3),
            (within(3), within(6), 3),
            (within(6), end(20), 1)
        ]
    );
}

#[tokio::test]
async fn both_halves_of_a_key_change_stay_in_one_batch() {
    let config = Config {
        batch_changes_max: 1,
        ..Config::default()
    };
    let mut router = router(config, true);
    let mut here = (0..).filter(|i| {
        router
            .partition_for(C, key(*i).placement_hash())
            .unwrap()
            .id
            .0
            == 1
    });
    let (old, new) = (here.next().unwrap(), here.next().unwrap());
    drop(here);
    router
        .route(C, at(20, 1, Change::Delete { key: key(old) }))
        .await;
    router.route(C, upsert(20, 1, new)).await;
    router.route(C, upsert(20, 2, new)).await;
    router.flush(Lsn(20)).await;
    let counts: Vec<_> = batches(sent(&router, 1), 1)
        .into_iter()
        .map(|b| b.2)
        .collect();
    assert_eq!(counts, [2, 1]);
}

#[tokio::test]
async fn truncate_reaches_every_partition_and_a_building_one_starts_from_nothing() {
    let mut router = router(Config::default(), false);
    router.route(C, at(20, 1, Change::Truncate)).await;
    router.flush(Lsn(20)).await;
    let kinds = sent(&router, 2);
    for partition in [1, 2] {
        assert_eq!(
            batches(kinds.clone(), partition),
            [(WalPosition::ZERO, end(20), 1)]
        );
    }
}

#[tokio::test]
async fn p2_nothing_is_confirmed_before_every_replica_has_reported() {
    let (progress, _ended) = Progress::new(following(), Promotions::default());
    let mut router = Router::new(Arc::new(Config::default()), progress.clone());
    router.nothing_else(Lsn(15), None);
    assert_eq!(
        progress.confirmed(),
        Lsn(15),
        "no replicas: nothing to wait for"
    );
    router.add_collection(&map(true), C);
    router.nothing_else(Lsn(20), None);
    assert_eq!(progress.confirmed(), Lsn(15));
    router.remove_collection(C);
    assert_eq!(progress.confirmed(), Lsn(20));
}

#[tokio::test]
async fn a_failed_collection_is_let_go_and_its_nodes_with_it() {
    let mut router = router(Config::default(), true);
    assert_eq!(router.follow_map(&map(true), SourceId(1)), Ok(()));
    let mut failed = map(true);
    let state = CollectionState::Failed { reason: "x".into() };
    failed.collections.get_mut(&C).unwrap().state = state;
    assert_eq!(router.follow_map(&failed, SourceId(1)), Ok(()));
    assert!(router.collections().is_empty());
    assert!(router.watch_feeds().borrow().is_empty());
}

#[tokio::test]
async fn p10_what_is_gathered_for_many_partitions_is_bounded_together() {
    let config = Config {
        batch_buffers_bytes: 1_000,
        ..Config::default()
    };
    let mut router = router(config, true);
    let mut ordinal = 0;
    for i in 0..200 {
        ordinal += 1;
        router.route(C, upsert(20, ordinal, i)).await;
    }
    let batches: Vec<v1::ApplyBatch> = sent(&router, 1)
        .into_iter()
        .filter_map(|kind| match kind {
            Kind::Batch(batch) => Some(batch),
            _ => None,
        })
        .collect();
    let changes: usize = batches.iter().map(|batch| batch.changes.len()).sum();
    assert!(changes > 180, "only {changes} of 200 have left");
    // Batches of one partition follow one another, and none says that the
    // transaction is complete.
    for id in [1, 2] {
        let mut previous = None;
        for batch in batches.iter().filter(|batch| batch.partition_id == id) {
            assert!(previous.is_none() || batch.previous == previous);
            previous = batch.to;
            let to = WalPosition::from(batch.to.unwrap());
            assert!(to < WalPosition::end_of(Incarnation(1), Lsn(20)), "{to}");
        }
    }
}

#[tokio::test]
async fn p10_both_halves_of_a_key_change_leave_together_past_the_limit() {
    let config = Config {
        batch_buffers_bytes: 1,
        ..Config::default()
    };
    let mut router = router(config, true);
    let delete = |i| Change::Delete { key: key(i) };
    // Both keys of one partition: the half that is buffered must not leave alone,
    // or the watermark would hide the other.
    let partition = |i| router_partition(&router, i);
    let first = 0;
    let second = (1..).find(|i| partition(*i) == partition(first)).unwrap();
    router.route(C, at(20, 1, delete(first))).await;
    router.route(C, upsert(20, 1, second)).await;
    router.route(C, upsert(20, 2, first)).await;
    let batches = sent(&router, 1);
    let Some(Kind::Batch(batch)) = batches.first() else {
        panic!("{batches:?}");
    };
    assert_eq!(batch.changes.len(), 2);
}

fn router_partition(router: &Router, i: u64) -> PartitionId {
    router.partition_for(C, key(i).placement_hash()).unwrap().id
}
