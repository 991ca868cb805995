use super::*;
use crate::ids::*;
use crate::map::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) const C: CollectionId = CollectionId(1);

pub(super) fn replica(node: u64, generation: u64) -> Replica {
    let state = ReplicaState::Serving;
    Replica {
        node: NodeId(node),
        generation: Generation(generation),
        state,
    }
}

pub(super) fn map(version: u64, partitions: &[(u64, HashRange, Vec<Replica>)]) -> PartitionMap {
    let mut map = PartitionMap {
        epoch: LeaseEpoch(1),
        version: MapVersion(version),
        ..PartitionMap::default()
    };
    for (id, range, replicas) in partitions {
        let id = PartitionId(*id);
        let replicas = replicas.clone();
        map.partitions.insert(
            id,
            Partition {
                id,
                collection: C,
                range: *range,
                replicas,
            },
        );
    }
    map
}

fn two_partitions() -> PartitionMap {
    let tiles = HashRange::tile(2);
    map(
        1,
        &[
            (1, tiles[0], vec![replica(1, 1), replica(2, 2)]),
            (2, tiles[1], vec![replica(1, 3), replica(2, 4)]),
        ],
    )
}

fn scan(map: &PartitionMap) -> DistributedScan<u64> {
    let limits = ScanLimits {
        hedge_after_ms: Some(200),
        ..ScanLimits::default()
    };
    // A recent failure of node 2 makes node 1 the first choice.
    DistributedScan::new(C, map, limits, [(NodeId(2), 1)], 7)
}

pub(super) fn page(
    hits: &[(u64, f64)],
    bound: f64,
    exhausted: bool,
    token: u64,
) -> PartitionPage<u64> {
    PartitionPage {
        hits: hits
            .iter()
            .map(|(key, distance)| Hit {
                key: *key,
                distance: *distance,
            })
            .collect(),
        bound,
        exhausted,
        resume_token: token,
        tail_rows: 1,
        distances: 10,
        waited_ms: 0,
        is_stale: false,
    }
}

pub(super) fn next(rows: usize, deadline: Millis) -> Event<u64> {
    Event::NextPage { rows, deadline }
}

/// Commands as a script: one line each.
pub(super) fn script(commands: &[Command<u64>]) -> Vec<String> {
    let line = |command: &Command<u64>| match command {
        Command::Search(ask) => {
            let asks = ask.partitions.iter();
            let asks: Vec<_> = asks
                .map(|a| format!("p{}/g{}@{}", a.partition.0, a.generation.0, a.resume_token))
                .collect();
            format!(
                "a{} asks node-{}: {}",
                ask.attempt.0,
                ask.node.0,
                asks.join(" ")
            )
        }
        Command::CloseCursors {
            node,
            resume_tokens,
        } => format!("close {node}: {resume_tokens:?}"),
        Command::RefreshMap { at_least } => format!("refresh {}.{}", at_least.0.0, at_least.1.0),
        Command::WakeAt(at) => format!("wake {at}"),
        Command::Page(page) => {
            let keys: Vec<_> = page.rows.iter().map(|hit| hit.key).collect();
            format!(
                "page {keys:?} bound {} exhausted {}",
                page.bound, page.exhausted
            )
        }
        Command::Fail(failure) => format!("fail {failure}"),
    };
    commands.iter().map(line).collect()
}

pub(super) fn answered(
    attempt: u64,
    pages: Vec<(u64, Result<PartitionPage<u64>, Failure>)>,
) -> Event<u64> {
    Event::Answered {
        attempt: AttemptId(attempt),
        pages: pages
            .into_iter()
            .map(|(id, page)| (PartitionId(id), page))
            .collect(),
        known: (LeaseEpoch(1), MapVersion(1)),
    }
}

pub(super) fn err(kind: FailureKind) -> Result<PartitionPage<u64>, Failure> {
    Err(Failure::new(kind, "said so"))
}

