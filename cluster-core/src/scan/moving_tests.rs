//! Scans while replicas move and nodes lose their leases: which replicas are
//! asked, and that rows neither double nor go missing.
//!
//! The world below moves replicas as the coordinators do. Every node answers by
//! the map that it has heard of, which may be older or newer than the scan's.

use super::scan_tests::{C, answered, err, map, page, replica, script};
use super::*;
use crate::ids::*;
use crate::map::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

fn in_state(node: u64, generation: u64, state: ReplicaState) -> Replica {
    Replica {
        state,
        ..replica(node, generation)
    }
}

fn one_partition(version: u64, replicas: Vec<Replica>) -> PartitionMap {
    map(version, &[(1, HashRange::WHOLE, replicas)])
}

/// A scan that prefers node 1, then node 2.
fn scan_of(map: &PartitionMap) -> DistributedScan<u64> {
    let failures = [(NodeId(2), 1), (NodeId(3), 2)];
    DistributedScan::new(C, map, ScanLimits::default(), failures, 7)
}

fn next(rows: usize) -> Event<u64> {
    Event::NextPage {
        rows,
        deadline: 1_000,
    }
}

#[test]
fn p7_only_a_serving_replica_is_ever_asked() {
    use ReplicaState::*;
    for state in [Learner, Demoted, Stale, Releasing] {
        let map = one_partition(1, vec![in_state(1, 1, state), replica(2, 2)]);
        let mut scan = scan_of(&map);
        let asked = script(&scan.on(next(10), 0));
        assert_eq!(asked, ["a1 asks node-2: p1/g2@0", "wake 200"], "{state:?}");
        // Not even as a hedge, or after the other has failed.
        assert_eq!(script(&scan.on(Event::Tick, 200)), ["wake 1000"]);
        scan.on(answered(1, vec![(1, err(FailureKind::Unavailable))]), 210);
        let asked = script(&scan.on(Event::Tick, 300));
        assert!(asked[0].starts_with("a2 asks node-2"), "{asked:?}");
    }
}

#[test]
fn a_replica_that_the_map_releases_is_asked_no_further_page() {
    let mut scan = scan_of(&one_partition(1, vec![replica(1, 1), replica(2, 2)]));
    scan.on(next(2), 0);
    let first = page(&[(11, 1.0), (12, 2.0)], 2.0, false, 5);
    scan.on(answered(1, vec![(1, Ok(first))]), 1);
    let releasing = vec![
        in_state(1, 1, ReplicaState::Releasing),
        replica(2, 2),
        replica(3, 3),
    ];
    let closes = scan.on(Event::Map(Arc::new(one_partition(2, releasing))), 2);
    assert_eq!(script(&closes), ["close node-1: [5]"]);
    assert_eq!(
        script(&scan.on(next(2), 3)),
        ["a2 asks node-2: p1/g2@0", "wake 203"]
    );
    let again = page(&[(11, 1.0), (12, 2.0), (13, 3.0)], 3.0, true, 0);
    let commands = scan.on(answered(2, vec![(1, Ok(again))]), 4);
    assert_eq!(script(&commands), ["page [13] bound inf exhausted true"]);
}

#[test]
fn an_answer_under_way_from_a_replica_that_left_is_not_taken() {
    let mut scan = scan_of(&one_partition(1, vec![replica(1, 1), replica(2, 2)]));
    scan.on(next(2), 0);
    let releasing = vec![in_state(1, 1, ReplicaState::Releasing), replica(2, 2)];
    let commands = scan.on(Event::Map(Arc::new(one_partition(2, releasing))), 2);
    // Its cursor could not be followed: another is asked without waiting for it.
    assert_eq!(script(&commands), ["a2 asks node-2: p1/g2@0", "wake 200"]);
    let late = page(&[(11, 1.0)], 1.0, false, 5);
    let commands = scan.on(answered(1, vec![(1, Ok(late))]), 3);
    assert_eq!(script(&commands), ["close node-1: [5]", "wake 202"]);
    let whole = page(&[(11, 1.0), (12, 2.0)], 2.0, true, 0);
    let commands = scan.on(answered(2, vec![(1, Ok(whole))]), 4);
    assert_eq!(
        script(&commands),
        ["page [11, 12] bound inf exhausted true"]
    );
}

