//! The leader's duties towards replicas, as nodes and operators see them. Nodes
//! are played by the test: they renew, and say which map they answer by.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod harness;

use cluster_client::ClusterClient;
use harness::calls::*;
use harness::{Cluster, PATIENCE};
use proto::v1;
use std::time::{Duration, Instant};
use tonic::Code;

/// The map that a node answers by.
#[derive(Clone, Copy, PartialEq)]
enum Knows {
    Newest,
    Nothing,
}
use Knows::{Newest, Nothing};

struct Fixture {
    cluster: Cluster,
    client: ClusterClient,
    nodes: Vec<u64>,
}

fn disk(node: u64) -> String {
    format!("disk-{node}")
}

impl Fixture {
    /// Nodes and a ready collection: two partitions a node, two copies each.
    async fn start(nodes: u64) -> Self {
        let cluster = Cluster::start(1, short_leases());
        cluster.initialise().await;
        let client = cluster.client();
        let mut fixture = Self {
            cluster,
            client,
            nodes: Vec::new(),
        };
        for _ in 0..nodes {
            fixture.join().await;
        }
        fixture.make_collection().await;
        fixture
    }

    async fn join(&mut self) -> u64 {
        let id = self.nodes.len() as u64 + 1;
        assert_eq!(join_node(&self.client, &disk(id)).await, id);
        self.nodes.push(id);
        id
    }

    async fn make_collection(&self) {
        let consumer_id = join_consumer(&self.client, "process-1").await;
        let source = add_source(&self.client).await;
        let renew = v1::RenewConsumerLeaseRequest {
            consumer_id,
            ..Default::default()
        };
        let give_up = Instant::now() + PATIENCE;
        while lead!(self.client, renew_consumer_lease, renew.clone())
            .unwrap()
            .assignments
            .is_empty()
        {
            assert!(Instant::now() < give_up, "never assigned");
        }
        let create = v1::CreateCollectionRequest {
            consumer_epoch: 1,
            spec: Some(spec(source)),
        };
        let created = lead!(self.client, create_collection, create).unwrap();
        let collection_id = created.collection_id;
        let begin = v1::BeginBackfillRequest {
            consumer_epoch: 1,
            collection_id,
        };
        let begun = lead!(self.client, begin_backfill, begin).unwrap();
        let finish = v1::FinishBackfillRequest {
            consumer_epoch: 1,
            collection_id,
            backfill_id: begun.backfill_id,
            snapshot: Some(v1::BackfillSnapshot::default()),
        };
        lead!(self.client, finish_backfill, finish).unwrap();
    }

    async fn status(&self) -> v1::GetStatusResponse {
        lead!(self.client, get_status, v1::GetStatusRequest {}).unwrap()
    }

    /// A node's renewal; the moment before it was sent.
    async fn renew(&self, node: u64, knows: Knows) -> Instant {
        let (epoch, map_version) = match knows {
            Nothing => (0, 0),
            Newest => {
                let map = self.status().await.map.unwrap();
                (map.epoch, map.version)
            }
        };
        let report = v1::NodeReport {
            epoch,
            map_version,
            ..v1::NodeReport::default()
        };
        let mut request = renewal(node, &disk(node));
        request.report = Some(report);
        let sent = Instant::now();
        lead!(self.client, renew_node_lease, request).unwrap();
        sent
    }

