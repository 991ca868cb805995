//! P1–P3 of a backfill in ranges: whatever is written while ranges are copied
//! under snapshots that follow one another, wherever rows move, however far the
//! replicas are behind, and whichever attempt breaks off, the replicas end with
//! the heap, and with every version that a query may see once the index is ready.
#![allow(clippy::unwrap_used)]

use cluster_core::apply::{self, FormerVersion, RowState, StoredVector};
use cluster_core::backfill::{BackfillMark, BlockNumber, TableFile, needs_last_snapshot, resume};
use cluster_core::change::VectorColumn;
use cluster_core::ids::Incarnation;
use cluster_core::wal_position::{Lsn, WalPosition};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const KEYS: u8 = 5;
const BLOCKS: u32 = 4;
const REPLICAS: usize = 2;
/// More than any copy, or any settling of what is pending, takes.
const ROUNDS_MAX: u32 = 30;

/// A key's value and the block that it lies in.
type Heap = BTreeMap<u8, (f32, u32)>;

#[derive(Clone, Copy, Debug)]
enum Write {
    Upsert(u8, i8, u32),
    /// UPDATE of another column, the vector being out of line.
    Unchanged(u8, u32),
    Delete(u8),
}

#[derive(Clone, Debug)]
enum Step {
    Write(Write),
    /// VACUUM FULL: every row moves, and the stream says nothing.
    Rewrite(u32),
    Stream {
        replica: usize,
        changes: usize,
    },
    Deliver {
        replica: usize,
        chunks: usize,
    },
    Range {
        blocks: u32,
        anew: bool,
        is_cut: bool,
    },
    /// The attempt fails; what was not delivered never is.
    Break,
}

struct Chunk {
    stamp: WalPosition,
    rows: Vec<(u8, f32)>,
    mark: Option<BackfillMark>,
}

#[derive(Default)]
struct Replica {
    applied: usize,
    rows: BTreeMap<u8, RowState>,
    formers: Vec<(u8, FormerVersion)>,
    inbox: VecDeque<Chunk>,
    mark: Option<BackfillMark>,
    is_closed: bool,
}

struct World {
    heap: Heap,
    /// The heap after so many writes.
    heaps: Vec<Heap>,
    stream: Vec<(u8, VectorColumn, bool)>,
    relfilenode: u32,
    replicas: Vec<Replica>,
    mark: Option<BackfillMark>,
    /// Writes that the snapshot held has seen.
    snapshot: Option<usize>,
}

fn change_at(index: usize) -> WalPosition {
    WalPosition::new(Incarnation(1), Lsn((index as u64 + 1) * 10), 1)
}

/// Of a snapshot that has seen so many writes.
fn stamp_of(writes: usize) -> WalPosition {
    WalPosition::end_of(Incarnation(1), Lsn(writes as u64 * 10 + 5))
}

fn xid_of(index: usize) -> u64 {
    100 + index as u64
}

fn vector(x: f32) -> Box<[f32]> {
    vec![x].into()
}

impl Replica {
    fn take(&mut self, key: u8, effect: apply::RowEffect) {
        self.rows.insert(key, effect.state);
        self.formers.extend(effect.former.map(|f| (key, f)));
    }

    fn apply(&mut self, index: usize, (key, column, is_delete): &(u8, VectorColumn, bool)) {
        let state = self.rows.remove(key).unwrap_or_default();
        let (at, xid, open) = (change_at(index), xid_of(index), !self.is_closed);
        let effect = match is_delete {
            true => apply::delete(state, at, xid, open),
            false => apply::upsert(state, at, xid, column.clone(), open),
        };
        self.take(*key, effect);
    }

    fn deliver(&mut self) -> bool {
        let Some(chunk) = self.inbox.pop_front() else {
            return false;
        };
        for (key, x) in chunk.rows {
            let state = self.rows.remove(&key).unwrap_or_default();
            let effect = apply::backfill(state, chunk.stamp, WalPosition::ZERO, vector(x));
            self.take(key, effect);
        }
        self.mark = chunk.mark.or(self.mark);
        true
    }

    fn pending(&self) -> Vec<u8> {
        let is_pending = |s: &RowState| {
            s.row
                .as_ref()
                .is_some_and(|r| r.vector == StoredVector::Pending)
        };
        let all = self.rows.iter().filter(|(_, state)| is_pending(state));
        all.map(|(key, _)| *key).collect()
    }

    fn value(&self, key: u8) -> Option<f32> {
        match &self.rows.get(&key)?.row.as_ref()?.vector {
            StoredVector::Value(x) => Some(x[0]),
            StoredVector::Pending => None,
        }
    }
}

impl World {
    fn new(heap: Heap) -> Self {
        Self {
            heaps: vec![heap.clone()],
            heap,
            stream: Vec::new(),
            relfilenode: 1,
            replicas: (0..REPLICAS).map(|_| Replica::default()).collect(),
            mark: None,
            snapshot: None,
        }
    }

