//! Codes of another width for a block of rows: what is searched for often may have many bits,
//! what is not few.
//!
//! A block's new codes are made beside its old ones, from the original vectors, without a lock:
//! a row's vector does not change while its slot is its own, and free slots of the block
//! are not used meanwhile. Rows that come in between are encoded under the writer's
//! lock, the last few. Then readers are led to the new codes. Who came before may still be at
//! the old ones: cursors, and threads that link or repair. When these have left, the
//! memory goes back to the system.
//!
//! One block at a time. While a checkpoint is being written no block changes, and what was
//! changed before it began is of it.

use std::collections::VecDeque;

use crate::accesses::BLOCK_VECTORS;
use crate::codes::CodesOf;
use crate::footprint::Width;
use crate::hnsw::Compact;
use crate::memory::Advice;
use crate::params::{CodeBits, IndexError};
use crate::partition_index::PartitionIndex;
use crate::readers::Moment;
use crate::sync::Mutex;

/// So many rows are encoded under the writer's lock.
const LAST_ROWS: u32 = 8;

/// How [`PartitionIndex::recode`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recoded {
    /// The block has codes of this width: now, or had them before.
    Done,
    /// Nothing has changed: a checkpoint is being written, another thread is changing a block, or a
    /// cursor is still open that may read what the block had before its last change. Worth
    /// another call later.
    Later,
}

#[derive(Default)]
pub(crate) struct Recoding {
    turn: Mutex<()>,
    /// The block whose codes are being made. Set under the writer's lock; unset without it,
    /// for a slot that is kept too long does no harm.
    block: Mutex<Option<u32>>,
    /// What readers are not led to any more, of each block once at most.
    left: Mutex<VecDeque<Left>>,
}

struct Left {
    block: u32,
    codes: CodesOf,
    cursors: Moment,
    linkers: Moment,
}

impl Recoding {
    /// Are the vectors of the block being read? The writer's lock is held.
    pub(crate) fn is_reading(&self, slot: u32) -> bool {
        *self.block.lock() == Some(slot / BLOCK_VECTORS)
    }
}

/// Until it is dropped no vector moves into a slot of the block.
struct KeptSlots<'a>(&'a PartitionIndex);

impl<'a> KeptSlots<'a> {
    fn new(index: &'a PartitionIndex, block: u32) -> Self {
        let _writer = index.writer.lock();
        *index.recoding.block.lock() = Some(block);
        Self(index)
    }
}

impl Drop for KeptSlots<'_> {
    fn drop(&mut self) {
        *self.0.recoding.block.lock() = None;
    }
}

impl PartitionIndex {
    /// Gives the [`BLOCK_VECTORS`](crate::accesses::BLOCK_VECTORS) vectors from
    /// `BLOCK_VECTORS * block` on codes of so many bits, and those that come there later; and the memory of their former codes back once no cursor
    /// is left that was open: at a later call of this or of `repair`. Reads the block's
    /// vectors; searches, inserts, folding and repair go on meanwhile.
    ///
    /// # Errors
    /// [`IndexError::NoWidths`] unless the representation is `Compact`, and
    /// [`IndexError::NoSuchBlock`].
    pub fn recode(&self, block: u32, bits: CodeBits) -> Result<Recoded, IndexError> {
        let compact = self.hnsw.compact.as_ref().ok_or(IndexError::NoWidths)?;
        let blocks = self.blocks();
        if block >= blocks {
            return Err(IndexError::NoSuchBlock { block, blocks });
        }
        self.give_back_codes();
        let Some(_turn) = self.recoding.turn.try_lock() else {
            return Ok(Recoded::Later);
        };
        if compact.codes.bits_of(block) == bits {
            return Ok(Recoded::Done);
        }
        let is_of_block = |left: &Left| left.block == block;
        if self.is_being_written() || self.recoding.left.lock().iter().any(is_of_block) {
            return Ok(Recoded::Later);
        }
        Ok(self.change(compact, block, bits))
    }

