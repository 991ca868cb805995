//! The sandwich against a writer that never rests: commits reach the log, the
//! replica and the server's readers at different moments, in every order that
//! Postgres allows, and some keys of the replica are damaged.

use super::*;
use crate::ids::Incarnation;
use crate::row_key::RowKey;
use crate::wal_position::{Lsn, WalPosition};
use std::collections::BTreeMap;

const KEYS: u8 = 2;
const SEEDS: u64 = 3_000;

/// xorshift64*, so that a seed is a history.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % n
    }
}

/// A change of one key by one transaction.
#[derive(Clone, Copy)]
struct Write {
    key: u8,
    xid: u32,
    /// `None` deletes; the inner `None` is a NULL vector.
    row: Option<Option<u128>>,
}

#[derive(Default)]
struct World {
    xids: u32,
    /// Written, not committed: each key has one writer at a time, as row locks have it.
    running: Vec<Write>,
    /// In the log, not shown by the server yet.
    hidden: Vec<Write>,
    log: Vec<Write>,
    heap: BTreeMap<u8, HeapRow>,
    replica: BTreeMap<u8, ReplicaRow>,
    applied: usize,
    /// Keys whose replica rows were damaged and not written by the stream since.
    damaged: BTreeMap<u8, Option<ReplicaRow>>,
}

fn position(writes: usize) -> WalPosition {
    WalPosition::end_of(Incarnation(1), Lsn(writes as u64))
}

impl World {
    fn is_busy(&self, key: u8) -> bool {
        let mut writers = self.running.iter().chain(&self.hidden);
        writers.any(|write| write.key == key)
    }

    fn begin(&mut self, random: &mut Random) {
        let key = random.below(KEYS.into()) as u8;
        if self.is_busy(key) {
            return;
        }
        self.xids += 1;
        // Few values, so that they come back.
        let row = match random.below(8) {
            0 | 1 => None,
            2 => Some(None),
            value => Some(Some(u128::from(value % 2))),
        };
        let xid = self.xids;
        self.running.push(Write { key, xid, row });
    }

    fn commit(&mut self, random: &mut Random) {
        if self.running.is_empty() {
            return;
        }
        let at = random.below(self.running.len() as u64) as usize;
        let write = self.running.swap_remove(at);
        self.log.push(write);
        self.hidden.push(write);
    }

    fn show(&mut self, random: &mut Random) {
        if self.hidden.is_empty() {
            return;
        }
        let at = random.below(self.hidden.len() as u64) as usize;
        let write = self.hidden.swap_remove(at);
        match write.row {
            None => drop(self.heap.remove(&write.key)),
            Some(vector) => {
                let version = HeapVersion {
                    xmin: write.xid,
                    tid: 1,
                };
                let digest = vector.map(RowDigest);
                self.heap.insert(write.key, HeapRow { version, digest });
            }
        }
    }

    fn apply(&mut self) {
        let Some(write) = self.log.get(self.applied) else {
            return;
        };
        self.applied += 1;
        self.damaged.remove(&write.key);
        match write.row.flatten() {
            None => drop(self.replica.remove(&write.key)),
            Some(value) => {
                let row = ReplicaRow {
                    position: position(self.applied),
                    digest: RowDigest(value),
                    is_searchable: true,
                };
                self.replica.insert(write.key, row);
            }
        }
    }

    fn step(&mut self, random: &mut Random) {
        match random.below(7) {
            0 | 1 => self.begin(random),
            2 => self.commit(random),
            3 => self.show(random),
            4 | 5 => self.apply(),
            // The transaction aborts.
            _ => drop(self.running.pop()),
        }
    }

    /// A key of the replica becomes what no stream made it.
    fn damage(&mut self, random: &mut Random) {
        let key = random.below(KEYS.into()) as u8;
        let former = self.replica.get(&key).copied();
        match former {
            Some(row) if random.below(2) == 0 => {
                let digest = RowDigest(99);
                self.replica.insert(key, ReplicaRow { digest, ..row });
            }
            Some(_) => drop(self.replica.remove(&key)),
            None => {
                let row = ReplicaRow {
                    position: position(self.applied),
                    digest: RowDigest(99),
                    is_searchable: true,
                };
                self.replica.insert(key, row);
            }
        }
        self.damaged.insert(key, former);
    }
}

fn some_steps(world: &mut World, random: &mut Random) {
    for _ in 0..random.below(16) {
        world.step(random);
    }
}

