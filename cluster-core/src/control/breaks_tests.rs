//! Breaks, reconciles, and what they end: one script per case.

use super::super::tests::{Cluster, TOKEN};
use super::super::{
    Command, MoveReason, Response, base_of_slot_name, names_of_next_slot, slot_name_of_incarnation,
};
use crate::collection::{BackfillSnapshot, CollectionState, Reconcile};
use crate::ids::*;
use crate::map::ReplicaState::{self, *};
use crate::map::{PublicationId, Slot};
use crate::wal_position::Lsn;
use std::collections::BTreeMap;

const S: SourceId = SourceId(1);
const C: CollectionId = CollectionId(1);
const P: PartitionId = PartitionId(1);

fn slot(timeline: u32, consistent_point: u64) -> Slot {
    Slot {
        system_identifier: 7,
        database_oid: 5,
        timeline,
        consistent_point: Lsn(consistent_point),
        publication: None,
    }
}

fn slot_name(cluster: &Cluster) -> String {
    cluster.state.map().sources[&S].slot_name.clone()
}

/// With a slot, as the consumer reports it first.
fn followed(holders: &[u64]) -> Cluster {
    let mut cluster = Cluster::with_collection(3, holders);
    cluster.apply(Command::ReportSource {
        source: S,
        token: TOKEN,
        slot: Some(slot(1, 10)),
        server_start: Some(ServerStart(3)),
        problem: String::new(),
        memberships: BTreeMap::new(),
    });
    cluster
}

fn broken(cluster: &Cluster, expected: u64, new: Slot) -> Command {
    Command::BreakHistory {
        source: S,
        token: TOKEN,
        expected: Incarnation(expected),
        slot: new,
        slot_name: slot_name(cluster),
        server_start: Some(ServerStart(4)),
        reason: "the slot is gone".to_owned(),
    }
}

fn begin(cluster: &mut Cluster) -> Response {
    cluster.apply(Command::BeginBackfill {
        token: TOKEN,
        collection: C,
    })
}

fn snapshot(xmax: u64) -> BackfillSnapshot {
    BackfillSnapshot {
        xmax,
        running: Vec::new(),
        membership: None,
    }
}

fn finish(cluster: &mut Cluster, backfill: u64) -> Response {
    cluster.apply(Command::FinishBackfill {
        token: TOKEN,
        collection: C,
        backfill: BackfillId(backfill),
        snapshot: snapshot(100 + backfill),
    })
}

fn request(cluster: &mut Cluster) -> Response {
    cluster.apply(Command::RequestReconcile {
        collection: C,
        reason: "asked for".to_owned(),
    })
}

fn begun(backfill: u64) -> Response {
    Response::BackfillBegun {
        backfill: BackfillId(backfill),
    }
}

fn reconcile(cluster: &Cluster) -> Option<Reconcile> {
    cluster.state.map().collections[&C].reconcile.clone()
}

fn states(cluster: &Cluster) -> Vec<(u64, ReplicaState)> {
    let replicas = cluster.state.map().partitions[&P].replicas.iter();
    let mut states: Vec<_> = replicas.map(|r| (r.node.0, r.state)).collect();
    states.sort_by_key(|(node, _)| *node);
    states
}

fn generation(cluster: &Cluster, node: u64) -> Generation {
    let replica = cluster.state.map().partitions[&P].replica_on(NodeId(node));
    replica.expect("a replica").generation
}

fn start_move(cluster: &mut Cluster, to: u64) -> Response {
    cluster.apply(Command::StartMove {
        partition: P,
        to: NodeId(to),
        from: None,
        reason: MoveReason::Repair,
    })
}

fn mark(cluster: &mut Cluster, node: u64) -> Response {
    let generation = generation(cluster, node);
    cluster.apply(Command::MarkStale {
        token: TOKEN,
        partition: P,
        node: NodeId(node),
        generation,
        reason: String::new(),
    })
}