#[test]
fn p8_where_only_stale_replicas_are_left_they_answer_flagged_and_one_that_serves_comes_first() {
    use ReplicaState::*;
    let left = vec![in_state(1, 1, Stale), in_state(2, 2, Stale)];
    let mut scan = scan_of(&one_partition(1, left));
    let commands = scan.on(next(2), 0);
    assert_eq!(asks(&commands), [(1, true)], "at once");
    let Some(Command::Search(ask)) = commands.first() else {
        panic!("{commands:?}");
    };
    assert!(ask.partitions[0].is_left_behind);
    let flagged = PartitionPage {
        is_stale: true,
        ..page(&[(11, 1.0), (12, 2.0)], 2.0, false, 5)
    };
    let commands = scan.on(answered(1, vec![(1, Ok(flagged))]), 1);
    let [Command::Page(first)] = &commands[..] else {
        panic!("{commands:?}");
    };
    assert_eq!(first.stats.stale_partitions, 1);
    // One that serves appears: it is asked, and the stale one no further.
    let back = vec![in_state(1, 1, Stale), replica(2, 3)];
    let closes = scan.on(Event::Map(Arc::new(one_partition(2, back))), 2);
    assert_eq!(script(&closes), ["close node-1: [5]"]);
    let commands = scan.on(next(2), 3);
    assert_eq!(asks(&commands), [(2, false)]);
    let fresh = page(&[(11, 1.0), (12, 2.0), (13, 3.0)], 3.0, true, 0);
    let commands = scan.on(answered(2, vec![(1, Ok(fresh))]), 4);
    let [Command::Page(second)] = &commands[..] else {
        panic!("{commands:?}");
    };
    assert_eq!(second.stats.stale_partitions, 0);
}

#[test]
fn p8_a_position_that_stale_replicas_never_reach_fails_as_lagging_without_waiting() {
    let left = || {
        vec![
            in_state(1, 1, ReplicaState::Stale),
            in_state(2, 2, ReplicaState::Stale),
        ]
    };
    let lagging = || vec![(1, err(FailureKind::Lagging))];
    let kind = |commands: &[Command<u64>]| match commands.last() {
        Some(Command::Fail(failure)) => Some(failure.kind),
        _ => None,
    };
    let mut scan = scan_of(&one_partition(1, left()));
    scan.on(next(2), 0);
    let commands = scan.on(answered(1, lagging()), 1);
    assert_eq!(asks(&commands), [(2, true)], "the other may have it");
    let commands = scan.on(answered(2, lagging()), 2);
    assert_eq!(kind(&commands), Some(FailureKind::Lagging));
    // One that serves may reach it yet.
    let mut scan = scan_of(&one_partition(1, vec![replica(1, 1)]));
    scan.on(next(2), 0);
    assert_eq!(kind(&scan.on(answered(1, lagging()), 1)), None);
}

fn asks(commands: &[Command<u64>]) -> Vec<(u64, bool)> {
    let asked = commands.iter().filter_map(|command| match command {
        Command::Search(ask) => Some((ask.node.0, ask.accepts_stale)),
        _ => None,
    });
    asked.collect()
}

