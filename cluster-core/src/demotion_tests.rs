//! Golden scripts: what was seen at each moment, and who is to go then.

use super::*;
use crate::ids::{Generation, Incarnation, NodeId};
use crate::wal_position::Lsn;

const LIMITS: Limits = Limits {
    after_ms: 10_000,
    lag_bytes: 1_000,
};

fn key(partition: u64, node: u64) -> ReplicaKey {
    ReplicaKey {
        partition: PartitionId(partition),
        node: NodeId(node),
        generation: Generation(1),
    }
}

/// `1@2=30 busy down behind=5000`: partition 1 on node 2 has 30 durable.
fn observed(text: &str) -> Observed {
    let mut words = text.split_whitespace();
    let (place, durable) = words.next().unwrap().split_once('=').unwrap();
    let (partition, node) = place.split_once('@').unwrap();
    let mut seen = Observed {
        replica: key(partition.parse().unwrap(), node.parse().unwrap()),
        durable: WalPosition::end_of(Incarnation(1), Lsn(durable.parse().unwrap())),
        is_up: true,
        has_work: false,
        bytes_behind: 0,
    };
    for word in words {
        match word.split_once('=') {
            Some(("behind", bytes)) => seen.bytes_behind = bytes.parse().unwrap(),
            _ if word == "busy" => seen.has_work = true,
            _ if word == "down" => seen.is_up = false,
            _ => panic!("{word}"),
        }
    }
    seen
}

fn described(due: Vec<(ReplicaKey, Reason)>) -> String {
    let due = due.iter().map(|(replica, reason)| {
        let (partition, node) = (replica.partition.0, replica.node.0);
        format!("{partition}@{node} {}", reason.label())
    });
    due.collect::<Vec<_>>().join(", ")
}

/// Each line: `second: replica, replica -> due`; `second: refused 1@2`.
fn script(lines: &str) {
    let mut watch = DemotionWatch::new(LIMITS);
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (second, rest) = line.split_once(": ").unwrap();
        let now_ms = (second.parse::<f64>().unwrap() * 1_000.0) as u64;
        if let Some(place) = rest.strip_prefix("refused ") {
            let replica = observed(&format!("{place}=0")).replica;
            watch.refused(replica, now_ms);
            continue;
        }
        let (seen, due) = rest.split_once("->").unwrap();
        let seen: Vec<Observed> = seen.split(',').map(observed).collect();
        assert_eq!(described(watch.look(now_ms, &seen)), due.trim(), "{line}");
    }
}

#[test]
fn p11_one_that_stands_still_with_work_for_ten_seconds_goes() {
    script(
        "0: 1@1=10, 1@2=10 ->
         4: 1@1=20, 1@2=10 busy ->
         8: 1@1=30, 1@2=10 busy ->
         9.9: 1@1=40, 1@2=10 busy ->
         10: 1@1=40, 1@2=10 busy -> 1@2 stalled",
    );
}

#[test]
fn an_idle_one_and_a_slow_one_stay() {
    script(
        "0: 1@1=10, 1@2=10 ->
         4: 1@1=20 busy, 1@2=10 ->
         8: 1@1=30 busy, 1@2=10 ->
         12: 1@1=40 busy, 1@2=10 ->
         16: 1@1=50 busy, 1@2=10 busy ->
         20: 1@1=51 busy, 1@2=11 busy ->",
    );
}

#[test]
fn p11_one_whose_node_is_away_goes_though_nothing_was_sent() {
    script(
        "0: 1@1=10, 1@2=10 down ->
         4: 1@1=10, 1@2=10 down ->
         8: 1@1=10, 1@2=10 down ->
         10: 1@1=10, 1@2=10 down -> 1@2 node_away
         11: 1@1=10, 1@2=10 ->",
    );
}

#[test]
fn one_too_far_behind_goes_once_that_lasts() {
    script(
        "0: 1@1=10, 1@2=10 ->
         4: 1@1=5000, 1@2=20 busy behind=4980 ->
         8: 1@1=5000, 1@2=4800 busy behind=200 ->
         12: 1@1=9000, 1@2=4900 busy behind=4100 ->
         16: 1@1=9000, 1@2=5000 busy behind=4000 ->
         20: 1@1=9000, 1@2=5100 busy behind=3900 ->
         22: 1@1=9000, 1@2=5200 busy behind=3800 -> 1@2 lagging",
    );
}

#[test]
fn nobody_goes_where_nobody_else_goes_on() {
    script(
        "0: 1@1=10 busy, 1@2=10 busy, 2@1=10 busy, 2@2=10 busy ->
         4: 1@1=10 busy, 1@2=10 busy, 2@1=10 busy, 2@2=20 busy ->
         8: 1@1=10 busy, 1@2=10 busy, 2@1=10 busy, 2@2=30 busy ->
         12: 1@1=10 busy, 1@2=10 busy, 2@1=10 busy, 2@2=40 busy -> 2@1 stalled",
    );
}

#[test]
fn who_reaches_nobody_or_was_paused_blames_nobody() {
    script(
        "0: 1@1=10 down, 1@2=10 down ->
         4: 1@1=10 down, 1@2=10 down ->
         8: 1@1=10 down, 1@2=10 down ->
         12: 1@1=10, 1@2=10 down ->
         16: 1@1=10, 1@2=10 down ->
         60: 1@1=10, 1@2=10 down ->
         64: 1@1=10, 1@2=10 down ->
         68: 1@1=10, 1@2=10 down ->
         70: 1@1=10, 1@2=10 down -> 1@2 node_away",
    );
}

#[test]
fn a_refusal_is_remembered_and_asked_again_ever_later() {
    script(
        "0: 1@1=10, 1@2=10 busy ->
         4: 1@1=10, 1@2=10 busy ->
         8: 1@1=10, 1@2=10 busy ->
         10: 1@1=10, 1@2=10 busy -> 1@2 stalled
         10: refused 1@2
         14: 1@1=10, 1@2=10 busy ->
         18: 1@1=10, 1@2=10 busy ->
         20: 1@1=10, 1@2=10 busy -> 1@2 stalled
         20: refused 1@2
         24: 1@1=10, 1@2=10 busy ->
         28: 1@1=10, 1@2=10 busy ->
         32: 1@1=10, 1@2=10 busy ->
         36: 1@1=10, 1@2=10 busy ->
         40: 1@1=10, 1@2=10 busy -> 1@2 stalled",
    );
}

#[test]
fn p10_what_is_gone_is_forgotten_and_pauses_are_bounded() {
    let mut watch = DemotionWatch::new(LIMITS);
    watch.look(0, &[observed("1@1=10"), observed("1@2=10 busy")]);
    for _ in 0..200 {
        watch.refused(key(1, 2), 0);
    }
    assert_eq!(watch.watched[&key(1, 2)].ask_at_ms, ASK_AGAIN_MS_MAX);
    watch.look(1, &[observed("1@1=10")]);
    assert_eq!(watch.watched.len(), 1);
}
