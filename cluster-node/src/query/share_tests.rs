#![allow(clippy::unwrap_used)]
//! How much each of several partitions looks for.

use super::search::Search;
use crate::testing::*;
use cluster_core::ids::*;
use cluster_core::map::HashRange;
use std::sync::Arc;

/// Distances that a first page takes, where the partition is one of so many.
async fn distances_of_one_in(t: &TestNode, partitions: u32) -> usize {
    let mut newer = map();
    newer.version = MapVersion(2);
    let partition = newer.partitions.get_mut(&PARTITION).unwrap();
    partition.range = HashRange::tile(partitions)[0];
    t.maps.send_replace(Arc::new(newer));
    let search = Search {
        ef: 200,
        page_rows: 10,
        ..search()
    };
    let page = t.page(search).await.unwrap();
    assert_eq!(page.hits.len(), 10);
    assert_eq!(number(&page.hits[0].0), 0);
    page.distances
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_of_many_looks_for_its_part_of_ef() {
    let dir = tempfile::tempdir().unwrap();
    let t = TestNode::start(dir.path()).await;
    let on_a_line = |n: u32| upsert(n, [n as f32, 0.0]);
    t.apply(batch(0, 10, (0..2_000).map(on_a_line).collect()))
        .await;
    t.replica().live().index().fold(usize::MAX);
    let alone = distances_of_one_in(&t, 1).await;
    let of_four = distances_of_one_in(&t, 4).await;
    let of_many = distances_of_one_in(&t, 64).await;
    // 200, 72 and 10 in sight; the way there is as long.
    assert!(of_four * 3 < alone * 2, "{of_four} of four, {alone} alone");
    assert!(
        of_many * 3 < of_four * 2,
        "{of_many} of many, {of_four} of four"
    );
}
