//! Golden scripts: what was retained and held at each moment, and what is done then.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::ids::{Generation, NodeId, PartitionId};

const LIMITS: Limits = Limits {
    retained_bytes: 1_000,
    after_ms: 10_000,
};

fn key(place: &str) -> ReplicaKey {
    let (partition, node) = place.split_once('@').unwrap();
    ReplicaKey {
        partition: PartitionId(partition.parse().unwrap()),
        node: NodeId(node.parse().unwrap()),
        generation: Generation(1),
    }
}

/// `1@2=600`: partition 1 on node 2 holds 600 bytes; `1@2=600 learner`.
fn holder(text: &str) -> Holder {
    let mut words = text.split_whitespace();
    let (place, held) = words.next().unwrap().split_once('=').unwrap();
    Holder {
        replica: key(place),
        held_bytes: held.parse().unwrap(),
        is_serving: words.next() != Some("learner"),
    }
}

fn place(replica: &ReplicaKey) -> String {
    format!("{}@{}", replica.partition.0, replica.node.0)
}

fn described(verdict: Verdict) -> String {
    let mut words = Vec::new();
    if let Some(holders) = verdict.warning {
        let holders: Vec<String> = holders.iter().map(place).collect();
        words.push(format!("warn of [{}]", holders.join(" ")));
    }
    words.extend(verdict.due.iter().map(|(replica, act)| match act {
        Act::Demote => format!("demote {}", place(replica)),
        Act::MarkStale => format!("stale {}", place(replica)),
    }));
    words.join(", ")
}

/// Each line: `second retained: replica, replica -> what is done`; or
/// `second: kept 1@2` (its demotion was refused), `second: refused 1@2`.
fn script_within(limits: Limits, lines: &str) {
    let mut hold = SlotHold::new(limits);
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (moment, rest) = line.split_once(": ").unwrap();
        let mut moment = moment.split_whitespace();
        let second: f64 = moment.next().unwrap().parse().unwrap();
        let now_ms = (second * 1_000.0) as u64;
        if let Some(place) = rest.strip_prefix("kept ") {
            hold.demotion_refused(key(place));
        } else if let Some(place) = rest.strip_prefix("refused ") {
            hold.marking_refused(key(place), now_ms);
        } else {
            let retained = moment.next().unwrap().parse().unwrap();
            let (seen, done) = rest.split_once("->").unwrap();
            let seen: Vec<Holder> = seen.split(',').map(holder).collect();
            let verdict = hold.look(now_ms, retained, &seen);
            assert_eq!(described(verdict), done.trim(), "{line}");
        }
    }
}

fn script(lines: &str) {
    script_within(LIMITS, lines);
}

#[test]
fn p11_past_the_limit_the_only_replica_that_holds_the_slot_becomes_stale() {
    script(
        "0 500: 1@1=501, 2@2=0 ->
         4 700: 1@1=700, 2@2=10 ->
         8 800: 1@1=800, 2@2=10 -> warn of [1@1]
         12 1000: 1@1=990, 2@2=10 ->
         13 1001: 1@1=990, 2@2=10 -> stale 1@1
         13.5 1001: 2@2=10 ->",
    );
}

#[test]
fn one_with_a_peer_that_goes_on_is_demoted_and_two_that_hold_are_both_marked() {
    script(
        "0 900: 1@1=600, 1@2=0, 2@1=600, 2@2=600 -> warn of [1@1 2@1 2@2]
         4 900: 1@1=600, 1@2=0, 2@1=600, 2@2=600 ->
         8 900: 1@1=600, 1@2=0, 2@1=600, 2@2=600 ->
         12 1100: 1@1=600, 1@2=0, 2@1=600, 2@2=600 -> demote 1@1, stale 2@1, stale 2@2",
    );
}

#[test]
fn one_that_the_coordinators_keep_is_marked_at_the_limit() {
    script(
        "0 2000: 1@1=600, 1@2=0 -> warn of [1@1]
         4 2000: 1@1=600, 1@2=0 ->
         8 2000: 1@1=600, 1@2=0 ->
         11 2000: 1@1=600, 1@2=0 -> demote 1@1
         11: kept 1@1
         12 2000: 1@1=600, 1@2=0 -> stale 1@1
         12: refused 1@1
         16 2000: 1@1=600, 1@2=0 ->
         20 2000: 1@1=600, 1@2=0 ->
         22 2000: 1@1=600, 1@2=0 -> stale 1@1",
    );
}

#[test]
fn nobody_is_passed_for_wal_that_no_replica_holds() {
    script(
        "0 5000: 1@1=10, 2@1=500 -> warn of []
         4 5000: 1@1=10, 2@1=500 ->
         8 5000: 1@1=10, 2@1=500 ->
         12 9000: 1@1=10, 2@1=500 ->",
    );
}

#[test]
fn what_did_not_last_or_was_not_watched_is_no_reason() {
    script(
        "0 2000: 1@1=600 -> warn of [1@1]
         4 2000: 1@1=600 ->
         8 2000: 1@1=100 ->
         12 2000: 1@1=600 ->
         16 2000: 1@1=600 ->
         20 2000: 1@1=600 ->
         26 2000: 1@1=600 ->
         30 2000: 1@1=600 ->
         34 2000: 1@1=600 ->
         36 2000: 1@1=600 -> stale 1@1",
    );
}

#[test]
fn a_counted_learner_is_no_peer_and_is_given_up() {
    script(
        "0 2000: 1@1=600, 1@2=0 learner, 2@1=0, 2@2=600 learner -> warn of [1@1 2@2]
         4 2000: 1@1=600, 1@2=0 learner, 2@1=0, 2@2=600 learner ->
         8 2000: 1@1=600, 1@2=0 learner, 2@1=0, 2@2=600 learner ->
         10 2000: 1@1=600, 1@2=0 learner, 2@1=0, 2@2=600 learner -> stale 1@1, stale 2@2",
    );
}

#[test]
fn the_warning_comes_once_until_the_wal_has_fallen() {
    script(
        "0 799: 1@1=0 ->
         1 800: 1@1=0 -> warn of []
         2 600: 1@1=0 ->
         3 900: 1@1=0 ->
         4 499: 1@1=0 ->
         5 900: 1@1=0 -> warn of []",
    );
}

#[test]
fn without_a_limit_the_slot_waits_for_ever() {
    let limits = Limits {
        retained_bytes: 0,
        ..LIMITS
    };
    script_within(
        limits,
        "0 9000: 1@1=9000 ->
         4 9000: 1@1=9000 ->
         8 9000: 1@1=9000 ->
         12 9000: 1@1=9000 ->",
    );
}
