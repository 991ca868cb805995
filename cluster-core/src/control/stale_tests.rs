//! The slot passes a replica: one script per case.

use super::tests::{Cluster, TOKEN};
use super::{Command, MoveReason, Response};
use crate::collection::{BackfillSnapshot, CollectionState};
use crate::ids::*;
use crate::map::ReplicaState::{self, *};

const P: PartitionId = PartitionId(1);

fn start(cluster: &mut Cluster, to: u64, from: Option<u64>) -> Response {
    cluster.apply(Command::StartMove {
        partition: P,
        to: NodeId(to),
        from: from.map(NodeId),
        reason: MoveReason::Repair,
    })
}

fn generation(cluster: &Cluster, node: u64) -> Generation {
    let replica = cluster.state.map().partitions[&P].replica_on(NodeId(node));
    replica.expect("a replica").generation
}

fn mark(cluster: &mut Cluster, node: u64) -> Response {
    cluster.apply(Command::MarkStale {
        token: TOKEN,
        partition: P,
        node: NodeId(node),
        generation: generation(cluster, node),
        reason: String::new(),
    })
}

fn promote(cluster: &mut Cluster, node: u64) -> Response {
    cluster.apply(Command::PromoteReplica {
        token: TOKEN,
        partition: P,
        node: NodeId(node),
        generation: generation(cluster, node),
        waits_out: true,
    })
}

fn states(cluster: &Cluster) -> Vec<(u64, ReplicaState)> {
    let replicas = cluster.state.map().partitions[&P].replicas.iter();
    let mut states: Vec<_> = replicas.map(|r| (r.node.0, r.state)).collect();
    states.sort_by_key(|(node, _)| *node);
    states
}

fn is_refused(response: &Response) -> bool {
    matches!(response, Response::Refused(_))
}

#[test]
fn p11_the_last_replica_becomes_stale_and_is_copied_by_nobody() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    assert_eq!(mark(&mut cluster, 1), Response::Done);
    assert_eq!(states(&cluster), [(1, Stale)]);
    let version = cluster.state.map().version;
    assert_eq!(mark(&mut cluster, 1), Response::Done, "once is as good");
    assert_eq!(cluster.state.map().version, version);
    for (to, from) in [(2, Some(1)), (2, None), (1, None)] {
        assert!(is_refused(&start(&mut cluster, to, from)));
    }
    let split = Command::StartSplit {
        partition: P,
        at: 7,
    };
    assert!(is_refused(&cluster.apply(split)));
    assert!(is_refused(&promote(&mut cluster, 1)), "it has missed rows");
    assert_eq!(cluster.state.violation(), None);
}

#[test]
fn p5_only_the_current_token_marks() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    cluster.hand_over();
    assert!(is_refused(&mark(&mut cluster, 1)));
    assert_eq!(states(&cluster), [(1, Serving)]);
}

#[test]
fn a_replica_of_an_earlier_assignment_is_not_marked() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    let late = Command::MarkStale {
        token: TOKEN,
        partition: P,
        node: NodeId(1),
        generation: Generation(0),
        reason: String::new(),
    };
    assert_eq!(cluster.apply(late), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving)]);
}

#[test]
fn p3_a_stale_replica_learns_anew_from_a_peer_that_serves() {
    let mut cluster = Cluster::with_collection(2, &[1, 2]);
    let before = generation(&cluster, 2);
    mark(&mut cluster, 2);
    assert_eq!(states(&cluster), [(1, Serving), (2, Stale)]);
    assert_eq!(start(&mut cluster, 2, None), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (2, Learner)]);
    assert!(generation(&cluster, 2) > before);
    promote(&mut cluster, 2);
    assert_eq!(states(&cluster), [(1, Serving), (2, Serving)]);
}

#[test]
fn p5_a_stale_replica_is_replaced_elsewhere_and_waited_out() {
    let mut cluster = Cluster::with_collection(3, &[1, 2]);
    mark(&mut cluster, 2);
    assert_eq!(start(&mut cluster, 3, Some(2)), Response::Done);
    promote(&mut cluster, 3);
    let waited_for = [(1, Serving), (2, Releasing), (3, Serving)];
    assert_eq!(states(&cluster), waited_for, "by an older map it answers");
    cluster.apply(Command::FinishRelease {
        partition: P,
        node: NodeId(2),
        generation: generation(&cluster, 2),
    });
    assert_eq!(states(&cluster), [(1, Serving), (3, Serving)]);
    assert!(cluster.state.moves().is_empty());
}

#[test]
fn two_that_hold_the_slot_both_become_stale() {
    let mut cluster = Cluster::with_collection(2, &[1, 2]);
    mark(&mut cluster, 1);
    mark(&mut cluster, 2);
    assert_eq!(states(&cluster), [(1, Stale), (2, Stale)]);
    assert!(is_refused(&start(&mut cluster, 1, None)));
}

#[test]
fn a_counted_learner_that_holds_the_slot_is_given_up_with_its_move() {
    let mut cluster = Cluster::with_collection(2, &[1]);
    start(&mut cluster, 2, Some(1));
    assert_eq!(mark(&mut cluster, 2), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving)]);
    assert!(cluster.state.moves().is_empty());
}