#[test]
fn a_scan_asks_one_node_once_and_then_only_for_what_holds_up_the_order() {
    let mut scan = scan(&two_partitions());
    assert_eq!(
        script(&scan.on(next(10, 1000), 0)),
        ["a1 asks node-1: p1/g1@0 p2/g3@0", "wake 200"]
    );
    let pages = vec![
        (1, Ok(page(&[(11, 1.0), (12, 2.0)], 2.0, false, 5))),
        (2, Ok(page(&[(21, 1.5), (22, 9.0)], 9.0, false, 6))),
    ];
    let commands = scan.on(answered(1, pages), 3);
    assert_eq!(
        script(&commands),
        ["page [11, 21, 12] bound 2 exhausted false"]
    );
    assert_eq!(
        script(&scan.on(next(10, 1000), 4)),
        ["a2 asks node-1: p1/g1@5", "wake 204"]
    );
    let commands = scan.on(answered(2, vec![(1, Ok(page(&[], 0.0, true, 0)))]), 5);
    assert_eq!(script(&commands), ["page [22] bound 9 exhausted false"]);
    assert_eq!(script(&scan.close()), ["close node-1: [6]"]);
}

#[test]
fn p7_a_partition_that_nobody_serves_is_a_named_error_and_never_a_page() {
    let mut map = two_partitions();
    map.partitions
        .get_mut(&PartitionId(2))
        .expect("there")
        .replicas
        .clear();
    let mut scan = scan(&map);
    let commands = scan.on(next(10, 100), 0);
    assert_eq!(
        script(&commands),
        ["refresh 1.2", "a1 asks node-1: p1/g1@0", "wake 20"]
    );
    let commands = scan.on(
        answered(1, vec![(1, Ok(page(&[(1, 1.0)], 0.0, true, 0)))]),
        5,
    );
    assert_eq!(script(&commands), ["wake 25"]);
    let commands = scan.on(Event::Tick, 100);
    let want = "fail unavailable: 1 of 2 partitions did not answer; \
                partition-2 [8000000000000000, ffffffffffffffff]: partition-2 has no serving replica";
    assert_eq!(script(&commands), [want]);
}

#[test]
fn p7_a_map_with_a_gap_gives_no_page() {
    let mut map = two_partitions();
    map.partitions
        .get_mut(&PartitionId(2))
        .expect("there")
        .range
        .lo += 1;
    let mut scan = scan(&map);
    assert_eq!(
        script(&scan.on(next(10, 30), 0)),
        ["refresh 1.2", "wake 20"]
    );
    assert_eq!(
        script(&scan.on(Event::Tick, 30)),
        ["fail unavailable: the partitions of collection-1 leave a gap"]
    );
}

#[test]
fn a_dropped_collection_fails_at_once() {
    let mut scan = scan(&map(1, &[]));
    let want = "fail unavailable: the map knows no collection-1: it was dropped";
    assert_eq!(script(&scan.on(next(10, 1000), 0)), [want]);
}

#[test]
fn estale_tries_the_other_replica_first_and_fetches_the_map_of_the_hint() {
    let mut scan = scan(&two_partitions());
    scan.on(next(10, 1000), 0);
    let pages = vec![
        (1, err(FailureKind::Estale)),
        (2, Ok(page(&[], 0.0, true, 0))),
    ];
    let known = (LeaseEpoch(1), MapVersion(4));
    let pages = pages
        .into_iter()
        .map(|(id, page)| (PartitionId(id), page))
        .collect();
    let commands = scan.on(
        Event::Answered {
            attempt: AttemptId(1),
            pages,
            known,
        },
        2,
    );
    assert_eq!(
        script(&commands),
        ["refresh 1.4", "a2 asks node-2: p1/g2@0", "wake 202"]
    );
    // Stale there too: a pause, which the new map ends.
    let commands = scan.on(answered(2, vec![(1, err(FailureKind::Estale))]), 3);
    assert!(
        matches!(commands[..], [Command::WakeAt(4..=13)]),
        "{commands:?}"
    );
    let mut map = two_partitions();
    map.version = MapVersion(4);
    map.partitions
        .get_mut(&PartitionId(1))
        .expect("there")
        .replicas = vec![replica(3, 9)];
    let commands = scan.on(Event::Map(Arc::new(map)), 4);
    assert_eq!(script(&commands), ["a3 asks node-3: p1/g9@0", "wake 204"]);
}

