//! Coordinators come, go, and pass the lead on, while the cluster works.
#![allow(clippy::unwrap_used)]

mod harness;

use cluster_client::{ClientConfig, ClientError, ClusterClient};
use cluster_core::lease::LeaseTerms;
use harness::{Cluster, PATIENCE, status};
use proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Changes of the membership take longer than a commit.
fn patient(cluster: &Cluster) -> ClusterClient {
    ClusterClient::new(ClientConfig {
        coordinators: cluster.addresses(),
        call_timeout: PATIENCE,
        coordinator_attempt_timeout: PATIENCE,
        ..ClientConfig::default()
    })
}

async fn add(client: &ClusterClient, id: u64, address: &str) -> Result<(), ClientError> {
    let request = v1::AddCoordinatorRequest {
        coordinator_id: id,
        address: address.to_owned(),
    };
    let call = client.leader(|mut c| {
        let request = request.clone();
        async move { c.add_coordinator(request).await }
    });
    call.await.map(drop)
}

async fn remove(client: &ClusterClient, id: u64) -> Result<(), ClientError> {
    let request = v1::RemoveCoordinatorRequest { coordinator_id: id };
    let call = client.leader(|mut c| async move { c.remove_coordinator(request).await });
    call.await.map(drop)
}

async fn transfer(
    client: &ClusterClient,
    id: u64,
) -> Result<v1::TransferLeaderResponse, ClientError> {
    let request = v1::TransferLeaderRequest { coordinator_id: id };
    client
        .leader(|mut c| async move { c.transfer_leader(request).await })
        .await
}

/// Why it was refused, rather than never answered.
fn refusal<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> String {
    match outcome.unwrap_err() {
        ClientError::Refused(status) => status.message().to_owned(),
        other => panic!("not refused: {other}"),
    }
}

async fn leader_status(cluster: &Cluster) -> v1::GetStatusResponse {
    let leader = cluster.leader().await;
    let address = &cluster.addresses()[leader];
    status(&cluster.client(), address).await.unwrap()
}

/// Ids with a vote, as the leader knows them, and the addresses in its map.
async fn voters(cluster: &Cluster) -> (Vec<u64>, Vec<String>) {
    let seen = leader_status(cluster).await;
    let voters = seen.coordinators.iter().filter(|c| !c.is_learner);
    let ids = voters.map(|c| c.coordinator_id).collect();
    (ids, seen.map.unwrap().coordinators)
}

/// Between two joins: a cluster takes 1024 nodes, which a fast disk reaches within a test.
const WORK_PAUSE: Duration = Duration::from_millis(50);

/// Joins nodes, one after the other, and renews the lease of the first.
struct Work {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: JoinHandle<u64>,
}

impl Work {
    fn start(cluster: &Cluster) -> Self {
        let client = cluster.client();
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            let mut joined = 0;
            while !stopped.load(Ordering::Acquire) {
                let node = join(&client, &format!("disk-{joined}")).await;
                joined += 1;
                assert_eq!(node, joined, "each is joined once");
                renew(&client, 1, "disk-0").await.unwrap();
                counted.store(joined, Ordering::Release);
                tokio::time::sleep(WORK_PAUSE).await;
            }
            joined
        });
        Self { stop, done, task }
    }

    /// Waits until some more was done from here on.
    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Acquire);
        let give_up = Instant::now() + PATIENCE;
        while self.done.load(Ordering::Acquire) < before + 3 {
            assert!(!self.task.is_finished(), "the work has failed");
            assert!(Instant::now() < give_up, "nothing is committed any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap()
    }
}

async fn join(client: &ClusterClient, disk: &str) -> u64 {
    let request = v1::JoinNodeRequest {
        disk_uuid: disk.to_owned(),
        node_id: None,
        address: format!("{disk}:7501"),
        zone: String::new(),
    };
    let joined = client
        .leader(|mut c| {
            let request = request.clone();
            async move { c.join_node(request).await }
        })
        .await;
    joined.unwrap().node_id
}

