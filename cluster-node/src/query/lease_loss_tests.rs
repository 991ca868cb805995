#![allow(clippy::unwrap_used)]
//! What a node answers once its lease has run out, by `lease_loss`.

use super::search::{PageError, Search, SearchError};
use crate::clock::boot_ms;
use crate::config::{Config, LeaseLoss};
use crate::testing::*;
use cluster_core::ids::*;
use cluster_core::map::ReplicaState;
use cluster_core::wal_position::Lsn;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A node with one row, committed at 10.
async fn filled(dir: &Path, lease_loss: LeaseLoss) -> TestNode {
    let config = Config {
        lease_loss,
        ..Config::default()
    };
    let t = TestNode::start_with(dir, config).await;
    t.apply(batch(0, 10, vec![upsert(1, [1.0, 0.0])])).await;
    t
}

fn accepting() -> Search {
    Search {
        accepts_stale: true,
        ..search()
    }
}

fn at(lsn: u64) -> Search {
    Search {
        min_lsn: Some(Lsn(lsn)),
        ..accepting()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_refuse_answers_estale_whatever_the_request_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = filled(dir.path(), LeaseLoss::Refuse).await;
    assert!(!t.page(accepting()).await.unwrap().is_stale);
    t.lose_lease();
    let refused = t.node.search(accepting()).await.unwrap_err();
    assert!(matches!(refused, SearchError::Stale(_)), "{refused}");
    // A position that is reached needs no lease.
    let page = t.page(at(10)).await.unwrap();
    assert_eq!((page.hits.len(), page.is_stale), (1, false));
    let refused = t.page(at(20)).await.unwrap_err();
    assert!(matches!(refused, PageError::Stale(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_serve_stale_answers_flagged_and_only_whom_that_serves() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = filled(dir.path(), LeaseLoss::ServeStale).await;
    assert!(!t.page(accepting()).await.unwrap().is_stale);
    t.lose_lease();
    let page = t.page(accepting()).await.unwrap();
    assert_eq!((page.hits.len(), page.is_stale), (1, true));
    assert_eq!(t.node.metrics.stale_pages.get(), 1);
    let refused = t.node.search(search()).await.unwrap_err();
    assert!(matches!(refused, SearchError::Stale(_)), "{refused}");
    // With a position: as without serve_stale.
    let page = t.page(at(10)).await.unwrap();
    assert_eq!((page.hits.len(), page.is_stale), (1, false));
    let refused = t.page(at(20)).await.unwrap_err();
    assert!(matches!(refused, PageError::Stale(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_serve_stale_is_no_leave_to_serve_what_the_map_took_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = filled(dir.path(), LeaseLoss::ServeStale).await;
    t.lose_lease();
    for state in [ReplicaState::Releasing, ReplicaState::Demoted] {
        let mut newer = map();
        newer.version = MapVersion(2);
        let partition = newer.partitions.get_mut(&PARTITION).unwrap();
        partition.replicas[0].state = state;
        t.maps.send_replace(Arc::new(newer));
        let refused = t.page(accepting()).await.unwrap_err();
        assert!(matches!(refused, PageError::Stale(_)), "{refused}");
    }
    let mut newer = map();
    newer.version = MapVersion(3);
    newer.partitions.clear();
    t.maps.send_replace(Arc::new(newer));
    let refused = t.page(accepting()).await.unwrap_err();
    assert!(matches!(refused, PageError::Stale(_)), "{refused}");
}

/// The page waits for the only thread while the lease runs out.
async fn while_the_lease_runs_out(t: &TestNode, search: Search) -> Result<bool, SearchError> {
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (go_on, gate) = std::sync::mpsc::channel::<()>();
    let node = t.node.clone();
    let blocking = tokio::spawn(async move {
        let block = move || {
            begun.send(()).unwrap();
            gate.recv().unwrap();
        };
        node.queries.pool.run(SourceId(1), block).await
    });
    has_begun.await.unwrap();
    t.node
        .lease
        .granted((LeaseEpoch(1), MapVersion(1)), boot_ms(), 1_000);
    let node = t.node.clone();
    let search = Search {
        deadline: Duration::from_secs(10),
        ..search
    };
    let searching = tokio::spawn(async move { node.search(search).await });
    while t.node.lease.is_held() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    go_on.send(()).unwrap();
    blocking.await.unwrap().unwrap();
    let mut pages = searching.await.unwrap()?;
    Ok(pages.pop().unwrap().1.unwrap().is_stale)
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_a_lease_that_runs_out_while_a_page_is_computed_counts_at_the_answer() {
    for (lease_loss, accepts_stale) in [
        (LeaseLoss::Refuse, true),
        (LeaseLoss::ServeStale, true),
        (LeaseLoss::ServeStale, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut t = filled(dir.path(), lease_loss).await;
        t.lose_lease();
        let one_thread = crate::config::SearchConfig {
            threads: 1,
            ..Default::default()
        };
        let node = Arc::get_mut(&mut t.node).unwrap();
        node.queries = super::Queries::new(&one_thread);
        let search = Search {
            accepts_stale,
            ..search()
        };
        let outcome = while_the_lease_runs_out(&t, search).await;
        match (lease_loss, accepts_stale) {
            (LeaseLoss::ServeStale, true) => assert!(outcome.unwrap()),
            _ => assert!(matches!(outcome, Err(SearchError::Stale(_)))),
        }
        let reached = while_the_lease_runs_out(&t, at(10)).await;
        assert!(!reached.unwrap(), "a reached position needs no lease");
    }
}