#[test]
fn a_split_ends_with_a_half_that_holds_the_slot_and_with_its_last_source() {
    let mut cluster = Cluster::with_collection(1, &[1]);
    let at = u64::MAX / 2;
    cluster.apply(Command::StartSplit { partition: P, at });
    let low = cluster.state.map().splits[&P].low.clone();
    let half = Command::MarkStale {
        token: TOKEN,
        partition: low.id,
        node: NodeId(1),
        generation: low.replicas[0].generation,
        reason: String::new(),
    };
    assert_eq!(cluster.apply(half), Response::Done);
    assert!(cluster.state.map().splits.is_empty());
    assert_eq!(states(&cluster), [(1, Serving)]);
    cluster.apply(Command::StartSplit { partition: P, at });
    assert_eq!(mark(&mut cluster, 1), Response::Done);
    assert!(cluster.state.map().splits.is_empty());
}

#[test]
fn what_0_1_0_asks_of_a_building_collection_is_refused() {
    let mut cluster = Cluster::with_building_collection(1, &[1]);
    assert!(is_refused(&mark(&mut cluster, 1)));
}

const C: CollectionId = CollectionId(1);

fn pass(cluster: &mut Cluster, node: u64, reason: &str) -> Response {
    let generation = generation(cluster, node);
    cluster.apply(Command::MarkStale {
        token: TOKEN,
        partition: P,
        node: NodeId(node),
        generation,
        reason: reason.to_owned(),
    })
}

fn begin(cluster: &mut Cluster) -> Response {
    cluster.apply(Command::BeginBackfill {
        token: TOKEN,
        collection: C,
    })
}

fn finish(cluster: &mut Cluster, backfill: u64) -> Response {
    cluster.apply(Command::FinishBackfill {
        token: TOKEN,
        collection: C,
        backfill: BackfillId(backfill),
        snapshot: BackfillSnapshot {
            xmax: 100,
            running: Vec::new(),
            membership: None,
        },
    })
}

#[test]
fn p11_one_that_is_passed_while_it_is_filled_is_filled_by_a_reconcile_and_serves_only_then() {
    let mut cluster = Cluster::with_building_collection(3, &[1]);
    begin(&mut cluster);
    assert_eq!(pass(&mut cluster, 1, "passed"), Response::Done);
    assert_eq!(pass(&mut cluster, 1, "passed"), Response::Done, "once more");
    assert_eq!(states(&cluster), [(1, Stale)]);
    assert!(is_refused(&finish(&mut cluster, 1)), "it has a hole");
    let record = |cluster: &Cluster| cluster.state.map().collections[&C].clone();
    assert_eq!(record(&cluster).reconciles_since(), None, "queued");
    assert!(!record(&cluster).can_be_copied());
    let begun = Response::BackfillBegun {
        backfill: BackfillId(2),
    };
    assert_eq!(begin(&mut cluster), begun);
    let building = CollectionState::Building {
        backfill: BackfillId(2),
    };
    assert_eq!(record(&cluster).state, building, "nothing of it is served");
    assert_eq!(record(&cluster).reconciles_since(), Some(BackfillId(2)));
    assert_eq!(finish(&mut cluster, 2), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving)]);
    assert!(record(&cluster).can_be_copied());
    assert_eq!(cluster.state.violation(), None);
}

#[test]
fn p11_passed_again_while_it_is_reconciled_it_begins_again() {
    let mut cluster = Cluster::with_building_collection(3, &[1]);
    begin(&mut cluster);
    pass(&mut cluster, 1, "passed");
    begin(&mut cluster);
    assert_eq!(pass(&mut cluster, 1, "passed again"), Response::Done);
    assert!(is_refused(&finish(&mut cluster, 2)));
    begin(&mut cluster);
    assert_eq!(finish(&mut cluster, 3), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving)]);
}

#[test]
fn p11_one_with_a_peer_that_is_filled_is_demoted_and_serves_only_as_a_learner_again() {
    let mut cluster = Cluster::with_building_collection(3, &[1, 2]);
    begin(&mut cluster);
    assert_eq!(pass(&mut cluster, 1, "passed"), Response::Done);
    assert_eq!(states(&cluster), [(1, Demoted), (2, Serving)]);
    assert_eq!(finish(&mut cluster, 1), Response::Done, "the other has all");
    assert_eq!(states(&cluster), [(1, Demoted), (2, Serving)]);

    let mut cluster = Cluster::with_building_collection(3, &[1, 2]);
    begin(&mut cluster);
    for node in [1, 2] {
        pass(&mut cluster, node, "passed");
    }
    assert_eq!(states(&cluster), [(1, Demoted), (2, Stale)]);
    begin(&mut cluster);
    assert_eq!(finish(&mut cluster, 2), Response::Done);
    assert_eq!(states(&cluster), [(1, Demoted), (2, Serving)]);
}

#[test]
fn p3_what_had_failed_with_stale_replicas_is_filled_by_a_reconcile() {
    let mut cluster = Cluster::with_building_collection(3, &[1]);
    begin(&mut cluster);
    pass(&mut cluster, 1, "passed");
    cluster.apply(Command::FailCollection {
        token: TOKEN,
        collection: C,
        reason: "the table is gone".to_owned(),
    });
    begin(&mut cluster);
    let record = cluster.state.map().collections[&C].clone();
    assert_eq!(record.reconciles_since(), Some(BackfillId(2)));
    assert_eq!(finish(&mut cluster, 2), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving)]);
}