    fn write(&mut self, write: Write) {
        let change = match write {
            Write::Upsert(key, x, block) => {
                self.heap.insert(key, (f32::from(x), block));
                (key, VectorColumn::Value(vector(f32::from(x))), false)
            }
            Write::Unchanged(key, block) => match self.heap.get_mut(&key) {
                Some(row) => {
                    row.1 = block;
                    (key, VectorColumn::Unchanged, false)
                }
                None => return,
            },
            Write::Delete(key) => match self.heap.remove(&key) {
                Some(_) => (key, VectorColumn::Null, true),
                None => return,
            },
        };
        self.stream.push(change);
        self.heaps.push(self.heap.clone());
    }

    fn stream_to(&mut self, replica: usize, changes: usize) {
        let replica = &mut self.replicas[replica];
        while replica.applied < changes {
            replica.apply(replica.applied, &self.stream[replica.applied]);
            replica.applied += 1;
        }
    }

    fn deliver_all(&mut self) {
        for replica in &mut self.replicas {
            while replica.deliver() {}
        }
    }

    fn send(&mut self, stamp: WalPosition, rows: &[(u8, f32)], mark: Option<BackfillMark>) {
        for replica in &mut self.replicas {
            let rows = rows.to_vec();
            replica.inbox.push_back(Chunk { stamp, rows, mark });
        }
    }

    fn break_off(&mut self) {
        for replica in &mut self.replicas {
            replica.inbox.clear();
        }
        (self.mark, self.snapshot) = (None, None);
    }

    fn is_copied(&self) -> bool {
        self.mark
            .is_some_and(|m| m.next_block.0 >= BLOCKS && m.file.relfilenode == self.relfilenode)
    }

    /// What the consumer does: `copy_table` of wal-consumer.
    fn range(&mut self, blocks: u32, anew: bool, is_cut: bool) {
        let file = TableFile {
            relfilenode: self.relfilenode,
            membership: 1,
        };
        if anew || self.snapshot.is_none() {
            self.snapshot = Some(self.stream.len());
            let stamp = stamp_of(self.stream.len());
            let known: Vec<_> = match self.mark {
                Some(mark) => vec![Some(mark)],
                None => self.replicas.iter().map(|r| r.mark).collect(),
            };
            let mut mark = resume(known, file, Incarnation(1)).unwrap_or(BackfillMark {
                file,
                next_block: BlockNumber(0),
                first_stamp: stamp,
                last_stamp: stamp,
                rows: 0,
                snapshots: 0,
            });
            mark.last_stamp = stamp;
            mark.snapshots += 1;
            self.mark = Some(mark);
        }
        let seen = self.snapshot.unwrap();
        let mut mark = self.mark.unwrap();
        if mark.next_block.0 >= BLOCKS {
            return;
        }
        let end = (mark.next_block.0 + blocks).min(BLOCKS);
        let lies_in = |block: u32| (mark.next_block.0..end).contains(&block);
        let rows = self.heaps[seen].iter().filter(|(_, row)| lies_in(row.1));
        let mut rows: Vec<(u8, f32)> = rows.map(|(key, row)| (*key, row.0)).collect();
        if is_cut {
            rows.truncate(rows.len() / 2);
            self.send(stamp_of(seen), &rows, None);
            self.snapshot = None;
            return;
        }
        mark.next_block = BlockNumber(end);
        mark.rows += rows.len() as u64;
        self.send(stamp_of(seen), &rows, Some(mark));
        self.mark = Some(mark);
    }

    /// `Attempt::fill` behind the copy. Answers how many writes the snapshot that
    /// a query must cover has seen. The stream has been applied up to the last
    /// stamp by then, and `is_caught_up` up to its end.
    fn finish(&mut self, is_caught_up: bool, meanwhile: &[Write]) -> Result<usize, TestCaseError> {
        let mut meanwhile = meanwhile.iter();
        let mut last_stamp = self.mark.unwrap().last_stamp;
        let mut seen = ((last_stamp.commit_end.0 - 5) / 10) as usize;
        let mut had_pending = false;
        self.deliver_all();
        for round in 0.. {
            prop_assert!(round < ROUNDS_MAX, "rows stay pending");
            for replica in 0..REPLICAS {
                let passed = ((last_stamp.commit_end.0 - 5) / 10) as usize;
                let all = self.stream.len();
                self.stream_to(replica, if is_caught_up { all } else { passed });
            }
            let listed = self.replicas.iter().flat_map(Replica::pending);
            let mut pending: Vec<u8> = listed.collect();
            pending.sort_unstable();
            pending.dedup();
            had_pending |= !pending.is_empty();
            meanwhile.by_ref().take(2).for_each(|w| self.write(*w));
            if needs_last_snapshot(self.mark.unwrap().snapshots, had_pending) {
                seen = self.stream.len();
                last_stamp = stamp_of(seen);
                meanwhile.by_ref().take(1).for_each(|w| self.write(*w));
                let rows = pending.iter();
                let rows = rows.filter_map(|k| Some((*k, self.heaps[seen].get(k)?.0)));
                let rows: Vec<(u8, f32)> = rows.collect();
                self.send(last_stamp, &rows, None);
                self.deliver_all();
            }
            if pending.is_empty() && self.replicas.iter().all(|r| r.pending().is_empty()) {
                break;
            }
        }
        for replica in &mut self.replicas {
            replica.is_closed = true;
            for state in replica.rows.values_mut() {
                state.tombstone = None;
            }
        }
        Ok(seen)
    }

