//! Scans over loopback gRPC against nodes that lie down, hang, or know a newer map.
#![allow(clippy::unwrap_used)]

mod stand_in;

use cluster_client::ScanErrorKind;
use cluster_core::ids::*;
use cluster_core::scan::StaleReason;
use stand_in::{all_rows, cluster, read_all, spec};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[tokio::test]
async fn p7_a_scan_gives_every_row_of_every_partition_once_in_order() {
    let cluster = cluster().await;
    assert_eq!(read_all(&cluster.client, |_| {}).await, all_rows());
    let started = Instant::now();
    for _ in 0..200 {
        cluster
            .client
            .open_scan(spec(Duration::from_secs(1)))
            .await
            .unwrap();
    }
    println!("first page: {:?}", started.elapsed() / 200);
}

#[tokio::test]
async fn a_node_that_falls_silent_in_the_middle_of_a_scan_costs_no_row() {
    let cluster = cluster().await;
    for dead in 0..3 {
        let rows = read_all(&cluster.client, |page| {
            if page == 1 {
                cluster.nodes[dead].hangs.store(true, Ordering::Relaxed);
            }
        });
        assert_eq!(rows.await, all_rows());
        cluster.nodes[dead].hangs.store(false, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_node_that_is_down_costs_no_row() {
    let cluster = cluster().await;
    cluster.servers[1].abort();
    for _ in 0..10 {
        assert_eq!(read_all(&cluster.client, |_| {}).await, all_rows());
    }
}

#[tokio::test]
async fn a_silent_node_is_hedged_long_before_its_attempt_ends() {
    let cluster = cluster().await;
    cluster.nodes[0].hangs.store(true, Ordering::Relaxed);
    let started = Instant::now();
    for _ in 0..5 {
        cluster
            .client
            .open_scan(spec(Duration::from_secs(5)))
            .await
            .unwrap();
    }
    assert!(
        started.elapsed() < Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn estale_brings_the_newer_map_from_a_node_when_no_coordinator_answers() {
    let cluster = cluster().await;
    for node in &cluster.nodes {
        let mut map = node.map.lock();
        map.version = MapVersion(2);
        for partition in map.partitions.values_mut() {
            for replica in &mut partition.replicas {
                replica.generation = Generation(2);
            }
        }
    }
    assert_eq!(read_all(&cluster.client, |_| {}).await, all_rows());
    assert_eq!(cluster.client.map().version, MapVersion(2));
    let estale = &cluster.client.metrics().failed_estale;
    assert!(estale.get() > 0);
    assert_eq!(estale.of(StaleReason::OlderMap).get(), estale.get());
}

#[tokio::test]
async fn p7_when_both_replicas_are_gone_the_error_says_which_and_comes_in_time() {
    let cluster = cluster().await;
    cluster.nodes[0].hangs.store(true, Ordering::Relaxed);
    cluster.servers[1].abort();
    let started = Instant::now();
    let outcome = cluster
        .client
        .open_scan(spec(Duration::from_millis(700)))
        .await;
    let error = outcome.err().unwrap();
    assert_eq!(error.kind, ScanErrorKind::Unavailable);
    assert!(error.message.contains("2 of 4 partitions"), "{error}");
    assert!(
        started.elapsed() < Duration::from_millis(900),
        "{:?}",
        started.elapsed()
    );
}