fn demote(cluster: &mut Cluster, node: u64) -> Response {
    let generation = generation(cluster, node);
    cluster.apply(Command::DemoteReplica {
        token: TOKEN,
        partition: P,
        node: NodeId(node),
        generation,
        min_required: 1,
    })
}

fn is_refused(response: &Response) -> bool {
    matches!(response, Response::Refused(_))
}

#[test]
fn p6_a_break_raises_the_incarnation_once_however_often_it_is_told() {
    let mut cluster = followed(&[1, 2]);
    let told = broken(&cluster, 1, slot(1, 500));
    assert_eq!(cluster.apply(told.clone()), Response::Done);
    let source = cluster.state.map().sources[&S].clone();
    assert_eq!(source.incarnation, Incarnation(2));
    assert_eq!(source.slot, Some(slot(1, 500)));
    assert_eq!(source.server_start, Some(ServerStart(4)));
    assert_eq!(states(&cluster), [(1, Stale), (2, Stale)]);
    let version = cluster.state.map().version;
    assert_eq!(cluster.apply(told), Response::Done, "once is as good");
    assert_eq!(cluster.state.map().version, version);
    let other_slot = broken(&cluster, 1, slot(1, 600));
    assert!(is_refused(&cluster.apply(other_slot)), "that break is over");
    let ahead = broken(&cluster, 9, slot(1, 600));
    assert!(is_refused(&cluster.apply(ahead)));
    let again = broken(&cluster, 2, slot(2, 20));
    assert_eq!(cluster.apply(again), Response::Done);
    let source = &cluster.state.map().sources[&S];
    assert_eq!(
        source.incarnation,
        Incarnation(3),
        "though its LSN is lower"
    );
}

#[test]
fn p5_only_the_current_token_breaks_a_history_and_only_a_report_of_the_same_slot_is_taken() {
    let mut cluster = followed(&[1]);
    let told = broken(&cluster, 1, slot(1, 500));
    cluster.hand_over();
    assert!(is_refused(&cluster.apply(told)));
    assert_eq!(cluster.state.map().sources[&S].incarnation, Incarnation(1));
    let report = Command::ReportSource {
        source: S,
        token: TOKEN.next(),
        slot: Some(slot(2, 10)),
        server_start: None,
        problem: String::new(),
        memberships: BTreeMap::new(),
    };
    assert!(is_refused(&cluster.apply(report)), "another history");
}

#[test]
fn a_source_without_a_slot_and_a_slot_under_a_strange_name_break_nothing() {
    let mut cluster = Cluster::with_collection(3, &[1]);
    let told = broken(&cluster, 1, slot(1, 500));
    assert!(is_refused(&cluster.apply(told)));
    let mut cluster = followed(&[1]);
    let name = slot_name(&cluster);
    let named = |name: &str| match broken(&cluster, 1, slot(1, 500)) {
        Command::BreakHistory {
            source,
            token,
            expected,
            slot,
            server_start,
            reason,
            ..
        } => Command::BreakHistory {
            source,
            token,
            expected,
            slot,
            slot_name: name.to_owned(),
            server_start,
            reason,
        },
        other => other,
    };
    let numbered = slot_name_of_incarnation(&name, Incarnation(2));
    assert_eq!(base_of_slot_name(&numbered), name);
    let (strange, fitting) = (named("postgres"), named(&numbered));
    assert!(is_refused(&cluster.apply(strange)));
    assert_eq!(cluster.apply(fitting), Response::Done);
    assert_eq!(slot_name(&cluster), numbered);
}

#[test]
fn p4_after_a_break_nothing_is_copied_and_what_was_being_copied_is_given_up() {
    let mut cluster = followed(&[1]);
    start_move(&mut cluster, 2);
    assert_eq!(states(&cluster), [(1, Serving), (2, Learner)]);
    let told = broken(&cluster, 1, slot(1, 500));
    cluster.apply(told);
    assert_eq!(states(&cluster), [(1, Stale)]);
    assert!(cluster.state.moves().is_empty());
    assert!(is_refused(&start_move(&mut cluster, 2)));
    let split = Command::StartSplit {
        partition: P,
        at: 7,
    };
    assert!(is_refused(&cluster.apply(split)));
}

