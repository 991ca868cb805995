#![allow(clippy::unwrap_used)]
use super::housekeeping::{persist_watermarks, prune};
use super::job::Job;
use crate::query::search::{PageError, PageOf, Search, SearchError};
use crate::source::Retention;
use crate::testing::*;
use cluster_core::change::Change;
use cluster_core::ids::*;
use cluster_core::wal_position::{Lsn, WalPosition};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_repeat_does_nothing_and_a_gap_is_refused_for_the_rest_of_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    t.apply(batch(10, 20, vec![delete(1), upsert(2, [2.0, 0.0])]))
        .await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    assert_eq!(t.find(CURRENT).await, [2]);
    t.apply(batch(30, 40, vec![upsert(3, [3.0, 0.0])])).await;
    let gap = t.gap().unwrap();
    assert_eq!((gap.watermark, gap.previous), (end(20), end(30)));
    t.nothing_else(50).await;
    t.apply(batch(20, 30, vec![upsert(4, [4.0, 0.0])])).await;
    assert_eq!(
        t.replica().progress.applied(),
        end(20),
        "the stream must start over"
    );
    assert_eq!(t.find(CURRENT).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_reaches_below_the_watermark_applies_what_is_above() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    let mut wide = batch(0, 10, vec![upsert(1, [9.0, 0.0])]);
    wide.changes
        .extend(batch(10, 20, vec![upsert(2, [2.0, 0.0])]).changes);
    wide.to = end(20);
    t.apply(wide).await;
    assert_eq!(t.find(CURRENT).await, [1, 2]);
    assert_eq!(t.replica().progress.applied(), end(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_one_key_in_a_batch_fold_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let changes = vec![
        upsert(1, [1.0, 0.0]),
        unchanged(1),
        upsert(2, [2.0, 0.0]),
        delete(2),
        upsert(3, [3.0, 0.0]),
        upsert(3, [0.5, 0.0]),
    ];
    t.apply(batch(0, 10, changes)).await;
    assert_eq!(t.find(CURRENT).await, [3, 1]);
    assert_eq!(t.replica().rows(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_former_version_is_found_by_old_snapshots_until_nobody_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(
        0,
        10,
        vec![upsert(1, [1.0, 0.0]), upsert(2, [2.0, 0.0])],
    ))
    .await;
    t.apply(batch(10, 20, vec![delete(1), upsert(2, [7.0, 0.0])]))
        .await;
    assert_eq!(t.find(21).await, [2]);
    assert_eq!(
        t.find(20).await,
        [1, 2, 2],
        "both versions; the heap decides"
    );
    assert_eq!(t.replica().former_versions(), 2);
    let prune = async |oldest_xmin, confirmed| {
        t.replica().source.set_retention(Retention {
            oldest_xmin,
            confirmed,
        });
        t.replica().send(Job::Prune).await.unwrap();
        // Answered in order, behind the pruning.
        t.open_backfill(1).await.unwrap();
    };
    prune(0, end(20)).await;
    prune(20, end(20)).await;
    prune(21, end(19)).await;
    assert_eq!(
        t.replica().former_versions(),
        2,
        "a snapshot or the slot needs them"
    );
    prune(21, end(20)).await;
    assert_eq!(t.replica().former_versions(), 0);
    assert_eq!(t.find(ALL_XIDS).await, [2]);
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.find(ALL_XIDS).await, [2], "pruned on disk as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_row_that_changes_under_an_open_cursor_is_still_found() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(
        0,
        10,
        vec![upsert(1, [1.0, 0.0]), upsert(2, [2.0, 0.0])],
    ))
    .await;
    // The snapshot sees transaction 20, which has not arrived yet.
    let first = Search {
        page_rows: 1,
        snapshot_xmin: 21,
        ..search()
    };
    let page = t.page(first.clone()).await.unwrap();
    assert!(!page.exhausted);
    t.apply(batch(10, 20, vec![upsert(2, [3.0, 0.0])])).await;
    let next = |token| Search {
        page_rows: 9,
        partitions: vec![PageOf {
            token,
            ..first.partitions[0]
        }],
        ..first.clone()
    };
    let rest = t.page(next(page.token)).await.unwrap();
    let found: Vec<_> = rest.hits.iter().map(|(key, _)| number(key)).collect();
    assert_eq!(found, [2]);
    assert_eq!(
        t.page(next(page.token)).await.unwrap_err(),
        PageError::CursorLost
    );
    // No cursor is left: the end takes effect.
    t.replica().send(Job::Prune).await.unwrap();
    t.open_backfill(1).await.unwrap();
    assert_eq!(t.find(21).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_what_a_backfill_replaced_under_a_cursor_goes_though_nobody_writes_again() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.open_backfill(1).await.unwrap();
    let rows = vec![row(1, [1.0, 0.0]), row(2, [2.0, 0.0])];
    t.chunk(1, 1, 10, rows).await.unwrap();
    t.nothing_else(20).await;
    let first = Search {
        page_rows: 1,
        ..search()
    };
    let page = t.page(first).await.unwrap();
    t.chunk(1, 2, 20, vec![row(2, [3.0, 0.0])]).await.unwrap();
    assert_eq!(
        t.replica().former_versions(),
        0,
        "no former one calls for it"
    );
    assert_eq!(
        t.find(CURRENT).await,
        [1, 2, 2],
        "the cursor may come to both"
    );
    t.node.queries.cursors.close(&[page.token]);
    prune(&t.node.replicas);
    // Behind it in the queue.
    t.open_backfill(2).await.unwrap();
    assert_eq!(t.find(CURRENT).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_ends_every_row_at_its_position_and_what_follows_lives() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(
        0,
        10,
        vec![upsert(1, [1.0, 0.0]), upsert(2, [2.0, 0.0])],
    ))
    .await;
    let changes = vec![
        upsert(3, [3.0, 0.0]),
        Change::Truncate,
        upsert(2, [4.0, 0.0]),
    ];
    t.apply(batch(10, 20, changes)).await;
    assert_eq!(t.find(ALL_XIDS).await, [2]);
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.find(ALL_XIDS).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_is_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(
        0,
        10,
        vec![upsert(1, [1.0, 0.0]), upsert(2, [2.0, 0.0])],
    ))
    .await;
    t.open_backfill(4).await.unwrap();
    t.chunk(4, 1, 15, vec![row(5, [5.0, 0.0])]).await.unwrap();
    t.apply(batch(10, 20, vec![delete(1), unchanged(9)])).await;
    t.nothing_else(30).await;
    let watermarks = t.replica().progress.watermarks();
    assert_eq!((watermarks.applied, watermarks.durable), (end(30), end(20)));
    persist_watermarks(&t.node.replicas, &t.node.storage);
    assert_eq!(t.replica().progress.watermarks().durable, end(30));
    let before = (t.find(CURRENT).await, t.find(ALL_XIDS).await);
    assert_eq!(before, (vec![2, 5], vec![1, 2, 5]));
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!((t.find(CURRENT).await, t.find(ALL_XIDS).await), before);
    assert_eq!(t.replica().progress.watermarks().durable, end(30));
    assert_eq!(t.replica().pending_keys(9), [key(9)]);
    assert!(
        t.chunk(4, 1, 15, vec![row(6, [6.0, 0.0])]).await.is_ok(),
        "a repeat"
    );
    assert_eq!(t.find(CURRENT).await, [2, 5]);
    assert!(
        t.close_backfill(4)
            .await
            .unwrap_err()
            .starts_with("PENDING 1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_record_quarantines_its_partition_and_the_node_stays_up() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(
        0,
        10,
        vec![upsert(1, [1.0, 0.0]), upsert(2, [2.0, 0.0])],
    ))
    .await;
    t.node.storage.damage(PARTITION, &key(2));
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    let problem = t.replica().problem().unwrap();
    assert!(problem.contains("checksum"), "{problem}");
    let error = t.page(search()).await.unwrap_err();
    assert!(matches!(error, PageError::Corrupt(_)));
    t.apply(batch(10, 20, vec![upsert(3, [3.0, 0.0])])).await;
    t.nothing_else(30).await;
    assert_eq!(
        t.replica().progress.applied(),
        end(10),
        "a quarantined replica stands still"
    );
    assert!(
        t.open_backfill(1)
            .await
            .unwrap_err()
            .contains("quarantined")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_over_tail_and_graph_equals_brute_force() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let at = |n: u32| [(n * 7919 % 1009) as f32, (n * 104_729 % 997) as f32];
    let rows = |range: std::ops::Range<u32>| range.map(|n| upsert(n, at(n))).collect();
    t.apply(batch(0, 10, rows(0..300))).await;
    while t.replica().live().index().fold(100) > 0 {}
    t.apply(batch(10, 20, rows(300..500))).await;
    t.apply(batch(20, 30, (0..500).step_by(5).map(delete).collect()))
        .await;
    let query = [400.0, 500.0];
    let distance = |n: u32| {
        let [x, y] = at(n);
        f32::hypot(x - query[0], y - query[1])
    };
    let mut want: Vec<u32> = (0..500).filter(|n| n % 5 != 0).collect();
    want.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)));
    let found = t.find_near(query, CURRENT).await;
    let distances = |keys: &[u32]| keys.iter().map(|n| distance(*n)).collect::<Vec<_>>();
    assert_eq!(distances(&found), distances(&want));
    assert_eq!(t.find_near(query, ALL_XIDS).await.len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_vectors_leave_the_index_and_rows_keep_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let rows = |range: std::ops::Range<u32>, x: f32| {
        range
            .map(|n| upsert(n, [n as f32 + x, 0.0]))
            .collect::<Vec<_>>()
    };
    t.replica().source.set_retention(Retention {
        oldest_xmin: u64::MAX,
        confirmed: end(u64::MAX - 1),
    });
    let first = t.replica().live();
    // Every round replaces all rows; pruning then removes the former versions.
    for round in 0..12 {
        let from = round * 10;
        t.apply(batch(from, from + 10, rows(0..1_000, round as f32 / 100.0)))
            .await;
        t.replica().send(Job::Prune).await.unwrap();
        t.idle().await;
        while first.index().fold(100) + first.index().repair(100) > 0 {}
        assert_eq!(t.find(ALL_XIDS).await, (0..1_000).collect::<Vec<_>>());
    }
    let live = t.replica().live();
    assert!(Arc::ptr_eq(&first, &live), "the index stays");
    let (held, slots) = (live.index().total_len(), live.index().slots_len());
    assert!(held <= 1_010, "{held} vectors for 1,000 rows");
    assert!(
        slots <= 2_100,
        "{slots} slots: two versions of each row at a time"
    );
    // The nearest of each place is the row that was put there last.
    for n in [0, 17, 500, 999] {
        let found = t.find_near([n as f32 + 0.11, 0.0], CURRENT).await;
        assert_eq!(found[0], n);
    }
    t.apply(batch(120, 130, vec![delete(0)])).await;
    assert_eq!(t.find(CURRENT).await.len(), 999);
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_without_a_lease_only_a_reached_position_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    let at = |lsn| Search {
        min_lsn: Some(Lsn(lsn)),
        ..search()
    };
    let lagging = t.page(at(20)).await.unwrap_err();
    assert!(matches!(lagging, PageError::Lagging(_)), "{lagging}");
    assert_eq!(t.page(at(10)).await.unwrap().applied, end(10));
    t.stop().await;
    let mut t = TestNode::start(dir.path()).await;
    t.lose_lease();
    let refused = t.node.search(search()).await.unwrap_err();
    assert!(matches!(refused, SearchError::Stale(_)));
    assert_eq!(t.page(at(10)).await.unwrap().hits.len(), 1);
    assert!(matches!(
        t.page(at(20)).await.unwrap_err(),
        PageError::Stale(_)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_for_another_assignment_or_a_closed_one_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let of = |generation| Search {
        partitions: vec![PageOf {
            partition: PARTITION,
            generation: Generation(generation),
            token: 0,
        }],
        ..search()
    };
    // A complete collection's replica that was told of nothing has lost its data.
    assert!(matches!(
        t.page(of(1)).await.unwrap_err(),
        PageError::Stale(_)
    ));
    t.nothing_else(10).await;
    assert!(t.page(of(1)).await.is_ok());
    assert!(matches!(
        t.page(of(2)).await.unwrap_err(),
        PageError::Stale(_)
    ));
    let mut moved = map();
    moved.version = MapVersion(2);
    moved.partitions.clear();
    t.maps.send_replace(Arc::new(moved));
    assert!(matches!(
        t.page(of(1)).await.unwrap_err(),
        PageError::Stale(_)
    ));
    crate::assignment::reconcile(&t.node).await;
    assert!(t.node.replicas.get(PARTITION).is_none());
    assert_eq!(t.node.storage.partition_ids().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_map_of_a_fresh_process_deletes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    t.maps.send_replace(Arc::default());
    crate::assignment::reconcile(&t.node).await;
    assert_eq!(t.replica().rows(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_a_token_survives_restart_and_a_lower_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let install = |t: &TestNode, token| {
        let source = t.node.sources.get(SourceId(1)).unwrap();
        source
            .install(&t.node.storage, ConsumerEpoch(token))
            .unwrap()
            .is_ok()
    };
    let t = TestNode::start(dir.path()).await;
    assert!(install(&t, 5) && install(&t, 5) && !install(&t, 4));
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert!(!install(&t, 4) && install(&t, 6));
    assert_eq!(WalPosition::ZERO, t.replica().progress.applied());
}
