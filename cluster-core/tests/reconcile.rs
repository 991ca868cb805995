//! P2, P3 and P4 of a reconcile: whatever replicas hold from a history that has
//! broken, whatever they have missed, however stream, chunks, attempts and deaths
//! follow one another, they end with the heap; and a replica that served all the while
//! had every row of the heap that it had been told of.
#![allow(clippy::unwrap_used)]

use cluster_core::apply::{self, RowState, StoredRow, StoredVector};
use cluster_core::backfill::{BackfillMark, BlockNumber, TableFile, resume};
use cluster_core::change::VectorColumn;
use cluster_core::ids::{BackfillId, Incarnation};
use cluster_core::reconcile::{admits_chunk, admits_stamp, distrust, is_swept, mark_that_holds};
use cluster_core::wal_position::{Lsn, WalPosition};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const KEYS: u8 = 5;
const BLOCKS: u32 = 3;
const REPLICAS: usize = 2;
const NOW: Incarnation = Incarnation(2);
/// More than any reconcile takes.
const ROUNDS_MAX: u32 = 60;

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
    },
    /// The consumer dies: what it sent and was not delivered never is.
    Break,
    /// The stream of a stale replica has a hole: it is attached anew, where the
    /// stream is by then.
    Lose,
    /// The reconcile is wanted once more.
    WantAgain,
}

/// What a replica holds when the reconcile begins, beside the heap.
#[derive(Clone, Copy, Debug)]
struct Left {
    value: i8,
    is_pending: bool,
    /// Of a broken history, or of this one.
    is_old: bool,
}

struct Chunk {
    backfill: BackfillId,
    stamp: WalPosition,
    rows: Vec<(u8, f32)>,
    mark: Option<BackfillMark>,
}

struct Replica {
    applied: usize,
    rows: BTreeMap<u8, RowState>,
    inbox: VecDeque<Chunk>,
    mark: Option<BackfillMark>,
    last_backfill: BackfillId,
    is_open: bool,
    trusted_from: Option<WalPosition>,
    /// It has everything of the stream, and serves.
    serves: bool,
    is_closed: bool,
}

struct World {
    heap: Heap,
    /// The heap after so many writes.
    heaps: Vec<Heap>,
    stream: Vec<(u8, VectorColumn, bool)>,
    replicas: Vec<Replica>,
    last_backfill: BackfillId,
    since: Option<BackfillId>,
    mark: Option<BackfillMark>,
    /// Writes that the snapshot held has seen.
    snapshot: Option<usize>,
}

fn change_at(index: usize) -> WalPosition {
    WalPosition::new(NOW, Lsn((index as u64 + 1) * 10), 1)
}

/// Behind so many writes: of a snapshot that has seen them, and of an attachment.
fn behind(writes: usize) -> WalPosition {
    WalPosition::end_of(NOW, Lsn(writes as u64 * 10 + 5))
}

fn vector(x: f32) -> Box<[f32]> {
    vec![x].into()
}

impl Replica {
    fn apply(&mut self, index: usize, (key, column, is_delete): &(u8, VectorColumn, bool)) {
        let state = self.rows.remove(key).unwrap_or_default();
        let (state, _) = distrust(state, self.trusted_from);
        let (at, xid) = (change_at(index), 100 + index as u64);
        let effect = match is_delete {
            true => apply::delete(state, at, xid, self.is_open),
            false => apply::upsert(state, at, xid, column.clone(), self.is_open),
        };
        self.rows.insert(*key, effect.state);
    }

    fn open(&mut self, backfill: BackfillId, since: BackfillId) -> Option<BackfillMark> {
        self.mark = mark_that_holds(self.mark, self.last_backfill, Some(since));
        self.last_backfill = backfill;
        self.is_open = true;
        self.mark
    }

    fn attach(&mut self, writes: usize) {
        self.trusted_from = Some(behind(writes));
        self.mark = None;
        self.applied = writes;
    }

