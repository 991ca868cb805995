//! Which blocks of rows have codes of another width than the index, and where those lie.
//!
//! An index's own codes lie in one array, of all rows. A block that has others has them in memory
//! of its own, so that what it had is given back to the system. Readers take no lock:
//! a block's place is one pointer, and what it led to before is kept until every reader is
//! gone that may have loaded it ([`recode`](crate::recode) sees to that).

use std::cell::UnsafeCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::code::Word;
use crate::accesses::BLOCK_VECTORS;
use crate::arena::{Segments, ZeroIsValid};
use crate::params::CodeBits;
use crate::region::Region;

/// Codes of one width, of one block.
pub(crate) struct BlockCodes {
    pub(super) bits: CodeBits,
    words: Region<UnsafeCell<Word>>,
    row_words: usize,
}

// SAFETY: a row is written before it is published: by whoever makes the codes, before readers
// are led to them, or by the writer, before its vector is.
#[allow(unsafe_code)]
unsafe impl Sync for BlockCodes {}

impl BlockCodes {
    pub(super) fn new(bits: CodeBits, row_words: usize) -> Self {
        Self {
            bits,
            words: Region::of_pages(BLOCK_VECTORS as usize * row_words),
            row_words,
        }
    }

    #[inline]
    pub(super) fn row(&self, node: u32) -> &[UnsafeCell<Word>] {
        let start = (node % BLOCK_VECTORS) as usize * self.row_words;
        &self.words.elements()[start..start + self.row_words]
    }

    /// Bytes in memory if so many rows were written.
    pub(super) fn resident_bytes(&self, rows: u32) -> usize {
        let bytes = rows as usize * self.row_words * size_of::<Word>();
        bytes.next_multiple_of(Region::<()>::PAGE_BYTES)
    }
}

/// Null where the block has the index's own codes.
struct Place(AtomicPtr<BlockCodes>);

// SAFETY: an atomic pointer; of zeros it is null.
#[allow(unsafe_code)]
unsafe impl ZeroIsValid for Place {}

pub(super) struct Mixture {
    places: Segments<Place>,
    /// What places lead to.
    others: Mutex<BTreeMap<u32, Arc<BlockCodes>>>,
    others_len: AtomicU32,
    /// Blocks whose part of the index's own array was given back.
    given_back: Mutex<BTreeSet<u32>>,
    /// Changes begun and changes done: odd while one is under way.
    steps: AtomicU64,
}

impl Mixture {
    pub(super) fn new() -> Self {
        Self {
            places: Segments::new(1),
            others: Mutex::default(),
            others_len: AtomicU32::new(0),
            given_back: Mutex::default(),
            steps: AtomicU64::new(0),
        }
    }

    /// Makes room for a vector about to be published. One writer at a time.
    pub(super) fn reserve(&self, id: u32) {
        self.places.ensure(id / BLOCK_VECTORS);
    }

    /// The codes of the node's block, if they are not the index's own. For readers that
    /// have entered, and for the writer.
    #[inline]
    pub(super) fn of(&self, node: u32) -> Option<&BlockCodes> {
        // An index of one width is searched without a look at places.
        if self.others_len.load(Ordering::Acquire) == 0 {
            return None;
        }
        let place = self.places.row(node / BLOCK_VECTORS)[0]
            .0
            .load(Ordering::Acquire);
        // SAFETY: null, or what `others` holds, or held when this reader came: it is
        // given back only once such readers are gone.
        #[allow(unsafe_code)]
        unsafe {
            place.as_ref()
        }
    }

    /// The width of a block's codes if they are not the index's own: for who is no reader.
    pub(super) fn bits_of(&self, block: u32) -> Option<CodeBits> {
        self.others.lock().get(&block).map(|codes| codes.bits)
    }

    pub(super) fn is_mixed(&self) -> bool {
        self.others_len.load(Ordering::Acquire) > 0
    }

    /// Leads readers to other codes of the block, and returns what they were led to. One
    /// caller at a time.
    pub(super) fn lead(&self, block: u32, new: Option<Arc<BlockCodes>>) -> Option<Arc<BlockCodes>> {
        let mut others = self.others.lock();
        let at = new.as_ref().map_or(std::ptr::null(), Arc::as_ptr);
        let old = match new {
            Some(new) => others.insert(block, new),
            None => others.remove(&block),
        };
        self.steps.fetch_add(1, Ordering::AcqRel);
        self.places.row(block)[0]
            .0
            .store(at.cast_mut(), Ordering::Release);
        // After the place: who finds no other codes reads the index's own, which are there.
        self.others_len
            .store(others.len() as u32, Ordering::Release);
        self.steps.fetch_add(1, Ordering::AcqRel);
        old
    }

    /// To be asked before the first code is read.
    #[inline]
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Acquire)
    }

    /// May a code read since `steps` were so many be another's by now than that of its node? To be asked
    /// after the node's present code was looked up.
    #[inline]
    pub(super) fn has_changed_since(&self, steps: u64) -> bool {
        !steps.is_multiple_of(2) || self.steps.load(Ordering::Acquire) != steps
    }

    pub(super) fn note_given_back(&self, block: u32) {
        self.given_back.lock().insert(block);
    }

    pub(super) fn note_taken_again(&self, block: u32) {
        self.given_back.lock().remove(&block);
    }

    /// Blocks of the index's own array that are not in memory.
    pub(super) fn given_back(&self) -> Vec<u32> {
        self.given_back.lock().iter().copied().collect()
    }

    /// Bytes in memory of codes of other widths, of so many rows of the index, by width.
    pub(super) fn resident_bytes(&self, rows: u32) -> [usize; CodeBits::ALL.len()] {
        let mut bytes = [0; CodeBits::ALL.len()];
        for (block, codes) in &*self.others.lock() {
            let rows = rows_of(*block, rows).len() as u32;
            bytes[codes.bits as usize] += codes.resident_bytes(rows);
        }
        bytes
    }
}

/// The rows of a block, of so many in all.
pub(super) fn rows_of(block: u32, rows: u32) -> Range<u32> {
    let first = (block * BLOCK_VECTORS).min(rows);
    first..rows.min(first.saturating_add(BLOCK_VECTORS))
}