async fn renew(
    client: &ClusterClient,
    node_id: u64,
    disk: &str,
) -> Result<v1::RenewNodeLeaseResponse, ClientError> {
    let request = v1::RenewNodeLeaseRequest {
        node_id,
        disk_uuid: disk.to_owned(),
        report: None,
    };
    client
        .leader(|mut c| {
            let request = request.clone();
            async move { c.renew_node_lease(request).await }
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fourth_comes_and_the_leader_goes_while_proposals_go_on() {
    let mut cluster = Cluster::start(3, LeaseTerms::default());
    cluster.initialise().await;
    let client = patient(&cluster);
    let work = Work::start(&cluster);
    work.goes_on().await;

    // It waits to be added, and makes no cluster of its own.
    let fourth = cluster.start_stranger(4);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let waiting = status(&client, &fourth).await.unwrap();
    assert!(!waiting.is_initialised && waiting.leader_id == 0 && waiting.term == 0);
    assert!(waiting.coordinators.is_empty());

    add(&client, 4, &fourth).await.unwrap();
    add(&client, 4, &fourth).await.unwrap();
    let (ids, addresses) = voters(&cluster).await;
    assert_eq!(ids, [1, 2, 3, 4]);
    assert_eq!(addresses, cluster.addresses());
    work.goes_on().await;
    // It has what was committed before it came.
    let caught_up = status(&client, &fourth).await.unwrap();
    assert!(caught_up.map.unwrap().nodes.len() >= 3);

    // The leader itself goes: the lead first.
    let leader = leader_status(&cluster).await.coordinator_id;
    remove(&client, leader).await.unwrap();
    remove(&client, leader).await.unwrap();
    let removed = cluster.address_of(leader);
    let (ids, addresses) = voters(&cluster).await;
    let left: Vec<u64> = [1, 2, 3, 4]
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    assert_eq!(ids, left);
    assert!(!addresses.contains(&removed), "{addresses:?}");
    work.goes_on().await;

    // With another of the old ones down, the fourth makes the majority.
    let old = left.iter().find(|id| **id != 4).unwrap();
    let position = cluster.addresses();
    let old = cluster.address_of(*old);
    let position = position.iter().position(|a| *a == old).unwrap();
    cluster.processes[position].kill();
    work.goes_on().await;
    assert!(work.end().await >= 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_transferred_the_epoch_rises_and_leases_go_on() {
    let cluster = Cluster::start(3, LeaseTerms::default());
    cluster.initialise().await;
    let client = patient(&cluster);
    join(&client, "disk-0").await;
    let work = Work::start(&cluster);
    let before = leader_status(&cluster).await;
    let epoch = renew(&client, 1, "disk-0").await.unwrap().epoch;

    let to = 1 + before.coordinator_id % 3;
    let begun = Instant::now();
    let answer = transfer(&client, to).await.unwrap();
    assert_eq!((answer.leader_id, answer.epoch), (to, epoch + 1));
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(leader_status(&cluster).await.coordinator_id, to);
    let renewed = renew(&client, 1, "disk-0").await.unwrap();
    assert_eq!(renewed.epoch, epoch + 1);
    // Asked again, the one that leads goes on leading.
    let again = transfer(&client, to).await.unwrap();
    assert_eq!((again.leader_id, again.epoch), (to, epoch + 1));
    work.goes_on().await;
    work.end().await;

    let nobody = refusal(transfer(&client, 9).await);
    assert!(nobody.contains("does not vote"), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_has_voted_is_not_given_to_an_empty_disk() {
    let mut cluster = Cluster::start(2, LeaseTerms::default());
    cluster.initialise().await;
    let client = patient(&cluster);
    let third = cluster.start_stranger(3);
    add(&client, 3, &third).await.unwrap();

    // Its own disk keeps its id, another address does not get it.
    let elsewhere = cluster.start_stranger(3);
    let refused = refusal(add(&client, 3, &elsewhere).await);
    assert!(refused.contains("as coordinator 4"), "{refused}");

    remove(&client, 3).await.unwrap();
    for address in [&third, &elsewhere] {
        let refused = refusal(add(&client, 3, address).await);
        assert!(refused.contains("4 or above"), "{refused}");
    }
    // A disk that has belonged to a cluster is none for a new id either.
    let imposter = refusal(add(&client, 4, &third).await);
    assert!(imposter.contains("coordinator 3 answers"), "{imposter}");
    let fifth = cluster.start_stranger(5);
    add(&client, 5, &fifth).await.unwrap();
    assert_eq!(voters(&cluster).await.0, [1, 2, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_coordinator_is_not_removed_and_nobody_is_added_who_is_not_there() {
    let mut cluster = Cluster::start(1, LeaseTerms::default());
    cluster.initialise().await;
    let client = patient(&cluster);
    let last = refusal(remove(&client, 1).await);
    assert!(last.contains("the last one"), "{last}");
    let stranger = refusal(remove(&client, 7).await);
    assert!(stranger.contains("there is no coordinator 7"), "{stranger}");
    let absent = refusal(add(&client, 2, "127.0.0.1:9").await);
    assert!(absent.contains("start it there first"), "{absent}");
    assert_eq!(voters(&cluster).await.0, [1]);

    // From one to two and back to the other one.
    let second = cluster.start_stranger(2);
    add(&client, 2, &second).await.unwrap();
    remove(&client, 1).await.unwrap();
    let client = ClusterClient::new(ClientConfig {
        coordinators: vec![second],
        call_timeout: PATIENCE,
        ..ClientConfig::default()
    });
    join(&client, "disk-0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_on_an_emptied_disk_has_no_vote() {
    let mut cluster = Cluster::start(3, LeaseTerms::default());
    cluster.initialise().await;
    let client = patient(&cluster);
    join(&client, "disk-0").await;
    let leader = cluster.leader().await;
    let followers: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    let (emptied, other) = (followers[0], followers[1]);
    cluster.restart_on_an_empty_disk(emptied);
    renew(&client, 1, "disk-0").await.unwrap();
    cluster.processes[other].kill();

    // One of three that remembers its votes: nothing is committed.
    let hasty = ClusterClient::new(ClientConfig {
        coordinators: cluster.addresses(),
        call_timeout: Duration::from_secs(4),
        ..ClientConfig::default()
    });
    let outcome = renew(&hasty, 1, "disk-0").await;
    assert!(outcome.is_err(), "{outcome:?}");
    let seen = status(&client, &cluster.addresses()[emptied]).await;
    assert_eq!(seen.unwrap().term, 0, "it was asked for nothing");

    // It takes part again as what it is: a new one.
    cluster.processes[other].start();
    renew(&client, 1, "disk-0").await.unwrap();
    remove(&client, emptied as u64 + 1).await.unwrap();
    let fourth = cluster.start_stranger(4);
    add(&client, 4, &fourth).await.unwrap();
    assert_eq!(voters(&cluster).await.0.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_coordinator_is_removed_that_the_majority_afterwards_needs() {
    let mut cluster = Cluster::start(3, LeaseTerms::default());
    cluster.initialise().await;
    let client = patient(&cluster);
    let leader = cluster.leader().await;
    let followers: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    cluster.processes[followers[0]].kill();
    let (dead, alive) = (followers[0] as u64 + 1, followers[1] as u64 + 1);
    let refused = refusal(remove(&client, alive).await);
    assert!(refused.contains("a majority must answer"), "{refused}");
    join(&client, "disk-0").await;
    // The dead one may go.
    remove(&client, dead).await.unwrap();
    assert_eq!(voters(&cluster).await.0.len(), 2);
    join(&client, "disk-1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_coordinator_sends_its_watchers_away() {
    let cluster = Cluster::start(3, LeaseTerms::default());
    cluster.initialise().await;
    let client = patient(&cluster);
    let leader = leader_status(&cluster).await.coordinator_id;
    let follower = 1 + leader % 3;
    let address = cluster.address_of(follower);
    let mut coordinator = client.coordinator(&address).unwrap();
    let watching = coordinator.watch_map(v1::WatchMapRequest {}).await;
    let mut maps = watching.unwrap().into_inner();
    remove(&client, follower).await.unwrap();
    let ended = async { while let Ok(Some(_)) = maps.message().await {} };
    tokio::time::timeout(PATIENCE, ended)
        .await
        .expect("the stream of a coordinator that has left ends");
    let again = coordinator.watch_map(v1::WatchMapRequest {}).await;
    assert!(again.unwrap_err().message().contains("has left"));
    // It does not campaign for what it is no part of.
    let term = leader_status(&cluster).await.term;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let left = status(&client, &address).await.unwrap();
    assert_eq!(left.term, term);
    assert_eq!(leader_status(&cluster).await.term, term);
}
