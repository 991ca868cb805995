#![allow(clippy::unwrap_used)]
//! A learner fed by hand: what it logs, when it begins anew, when it is live.

use super::housekeeping::persist_watermarks;
use super::job::CopyStep;
use crate::config::{ApplyConfig, Config};
use crate::query::search::{PageError, PageOf, Search};
use crate::storage::{CopiedRecord, PartitionMeta};
use crate::testing::*;
use cluster_core::apply::{FormerVersion, StoredRow, StoredVector};
use cluster_core::change::Change;
use cluster_core::ids::*;
use cluster_core::learner::CopyKey;
use cluster_core::map::ReplicaState;
use cluster_core::wal_position::WalPosition;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

async fn learner(dir: &Path) -> TestNode {
    learner_with(dir, Config::default()).await
}

async fn learner_with(dir: &Path, config: Config) -> TestNode {
    TestNode::start_as(dir, NODE, config, map_in(1, ReplicaState::Learner)).await
}

fn standing(t: &TestNode) -> (WalPosition, WalPosition, bool) {
    let standing = t.replica().standing();
    let watermarks = standing.watermarks;
    (watermarks.applied, watermarks.durable, standing.is_learning)
}

fn learning(durable: WalPosition) -> (WalPosition, WalPosition, bool) {
    (WalPosition::ZERO, durable, true)
}

fn begin(t: &TestNode, watermark: u64) -> CopyStep {
    CopyStep::Begin {
        watermark: end(watermark),
        meta: t.node.storage.meta(PARTITION).unwrap().unwrap(),
        rows_total: 2,
    }
}

/// The rows of a peer, each with the position that decided it.
fn rows(rows: &[(u32, f32, u64)], high: u64) -> CopyStep {
    let suffix = |n: u32| {
        let bytes = [&[3], key(n).as_bytes()].concat();
        CopyKey(bytes.into())
    };
    let record = |&(n, x, at): &(u32, f32, u64)| {
        let row = StoredRow {
            position: batch(0, at, vec![delete(n)]).changes[0].position,
            xid_high: at,
            vector: StoredVector::Value(vec![x, 0.0].into()),
        };
        CopiedRecord::Row(key(n), row)
    };
    CopyStep::Records {
        records: rows.iter().map(record).collect(),
        first: suffix(rows[0].0),
        last: suffix(rows[rows.len() - 1].0),
        high: end(high),
        bytes: 100,
    }
}

