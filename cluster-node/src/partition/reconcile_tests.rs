//! A stale replica is attached, filled over what it holds, swept and closed.
#![allow(clippy::unwrap_used)]
use super::job::{Job, OnHole, Sweep};
use crate::query::search::{PageError, Search};
use crate::testing::*;
use cluster_core::backfill::{BackfillMark, BlockNumber, TableFile};
use cluster_core::collection::Reconcile;
use cluster_core::ids::BackfillId;
use cluster_core::map::ReplicaState;
use cluster_core::wal_position::Lsn;
use std::sync::Arc;

impl TestNode {
    async fn reattach(&self, from: u64) {
        let (replica, gaps) = (self.replica(), self.gaps.clone());
        let attached = replica.attach(end(from), gaps, OnHole::Distrust).await;
        attached.unwrap();
        self.idle().await;
    }

    async fn open_reconcile(&self, backfill: u64, since: u64) -> Result<bool, String> {
        let opened = self.ask(|reply| Job::OpenBackfill {
            backfill: BackfillId(backfill),
            since: Some(BackfillId(since)),
            published: None,
            reply,
        });
        opened.await.map(|mark| mark.is_some())
    }

    pub(super) async fn sweep(&self, backfill: u64, below: u64) -> Result<(), String> {
        let swept = self.ask(|reply| {
            Job::Sweep(Sweep {
                backfill: BackfillId(backfill),
                below: end(below),
                after: None,
                removed: 0,
                reply,
            })
        });
        swept.await.map(drop)
    }

    /// What a search finds that takes old rows.
    async fn found(&self) -> Vec<u32> {
        let page = self.page(accepting()).await.unwrap();
        page.hits.iter().map(|(key, _)| number(key)).collect()
    }

    fn serves(&self) {
        let map = map_in(9, ReplicaState::Serving);
        self.maps.send_replace(Arc::new(map));
    }

    fn is_stale(&self) {
        let mut map = map_in(2, ReplicaState::Stale);
        let collection = map.collections.values_mut().next().unwrap();
        collection.reconcile = Some(Reconcile {
            reason: "the slot is gone".into(),
            since: Some(BackfillId(5)),
        });
        self.maps.send_replace(Arc::new(map));
    }
}

/// Rows 1 to 3 at 10; then the slot has passed it.
async fn stale(dir: &std::path::Path) -> TestNode {
    let t = TestNode::start(dir).await;
    let rows = vec![
        upsert(1, [1.0, 0.0]),
        upsert(2, [2.0, 0.0]),
        upsert(3, [3.0, 0.0]),
    ];
    t.apply(batch(0, 10, rows)).await;
    t.is_stale();
    t
}

fn mark(next_block: u32, stamp: u64) -> BackfillMark {
    BackfillMark {
        file: TableFile::default(),
        next_block: BlockNumber(next_block),
        first_stamp: end(stamp),
        last_stamp: end(stamp),
        rows: 1,
        snapshots: 1,
    }
}

fn at(lsn: u64) -> Search {
    Search {
        min_lsn: Some(Lsn(lsn)),
        ..search()
    }
}

