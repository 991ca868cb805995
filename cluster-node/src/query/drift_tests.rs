//! Rows that drift away from where a partition's codes count from cost a search two walks.
//! The node counts these searches.
#![allow(clippy::unwrap_used)]

use super::search::Search;
use crate::config::Config;
use crate::testing::*;
use cluster_core::change::{Change, VectorColumn};
use std::path::Path;

/// From 32 on there are codes.
const DIMENSIONS: usize = 64;
const ROWS: u32 = 1_000;

/// The same for the same number, about `offset` in every dimension.
fn vector(n: u32, offset: f32) -> Vec<f32> {
    let mut state = u64::from(n) + 1;
    let mut unit = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as f32 / (1u64 << 31) as f32
    };
    (0..DIMENSIONS).map(|_| offset + 4.0 * unit()).collect()
}

fn upsert_at(n: u32, offset: f32) -> Change {
    Change::Upsert {
        key: key(n),
        vector: VectorColumn::Value(vector(n, offset).into()),
    }
}

async fn start(dir: &Path) -> TestNode {
    TestNode::start_as(dir, NODE, Config::default(), map_of(DIMENSIONS)).await
}

/// Ten searches for what lies there.
async fn search_at(t: &TestNode, offset: f32) {
    for n in 0..10 {
        let page = t.page(Search {
            vector: vector(10_000 + n, offset).into(),
            page_rows: 10,
            ..search()
        });
        assert_eq!(page.await.unwrap().hits.len(), 10);
    }
}

fn counted(t: &TestNode) -> u64 {
    t.node.metrics.searches_restarted.get()
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_that_codes_tell_nothing_are_counted_until_the_index_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let t = start(dir.path()).await;
    let fold = || t.replica().live().index().fold(usize::MAX);
    let near = (0..ROWS).map(|n| upsert_at(n, 0.0)).collect();
    t.apply(batch(0, 10, near)).await;
    fold();
    let far = |from| {
        (from..from + ROWS)
            .map(|n| upsert_at(n, 10_000.0))
            .collect()
    };
    t.apply(batch(10, 20, far(ROWS))).await;
    fold();
    search_at(&t, 0.0).await;
    assert_eq!(counted(&t), 0);
    search_at(&t, 10_000.0).await;
    let restarted = counted(&t);
    assert!((8..=10).contains(&restarted), "{restarted}");

    // Made anew, of rows that lie there from the beginning.
    let truncate = [Change::Truncate].into_iter();
    let all = truncate.chain(far(0)).collect();
    t.apply(batch(20, 30, all)).await;
    fold();
    search_at(&t, 10_000.0).await;
    assert_eq!(counted(&t), restarted);
    t.stop().await;
}
