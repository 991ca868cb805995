//! Without coordinators: maps come from nodes, and leases run out.
#![allow(clippy::unwrap_used)]

mod stand_in;

use cluster_client::{
    ClientConfig, ClientError, ClusterClient, Consistency, ScanErrorKind, ScanSpec,
};
use cluster_core::ids::*;
use cluster_core::map::ReplicaState;
use cluster_core::scan::StaleReason;
use futures::future::join_all;
use proto::v1::GetStatusRequest;
use stand_in::{all_rows, client_of, cluster, read_all, spec, tell_all};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn at(version: u64) -> (LeaseEpoch, MapVersion) {
    (LeaseEpoch(1), MapVersion(version))
}

#[tokio::test]
async fn a_fresh_client_that_knows_only_a_node_finds_the_cluster() {
    let cluster = cluster().await;
    let fresh = client_of(&cluster.nodes[1].address);
    assert_eq!(fresh.map().version, MapVersion(0));
    fresh.refresh_map(at(1)).await.unwrap();
    assert_eq!(fresh.metrics().maps_from_nodes.get(), 1);
    assert_eq!(read_all(&fresh, |_| {}).await, all_rows());
}

#[tokio::test]
async fn the_leader_is_sought_where_a_nodes_map_says_it_is() {
    let cluster = cluster().await;
    let coordinator = "127.0.0.1:2".to_owned();
    cluster.nodes[0].map.lock().coordinators = vec![coordinator.clone()];
    let fresh = ClusterClient::new(ClientConfig {
        coordinators: vec![cluster.nodes[0].address.clone()],
        call_timeout: Duration::from_millis(300),
        ..ClientConfig::default()
    });
    let asking =
        fresh.leader(|mut leader| async move { leader.get_status(GetStatusRequest {}).await });
    // Not "unimplemented", which a node says to what only coordinators know.
    let Err(ClientError::Unavailable { tried, last }) = asking.await else {
        panic!("nobody listens at {coordinator}");
    };
    assert!(tried.contains(&coordinator), "{tried}: {last}");
    assert!(fresh.metrics().leader_retries.get() > 0);
}

