#![allow(clippy::unwrap_used)]
use crate::config::Config;
use crate::testing::*;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn p10_a_full_node_refuses_bulk_work_holds_the_stream_and_answers_searches() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    t.open_backfill(1).await.unwrap();
    let rows = || vec![row(2, [2.0, 0.0])];
    t.node.memory.limit_to(1 << 20);
    let refused = t.chunk(1, 1, 5, rows()).await.unwrap_err();
    assert!(refused.contains("memory is full"), "{refused}");
    let later = t.replica();
    let more = batch(10, 20, vec![upsert(3, [3.0, 0.0])]);
    later.apply(more, t.gaps.clone(), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(t.find(CURRENT).await, [1], "committed, and it waits");
    t.node.memory.limit_to(u64::MAX);
    t.idle().await;
    assert_eq!(t.find(CURRENT).await, [1, 3], "nothing is lost by waiting");
    assert!(t.node.metrics.memory_wait_ms.get() > 0);
    t.chunk(1, 1, 5, rows()).await.unwrap();
    assert_eq!(t.find(CURRENT).await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_what_takes_no_memory_passes_a_full_node() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let rows = (1..=3).map(|n| upsert(n, [n as f32, 0.0])).collect();
    t.apply(batch(0, 10, rows)).await;
    t.node.memory.limit_to(1 << 20);
    t.apply(batch(10, 20, vec![delete(2)])).await;
    t.nothing_else(30).await;
    assert_eq!(t.find(CURRENT).await, [1, 3]);
    assert_eq!(t.replica().progress.applied(), end(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_a_replica_that_waits_for_memory_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.node.memory.limit_to(1 << 20);
    let change = batch(0, 10, vec![upsert(1, [1.0, 0.0])]);
    let replica = t.replica();
    replica.apply(change, t.gaps.clone(), None).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), t.stop())
        .await
        .expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_a_node_that_starts_without_room_quarantines_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    t.stop().await;
    let small = Config {
        memory_limit_bytes: 1 << 20,
        ..Config::default()
    };
    let t = TestNode::start_with(dir.path(), small).await;
    let problem = t.replica().problem().unwrap();
    assert!(problem.contains("memory is full"), "{problem}");
    t.stop().await;
    let t = TestNode::start(dir.path()).await;
    assert_eq!(t.replica().problem(), None);
    assert_eq!(t.find(CURRENT).await, [1], "the disk has it all");
}