#[test]
fn p3_what_was_being_filled_begins_empty_after_a_break() {
    let mut cluster = Cluster::with_building_collection(3, &[1, 2]);
    cluster.apply(Command::ReportSource {
        source: S,
        token: TOKEN,
        slot: Some(slot(1, 10)),
        server_start: None,
        problem: String::new(),
        memberships: BTreeMap::new(),
    });
    begin(&mut cluster);
    let before = [1, 2].map(|node| generation(&cluster, node));
    let told = broken(&cluster, 1, slot(1, 500));
    cluster.apply(told);
    let after = [1, 2].map(|node| generation(&cluster, node));
    assert!(after.iter().all(|new| before.iter().all(|old| new > old)));
    assert_eq!(states(&cluster), [(1, Serving), (2, Serving)]);
    assert_eq!(reconcile(&cluster), None, "nothing of it is stale");
    // Asked for before the break, and answered after it.
    assert!(is_refused(&finish(&mut cluster, 1)), "nothing is filled");
    assert_eq!(begin(&mut cluster), begun(2));
    assert_eq!(finish(&mut cluster, 2), Response::Done);
}

#[test]
fn p11_what_was_passed_while_it_was_filled_is_attached_by_a_reconcile_after_a_break_too() {
    let mut cluster = Cluster::with_building_collection(3, &[1]);
    cluster.apply(Command::ReportSource {
        source: S,
        token: TOKEN,
        slot: Some(slot(1, 10)),
        server_start: None,
        problem: String::new(),
        memberships: BTreeMap::new(),
    });
    begin(&mut cluster);
    let generation = generation(&cluster, 1);
    cluster.apply(Command::MarkStale {
        token: TOKEN,
        partition: P,
        node: NodeId(1),
        generation,
        reason: "passed".to_owned(),
    });
    let told = broken(&cluster, 1, slot(1, 500));
    cluster.apply(told);
    assert_eq!(states(&cluster), [(1, Stale)], "attached anew");
    begin(&mut cluster);
    assert_eq!(finish(&mut cluster, 2), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving)]);
}

#[test]
fn p3_stale_replicas_serve_again_only_once_their_reconcile_has_ended() {
    let mut cluster = followed(&[1, 2]);
    assert!(is_refused(&begin(&mut cluster)), "it is complete");
    let told = broken(&cluster, 1, slot(1, 500));
    cluster.apply(told);
    assert!(is_refused(&finish(&mut cluster, 1)), "of before the break");
    assert_eq!(begin(&mut cluster), begun(2));
    assert_eq!(begin(&mut cluster), begun(3));
    let since = reconcile(&cluster).and_then(|r| r.since);
    assert_eq!(since, Some(BackfillId(2)), "the second goes on");
    assert!(is_refused(&finish(&mut cluster, 2)), "void");
    assert_eq!(states(&cluster), [(1, Stale), (2, Stale)]);
    assert_eq!(finish(&mut cluster, 3), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (2, Serving)]);
    assert_eq!(reconcile(&cluster), None);
    let state = &cluster.state.map().collections[&C].state;
    let ready = CollectionState::Ready {
        snapshot: snapshot(103),
    };
    assert_eq!(*state, ready);
    assert_eq!(finish(&mut cluster, 3), Response::Done, "once is as good");
    assert!(is_refused(&begin(&mut cluster)), "nothing is left to do");
}

#[test]
fn p3_a_break_during_a_reconcile_voids_it() {
    let mut cluster = followed(&[1]);
    let told = broken(&cluster, 1, slot(1, 500));
    cluster.apply(told);
    begin(&mut cluster);
    let told = broken(&cluster, 2, slot(2, 600));
    cluster.apply(told);
    assert!(is_refused(&finish(&mut cluster, 2)));
    assert_eq!(reconcile(&cluster).and_then(|r| r.since), None);
    assert_eq!(begin(&mut cluster), begun(3));
    let since = reconcile(&cluster).and_then(|r| r.since);
    assert_eq!(since, Some(BackfillId(3)), "what the second copied is void");
}

