#![allow(clippy::unwrap_used)]
//! What a replica says that it holds.

use super::digest::{Digest, RUN_ROWS};
use super::search::{PageError, PagingError};
use crate::testing::*;
use cluster_core::ids::*;
use cluster_core::map::ReplicaState;
use cluster_core::verify::{Piece, RangeDigest, RowDigest, Wanted};
use cluster_core::wal_position::Lsn;
use std::sync::Arc;
use std::time::Duration;

fn digest(min_lsn: Option<u64>, wanted: Wanted) -> Digest {
    Digest {
        epoch: LeaseEpoch(1),
        map_version: MapVersion(1),
        source: SourceId(1),
        asked_by: None,
        collection: CollectionId(2),
        partition: PARTITION,
        generation: Generation(1),
        min_lsn: min_lsn.map(Lsn),
        deadline: Duration::from_millis(300),
        wanted,
    }
}

fn runs(after: Option<u32>) -> Wanted {
    Wanted::Runs {
        after: after.map(key),
    }
}

fn of(n: u32) -> RowDigest {
    RowDigest::of(&key(n), Some(&[n as f32, 1.0]))
}

async fn ask(t: &TestNode, min_lsn: u64, wanted: Wanted) -> Piece {
    t.node.digest(digest(Some(min_lsn), wanted)).await.unwrap()
}

/// Keys 0 to `rows`, committed at 10.
async fn fill(t: &TestNode, rows: u32) {
    let changes = (0..rows).map(|n| upsert(n, [n as f32, 1.0])).collect();
    t.apply(batch(0, 10, changes)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_cover_every_row_once_and_go_on_behind_the_last_key() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let rows = RUN_ROWS as u32 * 2 + 5;
    fill(&t, rows).await;
    let piece = ask(&t, 10, runs(None)).await;
    assert_eq!(piece.at, Some(end(10)));
    assert!(piece.is_complete);
    let shape: Vec<_> = piece
        .runs
        .iter()
        .map(|r| (r.digest.rows, r.unsearchable))
        .collect();
    assert_eq!(shape, [(RUN_ROWS as u64, 0), (RUN_ROWS as u64, 0), (5, 0)]);
    let first: RangeDigest = (0..RUN_ROWS as u32).map(of).collect();
    assert_eq!(piece.runs[0].digest, first);
    assert_eq!(piece.runs[2].through, key(rows - 1));
    let rest = ask(&t, 10, runs(Some(RUN_ROWS as u32 * 2 - 1))).await;
    assert_eq!(rest.runs, piece.runs[2..]);
    assert!(ask(&t, 10, runs(Some(rows))).await.runs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_range_and_of_keys_bear_digest_and_position() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    fill(&t, 10).await;
    t.apply(batch(10, 20, vec![delete(4), unchanged(7), unchanged(99)]))
        .await;
    let range = Wanted::Rows {
        after: Some(key(2)),
        through: Some(key(7)),
    };
    let piece = ask(&t, 20, range).await;
    let keys: Vec<_> = piece.rows.iter().map(|(key, _)| number(key)).collect();
    assert_eq!(keys, [3, 5, 6, 7]);
    let keys = Wanted::Keys([1, 4, 7, 99].map(key).into());
    let rows = ask(&t, 20, keys).await.rows;
    let keys: Vec<_> = rows.iter().map(|(key, _)| number(key)).collect();
    assert_eq!(keys, [1, 7, 99]);
    assert_eq!((rows[0].1.digest, rows[1].1.digest), (of(1), of(7)));
    assert!(rows[0].1.position <= end(10) && rows[1].1.position > end(10));
    // Its vector is not known yet.
    assert_eq!(rows[2].1.digest, RowDigest::of(&key(99), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_before_the_position_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    fill(&t, 1).await;
    let refused = t
        .node
        .digest(digest(Some(20), runs(None)))
        .await
        .unwrap_err();
    let is_lagging = matches!(refused, PagingError::Page(PageError::Lagging(_)));
    assert!(is_lagging, "{refused:?}");
    let node = t.node.clone();
    let waiting = digest(Some(20), Wanted::Keys(vec![key(5)]));
    let waiting = tokio::spawn(async move { node.digest(waiting).await.unwrap() });
    t.apply(batch(10, 20, vec![upsert(5, [5.0, 1.0])])).await;
    assert_eq!(waiting.await.unwrap().rows[0].1.digest, of(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_replica_answers_as_what_the_map_has_it_for_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = TestNode::start(dir.path()).await;
    fill(&t, 1).await;
    for (version, state) in [(2, ReplicaState::Stale), (3, ReplicaState::Demoted)] {
        t.maps.send_replace(Arc::new(map_in(version, state)));
        let as_it_stands = t.node.digest(digest(None, runs(None))).await.unwrap();
        assert_eq!((as_it_stands.at, as_it_stands.runs.len()), (None, 1));
        t.node
            .digest(digest(Some(10), runs(None)))
            .await
            .unwrap_err();
    }
    t.maps
        .send_replace(Arc::new(map_in(4, ReplicaState::Serving)));
    t.node.digest(digest(Some(10), runs(None))).await.unwrap();
    t.node.digest(digest(None, runs(None))).await.unwrap_err();
    let other = Digest {
        generation: Generation(2),
        ..digest(Some(10), runs(None))
    };
    t.node.digest(other).await.unwrap_err();
    t.lose_lease();
    let refused = t
        .node
        .digest(digest(Some(10), runs(None)))
        .await
        .unwrap_err();
    assert!(matches!(refused, PagingError::Page(PageError::Stale(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_search_finds_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    fill(&t, 3).await;
    // On disk, behind the writer's back.
    let mut set = crate::storage::WriteSet::default();
    let row = t.node.storage.row(PARTITION, &key(1)).unwrap().unwrap();
    set.put_row(PARTITION, &key(77), &row);
    t.node.storage.commit(set).unwrap();
    let piece = ask(&t, 10, runs(None)).await;
    assert_eq!(
        (piece.runs[0].digest.rows, piece.runs[0].unsearchable),
        (4, 1)
    );
    let rows = ask(&t, 10, Wanted::Keys([1, 77].map(key).into()))
        .await
        .rows;
    let found: Vec<_> = rows.iter().map(|(_, row)| row.is_searchable).collect();
    assert_eq!(found, [true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_quarantines_and_is_no_digest() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    fill(&t, 3).await;
    t.node.storage.damage(PARTITION, &key(1));
    let refused = t
        .node
        .digest(digest(Some(10), runs(None)))
        .await
        .unwrap_err();
    assert!(matches!(refused, PagingError::Page(PageError::Corrupt(_))));
    assert!(t.replica().is_quarantined());
}
