#![allow(clippy::unwrap_used)]
//! What a replica answers that the slot has passed.

use super::search::{PageError, Search};
use crate::testing::*;
use cluster_core::ids::*;
use cluster_core::map::ReplicaState;
use cluster_core::wal_position::Lsn;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A node with one row, committed at 10, whose replica is in a state.
async fn filled(dir: &Path, state: ReplicaState) -> TestNode {
    let t = TestNode::start(dir).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    let mut newer = map();
    newer.version = MapVersion(2);
    let partition = newer.partitions.get_mut(&PARTITION).unwrap();
    partition.replicas[0].state = state;
    t.maps.send_replace(Arc::new(newer));
    t
}

fn accepting() -> Search {
    Search {
        accepts_stale: true,
        ..search()
    }
}

fn at(lsn: u64, deadline: Duration) -> Search {
    Search {
        min_lsn: Some(Lsn(lsn)),
        deadline,
        ..search()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_stale_replica_answers_flagged_and_only_who_accepts_that() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path(), ReplicaState::Stale).await;
    let page = t.page(accepting()).await.unwrap();
    assert_eq!((page.hits.len(), page.is_stale), (1, true));
    assert_eq!(t.node.metrics.stale_pages.get(), 1);
    let refused = t.page(search()).await.unwrap_err();
    assert!(matches!(refused, PageError::Stale(_)), "{refused}");
    assert_eq!(t.node.metrics.stale_pages.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_stale_replica_answers_a_position_that_it_has_and_waits_for_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path(), ReplicaState::Stale).await;
    let patient = Duration::from_secs(20);
    let page = t.page(at(10, patient)).await.unwrap();
    assert_eq!((page.hits.len(), page.is_stale), (1, false));
    let began = Instant::now();
    let refused = t.page(at(20, patient)).await.unwrap_err();
    assert!(matches!(refused, PageError::Lagging(_)), "{refused}");
    assert!(refused.to_string().contains("reconciled"), "{refused}");
    assert!(began.elapsed() < patient / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_without_a_lease_a_stale_replica_answers_as_any_other_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = filled(dir.path(), ReplicaState::Stale).await;
    t.lose_lease();
    assert!(t.node.search(accepting()).await.is_err());
    let page = t.page(at(10, Duration::from_secs(1))).await.unwrap();
    assert!(!page.is_stale);
}