#[test]
fn p5_an_answer_without_a_lease_is_accepted_only_when_no_other_is_to_be_had() {
    let mut scan = scan_of(&one_partition(1, vec![replica(1, 1), replica(2, 2)]));
    assert_eq!(asks(&scan.on(next(2), 0)), [(1, false)]);
    let stale = || vec![(1, err(FailureKind::Estale))];
    assert_eq!(asks(&scan.on(answered(1, stale()), 1)), [(2, false)]);
    scan.on(answered(2, stale()), 2);
    assert_eq!(asks(&scan.on(Event::Tick, 20)), [(1, true)]);
    let flagged = PartitionPage {
        is_stale: true,
        ..page(&[(11, 1.0), (12, 2.0)], 2.0, false, 5)
    };
    let commands = scan.on(answered(3, vec![(1, Ok(flagged))]), 21);
    let [Command::Page(first)] = &commands[..] else {
        panic!("{commands:?}");
    };
    assert_eq!(first.stats.stale_partitions, 1);
    // Its next pages come from the same index: they stay flagged.
    assert_eq!(asks(&scan.on(next(2), 30)), [(1, true)]);
    // A restart begins with those that have a lease, and they count unflagged.
    let commands = scan.on(answered(4, vec![(1, err(FailureKind::CursorLost))]), 31);
    assert_eq!(asks(&commands), [(1, false)]);
    let fresh = page(&[(11, 1.0), (12, 2.0), (13, 3.0)], 3.0, true, 0);
    let commands = scan.on(answered(5, vec![(1, Ok(fresh))]), 32);
    let [Command::Page(second)] = &commands[..] else {
        panic!("{commands:?}");
    };
    assert_eq!(second.stats.stale_partitions, 0);
    assert_eq!(second.rows.len(), 1);
}

#[test]
fn p11_without_coordinators_lost_leases_do_not_cost_the_whole_deadline() {
    let told_after = |patience| {
        let map = one_partition(1, vec![replica(1, 1), replica(2, 2)]);
        let limits = ScanLimits {
            stale_patience_ms: patience,
            ..ScanLimits::default()
        };
        let mut scan = DistributedScan::new(C, &map, limits, [], 7);
        let mut commands = scan.on(next(2), 0);
        for now in 1..=1_001 {
            if let Some(Command::Fail(failure)) = commands.last() {
                assert_eq!(failure.kind, FailureKind::Estale);
                return now - 1;
            }
            let asked = commands.iter().find_map(|command| match command {
                Command::Search(ask) => Some(ask.attempt.0),
                _ => None,
            });
            let event = match asked {
                Some(attempt) => answered(attempt, vec![(1, err(FailureKind::Estale))]),
                None => Event::Tick,
            };
            commands = scan.on(event, now);
        }
        panic!("no end: {commands:?}");
    };
    assert!((300..700).contains(&told_after(Some(300))));
    assert_eq!(told_after(None), 1_000);
}

#[test]
fn what_a_page_cost_is_told_whether_it_came_or_not() {
    let mut scan = scan_of(&one_partition(1, vec![replica(1, 1), replica(2, 2)]));
    scan.on(next(2), 0);
    scan.on(Event::Tick, 200);
    let whole = page(&[(11, 1.0), (12, 2.0)], 2.0, false, 6);
    scan.on(answered(2, vec![(1, Ok(whole))]), 210);
    let spent = scan.spent();
    assert_eq!((spent.hedges, spent.hedges_won), (1, 1));
    scan.on(next(2), 220);
    let lost = Event::Failed {
        attempt: AttemptId(3),
        failure: Failure::new(FailureKind::Unavailable, "reset"),
        known: None,
    };
    scan.on(lost, 230);
    let commands = scan.on(Event::Tick, 1_000);
    assert!(matches!(&commands[..], [Command::Fail(_)]), "{commands:?}");
    let spent = scan.spent();
    assert_eq!((spent.retries, spent.other_replica), (1, 1));
}

/// Replicas of a cluster that moves them, splits, fails and hears late.
struct World {
    rows: BTreeMap<u64, f64>,
    /// Every map there ever was, oldest first.
    maps: Vec<PartitionMap>,
    /// The last map that each node has heard of.
    heard: BTreeMap<NodeId, usize>,
    cursors: BTreeMap<(NodeId, u64), (PartitionId, usize)>,
    tokens: u64,
    generations: u64,
    rng: u64,
    failure_percent: u64,
}

const NODES: u64 = 4;

/// A world that changed for ever would let no scan end.
const MAPS_MAX: usize = 60;

impl World {
    fn draw(&mut self, below: u64) -> u64 {
        self.rng = replicas::mix(self.rng);
        self.rng % below
    }

    fn map(&self) -> &PartitionMap {
        self.maps.last().expect("there is a first map")
    }