    /// P2, P3, and P1 for every query that the index may answer.
    fn check(&self, ready: usize) -> Result<(), TestCaseError> {
        for (n, replica) in self.replicas.iter().enumerate() {
            prop_assert_eq!(replica.pending(), Vec::<u8>::new(), "replica {}", n);
            for key in 0..KEYS {
                let want = self.heap.get(&key).map(|row| row.0);
                prop_assert_eq!(replica.value(key), want, "key {} of replica {}", key, n);
                for seen in ready..self.heaps.len() {
                    let Some((x, _)) = self.heaps[seen].get(&key) else {
                        continue;
                    };
                    let xmin = xid_of(seen);
                    let is_former = replica.formers.iter().any(|(of, former)| {
                        *of == key && former.vector[0] == *x && former.ended_xid >= xmin
                    });
                    prop_assert!(
                        is_former || replica.value(key) == Some(*x),
                        "a query that has seen {seen} writes misses {x} of key {key} on replica {n}"
                    );
                }
            }
        }
        Ok(())
    }
}

fn writes() -> impl Strategy<Value = Write> {
    let (key, block) = (0..KEYS, 0..BLOCKS);
    prop_oneof![
        2 => (key.clone(), 0..100i8, block.clone()).prop_map(|(k, x, b)| Write::Upsert(k, x, b)),
        4 => (key.clone(), block).prop_map(|(k, b)| Write::Unchanged(k, b)),
        1 => key.prop_map(Write::Delete),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let replica = 0..REPLICAS;
    let step = prop_oneof![
        8 => writes().prop_map(Step::Write),
        1 => (0..BLOCKS).prop_map(Step::Rewrite),
        3 => (replica.clone(), 1..4usize)
            .prop_map(|(replica, changes)| Step::Stream { replica, changes }),
        4 => (replica, 1..4usize).prop_map(|(replica, chunks)| Step::Deliver { replica, chunks }),
        6 => (1..3u32, any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(blocks, anew, is_cut)| Step::Range { blocks, anew, is_cut }),
        1 => Just(Step::Break),
    ];
    prop::collection::vec(step, 0..50)
}

fn heaps() -> impl Strategy<Value = Heap> {
    let row = (0..100i8, 0..BLOCKS).prop_map(|(x, block)| (f32::from(x), block));
    prop::collection::btree_map(0..KEYS, row, 0..=KEYS as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn p1_p2_p3_ranges_under_many_snapshots_converge_on_the_heap(
        heap in heaps(),
        steps in steps(),
        is_caught_up in any::<bool>(),
        while_finishing in prop::collection::vec(writes(), 0..8),
        afterwards in prop::collection::vec(writes(), 0..6),
    ) {
        let mut world = World::new(heap);
        for step in steps {
            match step {
                Step::Write(write) => world.write(write),
                Step::Rewrite(by) => {
                    // The snapshot's lock keeps it out: it comes between two.
                    world.snapshot = None;
                    world.relfilenode += 1;
                    for row in world.heap.values_mut() {
                        row.1 = (row.1 + by) % BLOCKS;
                    }
                    *world.heaps.last_mut().unwrap() = world.heap.clone();
                }
                Step::Stream { replica, changes } => {
                    let to = world.replicas[replica].applied + changes;
                    world.stream_to(replica, to.min(world.stream.len()));
                }
                Step::Deliver { replica, chunks } => {
                    for _ in 0..chunks {
                        world.replicas[replica].deliver();
                    }
                }
                Step::Range { blocks, anew, is_cut } => world.range(blocks, anew, is_cut),
                Step::Break => world.break_off(),
            }
        }
        for round in 0.. {
            if world.is_copied() {
                break;
            }
            prop_assert!(round < ROUNDS_MAX, "the copy does not come to its end");
            let rewritten = world.mark.is_none_or(|m| m.file.relfilenode != world.relfilenode);
            world.range(1, rewritten, false);
        }
        let ready = world.finish(is_caught_up, &while_finishing)?;
        for write in afterwards {
            world.write(write);
        }
        for replica in 0..REPLICAS {
            world.stream_to(replica, world.stream.len());
        }
        world.check(ready)?;
    }
}
