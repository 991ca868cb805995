//! Taking removed vectors out of the graph, so that their slots are used again.
//!
//! Removed vectors gather until a batch is worth a look at all lists. Then:
//! 1. They are marked, and nobody begins to link to one any more. Who was at it
//!    finishes first ([`Readers`](crate::readers::Readers)).
//! 2. Copies take the place of nodes that they equal, and what the others held in the
//!    graph is hung elsewhere (`hnsw::held`): by one thread.
//! 3. Every list is looked at, and chosen anew where it mentions one: by as many
//!    threads as call.
//! 4. Nothing leads to them any more, but who came before may still be there: cursors
//!    and linking threads. When these have left, the slots are free.
//!
//! Who links to a vector is found by looking at all lists: that takes a small part of
//! what choosing anew does, and no memory.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::hnsw::Heirs;
use crate::partition_index::PartitionIndex;
use crate::readers::Moment;
use crate::sync::Mutex;

/// A batch is worth a look at all lists from one removed vector in so many on.
const REMOVED_ONE_IN: usize = 100;
/// Slots that a thread takes at a time.
const SLOTS_TAKEN: u32 = if cfg!(loom) { 1 } else { 32 };

/// What is being taken out.
#[derive(Default)]
pub(crate) struct Repair {
    /// Removed, and in no batch yet.
    removed: Mutex<Vec<u32>>,
    stage: Mutex<Stage>,
    /// Batches that nothing leads to any more.
    left: Mutex<VecDeque<Left>>,
    free: Mutex<Vec<u32>>,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    /// One thread is at it. If a step panics it stays so, and removed vectors are waypoints
    /// from then on: a step that is half done can neither be begun anew nor gone on with,
    /// and searches are right without.
    Taken,
    /// Who linked before may still link to one of the batch.
    Marked { batch: Batch, linkers: Moment },
    /// The first `done` have an heir where there is one.
    Succeeding { batch: Batch, done: usize },
    /// The first `done` without an heir are held by nobody.
    LettingGo { batch: Batch, done: usize },
    /// The first `done` have handed over what they held.
    HandingOver {
        batch: Batch,
        roots: Option<[u32; 2]>,
        done: usize,
    },
    /// Lists of slots before `next` are looked at, or being so by `at_work` threads.
    Relinking {
        batch: Arc<Batch>,
        next: u32,
        upto: u32,
        at_work: usize,
    },
}

struct Batch {
    slots: Vec<u32>,
    heirs: Heirs,
}

struct Left {
    slots: Vec<u32>,
    cursors: Moment,
    linkers: Moment,
}

impl Repair {
    pub(crate) fn remove(&self, slot: u32) {
        self.removed.lock().push(slot);
    }

    /// A slot that nobody can come to. Another vector may move in.
    /// None that `is_kept`.
    pub(crate) fn take_free(&self, is_kept: impl Fn(u32) -> bool) -> Option<u32> {
        let mut free = self.free.lock();
        let at = free.iter().rposition(|slot| !is_kept(*slot))?;
        Some(free.swap_remove(at))
    }

    /// Of an insertion that was refused.
    pub(crate) fn give_back(&self, slot: u32) {
        self.free.lock().push(slot);
    }

    /// Of an index that was loaded. What was free is removed again.
    pub(crate) fn restored(removed: Vec<u32>) -> Self {
        Self {
            removed: Mutex::new(removed),
            ..Self::default()
        }
    }

    pub(crate) fn free_len(&self) -> usize {
        self.free.lock().len()
    }
}

impl PartitionIndex {
    /// Takes removed vectors out of the graph a step further, looking at up to `rows_max`
    /// vectors, and returns at how many it looked. Zero means that there is nothing to do
    /// now: little is removed, or what is left is another thread's, or waits for cursors to
    /// be dropped or a checkpoint to be written. Callable from several threads at once, beside
    /// everything else.
    pub fn repair(&self, rows_max: usize) -> usize {
        self.free_what_left();
        let mut looked_at = 0;
        while looked_at < rows_max {
            let step = self.repair_step(rows_max - looked_at);
            if step == 0 {
                break;
            }
            looked_at += step;
        }
        self.free_what_left();
        looked_at
    }

    fn repair_step(&self, rows_max: usize) -> usize {
        // A checkpoint finds lists, copies and the tree of one moment.
        let _linking = self.linking.read();
        // Codes that are read here stay.
        let _linker = self.linkers.enter();
        if self.is_being_written() {
            return 0;
        }
        let taken = {
            let mut stage = self.repair.stage.lock();
            match &mut *stage {
                Stage::Relinking {
                    batch,
                    next,
                    upto,
                    at_work,
                } if *next < *upto => {
                    let first = *next;
                    let taken = SLOTS_TAKEN.min(u32::try_from(rows_max).unwrap_or(SLOTS_TAKEN));
                    *next = (first + taken).min(*upto);
                    *at_work += 1;
                    let (batch, slots) = (Arc::clone(batch), first..*next);
                    drop(stage);
                    return self.relink(&batch, slots);
                }
                Stage::Relinking { .. } => return 0,
                _ => std::mem::replace(&mut *stage, Stage::Taken),
            }
        };
        let (stage, looked_at) = match taken {
            Stage::Taken => return 0,
            Stage::Idle => self.begin_batch(),
            Stage::Marked { batch, linkers } => self.wait_for_linkers(batch, linkers),
            Stage::Succeeding { batch, done } => self.succeed(batch, done, rows_max),
            Stage::LettingGo { batch, done } => self.let_go(batch, done, rows_max),
            Stage::HandingOver { batch, roots, done } => {
                self.hand_over(batch, roots, done, rows_max)
            }
            relinking => (relinking, 0),
        };
        *self.repair.stage.lock() = stage;
        looked_at
    }