    fn ranked(&self, range: HashRange) -> Vec<(u64, f64)> {
        let rows = self.rows.range(range.lo..=range.hi);
        let mut rows: Vec<_> = rows.map(|(key, distance)| (*key, *distance)).collect();
        rows.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        rows
    }

    /// One step of one partition's protocol; then some node hears of something.
    fn happen(&mut self) {
        let mut map = self.map().clone();
        map.version = map.version.next();
        let ids: Vec<_> = map.partitions.keys().copied().collect();
        let id = ids[self.draw(ids.len() as u64) as usize];
        let partition = map.partitions[&id].clone();
        if self.maps.len() < MAPS_MAX && self.step(&mut map, partition) {
            let serves = |p: &Partition| p.in_state(ReplicaState::Serving).count() > 0;
            assert!(map.partitions.values().all(serves));
            self.maps.push(map);
        }
        let node = NodeId(1 + self.draw(NODES));
        let newest = self.maps.len() - 1;
        let hears = 1 + self.draw(4) as usize;
        let heard = self.heard.entry(node).or_default();
        *heard = (*heard + hears).min(newest);
    }

    fn step(&mut self, map: &mut PartitionMap, mut partition: Partition) -> bool {
        use ReplicaState::*;
        let at = |state| partition.replicas.iter().position(|r| r.state == state);
        let serving = partition.in_state(Serving).count();
        let absent = (1..=NODES)
            .map(NodeId)
            .find(|n| partition.replica_on(*n).is_none());
        let from = at(Serving);
        match (at(Learner), at(Releasing), at(Demoted)) {
            (Some(learner), _, demoted) if self.draw(4) > 0 => {
                partition.replicas[learner].state = Serving;
                if let Some(gone) = demoted {
                    partition.replicas.remove(gone);
                } else if let Some(from) = from {
                    partition.replicas[from].state = Releasing;
                }
            }
            (Some(learner), ..) => {
                partition.replicas.remove(learner);
            }
            (None, Some(releasing), _) => {
                let node = partition.replicas[releasing].node;
                let heard = &self.maps[self.heard.get(&node).copied().unwrap_or_default()];
                let knows = heard.partitions.get(&partition.id).is_none_or(|p| {
                    let replica = p.replica_on(node);
                    replica.is_none_or(|r| r.state == Releasing)
                });
                if !knows {
                    return false;
                }
                partition.replicas.remove(releasing);
            }
            (None, None, Some(demoted)) => {
                // It comes back to the same node, as a learner of a new generation.
                self.generations += 1;
                partition.replicas[demoted].state = Learner;
                partition.replicas[demoted].generation = Generation(self.generations);
            }
            (None, None, None) => match (self.draw(4), absent) {
                (0, _) if serving > 1 => {
                    let which = self.draw(serving as u64) as usize;
                    partition.replicas[which].state = Demoted;
                }
                (1, _) if partition.range.hi - partition.range.lo > 8 => {
                    return split(map, &partition);
                }
                (_, Some(node)) => {
                    self.generations += 1;
                    let learner = in_state(node.0, self.generations, Learner);
                    partition.replicas.push(learner);
                }
                _ => return false,
            },
        }
        map.partitions.insert(partition.id, partition);
        true
    }

    /// What a node answers by the map that it has heard of.
    fn serve(
        &mut self,
        node: NodeId,
        ask: PartitionAsk,
        rows: usize,
    ) -> Result<PartitionPage<u64>, Failure> {
        let say = |kind| Err(Failure::new(kind, "said so"));
        let heard = &self.maps[self.heard.get(&node).copied().unwrap_or_default()];
        let Some(partition) = heard.partitions.get(&ask.partition) else {
            return say(FailureKind::Estale);
        };
        let range = partition.range;
        let serves = partition
            .replica_on(node)
            .is_some_and(|r| r.generation == ask.generation && r.state == ReplicaState::Serving);
        if !serves {
            return say(FailureKind::Estale);
        }
        if self.draw(100) < self.failure_percent {
            let kinds = [
                FailureKind::Estale,
                FailureKind::Lagging,
                FailureKind::Unavailable,
                FailureKind::CursorLost,
                FailureKind::Throttled,
            ];
            return say(kinds[self.draw(5) as usize]);
        }
        let from = match ask.resume_token {
            0 => 0,
            token => match self.cursors.remove(&(node, token)) {
                Some((id, from)) if id == ask.partition => from,
                _ => return say(FailureKind::CursorLost),
            },
        };
        let ranked = self.ranked(range);
        let to = (from + 1 + self.draw(rows as u64) as usize).min(ranked.len());
        self.tokens += 1;
        let (token, at) = (self.tokens, (ask.partition, to));
        self.cursors.insert((node, token), at);
        let bound = ranked.get(to).map_or(f64::INFINITY, |row| row.1);
        let is_last = to == ranked.len();
        Ok(page(&ranked[from..to], bound, is_last, token))
    }