/// Reads as the bridge does: end of log, writers, heap, end of log, replica at or above
/// it, writers, heap.
/// Answers whether the replica's row is still the damaged one.
fn sandwich(world: &mut World, random: &mut Random, key: u8, rests: bool) -> (Verdict, bool) {
    let mut others = |world: &mut World| {
        if !rests {
            some_steps(world, random);
        }
    };
    others(world);
    let known = position(world.log.len());
    others(world);
    let was_busy = world.is_busy(key);
    others(world);
    let before = world.heap.get(&key).copied();
    others(world);
    let logged = world.log.len();
    others(world);
    while world.applied < logged {
        world.apply();
    }
    let replica = world.replica.get(&key).copied();
    let is_damaged = world.damaged.contains_key(&key);
    others(world);
    let is_busy = world.is_busy(key);
    others(world);
    let after = world.heap.get(&key).copied();
    let read = Sandwich {
        known,
        is_busy: was_busy || is_busy,
        before,
        replica,
        after,
    };
    (read.judge(), is_damaged)
}

#[test]
fn p2_p3_a_racing_writer_makes_no_difference_and_hides_none() {
    let (mut differences, mut flux) = (0, 0);
    for seed in 1..=SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut world = World::default();
        for _ in 0..40 {
            some_steps(&mut world, &mut random);
            if random.below(4) == 0 {
                world.damage(&mut random);
            }
            let key = random.below(KEYS.into()) as u8;
            let (verdict, is_damaged) = sandwich(&mut world, &mut random, key, false);
            match verdict {
                Verdict::Differs(difference) => {
                    assert!(
                        is_damaged,
                        "seed {seed}: {difference:?} where there is none"
                    );
                    differences += 1;
                }
                // Damage is a value that nobody writes, or an absence: that may be what
                // the heap has by now.
                Verdict::Equal if is_damaged => {
                    let shown = world.replica.get(&key).map(|row| row.digest);
                    assert_ne!(
                        shown,
                        Some(RowDigest(99)),
                        "seed {seed}: a difference is hidden"
                    );
                }
                Verdict::Equal => {}
                Verdict::InFlux => flux += 1,
            }
        }
        // The writer rests: every key is judged, and rightly.
        world.running.clear();
        while !world.hidden.is_empty() {
            world.show(&mut random);
        }
        while world.applied < world.log.len() {
            world.apply();
        }
        for key in 0..KEYS {
            let of_heap = world.heap.get(&key).and_then(|row| row.digest);
            let of_replica = world.replica.get(&key).map(|row| row.digest);
            let (verdict, _) = sandwich(&mut world, &mut random, key, true);
            assert_ne!(verdict, Verdict::InFlux, "seed {seed}: nothing moves");
            let is_equal = verdict == Verdict::Equal;
            assert_eq!(is_equal, of_heap == of_replica, "seed {seed} key {key}");
        }
    }
    // The histories are worth something.
    assert!(differences > 300 && flux > 1_000, "{differences} {flux}");
}

/// A key in ascending byte order.
fn row_key(n: u8) -> RowKey {
    RowKey::from_columns([[n].as_slice()]).expect("valid")
}

#[test]
fn equal_ranges_hide_no_key_that_differs() {
    for seed in 1..=SEEDS {
        let mut random = Random(seed.wrapping_mul(0xD134_2543_DE82_EF95));
        let mut heap = Vec::new();
        let mut replica = Vec::new();
        for n in 0..20 {
            let key = row_key(n);
            let mut value = || RowDigest(u128::from(random.below(2)));
            let (ours, theirs) = (value(), value());
            if random.below(8) > 0 {
                heap.push((key.clone(), ours));
            }
            let theirs = if random.below(8) > 0 { ours } else { theirs };
            if random.below(8) > 0 {
                let row = ReplicaRow {
                    position: WalPosition::ZERO,
                    digest: theirs,
                    is_searchable: true,
                };
                replica.push((key, row));
            }
        }
        let (mut expected, named) = (Vec::new(), differing_keys(&heap, &replica));
        for n in 0..20 {
            let key = row_key(n);
            let ours = heap.iter().find(|(k, _)| *k == key).map(|(_, d)| *d);
            let theirs = replica.iter().find(|(k, _)| *k == key);
            if ours != theirs.map(|(_, row)| row.digest) {
                expected.push(key);
            }
        }
        assert_eq!(named, expected, "seed {seed}");
    }
}