#[tokio::test]
async fn the_map_is_followed_through_nodes_while_no_coordinator_answers() {
    let cluster = cluster().await;
    let client = &cluster.client;
    assert!(!client.is_in_contact());
    let stop = CancellationToken::new();
    let watching = client.spawn_map_watch(stop.clone());
    tell_all(&cluster.nodes, 7);
    let mut maps = client.watch_map();
    let followed = maps.wait_for(|map| map.version == MapVersion(7));
    tokio::time::timeout(Duration::from_secs(5), followed)
        .await
        .unwrap()
        .unwrap();
    assert!(client.is_in_contact());
    // Nothing newer is an answer too.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(client.is_in_contact());
    let polls = client.metrics().map_polls.get();
    assert!((3..=8).contains(&polls), "{polls} polls");
    for node in &cluster.nodes {
        node.hangs.store(true, Ordering::Relaxed);
    }
    let started = Instant::now();
    while client.is_in_contact() {
        assert!(started.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    watching.await.unwrap();
}

#[tokio::test]
async fn p10_however_many_need_a_newer_map_one_fetch_brings_it() {
    let cluster = cluster().await;
    tell_all(&cluster.nodes, 2);
    let refreshes = (0..100).map(|_| cluster.client.refresh_map(at(2)));
    for map in join_all(refreshes).await {
        assert_eq!(map.unwrap().version, MapVersion(2));
    }
    let asked = cluster.nodes.iter();
    let asked: u64 = asked.map(|n| n.map_requests.load(Ordering::Relaxed)).sum();
    assert!((1..=3).contains(&asked), "{asked} requests");
    assert_eq!(cluster.client.metrics().map_fetches.get(), 1);
}

#[tokio::test]
async fn a_wish_for_more_than_there_is_holds_up_nobody() {
    let cluster = cluster().await;
    let greedy = cluster.client.clone();
    let wishing = tokio::spawn(async move { greedy.refresh_map(at(99)).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    tell_all(&cluster.nodes, 2);
    let started = Instant::now();
    cluster.client.refresh_map(at(2)).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(1_500),
        "{:?}",
        started.elapsed()
    );
    wishing.abort();
}

#[tokio::test]
async fn coordinators_that_hang_do_not_keep_the_map_from_coming() {
    let cluster = cluster().await;
    // It accepts, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client_of(&silent.local_addr().unwrap().to_string());
    assert!(client.offer_map((*cluster.client.map()).clone()));
    tell_all(&cluster.nodes, 2);
    let started = Instant::now();
    client.refresh_map(at(2)).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_millis(600),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn p5_a_node_without_a_lease_is_passed_over_for_one_that_has_it() {
    let cluster = cluster().await;
    cluster.nodes[0].is_lapsed.store(true, Ordering::Relaxed);
    cluster.nodes[0].serves_stale.store(true, Ordering::Relaxed);
    for _ in 0..5 {
        assert_eq!(read_all(&cluster.client, |_| {}).await, all_rows());
    }
    let metrics = cluster.client.metrics();
    assert_eq!(metrics.pages_stale.get(), 0);
    assert!(metrics.failed_estale.of(StaleReason::Lease).get() > 0);
    assert!(metrics.other_replica.get() > 0);
}

#[tokio::test]
async fn when_all_leases_are_over_serve_stale_answers_and_says_so() {
    let cluster = cluster().await;
    for node in &cluster.nodes {
        node.is_lapsed.store(true, Ordering::Relaxed);
        node.serves_stale.store(true, Ordering::Relaxed);
    }
    let scan = cluster.client.open_scan(spec(Duration::from_secs(5)));
    let (scan, page) = scan.await.unwrap();
    assert_eq!(page.stats.stale_partitions, 4);
    scan.close();
    assert_eq!(read_all(&cluster.client, |_| {}).await, all_rows());
    assert!(cluster.client.metrics().pages_stale.get() > 0);
}

#[tokio::test]
async fn p8_what_a_stale_replica_answers_is_flagged_whatever_its_node_knows() {
    let cluster = cluster().await;
    let mut map = (*cluster.client.map()).clone();
    map.version = map.version.next();
    for partition in map.partitions.values_mut() {
        let replicas = partition.replicas.iter_mut();
        replicas.for_each(|replica| replica.state = ReplicaState::Stale);
    }
    assert!(cluster.client.offer_map(map));
    let open = |consistency| {
        let spec = ScanSpec {
            consistency,
            ..spec(Duration::from_secs(5))
        };
        cluster.client.open_scan(spec)
    };
    let (scan, page) = open(Consistency::Eventual).await.unwrap();
    assert_eq!(page.stats.stale_partitions, 4);
    scan.close();
    // A position that was reached is whole.
    let (scan, page) = open(Consistency::Position).await.unwrap();
    assert_eq!(page.stats.stale_partitions, 0);
    scan.close();
}

#[tokio::test]
async fn p11_when_all_leases_are_over_and_refuse_is_set_the_error_comes_soon() {
    let cluster = cluster().await;
    for node in &cluster.nodes {
        node.is_lapsed.store(true, Ordering::Relaxed);
    }
    let started = Instant::now();
    let scan = cluster.client.open_scan(spec(Duration::from_secs(10)));
    let error = scan.await.err().unwrap();
    assert_eq!(error.kind, ScanErrorKind::Estale);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    let metrics = cluster.client.metrics();
    let by_lease = metrics.failed_estale.of(StaleReason::Lease).get();
    assert!(by_lease > 0);
    assert_eq!(by_lease, metrics.failed_estale.get());
    assert_eq!(metrics.scans_failed.get(), 1);
    assert_eq!(metrics.scans_past_deadline.get(), 0);
}