    /// What comes of a request. The node has done it even when the answer is
    /// lost: a retry must not depend on that.
    fn search(&mut self, ask: Ask) -> Event<u64> {
        let known = self.maps[ask.known.1.0 as usize - 1].clone();
        let mut pages = Vec::new();
        for partition in &ask.partitions {
            let replica = known.partitions[&partition.partition].replica_on(ask.node);
            let replica = replica.expect("the scan's map has the replica");
            assert_eq!(replica.state, ReplicaState::Serving, "{ask:?}");
            assert_eq!(replica.generation, partition.generation, "{ask:?}");
            let answer = self.serve(ask.node, *partition, ask.page_rows);
            pages.push((partition.partition, answer));
        }
        let attempt = ask.attempt;
        if self.draw(100) < self.failure_percent / 2 {
            let failure = Failure::new(FailureKind::Unavailable, "the answer was lost");
            let known = None;
            return Event::Failed {
                attempt,
                failure,
                known,
            };
        }
        let heard = self.heard.get(&ask.node).copied().unwrap_or_default();
        let known = (LeaseEpoch(1), self.maps[heard].version);
        Event::Answered {
            attempt,
            pages,
            known,
        }
    }
}

fn split(map: &mut PartitionMap, partition: &Partition) -> bool {
    let last = map.partitions.keys().last().map_or(0, |id| id.0);
    let (range, middle) = (
        partition.range,
        partition.range.lo + (partition.range.hi - partition.range.lo) / 2,
    );
    map.partitions.remove(&partition.id);
    for (n, (lo, hi)) in [(range.lo, middle), (middle + 1, range.hi)]
        .into_iter()
        .enumerate()
    {
        let half = Partition {
            id: PartitionId(last + 1 + n as u64),
            range: HashRange { lo, hi },
            ..partition.clone()
        };
        map.partitions.insert(half.id, half);
    }
    true
}

struct Outcome {
    given: Vec<Hit<u64>>,
    pages_failed: usize,
    hedges: u32,
}

