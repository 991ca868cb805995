//! A search that waits for a position: what it is told when that is not reached.

use super::scan_tests::{C, answered, err, map, next, page, replica};
use super::*;
use crate::ids::*;
use crate::map::{HashRange, Replica};

/// One partition on nodes 1 and 2; node 1 is asked first.
fn scan_of_two_replicas() -> DistributedScan<u64> {
    scan_of(vec![replica(1, 1), replica(2, 2)])
}

fn scan_of(replicas: Vec<Replica>) -> DistributedScan<u64> {
    let map = map(1, &[(1, HashRange::tile(1)[0], replicas)]);
    let limits = ScanLimits {
        hedge_after_ms: None,
        ..ScanLimits::default()
    };
    DistributedScan::new(C, &map, limits, [(NodeId(2), 1)], 7)
}

fn lagging() -> Vec<(u64, Result<PartitionPage<u64>, Failure>)> {
    vec![(1, err(FailureKind::Lagging))]
}

fn cut_off(attempt: u64) -> Event<u64> {
    Event::Failed {
        attempt: AttemptId(attempt),
        failure: Failure::new(FailureKind::Unavailable, "no answer within 9 ms"),
        known: None,
    }
}

fn verdict(commands: &[Command<u64>]) -> Option<FailureKind> {
    commands.iter().find_map(|command| match command {
        Command::Fail(failure) => Some(failure.kind),
        _ => None,
    })
}

#[test]
fn p8_a_request_cut_off_by_the_deadline_does_not_turn_lagging_into_an_outage() {
    let mut scan = scan_of(vec![replica(1, 1)]);
    scan.on(next(10, 1_000), 0);
    scan.on(answered(1, lagging()), 980);
    scan.on(Event::Tick, 999);
    let commands = scan.on(cut_off(2), 1_000);
    assert_eq!(verdict(&commands), Some(FailureKind::Lagging));
}

#[test]
fn p8_a_dead_replica_beside_one_that_lags_is_no_outage() {
    for is_dead_one_last in [false, true] {
        let mut scan = scan_of_two_replicas();
        scan.on(next(10, 1_000), 0);
        if is_dead_one_last {
            scan.on(answered(1, lagging()), 400);
            scan.on(cut_off(2), 410);
        } else {
            scan.on(cut_off(1), 10);
            scan.on(answered(2, lagging()), 410);
        }
        let commands = scan.on(Event::Tick, 1_000);
        assert_eq!(verdict(&commands), Some(FailureKind::Lagging));
    }
}

#[test]
fn a_replica_that_lagged_and_then_died_is_an_outage() {
    let mut scan = scan_of_two_replicas();
    scan.on(next(10, 5_000), 0);
    scan.on(answered(1, lagging()), 400);
    scan.on(cut_off(2), 410);
    // Node 1 again, and it is gone as well.
    for now in [500, 1_000] {
        scan.on(Event::Tick, now);
    }
    scan.on(cut_off(3), 1_100);
    let commands = scan.on(Event::Tick, 5_000);
    assert_eq!(verdict(&commands), Some(FailureKind::Unavailable));
}

#[test]
fn p8_the_wait_for_a_position_is_counted() {
    let mut scan = scan_of_two_replicas();
    scan.on(next(10, 5_000), 0);
    scan.on(answered(1, lagging()), 400);
    let waited = PartitionPage {
        waited_ms: 30,
        ..page(&[(11, 1.0)], 1.0, true, 0)
    };
    let commands = scan.on(answered(2, vec![(1, Ok(waited))]), 440);
    let [Command::Page(page)] = &commands[..] else {
        panic!("{commands:?}");
    };
    assert_eq!(page.stats.waited_ms, 430);
}