    fn begin_batch(&self) -> (Stage, usize) {
        // Where a checkpoint forbade it.
        self.hnsw.turn_tree_to_entry();
        let slots = self.take_batch();
        if slots.is_empty() {
            return (Stage::Idle, 0);
        }
        self.hnsw.leave(&slots);
        let looked_at = slots.len();
        let batch = Batch {
            slots,
            heirs: Heirs::new(),
        };
        let linkers = self.linkers.now();
        (Stage::Marked { batch, linkers }, looked_at)
    }

    /// What was removed and is linked, if that is enough; all but the entry.
    fn take_batch(&self) -> Vec<u32> {
        let mut removed = self.repair.removed.lock();
        if removed.is_empty() || removed.len() < self.total_len() / REMOVED_ONE_IN {
            return Vec::new();
        }
        let linked = self.tail.linked();
        let waiting = std::mem::take(&mut *removed);
        drop(removed);
        let entry = self.hnsw.settle_entry(|id| self.lives.is_removed(id));
        let goes = |slot: &u32| self.lives.birth(*slot) < linked && Some(*slot) != entry;
        let (goes, stays) = waiting.into_iter().partition::<Vec<u32>, _>(goes);
        self.repair.removed.lock().extend(stays);
        goes
    }

    fn wait_for_linkers(&self, batch: Batch, linkers: Moment) -> (Stage, usize) {
        match self.linkers.have_left(linkers) {
            true => self.succeed(batch, 0, 1),
            false => (Stage::Marked { batch, linkers }, 0),
        }
    }

    fn succeed(&self, mut batch: Batch, done: usize, rows_max: usize) -> (Stage, usize) {
        let upto = batch.slots.len().min(done.saturating_add(rows_max));
        for slot in &batch.slots[done..upto] {
            self.hnsw.succeed(*slot, &mut batch.heirs);
        }
        let stage = match upto < batch.slots.len() {
            true => Stage::Succeeding { batch, done: upto },
            false => Stage::LettingGo { batch, done: 0 },
        };
        (stage, upto - done)
    }

    fn let_go(&self, batch: Batch, done: usize, rows_max: usize) -> (Stage, usize) {
        let upto = batch.slots.len().min(done.saturating_add(rows_max));
        for slot in &batch.slots[done..upto] {
            if !batch.heirs.contains_key(slot) {
                self.hnsw.let_go_of(*slot);
            }
        }
        let stage = match upto < batch.slots.len() {
            true => Stage::LettingGo { batch, done: upto },
            false => Stage::HandingOver {
                batch,
                roots: self.hnsw.settle_root(),
                done: 0,
            },
        };
        (stage, upto - done)
    }

    fn hand_over(
        &self,
        batch: Batch,
        roots: Option<[u32; 2]>,
        done: usize,
        rows_max: usize,
    ) -> (Stage, usize) {
        let upto = batch.slots.len().min(done.saturating_add(rows_max));
        for slot in &batch.slots[done..upto] {
            if !batch.heirs.contains_key(slot) {
                self.hnsw.hand_over(*slot, roots);
            }
        }
        let looked_at = upto - done;
        if upto < batch.slots.len() {
            let done = upto;
            return (Stage::HandingOver { batch, roots, done }, looked_at);
        }
        self.hnsw.settle_tree();
        let stage = Stage::Relinking {
            batch: Arc::new(batch),
            next: 0,
            // What is born from here on links to nothing that leaves.
            upto: self.hnsw.vectors.len(),
            at_work: 0,
        };
        (stage, looked_at)
    }

    fn relink(&self, batch: &Batch, slots: std::ops::Range<u32>) -> usize {
        let looked_at = slots.len();
        for slot in slots {
            self.hnsw.relink(slot, &batch.heirs);
        }
        let mut stage = self.repair.stage.lock();
        let Stage::Relinking {
            next,
            upto,
            at_work,
            ..
        } = &mut *stage
        else {
            unreachable!("a batch is relinked until all threads are done");
        };
        *at_work -= 1;
        if next == upto && *at_work == 0 {
            let slots = batch.slots.clone();
            self.repair.left.lock().push_back(Left {
                slots,
                cursors: self.searches.now(),
                linkers: self.linkers.now(),
            });
            *stage = Stage::Idle;
        }
        looked_at
    }

    fn free_what_left(&self) {
        let _linking = self.linking.read();
        if self.is_being_written() {
            return;
        }
        self.give_back_codes();
        let mut left = self.repair.left.lock();
        while let Some(oldest) = left.front()
            && self.searches.have_left(oldest.cursors)
            && self.linkers.have_left(oldest.linkers)
            && let Some(oldest) = left.pop_front()
        {
            for slot in &oldest.slots {
                self.hnsw.forget(*slot);
                self.lives.forget(*slot);
            }
            self.repair.free.lock().extend(oldest.slots);
        }
    }
}