#[test]
fn a_lost_replica_restarts_elsewhere_without_the_keys_already_given() {
    let mut scan = scan(&two_partitions());
    scan.on(next(2, 1000), 0);
    let pages = vec![
        (1, Ok(page(&[(11, 1.0), (12, 2.0)], 2.0, false, 5))),
        (2, Ok(page(&[], 0.0, true, 0))),
    ];
    assert_eq!(
        script(&scan.on(answered(1, pages), 1)),
        ["page [11, 12] bound 2 exhausted false"]
    );
    assert_eq!(
        script(&scan.on(next(2, 1000), 2)),
        ["a2 asks node-1: p1/g1@5", "wake 202"]
    );
    let failure = Failure::new(FailureKind::Unavailable, "connection refused");
    let lost = Event::Failed {
        attempt: AttemptId(2),
        failure,
        known: None,
    };
    assert_eq!(
        script(&scan.on(lost, 3)),
        ["a3 asks node-2: p1/g2@0", "wake 203"]
    );
    let again = page(&[(11, 1.0), (12, 2.0), (13, 3.0)], 3.0, true, 0);
    let commands = scan.on(answered(3, vec![(1, Ok(again))]), 4);
    assert_eq!(script(&commands), ["page [13] bound inf exhausted true"]);
}

#[test]
fn a_silent_node_is_hedged_and_the_loser_is_closed() {
    let mut scan = scan(&two_partitions());
    scan.on(next(10, 1000), 0);
    let commands = scan.on(Event::Tick, 200);
    assert_eq!(
        script(&commands),
        ["a2 asks node-2: p1/g2@0 p2/g4@0", "wake 1000"]
    );
    let pages = |token| {
        vec![
            (1, Ok(page(&[(11, 1.0)], 1.0, false, token))),
            (2, Ok(page(&[], 0.0, true, 0))),
        ]
    };
    let commands = scan.on(answered(2, pages(8)), 210);
    assert_eq!(script(&commands), ["page [11] bound 1 exhausted false"]);
    assert_eq!(
        script(&scan.on(answered(1, pages(9)), 220)),
        ["close node-1: [9]"]
    );
}

#[test]
fn a_request_at_fault_fails_at_once_and_lagging_is_told_at_the_deadline() {
    let mut first = scan(&two_partitions());
    first.on(next(10, 1000), 0);
    let commands = first.on(answered(1, vec![(1, err(FailureKind::Invalid))]), 1);
    assert!(matches!(&commands[..], [Command::Fail(f)] if f.kind == FailureKind::Invalid));

    let mut late = scan(&two_partitions());
    late.on(next(10, 50), 0);
    let lagging = vec![
        (1, err(FailureKind::Lagging)),
        (2, err(FailureKind::Lagging)),
    ];
    late.on(answered(1, lagging), 40);
    let commands = late.on(Event::Tick, 50);
    assert!(matches!(&commands[..], [Command::Fail(f)] if f.kind == FailureKind::Lagging));
}

#[test]
fn p10_a_scan_past_its_key_limit_goes_on_but_does_not_restart() {
    let tiles = HashRange::tile(1);
    let map = map(1, &[(1, tiles[0], vec![replica(1, 1), replica(2, 2)])]);
    let limits = ScanLimits {
        given_keys_max: 1,
        ..ScanLimits::default()
    };
    let mut scan = DistributedScan::new(C, &map, limits, [(NodeId(2), 1)], 7);
    scan.on(next(10, 1000), 0);
    let two = page(&[(1, 1.0), (2, 2.0)], 2.0, false, 5);
    scan.on(answered(1, vec![(1, Ok(two))]), 1);
    assert_eq!(
        script(&scan.on(next(10, 1000), 2)),
        ["a2 asks node-1: p1/g1@5", "wake 202"]
    );
    let commands = scan.on(answered(2, vec![(1, err(FailureKind::CursorLost))]), 3);
    let want = "fail unavailable: a replica was lost after more than 1 rows had been given";
    assert_eq!(script(&commands), [want]);
}

