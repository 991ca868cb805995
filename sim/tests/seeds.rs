//! Seeds that must hold, runs that must repeat, and guards that must be missed
//! when they are broken.
#![allow(clippy::unwrap_used)]

use sim::mutant::Mutant;
use sim::{Options, Report, run};

/// About twenty seconds of a release build on two busy cores.
const SEEDS: u64 = 200;
/// Some seed of these sees each mutant; the rarest shows in about one of seventy.
const MUTANT_SEEDS: u64 = 400;

fn hold(seeds: impl Iterator<Item = u64>) -> Vec<Report> {
    let reports: Vec<Report> = seeds.map(|seed| run(Options::seed(seed))).collect();
    for report in &reports {
        if let Err(violation) = &report.verdict {
            let lines = report.last_lines.join("\n");
            panic!("seed {}: {violation}\n{lines}", report.seed);
        }
    }
    reports
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..=6 {
        let (one, two) = (run(Options::seed(seed)), run(Options::seed(seed)));
        assert_eq!((one.hash, one.lines), (two.hash, two.lines), "seed {seed}");
        assert_eq!(one.counts, two.counts);
        let other = run(Options::seed(seed + 100));
        assert_ne!(one.hash, other.hash);
    }
}

/// Every promise, in runs that do what they are to prove something about.
#[test]
fn every_promise_holds_for_every_seed() {
    let reports = hold(1..=SEEDS);
    let sum = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
    let totals = [
        ("batches", sum(|r| r.counts.batches)),
        (
            "whole answers",
            sum(|r| r.counts.searches - r.counts.searches_failed),
        ),
        ("failed searches", sum(|r| r.counts.searches_failed)),
        ("moves", sum(|r| r.counts.moves_begun)),
        ("learners that went live", sum(|r| r.counts.learners_live)),
        ("releases", sum(|r| r.counts.releases)),
        ("splits", sum(|r| r.counts.splits)),
        ("demotions", sum(|r| r.counts.demotions)),
        ("backfills", sum(|r| r.counts.backfills)),
        ("handovers", sum(|r| r.counts.handovers)),
        ("epochs", sum(|r| r.counts.epochs)),
        ("confirmations", sum(|r| r.counts.confirmations)),
        ("rows compared", sum(|r| r.counts.rows_compared)),
    ];
    for (what, total) in totals {
        assert!(
            total >= SEEDS / 2,
            "{total} {what} in {SEEDS} runs prove little"
        );
    }
}

/// Some seed must see it as a breach of one of these promises; a broken guard may
/// show itself in other ways before.
fn assert_seen(mutant: Mutant, promises: &[&str]) {
    let sees = |seed: &u64| {
        let options = Options {
            mutant: Some(mutant),
            ..Options::seed(*seed)
        };
        let violation = run(options).verdict.err().unwrap_or_default();
        promises.iter().any(|promise| violation.contains(promise))
    };
    let seen = (1..=MUTANT_SEEDS).find(sees);
    assert!(
        seen.is_some(),
        "no seed up to {MUTANT_SEEDS} sees {mutant:?}"
    );
}

#[test]
fn p4_applying_without_admission_is_seen() {
    assert_seen(Mutant::ApplyWithoutAdmit, &["P4", "P3", "P2"]);
}

#[test]
fn p2_confirming_without_one_node_is_seen() {
    assert_seen(Mutant::ConfirmIgnoringNode, &["P2"]);
}

#[test]
fn p2_acknowledging_before_the_sync_is_seen() {
    assert_seen(Mutant::AckBeforeSync, &["P2"]);
}

#[test]
fn p2_counting_a_learner_too_early_is_seen() {
    assert_seen(Mutant::LearnerCountedEarly, &["P2"]);
}

#[test]
fn p2_counting_a_learner_below_the_slot_is_seen() {
    assert_seen(Mutant::LearnerCountedBelow, &["P2"]);
}

#[test]
fn p2_promoting_a_half_before_it_is_counted_is_seen() {
    assert_seen(Mutant::HalfPromotedUncounted, &["P2"]);
}

#[test]
fn p2_feeding_the_parent_alone_is_seen() {
    assert_seen(Mutant::HalvesUnfed, &["P1", "P2", "P3"]);
}

#[test]
fn p3_forgetting_tombstones_is_seen() {
    assert_seen(Mutant::TombstoneDropped, &["P3", "P1"]);
}

#[test]
fn p3_nothing_else_for_replicas_that_are_not_fed_is_seen() {
    assert_seen(Mutant::NothingElseToUnfed, &["P3", "P2", "P1"]);
}

#[test]
fn p1_forgetting_former_versions_is_seen() {
    assert_seen(Mutant::FormersDropped, &["P1"]);
}

#[test]
fn p5_answering_without_a_lease_is_seen() {
    assert_seen(Mutant::AnswerWithoutLease, &["P5"]);
}

#[test]
fn p5_answering_on_a_map_older_than_the_lease_is_seen() {
    assert_seen(Mutant::AnswerOnOldMap, &["P5"]);
}

#[test]
fn p5_granting_without_a_quorum_is_seen() {
    assert_seen(Mutant::GrantWithoutQuorum, &["P5"]);
}

#[test]
fn p5_releasing_without_waiting_is_seen() {
    assert_seen(Mutant::ReleaseWithoutWaiting, &["P5"]);
}