#[test]
fn one_that_is_asked_for_goes_over_replicas_that_serve_and_is_one_however_often() {
    let mut cluster = followed(&[1, 2]);
    start_move(&mut cluster, 3);
    assert_eq!(request(&mut cluster), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (2, Serving)]);
    assert!(
        is_refused(&start_move(&mut cluster, 3)),
        "it would not be swept"
    );
    begin(&mut cluster);
    let version = cluster.state.map().version;
    assert_eq!(request(&mut cluster), Response::Done);
    assert_eq!(cluster.state.map().version, version, "it is under way");
    assert_eq!(finish(&mut cluster, 2), Response::Done);
    assert_eq!(reconcile(&cluster), None);
    assert_eq!(start_move(&mut cluster, 3), Response::Done);
}

#[test]
fn what_is_not_complete_is_not_reconciled_and_what_fails_is_reconciled_no_longer() {
    let mut cluster = Cluster::with_building_collection(3, &[1]);
    assert!(is_refused(&request(&mut cluster)));
    let mut cluster = followed(&[1]);
    request(&mut cluster);
    cluster.apply(Command::FailCollection {
        token: TOKEN,
        collection: C,
        reason: "the column is gone".to_owned(),
    });
    assert_eq!(reconcile(&cluster), None);
    assert!(is_refused(&request(&mut cluster)));
    let unknown = Command::RequestReconcile {
        collection: CollectionId(9),
        reason: String::new(),
    };
    assert!(is_refused(&cluster.apply(unknown)));
}

#[test]
fn p11_a_partition_that_the_slot_has_passed_is_queued_for_reconcile() {
    let mut cluster = followed(&[1, 2]);
    mark(&mut cluster, 1);
    assert_eq!(reconcile(&cluster), None, "a peer has what it lacks");
    mark(&mut cluster, 2);
    assert!(reconcile(&cluster).is_some());
    begin(&mut cluster);
    // Fed again, and passed again: what was copied has a hole.
    assert_eq!(mark(&mut cluster, 1), Response::Done);
    assert_eq!(reconcile(&cluster).and_then(|r| r.since), None);
    assert!(is_refused(&finish(&mut cluster, 2)));
    begin(&mut cluster);
    assert_eq!(finish(&mut cluster, 3), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (2, Serving)]);
}

#[test]
fn p2_one_passed_while_the_others_are_reconciled_is_gone_over_as_well() {
    let mut cluster = followed(&[1, 2]);
    request(&mut cluster);
    begin(&mut cluster);
    mark(&mut cluster, 2);
    assert_eq!(states(&cluster), [(1, Serving), (2, Stale)]);
    assert!(is_refused(&finish(&mut cluster, 2)), "it has missed rows");
    begin(&mut cluster);
    assert_eq!(finish(&mut cluster, 3), Response::Done);
    assert_eq!(states(&cluster), [(1, Serving), (2, Serving)]);
}

#[test]
fn a_reconcile_goes_on_without_a_node_that_is_away_but_not_without_the_last() {
    let mut cluster = followed(&[1, 2]);
    let told = broken(&cluster, 1, slot(1, 500));
    cluster.apply(told);
    begin(&mut cluster);
    assert_eq!(demote(&mut cluster, 2), Response::Done);
    assert_eq!(states(&cluster), [(1, Stale), (2, Demoted)]);
    assert!(is_refused(&demote(&mut cluster, 1)));
    assert_eq!(finish(&mut cluster, 2), Response::Done);
    assert_eq!(
        states(&cluster),
        [(1, Serving), (2, Demoted)],
        "not reconciled"
    );
}