/// A cluster whose replicas agree, and which fails as the seed says.
struct Cluster {
    rows: BTreeMap<u64, f64>,
    map: PartitionMap,
    cursors: BTreeMap<(NodeId, u64), (PartitionId, usize)>,
    tokens: u64,
    rng: u64,
    failure_percent: u64,
}

impl Cluster {
    fn draw(&mut self, below: u64) -> u64 {
        self.rng = replicas::mix(self.rng);
        self.rng % below
    }

    fn ranked(&self, range: HashRange) -> Vec<(u64, f64)> {
        let rows = self.rows.range(range.lo..=range.hi);
        let mut rows: Vec<_> = rows.map(|(key, distance)| (*key, *distance)).collect();
        rows.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        rows
    }

    fn change_map(&mut self) {
        self.map.version = self.map.version.next();
        let last = *self.map.partitions.keys().last().expect("some");
        let ids: Vec<_> = self.map.partitions.keys().copied().collect();
        let id = ids[self.draw(ids.len() as u64) as usize];
        let Partition {
            range, replicas, ..
        } = self.map.partitions[&id].clone();
        if self.draw(3) == 0 && range.hi - range.lo > 8 {
            self.map.partitions.remove(&id);
            let middle = range.lo + (range.hi - range.lo) / 2;
            let halves = [(range.lo, middle), (middle + 1, range.hi)];
            for (n, (lo, hi)) in halves.into_iter().enumerate() {
                let id = PartitionId(last.0 + 1 + n as u64);
                let range = HashRange { lo, hi };
                let partition = Partition {
                    id,
                    collection: C,
                    range,
                    replicas: replicas.clone(),
                };
                self.map.partitions.insert(id, partition);
            }
        } else {
            let which = self.draw(2) as usize;
            let replicas = &mut self.map.partitions.get_mut(&id).expect("there").replicas;
            replicas[which].generation = replicas[which].generation.next();
        }
    }

