//! Coordinators as their callers see them: elections, epochs, leases, maps.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod harness;

use cluster_core::lease::LeaseTerms;
use cluster_core::map::{HashRange, tiles_whole_space};
use harness::calls::*;
use harness::{Cluster, PATIENCE, status, within};
use proto::v1;
use std::time::{Duration, Instant};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leaders_successor_has_the_next_epoch_and_the_same_map() {
    let mut cluster = Cluster::start(3, LeaseTerms::default());
    let cluster_id = cluster.initialise().await;
    assert_eq!(
        cluster.initialise().await,
        cluster_id,
        "initialising again answers the same"
    );
    let client = cluster.client();
    let node = join_node(&client, "disk-1").await;
    assert_eq!(join_node(&client, "disk-1").await, node);
    let source = add_source(&client).await;
    let before = map(&client).await;
    let granted = lead!(client, renew_node_lease, renewal(node, "disk-1")).unwrap();
    assert_eq!(granted.epoch, before.epoch.0);
    let wrong_disk = lead!(client, renew_node_lease, renewal(node, "disk-2"));
    assert!(wrong_disk.unwrap_err().to_string().contains("disk-2"));

    let killed = cluster.leader().await;
    cluster.processes[killed].kill();

    // The next leader grants; it could not before its epoch was committed.
    let granted = lead!(client, renew_node_lease, renewal(node, "disk-1")).unwrap();
    assert_eq!(granted.epoch, before.epoch.0 + 1);
    let after = map(&client).await;
    assert_eq!(
        (after.epoch.0, after.version.0),
        (before.epoch.0 + 1, before.version.0 + 1)
    );
    let mut same = after.clone();
    (same.epoch, same.version) = before.stamp();
    assert_eq!(same, before, "nothing but the epoch changed");

    // The killed one returns as a follower and has the new map.
    cluster.processes[killed].start();
    let at_least = v1::GetMapRequest {
        epoch: after.epoch.0,
        version: after.version.0,
    };
    let address = &cluster.addresses()[killed];
    let give_up = Instant::now() + PATIENCE;
    let caught_up = loop {
        let mut coordinator = client.coordinator(address).unwrap();
        match within(coordinator.get_map(at_least)).await {
            Ok(map) => break map.into_inner(),
            Err(status) => assert!(Instant::now() < give_up, "{status}"),
        }
    };
    assert_eq!(caught_up.sources[0].source_id, source);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_its_quorum_renews_no_lease() {
    let mut cluster = Cluster::start(3, LeaseTerms::default());
    cluster.initialise().await;
    let client = cluster.client();
    let node = join_node(&client, "disk-1").await;
    let consumer = join_consumer(&client, "process-1").await;
    let leader = cluster.leader().await;
    let mut coordinator = client.coordinator(&cluster.addresses()[leader]).unwrap();
    within(coordinator.renew_node_lease(renewal(node, "disk-1")))
        .await
        .unwrap();

    for follower in (0..3).filter(|i| *i != leader) {
        cluster.processes[follower].kill();
    }
    let renew_consumer = v1::RenewConsumerLeaseRequest {
        consumer_id: consumer,
        ..Default::default()
    };
    for _ in 0..3 {
        let refused = within(coordinator.renew_node_lease(renewal(node, "disk-1"))).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
        let refused = within(coordinator.renew_consumer_lease(renew_consumer.clone())).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    }
    let secret =
        coordinator.get_source_credentials(v1::GetSourceCredentialsRequest { source_id: 1 });
    assert!(within(secret).await.is_err());
    // What it knows it still tells.
    within(coordinator.get_map(v1::GetMapRequest::default()))
        .await
        .unwrap();

    for follower in (0..3).filter(|i| *i != leader) {
        cluster.processes[follower].start();
    }
    lead!(client, renew_node_lease, renewal(node, "disk-1")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_silent_consumers_source_goes_to_a_living_one_after_its_lease() {
    let cluster = Cluster::start(1, short_leases());
    cluster.initialise().await;
    let client = cluster.client();
    let first = join_consumer(&client, "process-1").await;
    let source = add_source(&client).await;
    let renew = |consumer_id| v1::RenewConsumerLeaseRequest {
        consumer_id,
        ..Default::default()
    };
    let held_by = async |consumer| {
        let answer = lead!(client, renew_consumer_lease, renew(consumer)).unwrap();
        answer
            .assignments
            .iter()
            .map(|a| (a.source_id, a.consumer_epoch))
            .collect::<Vec<_>>()
    };
    let give_up = Instant::now() + PATIENCE;
    let mut sent = Instant::now();
    while held_by(first).await != [(source, 1)] {
        assert!(Instant::now() < give_up, "never assigned");
        sent = Instant::now();
    }
    sent = sent.max(Instant::now() - Duration::from_millis(1));

    let second = join_consumer(&client, "process-2").await;
    let taken = loop {
        let held = held_by(second).await;
        if !held.is_empty() {
            assert_eq!(held, [(source, 2)]);
            break Instant::now();
        }
        assert!(Instant::now() < give_up, "never handed over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    // `sent` is within a millisecond of the last renewal's answer, hence after
    // its arrival by no more than the call took.
    assert!(
        taken - sent >= Duration::from_millis(1_500),
        "handed over too early"
    );
    assert_eq!(held_by(first).await, []);

    let void = v1::CreateCollectionRequest {
        consumer_epoch: 1,
        spec: Some(spec(source)),
    };
    let refused = lead!(client, create_collection, void).unwrap_err();
    assert!(refused.to_string().contains("token 1"), "{refused}");
    let unknown = lead!(client, renew_consumer_lease, renew(99)).unwrap_err();
    assert!(unknown.to_string().contains("join again"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_process_that_joins_again_gets_other_tokens() {
    let cluster = Cluster::start(1, LeaseTerms::default());
    cluster.initialise().await;
    let client = cluster.client();
    let consumer = join_consumer(&client, "process-1").await;
    let source = add_source(&client).await;
    let renew = v1::RenewConsumerLeaseRequest {
        consumer_id: consumer,
        ..Default::default()
    };
    let held = async || {
        let answer = lead!(client, renew_consumer_lease, renew.clone()).unwrap();
        let held = answer.assignments.first();
        held.map(|a| (a.source_id, a.consumer_epoch))
    };
    let give_up = Instant::now() + PATIENCE;
    let before = loop {
        match held().await {
            Some((of, token)) if of == source => break token,
            _ => assert!(Instant::now() < give_up, "never assigned"),
        }
    };
    assert_eq!(join_consumer(&client, "process-1").await, consumer);
    let after = held().await;
    assert!(after > Some((source, before)), "{after:?} after {before}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_is_placed_once_there_are_nodes_and_survives_a_restart() {
    let mut cluster = Cluster::start(1, short_leases());
    cluster.initialise().await;
    let client = cluster.client();
    let address = cluster.addresses()[0].clone();
    let consumer = join_consumer(&client, "process-1").await;
    let source = add_source(&client).await;
    let renew = v1::RenewConsumerLeaseRequest {
        consumer_id: consumer,
        ..Default::default()
    };
    while lead!(client, renew_consumer_lease, renew.clone())
        .unwrap()
        .assignments
        .is_empty()
    {}

    let create = v1::CreateCollectionRequest {
        consumer_epoch: 1,
        spec: Some(spec(source)),
    };
    let mut coordinator = client.coordinator(&address).unwrap();
    let early = within(coordinator.create_collection(create.clone()))
        .await
        .unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
    assert!(early.message().contains("no node"), "{early}");

    let mut watched = coordinator
        .watch_map(v1::WatchMapRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut last = watched.message().await.unwrap().unwrap().version;
    for disk in ["disk-1", "disk-2", "disk-3"] {
        join_node(&client, disk).await;
    }
    let id = lead!(client, create_collection, create.clone())
        .unwrap()
        .collection_id;
    assert_eq!(
        lead!(client, create_collection, create.clone())
            .unwrap()
            .collection_id,
        id
    );
    let begin = v1::BeginBackfillRequest {
        consumer_epoch: 1,
        collection_id: id,
    };
    let backfill_id = lead!(client, begin_backfill, begin).unwrap().backfill_id;
    let finish = v1::FinishBackfillRequest {
        consumer_epoch: 1,
        collection_id: id,
        backfill_id,
        snapshot: Some(v1::BackfillSnapshot {
            xmax: 9,
            running: vec![8, 7],
            membership_oid: None,
        }),
    };
    lead!(client, finish_backfill, finish.clone()).unwrap();
    lead!(client, finish_backfill, finish).unwrap();

    let before = map(&client).await;
    let partitions = before.partitions.values();
    let ranges: Vec<HashRange> = partitions.clone().map(|p| p.range).collect();
    assert_eq!(ranges.len(), 6, "two per node");
    assert!(tiles_whole_space(ranges));
    assert!(partitions.clone().all(|p| p.replicas.len() == 2));
    while last < before.version.0 {
        let next = watched.message().await.unwrap().unwrap().version;
        assert!(next > last, "watched maps rise");
        last = next;
    }

    cluster.processes[0].kill();
    cluster.processes[0].start();
    let after = map(&client).await;
    assert_eq!(after.collections, before.collections);
    assert_eq!(after.partitions, before.partitions);
    assert_eq!(
        lead!(client, create_collection, create)
            .unwrap()
            .collection_id,
        id
    );
    assert_eq!(map(&client).await.epoch.0, before.epoch.0 + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_members_than_the_configured_are_refused_and_nothing_starts_by_itself() {
    let cluster = Cluster::start(1, LeaseTerms::default());
    let client = cluster.client();
    let address = &cluster.addresses()[0];
    let mut coordinator = client.coordinator(address).unwrap();
    let stranger = v1::initialise_request::Member {
        coordinator_id: 9,
        address: "127.0.0.1:9".to_owned(),
    };
    let request = v1::InitialiseRequest {
        cluster_id: "c".to_owned(),
        members: vec![stranger],
    };
    let refused = within(coordinator.initialise(request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = status(&client, address).await.unwrap();
    assert!(!status.is_initialised && status.leader_id == 0 && status.is_plaintext);

    let named = v1::InitialiseRequest {
        cluster_id: "mine".to_owned(),
        members: Vec::new(),
    };
    let answer = within(coordinator.initialise(named))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.cluster_id, "mine");
    let other = v1::InitialiseRequest {
        cluster_id: "other".to_owned(),
        members: Vec::new(),
    };
    let answer = within(coordinator.initialise(other))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.cluster_id, "mine");
}