/// Runs a scan to its end. Requests under way live on from page to page.
fn run(world: &mut World, page_rows: usize) -> Outcome {
    let started_on = world.draw(world.maps.len() as u64) as usize;
    let limits = ScanLimits {
        hedge_after_ms: Some(50),
        ..ScanLimits::default()
    };
    let seed = world.draw(u64::MAX);
    let mut scan = DistributedScan::new(C, &world.maps[started_on], limits, [], seed);
    let mut outcome = Outcome {
        given: Vec::new(),
        pages_failed: 0,
        hedges: 0,
    };
    let (mut under_way, mut now, mut floor) = (Vec::new(), 0, f64::NEG_INFINITY);
    loop {
        let deadline = now + 20_000;
        let mut event = Event::NextPage {
            rows: page_rows,
            deadline,
        };
        let ended = loop {
            // However little fails: nodes hear of maps, or scans would not end.
            if world.draw(100) < world.failure_percent.max(5) {
                world.happen();
            }
            let mut wake = now;
            let mut ended = None;
            for command in scan.on(event, now) {
                match command {
                    Command::WakeAt(at) => wake = at,
                    Command::CloseCursors { .. } => {}
                    Command::RefreshMap { at_least } => {
                        let is_to_be_had = at_least <= (LeaseEpoch(1), world.map().version);
                        under_way.push(match is_to_be_had {
                            true => Event::Map(Arc::new(world.map().clone())),
                            false => Event::RefreshFailed,
                        });
                    }
                    Command::Search(ask) => under_way.push(world.search(ask)),
                    Command::Page(page) => ended = Some(Ok(page)),
                    Command::Fail(failure) => ended = Some(Err(failure)),
                }
            }
            if let Some(ended) = ended {
                break ended;
            }
            // Something arrives, or so much time passes that hedges go out.
            event = if under_way.is_empty() || world.draw(5) == 0 {
                now = now.max(wake.min(now + 60));
                Event::Tick
            } else {
                let at = world.draw(under_way.len() as u64) as usize;
                under_way.swap_remove(at)
            };
        };
        outcome.hedges += scan.spent().hedges;
        match ended {
            Ok(page) => {
                let is_in_order = |hit: &Hit<u64>| hit.distance >= floor;
                assert!(page.rows.iter().all(is_in_order), "bound {floor}");
                assert!(page.rows.len() <= page_rows);
                floor = page.bound;
                outcome.given.extend(page.rows);
                if page.exhausted {
                    return outcome;
                }
            }
            Err(failure) => {
                outcome.pages_failed += 1;
                assert!(outcome.pages_failed < 1_000, "{failure}");
            }
        }
        now += 1;
    }
}

proptest! {
    #[test]
    fn p7_moves_splits_and_lost_answers_neither_double_a_row_nor_lose_one(
        seed in any::<u64>(),
        rows in prop::collection::btree_map(any::<u64>(), -20i32..20, 0..120),
        partitions in 1u32..5,
        failure_percent in 0u64..30,
        page_rows in 8usize..40,
        history in 0usize..20,
    ) {
        let tiles = HashRange::tile(partitions).into_iter().enumerate();
        let tiles: Vec<_> = tiles
            .map(|(i, range)| (i as u64 + 1, range, vec![replica(1, 1), replica(2, 1)]))
            .collect();
        let mut world = World {
            rows: rows.into_iter().map(|(key, d)| (key, f64::from(d))).collect(),
            maps: vec![map(1, &tiles)],
            heard: BTreeMap::new(),
            cursors: BTreeMap::new(),
            tokens: 0,
            generations: 1,
            rng: seed,
            failure_percent,
        };
        (0..history).for_each(|_| world.happen());
        let outcome = run(&mut world, page_rows);
        let want = world.ranked(HashRange::WHOLE);
        let got: Vec<_> = outcome.given.iter().map(|hit| hit.distance).collect();
        prop_assert_eq!(got, want.iter().map(|row| row.1).collect::<Vec<_>>());
        let keys: BTreeSet<_> = outcome.given.iter().map(|hit| hit.key).collect();
        prop_assert_eq!(keys, want.iter().map(|row| row.0).collect::<BTreeSet<_>>());
    }
}

#[test]
fn the_world_hedges_moves_and_fails() {
    let (mut hedges, mut failed, mut maps) = (0, 0, 0);
    for seed in 0..20 {
        let tiles: Vec<_> = HashRange::tile(2).into_iter().enumerate().collect();
        let tiles: Vec<_> = tiles
            .into_iter()
            .map(|(i, range)| (i as u64 + 1, range, vec![replica(1, 1), replica(2, 1)]))
            .collect();
        let mut world = World {
            rows: (0..200).map(|n| (replicas::mix(n), n as f64)).collect(),
            maps: vec![map(1, &tiles)],
            heard: BTreeMap::new(),
            cursors: BTreeMap::new(),
            tokens: 0,
            generations: 1,
            rng: seed,
            failure_percent: 25,
        };
        let outcome = run(&mut world, 20);
        assert_eq!(outcome.given.len(), 200);
        hedges += outcome.hedges;
        failed += outcome.pages_failed;
        maps += world.maps.len();
    }
    // A world in which nothing happened would prove nothing.
    assert!(hedges > 20 && maps > 300, "{hedges} {failed} {maps}");
}
