#![allow(clippy::unwrap_used)]
use crate::testing::*;
use cluster_core::apply::StoredVector;
use cluster_core::backfill::{BackfillMark, BlockNumber, TableFile};
use cluster_core::change::Change;

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_backfill_does_not_bring_back_what_the_stream_removed() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.open_backfill(1).await.unwrap();
    t.apply(batch(0, 20, vec![delete(1)])).await;
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    let rows = vec![row(1, [1.0, 0.0]), row(2, [2.0, 0.0])];
    t.chunk(1, 1, 10, rows).await.unwrap();
    assert_eq!(t.find(CURRENT).await, [2]);
    assert_eq!(t.find(20).await, [1, 2], "a snapshot in between may see it");
    t.close_backfill(1).await.unwrap();
    assert_eq!(t.node.storage.tombstone(PARTITION, &key(1)).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_row_takes_the_backfills_value_and_then_the_backfill_closes() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.open_backfill(1).await.unwrap();
    t.apply(batch(0, 20, vec![unchanged(1), unchanged(2)]))
        .await;
    assert_eq!(t.replica().pending_keys(10), [key(1), key(2)]);
    assert_eq!(t.find(CURRENT).await, []);
    assert_eq!(t.close_backfill(1).await, Err("PENDING 2".to_owned()));
    t.chunk(1, 1, 10, vec![row(1, [1.0, 0.0])]).await.unwrap();
    t.apply(batch(20, 30, vec![delete(2)])).await;
    t.close_backfill(1).await.unwrap();
    t.close_backfill(1).await.unwrap();
    assert_eq!(t.find(CURRENT).await, [1]);
    let refused = t.chunk(1, 2, 10, vec![row(3, [1.0, 0.0])]).await;
    assert!(refused.unwrap_err().contains("not open"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_backfill_voids_an_older_and_chunks_count() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let rows = || vec![row(1, [1.0, 0.0])];
    assert!(t.chunk(1, 1, 10, rows()).await.is_err(), "unknown");
    t.open_backfill(1).await.unwrap();
    t.open_backfill(2).await.unwrap();
    assert!(t.open_backfill(1).await.is_err());
    assert!(t.chunk(1, 1, 10, rows()).await.is_err());
    assert!(
        t.chunk(2, 2, 10, rows()).await.is_err(),
        "chunk 1 is missing"
    );
    t.chunk(2, 1, 10, rows()).await.unwrap();
    t.nothing_else(20).await;
    assert_eq!(t.find(CURRENT).await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_spares_rows_of_a_backfill_that_was_taken_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.open_backfill(1).await.unwrap();
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    t.chunk(1, 1, 30, vec![row(2, [2.0, 0.0])]).await.unwrap();
    t.apply(batch(10, 20, vec![Change::Truncate])).await;
    assert_eq!(t.find(ALL_XIDS).await, [2]);
    t.chunk(1, 2, 15, vec![row(3, [3.0, 0.0])]).await.unwrap();
    assert_eq!(
        t.find(ALL_XIDS).await,
        [2],
        "the copy is older than the TRUNCATE"
    );
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.find(ALL_XIDS).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_row_is_fetched_as_it_stood_before_the_move() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    let before = |lsn| {
        t.node
            .storage
            .row_before(PARTITION, &key(1), end(lsn), None)
            .unwrap()
    };
    let value = Some(StoredVector::Value(vec![1.0, 0.0].into()));
    assert_eq!(before(20), value);
    t.apply(batch(10, 20, vec![delete(1)])).await;
    t.apply(batch(20, 30, vec![upsert(1, [3.0, 0.0])])).await;
    let moved_at = batch(10, 20, vec![delete(1)]).changes[0].position;
    let replayed = t
        .node
        .storage
        .row_before(PARTITION, &key(1), moved_at, None);
    assert_eq!(replayed.unwrap(), value);
}

fn mark(next_block: u32) -> BackfillMark {
    BackfillMark {
        file: TableFile {
            relfilenode: 1,
            membership: 2,
        },
        next_block: BlockNumber(next_block),
        first_stamp: end(10),
        last_stamp: end(10),
        rows: 2,
        snapshots: 1,
    }
}

/// The row's vector changed while the table was not published; the stream tells an UPDATE
/// that leaves it alone.
#[tokio::test(flavor = "multi_thread")]
async fn p2_a_vector_from_before_the_table_left_the_publication_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.open_published(1, 2, 5).await, Ok(None));
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    let rows = vec![row(2, [2.0, 0.0])];
    t.last_chunk(1, 1, 10, rows, Some(mark(7))).await.unwrap();
    assert_eq!(
        t.open_published(2, 2, 15).await,
        Ok(Some(mark(7))),
        "goes on"
    );
    t.apply(batch(10, 12, vec![unchanged(1)])).await;
    assert_eq!(t.replica().pending_keys(10), [], "nothing went unseen");

    assert_eq!(t.open_published(3, 3, 20).await, Ok(None), "all of it anew");
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.open_published(3, 3, 20).await, Ok(None));
    t.apply(batch(12, 30, vec![unchanged(1)])).await;
    assert_eq!(t.replica().pending_keys(10), [key(1)]);
    let old = t.chunk(3, 1, 15, vec![row(1, [9.0, 0.0])]).await;
    assert!(old.is_err(), "a snapshot from before it came back");
    t.chunk(3, 1, 25, vec![row(1, [9.0, 0.0])]).await.unwrap();
    let unswept = t.close_backfill(3).await.unwrap_err();
    assert!(unswept.contains("swept"), "{unswept}");
    t.sweep(3, 25).await.unwrap();
    t.close_backfill(3).await.unwrap();
    let stored = t
        .node
        .storage
        .row_before(PARTITION, &key(1), end(40), None)
        .unwrap();
    assert_eq!(stored, Some(StoredVector::Value(vec![9.0, 0.0].into())));
    assert_eq!(
        t.find(CURRENT).await,
        [1],
        "what the table has no more is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_mark_is_durable_with_its_chunk_and_a_later_backfill_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.open_backfill(1).await, Ok(None));
    let rows = vec![row(1, [1.0, 0.0])];
    t.last_chunk(1, 1, 10, rows, Some(mark(7))).await.unwrap();
    t.chunk(1, 2, 10, vec![row(2, [2.0, 0.0])]).await.unwrap();
    assert_eq!(t.open_backfill(1).await, Ok(Some(mark(7))), "still open");
    t.stop().await;

    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.open_backfill(2).await, Ok(Some(mark(7))));
    let late = t.last_chunk(1, 3, 10, vec![], Some(mark(9))).await;
    assert!(late.is_err(), "the earlier backfill marks nothing any more");
    // Chunks count anew, and one without rows marks as well.
    t.last_chunk(2, 1, 20, vec![], Some(mark(8))).await.unwrap();
    t.close_backfill(2).await.unwrap();
    assert_eq!(
        t.open_backfill(3).await,
        Ok(Some(mark(8))),
        "a crash between closing and its record loses nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_tombstones_outlive_the_attempt_under_which_they_fell() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.open_backfill(1).await.unwrap();
    t.apply(batch(0, 30, vec![delete(1)])).await;
    t.open_backfill(2).await.unwrap();
    // Under a snapshot that was exported before the removal committed.
    t.chunk(2, 1, 20, vec![row(1, [1.0, 0.0])]).await.unwrap();
    assert_eq!(t.find(CURRENT).await, []);
}