    /// It is this thread's turn, and of the block's former codes nothing is left.
    fn change(&self, compact: &Compact, block: u32, bits: CodeBits) -> Recoded {
        let _kept = KeptSlots::new(self, block);
        let rows = block * BLOCK_VECTORS..(block + 1) * BLOCK_VECTORS;
        self.advise(rows.clone(), Advice::WillNeed);
        let new = compact.codes.make_room(block, bits);
        let mut done = rows.start;
        let encode_upto = |done: &mut u32, upto: u32| {
            for row in *done..upto {
                let vector = self.hnsw.rotated(self.hnsw.vectors.get(row));
                // SAFETY: nobody is led to these codes, and none of their rows is made twice.
                #[allow(unsafe_code)]
                unsafe {
                    compact.codes.encode(row, &vector, &new);
                }
            }
            *done = upto;
        };
        let published = || self.hnsw.vectors.len().min(rows.end);
        while published() - done > LAST_ROWS {
            encode_upto(&mut done, published());
        }
        // A checkpoint that begins finds the block as it was before or after.
        let linking = self.linking.read();
        if self.is_being_written() {
            // SAFETY: nobody was led to them.
            #[allow(unsafe_code)]
            unsafe {
                compact.codes.give_back(block, new);
            }
            return Recoded::Later;
        }
        let writer = self.writer.lock();
        encode_upto(&mut done, published());
        let codes = compact.codes.lead(block, new.clone());
        // After readers are led to the new: who enters from here on finds them.
        let (cursors, linkers) = (self.searches.now(), self.linkers.now());
        self.recoding.left.lock().push_back(Left {
            block,
            codes,
            cursors,
            linkers,
        });
        drop((writer, linking));
        self.give_back_codes();
        Recoded::Done
    }

    /// What every reader has left that was led to it goes back to the system.
    pub(crate) fn give_back_codes(&self) {
        let Some(compact) = &self.hnsw.compact else {
            return;
        };
        let mut left = self.recoding.left.lock();
        while let Some(oldest) = left.front()
            && self.searches.have_left(oldest.cursors)
            && self.linkers.have_left(oldest.linkers)
            && let Some(Left { block, codes, .. }) = left.pop_front()
        {
            // SAFETY: readers are led elsewhere since before the moments, and whoever had
            // entered by then has left. The block gets no other codes while this is noted.
            #[allow(unsafe_code)]
            unsafe {
                compact.codes.give_back(block, codes);
            }
        }
    }

    /// Bytes in memory of former codes, of so many rows.
    pub(crate) fn codes_bytes_left(&self, rows: u32) -> usize {
        let left = self.recoding.left.lock();
        let bytes = left.iter().filter_map(|l| l.codes.bytes(l.block, rows));
        bytes.map(|(_, bytes)| bytes).sum()
    }

    /// Blocks of rows that there are: the last may not be full.
    pub fn blocks(&self) -> u32 {
        self.hnsw.vectors.len().div_ceil(BLOCK_VECTORS)
    }

    /// The width of a block's codes; `None` where there is no such block, or
    /// codes have no widths.
    pub fn width(&self, block: u32) -> Option<CodeBits> {
        let compact = self.hnsw.compact.as_ref()?;
        (block < self.blocks()).then(|| compact.codes.bits_of(block))
    }

    /// Rows and memory by the width of their codes, of widths that there are. Memory of
    /// former codes that is not given back yet counts as that of their width.
    pub fn widths(&self) -> Vec<Width> {
        let Some(compact) = &self.hnsw.compact else {
            return Vec::new();
        };
        let rows = self.hnsw.vectors.len();
        let mut bytes = compact.codes.resident_bytes(rows);
        for left in &*self.recoding.left.lock() {
            if let Some((bits, more)) = left.codes.bytes(left.block, rows) {
                bytes[bits as usize] += more;
            }
        }
        let mut widths = CodeBits::ALL.map(|bits| Width {
            bits,
            blocks: 0,
            rows: 0,
            bytes: bytes[bits as usize],
        });
        for block in 0..rows.div_ceil(BLOCK_VECTORS) {
            let width = &mut widths[compact.codes.bits_of(block) as usize];
            width.blocks += 1;
            width.rows += (rows - block * BLOCK_VECTORS).min(BLOCK_VECTORS) as usize;
        }
        let is_there = |width: &Width| width.rows > 0 || width.bytes > 0;
        widths.into_iter().filter(is_there).collect()
    }
}

#[cfg(test)]
#[path = "recode_tests.rs"]
mod tests;
