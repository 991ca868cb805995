//! A partition's copies come and go: one script per case.

use super::tests::{Cluster, TOKEN};
use super::{Command, MoveReason, PlannedMove, Response};
use crate::ids::*;
use crate::map::ReplicaState::{self, *};

const P: PartitionId = PartitionId(1);

fn start(cluster: &mut Cluster, to: u64, from: Option<u64>) -> Response {
    cluster.apply(Command::StartMove {
        partition: P,
        to: NodeId(to),
        from: from.map(NodeId),
        reason: MoveReason::Operator,
    })
}

fn generation(cluster: &Cluster, node: u64) -> Generation {
    let partition = &cluster.state.map().partitions[&P];
    let replica = partition.replica_on(NodeId(node));
    replica.expect("a replica").generation
}

fn promote(cluster: &mut Cluster, node: u64) -> Response {
    let generation = generation(cluster, node);
    cluster.apply(Command::PromoteReplica {
        token: TOKEN,
        partition: P,
        node: NodeId(node),
        generation,
        waits_out: true,
    })
}

fn demote(cluster: &mut Cluster, node: u64, min_required: u32) -> Response {
    let generation = generation(cluster, node);
    cluster.apply(Command::DemoteReplica {
        token: TOKEN,
        partition: P,
        node: NodeId(node),
        generation,
        min_required,
    })
}

fn release(cluster: &mut Cluster, node: u64, generation: Generation) -> Response {
    cluster.apply(Command::FinishRelease {
        partition: P,
        node: NodeId(node),
        generation,
    })
}

fn states(cluster: &Cluster) -> Vec<(u64, ReplicaState)> {
    let partition = &cluster.state.map().partitions[&P];
    let mut states: Vec<_> = partition
        .replicas
        .iter()
        .map(|r| (r.node.0, r.state))
        .collect();
    states.sort_by_key(|(node, _)| *node);
    states
}

fn is_refused(response: &Response) -> bool {
    matches!(response, Response::Refused(_))
}

#[test]
fn a_move_adds_a_learner_then_serves_then_releases_the_old() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    assert_eq!(start(&mut cluster, 2, Some(1)), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (2, Learner)]);
    let old = generation(&cluster, 1);
    assert!(generation(&cluster, 2) > old);
    assert_eq!(promote(&mut cluster, 2), Response::Done);
    assert_eq!(states(&cluster), [(1, Releasing), (2, Serving)]);
    assert_eq!(promote(&mut cluster, 2), Response::Done);
    assert!(cluster.state.moves().contains_key(&P));
    assert_eq!(release(&mut cluster, 1, old), Response::Done);
    assert_eq!(states(&cluster), [(2, Serving)]);
    assert!(cluster.state.moves().is_empty());
    let version = cluster.state.map().version;
    assert_eq!(release(&mut cluster, 1, old), Response::Done);
    assert_eq!(
        cluster.state.map().version,
        version,
        "once is as good as twice"
    );
}

#[test]
fn repeating_a_start_is_one_move_and_another_is_refused() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    start(&mut cluster, 2, Some(1));
    let version = cluster.state.map().version;
    assert_eq!(start(&mut cluster, 2, Some(1)), Response::Done);
    assert_eq!(cluster.state.map().version, version);
    assert!(is_refused(&start(&mut cluster, 3, Some(1))));
}

#[test]
fn a_building_collection_is_not_moved() {
    let mut cluster = Cluster::with_building_collection(3, &[1]);
    assert!(is_refused(&start(&mut cluster, 2, Some(1))));
}

#[test]
fn p5_only_the_current_token_promotes_and_demotes() {
    let mut cluster = Cluster::with_collection(3, &[1, 2]);
    start(&mut cluster, 3, None);
    cluster.hand_over();
    assert!(is_refused(&promote(&mut cluster, 3)));
    assert!(is_refused(&demote(&mut cluster, 2, 1)));
    assert_eq!(states(&cluster), [(1, Serving), (2, Serving), (3, Learner)]);
}

#[test]
fn a_move_is_cancelled_until_its_learner_serves() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    start(&mut cluster, 2, Some(1));
    let learner = generation(&cluster, 2);
    let cancel = |cluster: &mut Cluster| {
        cluster.apply(Command::CancelMove {
            partition: P,
            generation: learner,
        })
    };
    assert_eq!(cancel(&mut cluster), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving)]);
    assert_eq!(cancel(&mut cluster), Response::Done);
    start(&mut cluster, 2, Some(1));
    assert!(is_refused(&cancel(&mut cluster)), "of an earlier move");
    promote(&mut cluster, 2);
    let learner = generation(&cluster, 2);
    let late = Command::CancelMove {
        partition: P,
        generation: learner,
    };
    assert!(is_refused(&cluster.apply(late)));
}