    /// Whether there was a chunk, and whether it was taken.
    fn deliver(&mut self) -> Option<bool> {
        let chunk = self.inbox.pop_front()?;
        let is_admitted = admits_chunk(chunk.stamp, chunk.mark.as_ref(), self.trusted_from);
        if chunk.backfill != self.last_backfill || !is_admitted {
            return Some(false);
        }
        for (key, x) in chunk.rows {
            let state = self.rows.remove(&key).unwrap_or_default();
            let effect = apply::backfill(state, chunk.stamp, WalPosition::ZERO, vector(x));
            self.rows.insert(key, effect.state);
        }
        self.mark = chunk.mark.or(self.mark);
        Some(true)
    }

    fn pending(&self) -> Vec<u8> {
        let is_pending = |s: &RowState| {
            let row = s.row.as_ref();
            row.is_some_and(|r| r.vector == StoredVector::Pending)
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

    fn sweep(&mut self, below: WalPosition) {
        for state in self.rows.values_mut() {
            state.row = state
                .row
                .take()
                .filter(|row| !is_swept(row.position, below));
        }
    }

    fn close(&mut self) {
        self.is_open = false;
        self.is_closed = true;
        self.trusted_from = None;
        for state in self.rows.values_mut() {
            state.tombstone = None;
        }
    }
}

fn stored(position: WalPosition, vector: StoredVector) -> RowState {
    let xid_high = 900;
    RowState {
        row: Some(StoredRow {
            position,
            xid_high,
            vector,
        }),
        tombstone: None,
    }
}

impl Left {
    fn state(&self) -> RowState {
        // Within the history that broke it stood far ahead.
        let position = match self.is_old {
            true => WalPosition::new(Incarnation(1), Lsn(90_000), 1),
            false => WalPosition::new(NOW, Lsn(1), 1),
        };
        let value = StoredVector::Value(vector(f32::from(self.value)));
        let pending = StoredVector::Pending;
        stored(position, if self.is_pending { pending } else { value })
    }
}

impl World {
    /// One replica is stale, and holds what was left there. The other one serves: it
    /// holds the heap, and rows that no table has.
    fn new(heap: Heap, left: &BTreeMap<u8, Left>, zombies: &BTreeMap<u8, Left>) -> Self {
        let replica = |rows, serves| Replica {
            applied: 0,
            rows,
            inbox: VecDeque::new(),
            mark: None,
            last_backfill: BackfillId(1),
            is_open: false,
            trusted_from: None,
            serves,
            is_closed: false,
        };
        let stale = left.iter().map(|(key, left)| (*key, left.state()));
        let zombies = zombies.iter().map(|(key, left)| {
            let left = Left {
                is_pending: false,
                ..*left
            };
            (*key, left.state())
        });
        let mut serving: BTreeMap<u8, RowState> = zombies.collect();
        let at = WalPosition::new(NOW, Lsn(2), 1);
        serving.extend(heap.iter().map(|(key, (x, _))| {
            let value = StoredVector::Value(vector(*x));
            (*key, stored(at, value))
        }));
        let mut world = Self {
            heaps: vec![heap.clone()],
            heap,
            stream: Vec::new(),
            replicas: vec![replica(stale.collect(), false), replica(serving, true)],
            last_backfill: BackfillId(1),
            since: None,
            mark: None,
            snapshot: None,
        };
        world.replicas[0].attach(0);
        world.begin();
        world
    }

    /// A further attempt: opened everywhere before any of its snapshots.
    fn begin(&mut self) {
        self.last_backfill = self.last_backfill.next();
        let since = *self.since.get_or_insert(self.last_backfill);
        for replica in &mut self.replicas {
            replica.inbox.clear();
            replica.open(self.last_backfill, since);
        }
        (self.mark, self.snapshot) = (None, None);
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

    /// Whether every chunk that came was taken.
    fn deliver(&mut self, replica: usize, chunks: usize) -> bool {
        let mut all = true;
        for _ in 0..chunks {
            match self.replicas[replica].deliver() {
                Some(is_taken) => all &= is_taken,
                None => break,
            }
        }
        all
    }

    fn deliver_all(&mut self) -> bool {
        let mut all = true;
        for replica in 0..REPLICAS {
            all &= self.deliver(replica, usize::MAX);
        }
        all
    }

    fn send(&mut self, stamp: WalPosition, rows: &[(u8, f32)], mark: Option<BackfillMark>) {
        for replica in &mut self.replicas {
            replica.inbox.push_back(Chunk {
                backfill: self.last_backfill,
                stamp,
                rows: rows.to_vec(),
                mark,
            });
        }
    }

    fn is_copied(&self) -> bool {
        self.mark.is_some_and(|mark| mark.next_block.0 >= BLOCKS)
    }

    /// What the consumer does: `copy_table` of wal-consumer.
    fn range(&mut self, blocks: u32, anew: bool) {
        let file = TableFile {
            relfilenode: 1,
            membership: 1,
        };
        if anew || self.snapshot.is_none() {
            let seen = self.stream.len();
            self.snapshot = Some(seen);
            let known: Vec<_> = match self.mark {
                Some(mark) => vec![Some(mark)],
                None => self.replicas.iter().map(|r| r.mark).collect(),
            };
            let mut mark = resume(known, file, NOW).unwrap_or(BackfillMark {
                file,
                next_block: BlockNumber(0),
                first_stamp: behind(seen),
                last_stamp: behind(seen),
                rows: 0,
                snapshots: 0,
            });
            mark.last_stamp = behind(seen);
            mark.snapshots += 1;
            self.mark = Some(mark);
        }
        let (seen, mut mark) = (self.snapshot.unwrap(), self.mark.unwrap());
        if mark.next_block.0 >= BLOCKS {
            return;
        }
        let end = (mark.next_block.0 + blocks).min(BLOCKS);
        let lies_in = |block: u32| (mark.next_block.0..end).contains(&block);
        let rows = self.heaps[seen].iter().filter(|(_, row)| lies_in(row.1));
        let rows: Vec<(u8, f32)> = rows.map(|(key, row)| (*key, row.0)).collect();
        mark.next_block = BlockNumber(end);
        mark.rows += rows.len() as u64;
        self.send(behind(seen), &rows, Some(mark));
        self.mark = Some(mark);
    }

    /// One attempt from where it stands to its end; whether it came there.
    fn finish(&mut self, meanwhile: &mut dyn Iterator<Item = Write>, lost: bool) -> bool {
        for _ in 0..ROUNDS_MAX {
            if self.is_copied() {
                break;
            }
            self.range(1, false);
        }
        if !self.deliver_all() {
            return false;
        }
        if lost {
            self.lose();
        }
        let mark = self.mark.unwrap();
        for replica in 0..REPLICAS {
            self.stream_to(replica, self.stream.len());
        }
        for replica in &mut self.replicas {
            // A node refuses to sweep what its attachment has made void.
            if !admits_stamp(mark.first_stamp, replica.trusted_from) {
                return false;
            }
            replica.sweep(mark.first_stamp);
        }
        for _ in 0..ROUNDS_MAX {
            let listed = self.replicas.iter().flat_map(Replica::pending);
            let pending: Vec<u8> = listed.collect();
            meanwhile.take(1).for_each(|write| self.write(write));
            if pending.is_empty() && self.replicas.iter().all(|r| r.pending().is_empty()) {
                self.replicas.iter_mut().for_each(Replica::close);
                return true;
            }
            let seen = self.stream.len();
            let rows = pending.iter();
            let rows = rows.filter_map(|key| Some((*key, self.heaps[seen].get(key)?.0)));
            let rows: Vec<(u8, f32)> = rows.collect();
            self.send(behind(seen), &rows, None);
            if !self.deliver_all() {
                return false;
            }
            for replica in 0..REPLICAS {
                self.stream_to(replica, self.stream.len());
            }
        }
        false
    }

    fn lose(&mut self) {
        let writes = self.stream.len();
        self.replicas[0].attach(writes);
    }

    /// Whoever serves has every row that it was told of, as it is now or was since.
    fn check_serving(&self) -> Result<(), TestCaseError> {
        for replica in self.replicas.iter().filter(|r| r.serves) {
            for key in self.heaps[replica.applied].keys() {
                let mut since = self.heaps[replica.applied..].iter();
                let value = replica.value(*key);
                let is_known = since.any(|heap| heap.get(key).map(|row| row.0) == value);
                prop_assert!(value.is_some() && is_known, "key {} is {:?}", key, value);
            }
        }
        Ok(())
    }

    fn check_end(&self) -> Result<(), TestCaseError> {
        for (n, replica) in self.replicas.iter().enumerate() {
            prop_assert!(replica.is_closed);
            prop_assert_eq!(replica.pending(), Vec::<u8>::new(), "replica {}", n);
            for key in 0..KEYS {
                let want = self.heap.get(&key).map(|row| row.0);
                prop_assert_eq!(replica.value(key), want, "key {} of replica {}", key, n);
            }
        }
        Ok(())
    }
}

fn writes() -> impl Strategy<Value = Write> {
    let (key, block) = (0..KEYS, 0..BLOCKS);
    prop_oneof![
        2 => (key.clone(), 0..100i8, block.clone()).prop_map(|(k, x, b)| Write::Upsert(k, x, b)),
        3 => (key.clone(), block).prop_map(|(k, b)| Write::Unchanged(k, b)),
        2 => key.prop_map(Write::Delete),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let replica = 0..REPLICAS;
    let step = prop_oneof![
        8 => writes().prop_map(Step::Write),
        4 => (replica.clone(), 1..4usize)
            .prop_map(|(replica, changes)| Step::Stream { replica, changes }),
        4 => (replica, 1..4usize).prop_map(|(replica, chunks)| Step::Deliver { replica, chunks }),
        6 => (1..3u32, any::<bool>()).prop_map(|(blocks, anew)| Step::Range { blocks, anew }),
        1 => Just(Step::Break),
        1 => Just(Step::Lose),
        1 => Just(Step::WantAgain),
    ];
    prop::collection::vec(step, 0..50)
}

fn heaps() -> impl Strategy<Value = Heap> {
    let row = (0..100i8, 0..BLOCKS).prop_map(|(x, block)| (f32::from(x), block));
    prop::collection::btree_map(0..KEYS, row, 0..=KEYS as usize)
}

fn left() -> impl Strategy<Value = BTreeMap<u8, Left>> {
    let left = (0..100i8, prop::bool::weighted(0.2), any::<bool>());
    let left = left.prop_map(|(value, is_pending, is_old)| Left {
        value,
        is_pending,
        is_old,
    });
    prop::collection::btree_map(0..KEYS, left, 0..=KEYS as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn p2_p3_p4_a_reconcile_ends_with_the_heap_and_takes_no_row_from_who_serves(
        heap in heaps(),
        (left, zombies) in (left(), left()),
        steps in steps(),
        while_finishing in prop::collection::vec(writes(), 0..8),
        is_lost_at_the_end in prop::bool::weighted(0.3),
        afterwards in prop::collection::vec(writes(), 0..6),
    ) {
        let mut world = World::new(heap, &left, &zombies);
        for step in steps {
            let mut is_taken = true;
            match step {
                Step::Write(write) => world.write(write),
                Step::Stream { replica, changes } => {
                    let to = world.replicas[replica].applied + changes;
                    world.stream_to(replica, to.min(world.stream.len()));
                }
                Step::Deliver { replica, chunks } => is_taken = world.deliver(replica, chunks),
                Step::Range { blocks, anew } => world.range(blocks, anew),
                Step::Break => world.begin(),
                Step::Lose => world.lose(),
                Step::WantAgain => {
                    world.since = None;
                    world.begin();
                }
            }
            if !is_taken {
                world.begin();
            }
            world.check_serving()?;
        }
        let mut meanwhile = while_finishing.into_iter();
        let mut is_lost = is_lost_at_the_end;
        for round in 0.. {
            prop_assert!(round < ROUNDS_MAX, "the reconcile does not come to its end");
            if world.finish(&mut meanwhile, std::mem::take(&mut is_lost)) {
                break;
            }
            world.check_serving()?;
            world.begin();
        }
        world.check_serving()?;
        for write in afterwards {
            world.write(write);
        }
        for replica in 0..REPLICAS {
            world.stream_to(replica, world.stream.len());
        }
        world.check_end()?;
    }
}
