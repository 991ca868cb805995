//! Whether a vector is current, a former version, or removed: who may see it.
//!
//! One word a vector, written in place and read without locks. What a search sees
//! may change under it in one direction only: a row goes, none comes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::arena::{Segments, prefetch};

/// States of a vector; any other value is the xid that ended it.
const REMOVED: u64 = 0;
const CURRENT: u64 = u64::MAX;

pub(crate) struct Lives {
    states: Segments<AtomicU64>,
    removed: AtomicU32,
}

impl Lives {
    pub(crate) const BYTES_PER_VECTOR: usize = size_of::<AtomicU64>();

    pub(crate) fn new() -> Self {
        Self {
            states: Segments::new(1),
            removed: AtomicU32::new(0),
        }
    }

    /// For a vector about to be published. One writer at a time.
    pub(crate) fn begin(&self, id: u32) {
        self.states.ensure(id);
        self.states.row(id)[0].store(CURRENT, Ordering::Relaxed);
    }

    /// Seen from now on only by `snapshot_xmin <= ended_xid`. Repeating it keeps the
    /// later xid; what is removed stays so.
    pub(crate) fn end(&self, id: u32, ended_xid: u64) {
        let ended = ended_xid.clamp(REMOVED + 1, CURRENT - 1);
        let later = |state| match state {
            REMOVED => None,
            CURRENT => Some(ended),
            before => Some(before.max(ended)),
        };
        let state = &self.states.row(id)[0];
        let _ = state.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    pub(crate) fn remove(&self, id: u32) {
        if self.states.row(id)[0].swap(REMOVED, Ordering::AcqRel) != REMOVED {
            self.removed.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn removed_len(&self) -> usize {
        self.removed.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn is_removed(&self, id: u32) -> bool {
        self.states.row(id)[0].load(Ordering::Acquire) == REMOVED
    }

    /// May a search with this snapshot return the vector?
    #[inline]
    pub(crate) fn is_visible(&self, id: u32, snapshot_xmin: u64) -> bool {
        let state = self.states.row(id)[0].load(Ordering::Acquire);
        state != REMOVED && state >= snapshot_xmin
    }

    /// A hint that `is_visible` will be asked.
    #[inline]
    pub(crate) fn prefetch(&self, id: u32) {
        prefetch(&self.states.row(id)[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_seen_until_it_ended_and_never_once_removed() {
        let lives = Lives::new();
        lives.begin(0);
        assert!(lives.is_visible(0, 1) && lives.is_visible(0, u64::MAX));
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