fn accepting() -> Search {
    Search {
        accepts_stale: true,
        ..search()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_what_was_not_seen_is_swept_and_what_was_stays() {
    let dir = tempfile::tempdir().unwrap();
    let t = stale(dir.path()).await;
    t.reattach(100).await;
    t.open_reconcile(5, 5).await.unwrap();
    // 1 is in the table, 2 was removed in the gap, 3 is told of by the stream.
    t.chunk(5, 1, 110, vec![row(1, [1.0, 0.0])]).await.unwrap();
    let told = vec![upsert(3, [3.5, 0.0])];
    t.apply(batch(100, 120, told)).await;
    assert!(t.close_backfill(5).await.is_err(), "not swept yet");
    t.sweep(5, 110).await.unwrap();
    t.sweep(5, 110).await.unwrap();
    t.close_backfill(5).await.unwrap();
    t.serves();
    assert_eq!(t.find(CURRENT).await, [1, 3]);
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.find(CURRENT).await, [1, 3], "and so it is on the disk");
    assert!(!t.replica().distrusts());
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_unchanged_keeps_no_vector_from_before_the_gap() {
    let dir = tempfile::tempdir().unwrap();
    let t = stale(dir.path()).await;
    t.reattach(100).await;
    t.open_reconcile(5, 5).await.unwrap();
    t.apply(batch(100, 120, vec![unchanged(1), delete(2)]))
        .await;
    assert_eq!(t.replica().pending_keys(10), [key(1)]);
    assert_eq!(t.found().await, [3], "old rows answer meanwhile");
    // The copy is older than both changes, and younger than the gap.
    let rows = vec![row(1, [9.0, 0.0]), row(2, [2.0, 0.0])];
    t.chunk(5, 1, 110, rows).await.unwrap();
    assert_eq!(t.found().await, [3, 1]);
    t.sweep(5, 110).await.unwrap();
    t.close_backfill(5).await.unwrap();
    t.serves();
    assert_eq!(t.find(CURRENT).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_what_is_being_reconciled_answers_no_position_though_its_watermark_has_passed_it() {
    let dir = tempfile::tempdir().unwrap();
    let t = stale(dir.path()).await;
    assert!(t.page(at(10)).await.is_ok(), "it had that");
    t.reattach(100).await;
    t.nothing_else(200).await;
    for lsn in [10, 100, 200] {
        let refused = t.page(at(lsn)).await.unwrap_err();
        assert!(matches!(refused, PageError::Lagging(_)), "{refused}");
    }
    let page = t.page(accepting()).await.unwrap();
    assert!(page.is_stale);
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    t.is_stale();
    assert!(t.page(at(100)).await.is_err(), "nor after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_snapshot_of_before_the_attachment_is_not_taken_nor_what_was_copied_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let t = stale(dir.path()).await;
    t.reattach(100).await;
    assert!(!t.open_reconcile(5, 5).await.unwrap());
    let early = t.chunk(5, 1, 90, vec![row(1, [1.0, 0.0])]).await;
    assert!(
        early
            .unwrap_err()
            .contains("before what the replica trusts")
    );
    let copied = Some(mark(7, 110));
    let rows = vec![row(1, [1.0, 0.0])];
    t.last_chunk(5, 1, 110, rows, copied).await.unwrap();
    assert!(t.open_reconcile(6, 5).await.unwrap(), "it goes on");
    // Where the stream is whole, nothing is lost; above a hole, everything is.
    t.reattach(100).await;
    assert!(t.open_reconcile(7, 5).await.unwrap());
    t.reattach(150).await;
    let late = t
        .last_chunk(7, 1, 160, Vec::new(), Some(mark(9, 110)))
        .await;
    assert!(
        late.is_err(),
        "its mark says that rows of before the gap are done"
    );
    assert!(t.sweep(7, 110).await.is_err(), "the copy lacks the gap");
    assert!(!t.open_reconcile(8, 5).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_reconcile_copied_says_nothing_to_a_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.open_backfill(1).await.unwrap();
    t.last_chunk(1, 1, 10, Vec::new(), Some(mark(7, 10)))
        .await
        .unwrap();
    t.close_backfill(1).await.unwrap();
    assert!(!t.open_reconcile(2, 2).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_one_that_serves_goes_on_while_it_is_gone_over() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let rows = vec![upsert(1, [1.0, 0.0]), upsert(2, [2.0, 0.0])];
    t.apply(batch(0, 10, rows)).await;
    t.open_reconcile(5, 5).await.unwrap();
    // 2 is no row of the table, 3 is one that the index lacks.
    let rows = vec![row(1, [1.0, 0.0]), row(3, [3.0, 0.0])];
    t.chunk(5, 1, 20, rows).await.unwrap();
    t.apply(batch(10, 30, vec![unchanged(1)])).await;
    assert_eq!(t.find(CURRENT).await, [1, 2, 3]);
    assert!(t.page(at(30)).await.is_ok(), "it has that");
    t.sweep(5, 20).await.unwrap();
    assert_eq!(t.find(CURRENT).await, [1, 3]);
    t.close_backfill(5).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_goes_on_over_many_rows_beside_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let many = (0..25_000).map(|n| upsert(n, [1.0, 0.0])).collect();
    t.apply(batch(0, 10, many)).await;
    t.open_reconcile(5, 5).await.unwrap();
    t.chunk(5, 1, 20, vec![row(24_999, [1.0, 0.0])])
        .await
        .unwrap();
    t.sweep(5, 20).await.unwrap();
    assert_eq!(t.replica().rows(), 1);
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.find(CURRENT).await, [24_999]);
}