    /// Lets nodes renew until something is seen.
    async fn until(
        &self,
        nodes: &[(u64, Knows)],
        what: &str,
        is_seen: impl Fn(&v1::GetStatusResponse) -> bool,
    ) -> v1::GetStatusResponse {
        let give_up = Instant::now() + PATIENCE;
        loop {
            for (node, knows) in nodes {
                self.renew(*node, *knows).await;
            }
            let status = self.status().await;
            if is_seen(&status) {
                return status;
            }
            assert!(
                Instant::now() < give_up,
                "not seen in time: {what}: {status:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets nodes renew for a while, in which something never happens.
    async fn never(
        &self,
        nodes: &[(u64, Knows)],
        lasting: Duration,
        is_seen: impl Fn(&v1::GetStatusResponse) -> bool,
    ) {
        let end = Instant::now() + lasting;
        while Instant::now() < end {
            for (node, knows) in nodes {
                self.renew(*node, *knows).await;
            }
            let status = self.status().await;
            assert!(!is_seen(&status), "{status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The consumer counts every learner.
    async fn promote_all(&self, status: &v1::GetStatusResponse) {
        for running in &status.moves {
            let planned = running.r#move.unwrap();
            let request = v1::ReplicaChangeRequest {
                consumer_epoch: 1,
                partition_id: planned.partition_id,
                node_id: planned.to_node_id,
                generation: running.generation,
                reason: String::new(),
            };
            lead!(self.client, promote_replica, request).unwrap();
        }
    }

    async fn drain(&self, node_id: u64) {
        let request = v1::SetDrainingRequest {
            node_id,
            is_draining: true,
        };
        lead!(self.client, set_draining, request).unwrap();
    }

    async fn set_mode(&self, mode: v1::RebalanceMode) {
        let mode = mode.into();
        lead!(self.client, set_rebalance, v1::SetRebalanceRequest { mode }).unwrap();
    }
}

fn replicas_in(status: &v1::GetStatusResponse, node: u64, state: v1::ReplicaState) -> usize {
    let map = status.map.as_ref().unwrap();
    let replicas = map.partitions.iter().flat_map(|p| &p.replicas);
    let found = replicas.filter(|r| r.node_id == node && r.state() == state);
    found.count()
}

fn holds(status: &v1::GetStatusResponse, node: u64) -> bool {
    let map = status.map.as_ref().unwrap();
    let mut replicas = map.partitions.iter().flat_map(|p| &p.replicas);
    replicas.any(|r| r.node_id == node)
}

const RELEASING: v1::ReplicaState = v1::ReplicaState::Releasing;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_drained_nodes_replicas_leave_once_it_knows() {
    let fixture = Fixture::start(3).await;
    fixture.drain(1).await;
    let deaf = [(1, Nothing), (2, Newest), (3, Newest)];
    let all = [(1, Newest), (2, Newest), (3, Newest)];
    let two = fixture.until(&deaf, "two moves", |s| s.moves.len() == 2);
    let two = two.await;
    assert!(two.moves.iter().all(|m| {
        let planned = m.r#move.unwrap();
        planned.reason() == v1::MoveReason::Drain && planned.from_node_id == Some(1)
    }));
    fixture.promote_all(&two).await;
    let released = |s: &v1::GetStatusResponse| replicas_in(s, 1, RELEASING) < 2;
    let wait_out = Duration::from_millis(short_leases().wait_out_ms());
    fixture.never(&deaf, wait_out * 2, released).await;
    // One that knows the map lets go at once, and the next two follow.
    let give_up = Instant::now() + PATIENCE;
    loop {
        let status = fixture.until(&all, "a move, or the end", |s| {
            !s.moves.is_empty() || !holds(s, 1)
        });
        let status = status.await;
        let learning = |n| replicas_in(&status, n, v1::ReplicaState::Learner);
        assert!(learning(2) + learning(3) <= 2, "throttled");
        if !holds(&status, 1) {
            break;
        }
        assert!(Instant::now() < give_up, "never empty: {status:?}");
        fixture.promote_all(&status).await;
    }
    let remove = v1::RemoveNodeRequest { node_id: 1 };
    lead!(fixture.client, remove_node, remove).unwrap();
    let refused = lead!(fixture.client, renew_node_lease, renewal(1, "disk-1"));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("removed"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_a_silent_nodes_release_waits_its_lease_out() {
    let fixture = Fixture::start(3).await;
    fixture.drain(1).await;
    let all = [(1, Nothing), (2, Newest), (3, Newest)];
    let begun = fixture.until(&all, "moves", |s| s.moves.len() == 2).await;
    let last = fixture.renew(1, Nothing).await;
    fixture.promote_all(&begun).await;
    let others = &all[1..];
    let is_released = |s: &v1::GetStatusResponse| replicas_in(s, 1, RELEASING) == 0;
    fixture.until(others, "the release", is_released).await;
    let waited = last.elapsed();
    let wait_out = Duration::from_millis(short_leases().wait_out_ms());
    assert!(waited > wait_out, "released after {waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused_starts_nothing_until_it_is_told() {
    let fixture = Fixture::start(3).await;
    fixture.set_mode(v1::RebalanceMode::Paused).await;
    fixture.drain(1).await;
    let all = [(1, Newest), (2, Newest), (3, Newest)];
    let begins = |s: &v1::GetStatusResponse| !s.moves.is_empty();
    fixture.never(&all, Duration::from_secs(1), begins).await;
    fixture.set_mode(v1::RebalanceMode::Manual).await;
    fixture.until(&all, "a drain", begins).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_replica_learns_anew_once_its_node_renews() {
    let fixture = Fixture::start(3).await;
    let map = fixture.status().await.map.unwrap();
    let on_two = |p: &&v1::Partition| p.replicas.iter().any(|r| r.node_id == 2);
    let partition = map.partitions.iter().find(on_two).unwrap();
    let replica = partition.replicas.iter().find(|r| r.node_id == 2).unwrap();
    let request = v1::ReplicaChangeRequest {
        consumer_epoch: 1,
        partition_id: partition.partition_id,
        node_id: 2,
        generation: replica.generation,
        reason: String::new(),
    };
    lead!(fixture.client, demote_replica, request).unwrap();
    let others = [(1, Newest), (3, Newest)];
    let begins = |s: &v1::GetStatusResponse| !s.moves.is_empty();
    fixture
        .never(&others, Duration::from_millis(500), begins)
        .await;
    let all = [(1, Newest), (2, Newest), (3, Newest)];
    let runs = |s: &v1::GetStatusResponse| s.moves.iter().any(|m| m.running_ms > 0);
    let status = fixture.until(&all, "the return", runs).await;
    let expected = v1::PlannedMove {
        partition_id: partition.partition_id,
        to_node_id: 2,
        from_node_id: None,
        reason: v1::MoveReason::Repair.into(),
    };
    assert_eq!(status.moves[0].r#move, Some(expected));
    assert!(status.moves[0].generation > replica.generation);
    fixture.promote_all(&status).await;
    let done = fixture.status().await;
    assert!(done.moves.is_empty());
    assert_eq!(replicas_in(&done, 2, v1::ReplicaState::Serving), 4);
}

/// An operator who drains a node asks the leader where its replicas go, and what
/// is in the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_where_a_draining_nodes_replicas_go() {
    let fixture = Fixture::start(3).await;
    fixture.set_mode(v1::RebalanceMode::Paused).await;
    for node in &fixture.nodes {
        fixture.renew(*node, Newest).await;
    }
    fixture.drain(1).await;
    let plan = lead!(fixture.client, plan_moves, v1::PlanMovesRequest {}).unwrap();
    assert_eq!(plan.conflicts, Vec::<String>::new());
    let held = replicas_in(&fixture.status().await, 1, v1::ReplicaState::Serving);
    assert_eq!((plan.moves.len(), held), (4, 4));
    for planned in &plan.moves {
        let found = (planned.from_node_id, planned.reason());
        assert_eq!(found, (Some(1), v1::MoveReason::Drain));
    }

    fixture.drain(2).await;
    let plan = lead!(fixture.client, plan_moves, v1::PlanMovesRequest {}).unwrap();
    let said = plan.conflicts.join("; ");
    assert!(said.contains("or lower replication_factor"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_applies_a_plan_and_a_drain_of_its_target_ends_it() {
    let mut fixture = Fixture::start(3).await;
    fixture.set_mode(v1::RebalanceMode::Manual).await;
    let joined = fixture.join().await;
    let all = [(1, Newest), (2, Newest), (3, Newest), (joined, Newest)];
    let begins = |s: &v1::GetStatusResponse| !s.moves.is_empty();
    fixture
        .never(&all, Duration::from_millis(500), begins)
        .await;
    let plan = lead!(fixture.client, plan_moves, v1::PlanMovesRequest {}).unwrap();
    assert_eq!(plan.conflicts, Vec::<String>::new());
    assert_eq!(plan.moves.len(), 3, "a fourth of twelve replicas");
    let balances = |m: &v1::PlannedMove| m.reason() == v1::MoveReason::Balance;
    assert!(plan.moves.iter().all(|m| m.to_node_id == joined));
    assert!(plan.moves.iter().all(balances), "{:?}", plan.moves);

    let twice = v1::ApplyMovesRequest {
        moves: vec![plan.moves[0], plan.moves[0]],
    };
    let refused = lead!(fixture.client, apply_moves, twice).unwrap_err();
    assert!(refused.to_string().contains("name it once"), "{refused}");
    let apply = v1::ApplyMovesRequest { moves: plan.moves };
    lead!(fixture.client, apply_moves, apply).unwrap();
    let begun = fixture.until(&all, "what was asked", |s| s.moves.len() == 2);
    assert_eq!(begun.await.planned.len(), 1, "one waits for room");

    fixture.drain(joined).await;
    let is_over = |s: &v1::GetStatusResponse| s.moves.is_empty() && s.planned.is_empty();
    let over = fixture.until(&all, "the end of it", is_over).await;
    assert!(!holds(&over, joined));
    fixture.drain(1).await;
    fixture.drain(2).await;
    fixture.drain(3).await;
    let create = v1::CreateCollectionRequest {
        consumer_epoch: 1,
        spec: Some(v1::CollectionSpec {
            index_oid: 51,
            ..spec(1)
        }),
    };
    let address = fixture.cluster.addresses()[0].clone();
    let mut coordinator = fixture.client.coordinator(&address).unwrap();
    let refused = coordinator.create_collection(create).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("draining"), "{refused}");
}
