//! Back pressure has a name: who waits for folding, with how long a tail, is told while it
//! waits, and nothing is lost by it.
#![allow(clippy::unwrap_used)]

use super::housekeeping::refresh_gauges;
use crate::config::Config;
use crate::testing::*;
use cluster_core::change::Change;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const TAIL_ROWS_MAX: usize = 100;

async fn start(dir: &Path) -> TestNode {
    let mut config = Config::default();
    config.apply.tail_rows_max = TAIL_ROWS_MAX;
    // One batch a commit: each waits for itself.
    config.apply.commit_changes_max = 1;
    TestNode::start_with(dir, config).await
}

fn rows(from: u32, to: u32) -> Vec<Change> {
    (from..to).map(|n| upsert(n, [n as f32, 1.0])).collect()
}

/// What the node reports that its replica waits for.
fn waits_for(t: &TestNode) -> String {
    t.node.report().partitions.remove(0).waits_for
}

fn waiting_gauge(t: &TestNode) -> i64 {
    refresh_gauges(&t.node.replicas, &t.node.metrics);
    t.node.metrics.waiting_for_folding.get()
}

async fn queue(t: &TestNode, batch: cluster_core::change::Batch) {
    let replica = t.replica();
    replica.apply(batch, t.gaps.clone(), None).await.unwrap();
}

/// Until the writer has come to what was queued.
async fn until_it_waits(t: &TestNode) {
    for _ in 0..2_000 {
        if !waits_for(t).is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("nothing waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_changes_that_wait_for_a_full_tail_are_told_with_the_reason_until_it_is_folded() {
    let dir = tempfile::tempdir().unwrap();
    let t = start(dir.path()).await;
    t.apply(batch(0, 10, rows(0, 150))).await;
    assert_eq!((waits_for(&t).as_str(), waiting_gauge(&t)), ("", 0));
    queue(&t, batch(10, 20, rows(150, 200))).await;
    until_it_waits(&t).await;
    let said = waits_for(&t);
    let reason = "waits for folding: its tail holds 150 rows, of at most 100 (apply.tail_rows_max)";
    assert!(said.starts_with(reason), "{said}");
    assert!(said.contains("fold_threads"), "what to do: {said}");
    assert_eq!(waiting_gauge(&t), 1);
    assert_eq!(t.find(CURRENT).await.len(), 150, "searches are answered");

    let fold = |rows| t.replica().live().index().fold(rows);
    fold(55);
    t.idle().await;
    // The tail is at its limit again, and who comes next waits: that is the same wait.
    assert_eq!(t.replica().live().index().tail_len(), 145);
    assert!(waits_for(&t).contains("145 rows, of at most 100"));
    fold(usize::MAX);
    assert_eq!((waits_for(&t).as_str(), waiting_gauge(&t)), ("", 0));
    assert_eq!(t.find(CURRENT).await.len(), 200);
    assert!(t.node.metrics.tail_wait_ms.get() > 0);
    t.stop().await;
}

/// What recovery put into the tail is more than is configured, and does not push back.
#[tokio::test(flavor = "multi_thread")]
async fn p8_the_limit_of_a_recovered_tail_is_told_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let t = start(dir.path()).await;
    t.apply(batch(0, 10, rows(0, 150))).await;
    t.stop().await;
    let t = start(dir.path()).await;
    assert_eq!(t.replica().live().index().tail_len(), 150);
    t.apply(batch(10, 20, rows(150, 1_350))).await;
    assert_eq!(waits_for(&t), "");
    queue(&t, batch(20, 30, rows(1_350, 1_360))).await;
    until_it_waits(&t).await;
    let said = waits_for(&t);
    let reason = "waits for folding: its tail holds 1350 rows, of at most 1150, the 150 that are \
                  left of its recovery and 1000 more; it goes on";
    assert!(said.starts_with(reason), "{said}");
    t.replica().live().index().fold(usize::MAX);
    t.idle().await;
    assert_eq!(waits_for(&t), "");
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_backfill_that_waits_for_a_full_tail_is_told_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let t = start(dir.path()).await;
    t.nothing_else(10).await;
    t.open_backfill(1).await.unwrap();
    let chunk = |from: u32, to: u32| (from..to).map(|n| row(n, [n as f32, 1.0])).collect();
    t.chunk(1, 1, 5, chunk(0, 150)).await.unwrap();
    assert_eq!(waits_for(&t), "");
    let copied = t.chunk(1, 2, 5, chunk(150, 160));
    let freed = async {
        until_it_waits(&t).await;
        t.replica().live().index().fold(usize::MAX);
    };
    let (copied, ()) = tokio::join!(copied, freed);
    copied.unwrap();
    assert_eq!(waits_for(&t), "");
    assert_eq!(t.find(CURRENT).await.len(), 160);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_node_that_is_flooded_faster_than_it_folds_says_so_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let t = start(dir.path()).await;
    let stop = CancellationToken::new();
    crate::spawn_workers(&t.node, &stop).unwrap();
    let (batches, size) = (20, 200);
    let mut said = BTreeSet::new();
    for n in 0..batches {
        let from = n * size;
        let to = u64::from(n + 1) * 10;
        queue(&t, batch(to - 10, to, rows(from, from + size))).await;
        said.insert(waits_for(&t));
    }
    while !t.replica().is_idle() {
        said.insert(waits_for(&t));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let told = said.iter().filter(|said| !said.is_empty());
    assert!(told.count() > 0, "{said:?}");
    while t.replica().live().index().tail_len() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((waits_for(&t).as_str(), waiting_gauge(&t)), ("", 0));
    let page = t.page(crate::query::search::Search {
        page_rows: 4_096,
        ..search()
    });
    let found: BTreeSet<u32> = (page.await.unwrap().hits.iter())
        .map(|(key, _)| number(key))
        .collect();
    assert_eq!(found, (0..batches * size).collect());
    stop.cancel();
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_replica_waits_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let t = start(dir.path()).await;
    t.apply(batch(0, 10, rows(0, 150))).await;
    queue(&t, batch(10, 20, rows(150, 200))).await;
    until_it_waits(&t).await;
    t.replica().quarantine("broken".to_owned());
    t.idle().await;
    assert_eq!((waits_for(&t).as_str(), waiting_gauge(&t)), ("", 0));
    t.stop().await;
}