    fn serve(
        &mut self,
        node: NodeId,
        ask: PartitionAsk,
        rows: usize,
    ) -> Result<PartitionPage<u64>, Failure> {
        let say = |kind| Err(Failure::new(kind, "said so"));
        let Some(partition) = self.map.partitions.get(&ask.partition) else {
            return say(FailureKind::Estale);
        };
        let (range, replicas) = (partition.range, partition.replicas.clone());
        if !replicas
            .iter()
            .any(|r| r.node == node && r.generation == ask.generation)
        {
            return say(FailureKind::Estale);
        }
        if self.draw(100) < self.failure_percent {
            let kinds = [
                FailureKind::Estale,
                FailureKind::Lagging,
                FailureKind::Unavailable,
                FailureKind::CursorLost,
            ];
            return say(kinds[self.draw(4) as usize]);
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
        self.cursors
            .insert((node, self.tokens), (ask.partition, to));
        let bound = ranked
            .get(to)
            .map_or(f64::INFINITY, |row| row.1 - self.draw(3) as f64);
        Ok(page(
            &ranked[from..to],
            bound,
            to == ranked.len(),
            self.tokens,
        ))
    }
}

/// Runs a scan to its end; answers what it gave, and how many pages failed.
fn run(cluster: &mut Cluster, page_rows: usize) -> (Vec<Hit<u64>>, usize) {
    let mut scan = scan(&cluster.map);
    let (mut given, mut fails, mut now, mut floor) = (Vec::new(), 0, 0, f64::NEG_INFINITY);
    loop {
        let mut pending: Vec<Event<u64>> = vec![next(page_rows, now + 60_000)];
        let mut flying: Vec<Event<u64>> = Vec::new();
        let mut wake = now;
        'page: loop {
            if cluster.draw(100) < cluster.failure_percent / 8 {
                cluster.change_map();
            }
            if pending.is_empty() {
                if flying.is_empty() || cluster.draw(4) == 0 {
                    now = if flying.is_empty() {
                        now.max(wake)
                    } else {
                        now + 1
                    };
                    pending.push(Event::Tick);
                } else {
                    let at = cluster.draw(flying.len() as u64) as usize;
                    pending.push(flying.swap_remove(at));
                }
            }
            let mut ended = false;
            for command in scan.on(pending.remove(0), now) {
                match command {
                    Command::WakeAt(at) => wake = at,
                    Command::CloseCursors { .. } => {}
                    Command::RefreshMap { .. } => {
                        flying.push(Event::Map(Arc::new(cluster.map.clone())))
                    }
                    Command::Search(ask) => {
                        let serve = |a: &PartitionAsk| {
                            (a.partition, cluster.serve(ask.node, *a, ask.page_rows))
                        };
                        let pages: Vec<_> = ask.partitions.iter().map(serve).collect();
                        let known = cluster.map.stamp();
                        let is_lost = cluster.draw(100) < cluster.failure_percent / 2;
                        let attempt = ask.attempt;
                        flying.push(if is_lost {
                            let failure = Failure::new(FailureKind::Unavailable, "timed out");
                            Event::Failed {
                                attempt,
                                failure,
                                known: None,
                            }
                        } else {
                            Event::Answered {
                                attempt,
                                pages,
                                known,
                            }
                        });
                    }
                    Command::Page(page) => {
                        assert!(
                            page.rows.iter().all(|hit| hit.distance >= floor),
                            "bound {floor}"
                        );
                        assert!(page.rows.len() <= page_rows);
                        floor = page.bound;
                        given.extend(page.rows);
                        if page.exhausted {
                            return (given, fails);
                        }
                        ended = true;
                    }
                    Command::Fail(failure) => {
                        assert_ne!(failure.kind, FailureKind::CursorLost);
                        fails += 1;
                        assert!(fails < 1000, "{failure}");
                        ended = true;
                    }
                }
            }
            if ended {
                break 'page;
            }
        }
        // What is still under way is lost.
        for event in flying {
            let failed = match event {
                Event::Answered { attempt, .. } | Event::Failed { attempt, .. } => {
                    let failure = Failure::new(FailureKind::Unavailable, "dropped");
                    Event::Failed {
                        attempt,
                        failure,
                        known: None,
                    }
                }
                other => other,
            };
            scan.on(failed, now);
        }
    }
}

proptest! {
    #[test]
    fn p7_pages_are_the_global_order_complete_and_without_repeats_whatever_fails(
        seed in any::<u64>(),
        rows in prop::collection::btree_map(any::<u64>(), -20i32..20, 0..120),
        partitions in 1u32..6,
        failure_percent in 0u64..20,
        page_rows in 12usize..40,
    ) {
        let tiles = HashRange::tile(partitions).into_iter().enumerate();
        let tiles: Vec<_> = tiles
            .map(|(i, range)| (i as u64 + 1, range, vec![replica(1, 1), replica(2, 1)]))
            .collect();
        let mut cluster = Cluster {
            rows: rows.into_iter().map(|(key, d)| (key, f64::from(d))).collect(),
            map: map(1, &tiles),
            cursors: BTreeMap::new(),
            tokens: 0,
            rng: seed,
            failure_percent,
        };
        let (given, fails) = run(&mut cluster, page_rows);
        let want = cluster.ranked(HashRange::WHOLE);
        let distances = |hits: &[Hit<u64>]| hits.iter().map(|h| h.distance).collect::<Vec<_>>();
        prop_assert_eq!(distances(&given), want.iter().map(|row| row.1).collect::<Vec<_>>());
        let keys: BTreeSet<_> = given.iter().map(|hit| hit.key).collect();
        prop_assert_eq!(keys, want.iter().map(|row| row.0).collect::<BTreeSet<_>>());
        prop_assert!(failure_percent > 0 || fails == 0);
    }
}
