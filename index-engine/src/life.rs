//! The life of the vector in each slot: since when it is there, and whether it is
//! current, a former version, or removed: who may see it.
//!
//! Two words a slot, side by side, written in place and read without locks. What a
//! search sees may change under it in one direction only: a row goes, none comes.

use crate::arena::{Segments, prefetch};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// States of a vector; any other value is the xid that ended it.
const REMOVED: u64 = 0;
const CURRENT: u64 = u64::MAX;

pub(crate) struct Lives {
    /// State and birth of each slot.
    words: Segments<AtomicU64>,
    removed: AtomicU32,
}

impl Lives {
    pub(crate) const BYTES_PER_VECTOR: usize = 2 * size_of::<AtomicU64>();

    pub(crate) fn new() -> Self {
        Self {
            words: Segments::new(2),
            removed: AtomicU32::new(0),
        }
    }

    /// States and births, side by side.
    pub(crate) fn memory(&self) -> &Segments<AtomicU64> {
        &self.words
    }

    /// Takes up words that were filled by way of [`Self::memory`].
    pub(crate) fn restore(&mut self, slots: u32) {
        let removed = (0..slots).filter(|slot| self.is_removed(*slot)).count();
        self.removed = AtomicU32::new(removed as u32);
    }

    pub(crate) fn set_birth(&mut self, slot: u32, birth: u64) {
        self.words(slot)[1].store(birth, Ordering::Relaxed);
    }

    /// A new slot, as if its vector had been removed. One writer at a time.
    pub(crate) fn reserve(&self, slot: u32) {
        self.words.ensure(slot);
    }

    /// A vector is born. One writer at a time; the slot is new, or its vector removed
    /// and out of every reader's reach.
    pub(crate) fn begin(&self, slot: u32, birth: u64) {
        let [state, born] = self.words(slot);
        born.store(birth, Ordering::Relaxed);
        // Whoever sees the new state sees the new birth.
        state.store(CURRENT, Ordering::Release);
    }

    /// Seen from now on only by `snapshot_xmin <= ended_xid`. Repeating it keeps the
    /// later xid; what is removed stays so.
    pub(crate) fn end(&self, slot: u32, ended_xid: u64) {
        let ended = ended_xid.clamp(REMOVED + 1, CURRENT - 1);
        let later = |state| match state {
            REMOVED => None,
            CURRENT => Some(ended),
            before => Some(before.max(ended)),
        };
        let [state, _] = self.words(slot);
        let _ = state.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    /// True if it was not removed before.
    pub(crate) fn remove(&self, slot: u32) -> bool {
        let [state, _] = self.words(slot);
        let was_there = state.swap(REMOVED, Ordering::AcqRel) != REMOVED;
        if was_there {
            self.removed.fetch_add(1, Ordering::Relaxed);
        }
        was_there
    }

    /// The slot of a removed vector waits for another.
    pub(crate) fn forget(&self, slot: u32) {
        assert!(self.is_removed(slot), "slot {slot} holds a vector");
        self.removed.fetch_sub(1, Ordering::Relaxed);
    }

    /// Removed and not forgotten.
    pub(crate) fn removed_len(&self) -> usize {
        self.removed.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn is_removed(&self, slot: u32) -> bool {
        self.words(slot)[0].load(Ordering::Acquire) == REMOVED
    }

    /// May a search with this snapshot return the vector?
    #[inline]
    pub(crate) fn is_visible(&self, slot: u32, snapshot_xmin: u64) -> bool {
        let state = self.words(slot)[0].load(Ordering::Acquire);
        state != REMOVED && state >= snapshot_xmin
    }

    /// The same of a vector born before `birth`.
    #[inline]
    pub(crate) fn is_visible_before(&self, slot: u32, birth: u64, snapshot_xmin: u64) -> bool {
        // In this order: the slot may be born again meanwhile.
        self.is_visible(slot, snapshot_xmin) && self.birth(slot) < birth
    }

    #[inline]
    pub(crate) fn birth(&self, slot: u32) -> u64 {
        self.words(slot)[1].load(Ordering::Relaxed)
    }

    /// A hint that `is_visible` will be asked.
    #[inline]
    pub(crate) fn prefetch(&self, slot: u32) {
        prefetch(&self.words(slot)[0]);
    }

    #[inline]
    fn words(&self, slot: u32) -> &[AtomicU64; 2] {
        let words = self.words.row(slot).first_chunk();
        words.expect("two words a slot")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_seen_until_it_ended_and_never_once_removed() {
        let lives = Lives::new();
        lives.reserve(0);
        lives.begin(0, 5);
        assert!(lives.is_visible(0, 1) && lives.is_visible(0, u64::MAX));
        assert!(lives.is_visible_before(0, 6, 1) && !lives.is_visible_before(0, 5, 1));
        lives.end(0, 9);
        lives.end(0, 7);
        let seen = [7, 9, 10, u64::MAX].map(|xmin| lives.is_visible(0, xmin));
        assert_eq!(seen, [true, true, false, false], "the later xid counts");
        lives.remove(0);
        lives.remove(0);
        lives.end(0, 20);
        assert!(!lives.is_visible(0, 0) && lives.is_removed(0));
        assert_eq!(lives.removed_len(), 1);
    }
}
