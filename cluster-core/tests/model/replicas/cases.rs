//! What holds, how far it was looked at, and what the model notices.

use super::{Broken, Left, Replicas};
use crate::checker::{breaks, holds};
use cluster_core::invariants::Violation;

/// A move, while the consumer starts over and the learner's node crashes.
const MOVE: Left = Left {
    writes: 2,
    elections: 0,
    runs: 1,
    handovers: 0,
    moves: 1,
    cancels: 0,
    crashes: 1,
    demotions: 0,
};

/// A move that another consumer takes over, or that is given up.
const HANDED_OVER: Left = Left {
    runs: 0,
    handovers: 1,
    cancels: 1,
    elections: 1,
    crashes: 0,
    ..MOVE
};

/// A replica that falls behind, is demoted and comes back.
const DEMOTION: Left = Left {
    runs: 0,
    demotions: 1,
    ..MOVE
};

const STATES_MAX: usize = 300_000;

fn keeps_rows(name: &str, left: Left, states_min: usize) {
    let model = Replicas {
        broken: Broken::Nothing,
        left,
    };
    holds(name, &model, states_min, STATES_MAX);
}

#[test]
fn p2_what_the_slot_has_passed_is_held_through_a_move() {
    keeps_rows("replicas, move", MOVE, 100_000);
}

#[test]
fn p2_what_the_slot_has_passed_is_held_through_a_handover() {
    keeps_rows("replicas, handover", HANDED_OVER, 10_000);
}

#[test]
fn p2_what_the_slot_has_passed_is_held_through_a_demotion() {
    keeps_rows("replicas, demotion", DEMOTION, 40_000);
}

fn loses_rows(name: &str, broken: Broken, left: Left) {
    let violation = breaks(name, &Replicas { broken, left }, STATES_MAX);
    let is_lost = matches!(violation, Violation::ConfirmedBeyondDurable { .. });
    assert!(is_lost, "{violation}");
}

#[test]
fn the_model_notices_a_learner_counted_below_what_is_confirmed() {
    loses_rows("counted below", Broken::CountsBelowConfirmed, MOVE);
}

#[test]
fn the_model_notices_a_learner_counted_without_its_copy() {
    loses_rows("counted while learning", Broken::CountsWhileLearning, MOVE);
}

#[test]
fn the_model_notices_a_counted_learner_that_is_forgotten() {
    loses_rows("counted, forgotten", Broken::CountedForgotten, HANDED_OVER);
}

#[test]
fn the_model_notices_a_counted_learner_that_is_forgotten_at_a_restart() {
    let broken = Broken::CountedForgottenAtRestart;
    loses_rows("counted, forgotten at a restart", broken, MOVE);
}

#[test]
fn the_model_notices_a_counted_learner_that_is_attached_anew() {
    loses_rows("counted, attached anew", Broken::CountedAttachedAnew, MOVE);
}

#[test]
fn the_model_notices_a_demotion_that_is_not_committed() {
    loses_rows(
        "demoted before commit",
        Broken::DemotedBeforeCommit,
        DEMOTION,
    );
}

#[test]
fn the_model_notices_that_the_last_replica_is_demoted() {
    let model = Replicas {
        broken: Broken::LastDemoted,
        left: DEMOTION,
    };
    let violation = breaks("last demoted", &model, STATES_MAX);
    assert!(
        matches!(violation, Violation::NoServingReplica(_)),
        "{violation}"
    );
}