#[test]
fn p2_the_last_required_replica_is_not_demoted() {
    let mut cluster = Cluster::with_collection(3, &[1, 2]);
    assert_eq!(demote(&mut cluster, 2, 1), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (2, Demoted)]);
    assert_eq!(demote(&mut cluster, 2, 1), Response::Done);
    assert!(is_refused(&demote(&mut cluster, 1, 1)));
    assert!(is_refused(&demote(&mut cluster, 1, 0)));
}

#[test]
fn p11_a_counted_learner_that_holds_the_slot_ends_its_move() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    start(&mut cluster, 2, Some(1));
    assert_eq!(demote(&mut cluster, 2, 1), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving)]);
    assert!(cluster.state.moves().is_empty());
}

#[test]
fn nothing_moves_to_where_it_is() {
    let mut cluster = Cluster::with_collection(3, &[1, 2]);
    demote(&mut cluster, 2, 1);
    assert!(is_refused(&start(&mut cluster, 2, Some(2))));
}

#[test]
fn p3_a_demoted_replica_comes_back_as_a_learner_of_a_new_generation() {
    let mut cluster = Cluster::with_collection(3, &[1, 2]);
    let before = generation(&cluster, 2);
    demote(&mut cluster, 2, 1);
    assert_eq!(start(&mut cluster, 2, None), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (2, Learner)]);
    assert!(generation(&cluster, 2) > before);
    promote(&mut cluster, 2);
    assert_eq!(states(&cluster), [(1, Serving), (2, Serving)]);
    assert!(cluster.state.moves().is_empty());
}

#[test]
fn p5_a_demoted_replica_is_replaced_elsewhere_and_waited_out() {
    let mut cluster = Cluster::with_collection(3, &[1, 2]);
    demote(&mut cluster, 2, 1);
    start(&mut cluster, 3, Some(2));
    promote(&mut cluster, 3);
    let waited_for = [(1, Serving), (2, Releasing), (3, Serving)];
    assert_eq!(states(&cluster), waited_for, "by an older map it answers");
    let old = generation(&cluster, 2);
    assert_eq!(release(&mut cluster, 2, old), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (3, Serving)]);
    assert!(cluster.state.moves().is_empty());
}

#[test]
fn the_log_of_0_1_0_is_applied_as_0_1_0_applied_it() {
    let mut cluster = Cluster::with_collection(3, &[1, 2]);
    demote(&mut cluster, 2, 1);
    start(&mut cluster, 3, Some(2));
    let logged = format!(
        r#"{{"promote_replica":{{"token":{},"partition":1,"node":3,"generation":{}}}}}"#,
        TOKEN.0,
        generation(&cluster, 3).0
    );
    let command: Command = serde_json::from_str(&logged).expect("as it was written");
    assert_eq!(cluster.apply(command), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (3, Serving)]);
    assert!(cluster.state.moves().is_empty());
}

#[test]
fn a_draining_node_gets_nothing_and_is_removed_only_when_empty() {
    let mut cluster = Cluster::with_collection(2, &[1]);
    let drain = |node, is_draining| Command::SetDraining {
        node: NodeId(node),
        is_draining,
    };
    cluster.apply(drain(2, true));
    assert!(is_refused(&start(&mut cluster, 2, Some(1))));
    let remove = |node| Command::RemoveNode { node: NodeId(node) };
    assert!(is_refused(&cluster.apply(remove(1))));
    assert_eq!(cluster.apply(remove(2)), Response::Done);
    assert_eq!(cluster.apply(remove(2)), Response::Done);
    let joined = cluster.join_node(9);
    assert_eq!(joined, NodeId(3), "ids are never reused");
}

#[test]
fn a_dropped_collection_takes_its_moves_with_it() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    start(&mut cluster, 2, Some(1));
    cluster.drop_collection();
    assert!(cluster.state.moves().is_empty());
    assert_eq!(cluster.state.violation(), None);
}

#[test]
fn p10_an_operator_names_each_partition_once() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    let to = |node| PlannedMove {
        partition: P,
        to: NodeId(node),
        from: Some(NodeId(1)),
        reason: MoveReason::Operator,
    };
    let plan = |moves| Command::PlanMoves { moves };
    assert!(is_refused(&cluster.apply(plan(vec![to(2), to(3)]))));
    assert_eq!(cluster.apply(plan(vec![to(2)])), Response::Done);
    assert_eq!(cluster.state.planned(), [to(2)]);
    start(&mut cluster, 2, Some(1));
    assert_eq!(cluster.state.planned(), [], "it has begun");
}

#[test]
fn a_failed_collection_is_not_copied_any_more() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    start(&mut cluster, 2, Some(1));
    cluster.apply(Command::FailCollection {
        token: TOKEN,
        collection: CollectionId(1),
        reason: "its table changed".to_owned(),
    });
    assert_eq!(states(&cluster), [(1, Serving)]);
    assert!(cluster.state.moves().is_empty());
    assert!(is_refused(&start(&mut cluster, 2, Some(1))));
}