/// The map lets it serve.
fn promote(t: &TestNode) {
    t.maps
        .send_replace(Arc::new(map_in(9, ReplicaState::Serving)));
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_a_learner_logs_without_a_gap_durably_and_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let t = learner(dir.path()).await;
    assert_eq!(standing(&t), learning(WalPosition::ZERO));
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    assert_eq!(t.gap().unwrap().previous, WalPosition::ZERO);
    t.attach(end(10)).await;
    assert_eq!(t.gap(), None);
    t.apply(batch(10, 20, vec![upsert(1, [1.0, 0.0])])).await;
    t.nothing_else(30).await;
    assert_eq!(standing(&t), learning(end(20)), "not on disk yet");
    persist_watermarks(&t.node.replicas, &t.node.storage);
    assert_eq!(standing(&t), learning(end(30)));
    t.apply(batch(0, 20, vec![upsert(1, [9.0, 0.0])])).await;
    t.stop().await;
    let t = learner(dir.path()).await;
    assert_eq!(standing(&t), learning(end(30)));
    t.nothing_else(90).await;
    persist_watermarks(&t.node.replicas, &t.node.storage);
    assert_eq!(standing(&t), learning(end(30)), "no stream has attached it");
    t.apply(batch(40, 50, vec![delete(1)])).await;
    let gap = t.gap().unwrap();
    assert_eq!((gap.watermark, gap.previous), (end(30), end(40)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_goes_live_with_its_peers_rows_and_what_followed() {
    let dir = tempfile::tempdir().unwrap();
    let t = learner(dir.path()).await;
    t.attach(end(10)).await;
    // The peer saw 20 before the row was read, and not 30.
    let twenty = vec![upsert(1, [2.0, 0.0]), delete(3)];
    t.apply(batch(10, 20, twenty)).await;
    t.copy(begin(&t, 20)).await.unwrap();
    t.copy(rows(&[(1, 2.0, 20), (2, 5.0, 5)], 40))
        .await
        .unwrap();
    t.apply(batch(20, 30, vec![delete(2), upsert(4, [4.0, 0.0])]))
        .await;
    t.copy(CopyStep::End).await.unwrap();
    t.idle().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        standing(&t),
        learning(end(30)),
        "a copied part may hold what happened up to 40"
    );
    let refused = t.page(search()).await.unwrap_err();
    assert!(matches!(refused, PageError::Stale(_)), "{refused}");
    promote(&t);
    let refused = t.page(search()).await.unwrap_err();
    assert_eq!(refused, PageError::Stale("the replica has not caught up"));
    t.nothing_else(40).await;
    t.until_live().await;
    assert_eq!(standing(&t), (end(40), end(40), false));
    assert_eq!(t.find(CURRENT).await, [1, 4]);
    assert_eq!(t.find(ALL_XIDS).await, [1, 4, 2], "P1: 2 ended at 30");
    assert_eq!(t.node.storage.learner(PARTITION).unwrap(), None);
    t.apply(batch(40, 50, vec![delete(4)])).await;
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(standing(&t), (end(50), end(50), false));
    assert_eq!(t.find(CURRENT).await, [1]);
    assert_eq!(t.node.storage.measure_log(PARTITION).unwrap().entries, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_a_lower_attachment_goes_on_and_a_higher_one_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let t = learner(dir.path()).await;
    t.attach(end(10)).await;
    t.copy(begin(&t, 15)).await.unwrap();
    t.copy(rows(&[(1, 1.0, 5)], 15)).await.unwrap();
    t.apply(batch(10, 20, vec![upsert(2, [2.0, 0.0])])).await;
    t.attach(end(8)).await;
    t.attach(end(20)).await;
    assert_eq!(standing(&t), learning(end(20)));
    assert_eq!(t.records().len(), 1);
    let before = t.replica().copy_wanted().unwrap();
    assert!(!before.after.0.is_empty(), "the copy goes on where it was");
    t.attach(end(21)).await;
    assert_eq!(standing(&t), learning(end(21)));
    assert_eq!(t.records(), []);
    assert_eq!(t.node.storage.measure_log(PARTITION).unwrap().entries, 0);
    let after = t.replica().copy_wanted().unwrap();
    assert_eq!((after.at_least, after.after), (end(21), CopyKey::default()));
    // What the copy before brings is void.
    let late = t.ask(|reply| super::job::Job::Copy {
        run: before.run,
        step: rows(&[(7, 7.0, 7)], 15),
        reply,
    });
    assert!(late.await.unwrap_err().contains("superseded"));
    t.stop().await;
    let t = learner(dir.path()).await;
    assert_eq!(standing(&t), learning(end(21)), "durable before it is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_learner_that_missed_something_learns_anew_and_answers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let t = learner(dir.path()).await;
    t.attach(end(10)).await;
    t.copy(begin(&t, 10)).await.unwrap();
    t.copy(rows(&[(1, 1.0, 5)], 10)).await.unwrap();
    t.copy(CopyStep::End).await.unwrap();
    t.until_live().await;
    t.attach(end(10)).await;
    assert_eq!(
        standing(&t),
        (end(10), end(10), false),
        "nothing is missing"
    );
    t.attach(end(30)).await;
    assert_eq!(standing(&t), learning(end(30)));
    promote(&t);
    assert!(t.page(search()).await.is_err());
    t.copy(begin(&t, 30)).await.unwrap();
    t.copy(rows(&[(2, 2.0, 25)], 30)).await.unwrap();
    t.copy(CopyStep::End).await.unwrap();
    t.until_live().await;
    assert_eq!(t.find(ALL_XIDS).await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_a_log_over_its_limit_begins_anew_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let apply = ApplyConfig {
        learner_log_bytes_max: 1_000,
        ..ApplyConfig::default()
    };
    let config = Config {
        apply,
        ..Config::default()
    };
    let t = learner_with(dir.path(), config).await;
    t.attach(end(10)).await;
    t.copy(begin(&t, 10)).await.unwrap();
    t.copy(rows(&[(1, 1.0, 5)], 10)).await.unwrap();
    for n in 1..10 {
        let changes = (0..3).map(|n| upsert(n, [1.0, 0.0])).collect();
        t.apply(batch(n * 10, n * 10 + 10, changes)).await;
    }
    assert_eq!(standing(&t), learning(WalPosition::ZERO));
    assert!(t.gap().is_some(), "the consumer must attach it again");
    assert_eq!(t.records(), []);
    let problem = t.node.report().partitions.remove(0).problem;
    assert!(problem.contains("learner_log_bytes_max"), "{problem}");
    t.attach(end(100)).await;
    assert_eq!(standing(&t), learning(end(100)));
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_truncate_in_the_log_ends_what_was_copied_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let t = learner(dir.path()).await;
    t.attach(end(10)).await;
    t.copy(begin(&t, 10)).await.unwrap();
    t.copy(rows(&[(1, 1.0, 5)], 10)).await.unwrap();
    let changes = vec![Change::Truncate, upsert(2, [2.0, 0.0])];
    t.apply(batch(10, 20, changes)).await;
    t.apply(batch(20, 30, vec![upsert(3, [3.0, 0.0])])).await;
    // Read behind the TRUNCATE: one of its rows, and not the other.
    t.copy(rows(&[(3, 3.0, 30)], 30)).await.unwrap();
    t.copy(CopyStep::End).await.unwrap();
    t.until_live().await;
    promote(&t);
    assert_eq!(t.find(ALL_XIDS).await, [2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_a_truncate_spares_former_versions_that_were_copied_from_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let t = learner(dir.path()).await;
    t.attach(end(10)).await;
    t.apply(batch(10, 20, vec![Change::Truncate])).await;
    t.apply(batch(20, 25, vec![upsert(3, [3.0, 0.0])])).await;
    t.apply(batch(25, 30, vec![upsert(3, [4.0, 0.0])])).await;
    // A backfill's snapshot was taken behind the TRUNCATE: rows of its are in no
    // log, and survive.
    let mut meta = t.node.storage.meta(PARTITION).unwrap().unwrap();
    meta.stamp_high = end(35);
    let header = CopyStep::Begin {
        watermark: end(30),
        meta,
        rows_total: 2,
    };
    t.copy(header).await.unwrap();
    t.copy(rows(&[(3, 4.0, 30), (9, 9.0, 35)], 30))
        .await
        .unwrap();
    let ended = batch(25, 30, vec![delete(3)]).changes[0].position;
    let former = FormerVersion {
        ended,
        ended_xid: 30,
        vector: vec![3.0, 0.0].into(),
    };
    let last = CopyKey([&[5], key(3).as_bytes()].concat().into());
    let formers = CopyStep::Records {
        records: vec![CopiedRecord::Former(key(3), former)],
        first: last.clone(),
        last,
        high: end(30),
        bytes: 100,
    };
    t.copy(formers).await.unwrap();
    t.copy(CopyStep::End).await.unwrap();
    t.until_live().await;
    promote(&t);
    assert_eq!(t.find(CURRENT).await, [3, 9]);
    assert_eq!(t.find(ALL_XIDS).await, [3, 3, 9]);
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.find(ALL_XIDS).await, [3, 3, 9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_takes_no_backfill_and_no_peer_of_another_kind() {
    let dir = tempfile::tempdir().unwrap();
    let t = learner(dir.path()).await;
    let refused = t.open_backfill(1).await.unwrap_err();
    assert!(refused.contains("still learning"), "{refused}");
    t.attach(end(10)).await;
    let meta = t.node.storage.meta(PARTITION).unwrap().unwrap();
    let header = |meta| CopyStep::Begin {
        watermark: end(10),
        meta,
        rows_total: 0,
    };
    let other = PartitionMeta {
        dimensions: 3,
        ..meta.clone()
    };
    assert!(t.copy(header(other)).await.is_err());
    let open = PartitionMeta {
        open_backfill: Some(crate::storage::OpenBackfill { last_chunk: 0 }),
        ..meta
    };
    assert!(t.copy(header(open)).await.is_err());
    assert!(t.copy(rows(&[(1, 1.0, 5)], 10)).await.is_err(), "no header");
    assert!(t.copy(CopyStep::End).await.is_err());
    assert!(t.copy(begin(&t, 9)).await.unwrap_err().contains("below"));
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_a_replica_that_gives_its_place_away_or_was_demoted_answers_estale() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    for (version, state) in [(2, ReplicaState::Releasing), (3, ReplicaState::Demoted)] {
        t.maps.send_replace(Arc::new(map_in(version, state)));
        let refused = t.page(search()).await.unwrap_err();
        assert!(
            matches!(refused, PageError::Stale(_)),
            "{state:?}: {refused}"
        );
        crate::assignment::reconcile(&t.node).await;
        assert_eq!(t.replica().rows(), 1, "its data is kept");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_by_a_newer_map_waits_for_it_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let t = learner(dir.path()).await;
    t.attach(end(10)).await;
    t.copy(begin(&t, 10)).await.unwrap();
    t.copy(rows(&[(1, 1.0, 5)], 10)).await.unwrap();
    t.copy(CopyStep::End).await.unwrap();
    t.until_live().await;
    let newer = Search {
        map_version: MapVersion(9),
        deadline: Duration::from_secs(5),
        partitions: vec![PageOf {
            partition: PARTITION,
            generation: Generation(1),
            token: 0,
        }],
        ..search()
    };
    let started = std::time::Instant::now();
    let refused = t.page(newer.clone()).await.unwrap_err();
    assert!(matches!(refused, PageError::Stale(_)), "{refused}");
    let waited = started.elapsed();
    assert!(waited >= Duration::from_millis(200) && waited < Duration::from_secs(2));
    let arriving = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        promote(&t);
    };
    let (page, ()) = tokio::join!(t.page(newer), arriving);
    assert_eq!(page.unwrap().hits.len(), 1);
}