#[test]
fn p6_a_slot_that_survives_a_switch_goes_on_in_its_incarnation() {
    let mut cluster = followed(&[1]);
    let follow = |from, to| Command::FollowTimeline {
        source: S,
        token: TOKEN,
        from,
        to,
    };
    assert!(is_refused(&cluster.apply(follow(2, 3))), "not known on 2");
    assert_eq!(cluster.apply(follow(1, 2)), Response::Done);
    assert_eq!(
        cluster.apply(follow(1, 2)),
        Response::Done,
        "once is as good"
    );
    assert!(is_refused(&cluster.apply(follow(2, 1))));
    let source = &cluster.state.map().sources[&S];
    assert_eq!(source.slot, Some(slot(2, 10)));
    assert_eq!(source.incarnation, Incarnation(1));
    assert_eq!(states(&cluster), [(1, Serving)]);
}

#[test]
fn p2_a_break_never_gives_the_slot_the_name_that_it_is_known_by() {
    // One that a crash left unrecorded would be taken for the former one.
    let names = |known: &str, next| names_of_next_slot(known, Incarnation(next));
    assert_eq!(names("ruvector_a_1", 2), ["ruvector_a_1_i2"]);
    assert_eq!(
        names("ruvector_a_1_i2", 3),
        ["ruvector_a_1", "ruvector_a_1_i3"]
    );
    assert_eq!(names("ruvector_a_1_i3", 3), ["ruvector_a_1"]);
}

#[test]
fn what_a_slot_is_read_through_is_noted_once() {
    let mut cluster = Cluster::with_building_collection(3, &[1, 2]);
    let mut report = |publication| {
        let publication = Some(publication).filter(|oid| *oid != 0);
        cluster.apply(Command::ReportSource {
            source: S,
            token: TOKEN,
            slot: Some(Slot {
                publication: publication.map(|publication| PublicationId {
                    publication,
                    definitions: 9,
                }),
                ..slot(1, 10)
            }),
            server_start: None,
            problem: String::new(),
            memberships: BTreeMap::new(),
        })
    };
    assert_eq!(
        report(0),
        Response::Done,
        "by a release that does not note it"
    );
    assert_eq!(report(5), Response::Done);
    assert_eq!(report(5), Response::Done);
    assert!(is_refused(&report(6)), "another publication is a break");
    assert!(is_refused(&report(0)), "and so is one that nobody knows");
}

#[test]
fn p2_the_membership_that_a_collection_was_filled_under_is_noted_once() {
    let mut cluster = followed(&[1, 2]);
    let noted = |cluster: &Cluster| match &cluster.state.map().collections[&C].state {
        CollectionState::Ready { snapshot } => snapshot.membership,
        other => panic!("{other:?}"),
    };
    assert_eq!(noted(&cluster), None);
    for membership in [7, 8] {
        cluster.apply(Command::ReportSource {
            source: S,
            token: TOKEN,
            slot: None,
            server_start: None,
            problem: String::new(),
            memberships: BTreeMap::from([(C, membership), (CollectionId(99), 1)]),
        });
        assert_eq!(noted(&cluster), Some(7));
    }
    // Another membership: every replica lacks rows, and the reason is told.
    for node in [1, 2] {
        let generation = generation(&cluster, node);
        cluster.apply(Command::MarkStale {
            token: TOKEN,
            partition: P,
            node: NodeId(node),
            generation,
            reason: "the table left the publication and came back".into(),
        });
    }
    let reconcile = cluster.state.map().collections[&C].reconcile.clone();
    let reconcile = reconcile.expect("compared with the table");
    assert_eq!(
        reconcile.reason,
        "the table left the publication and came back"
    );
    assert_eq!(noted(&cluster), Some(7), "until it is mended");
    begin(&mut cluster);
    let backfill = cluster.state.map().collections[&C].last_backfill;
    cluster.apply(Command::FinishBackfill {
        token: TOKEN,
        collection: C,
        backfill,
        snapshot: BackfillSnapshot {
            membership: Some(8),
            ..snapshot(9)
        },
    });
    assert_eq!(noted(&cluster), Some(8));
}
