//! What the vector in each slot is to the graph.

use crate::arena::Segments;
use crate::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Has lists of its own. Without: in the tail, a node's copy, without a distance to
/// anything, or nothing at all.
const NODE: u8 = 1;
/// On its way out: nobody links to it any more.
const LEAVING: u8 = 2;
/// Hangs on a node that it equals.
const COPY: u8 = 4;

pub(super) struct Roles {
    flags: Segments<AtomicU8>,
    leaving: AtomicU32,
}

impl Roles {
    pub(super) fn new() -> Self {
        Self {
            flags: Segments::new(1),
            leaving: AtomicU32::new(0),
        }
    }

    /// For a vector that nobody can reach yet. One writer at a time.
    pub(super) fn reserve(&self, slot: u32) {
        self.flags.ensure(slot);
        self.of(slot).store(0, Ordering::Relaxed);
    }

    pub(super) fn become_node(&self, slot: u32) {
        let become_node = |flags| Some((flags | NODE) & !COPY);
        let _ = self
            .of(slot)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, become_node);
    }

    pub(super) fn become_copy(&self, slot: u32) {
        self.of(slot).fetch_or(COPY, Ordering::AcqRel);
    }

    /// Hangs on no node any more.
    pub(super) fn drop_copy(&self, slot: u32) {
        self.of(slot).fetch_and(!COPY, Ordering::AcqRel);
    }

    /// Is the vector in a chain of copies, or the node at its head?
    pub(super) fn has_copies(&self, slot: u32) -> bool {
        self.of(slot).load(Ordering::Acquire) & (NODE | COPY) != 0
    }

    pub(super) fn leave(&self, slot: u32) {
        let before = self.of(slot).fetch_or(LEAVING, Ordering::AcqRel);
        assert!(before & LEAVING == 0, "slot {slot} leaves twice");
        self.leaving.fetch_add(1, Ordering::AcqRel);
    }

    /// The vector has left.
    pub(super) fn forget(&self, slot: u32) {
        let before = self.of(slot).swap(0, Ordering::AcqRel);
        assert!(before & LEAVING != 0, "slot {slot} has not left");
        self.leaving.fetch_sub(1, Ordering::AcqRel);
    }

    #[inline]
    pub(super) fn is_leaving(&self, slot: u32) -> bool {
        self.of(slot).load(Ordering::Acquire) & LEAVING != 0
    }

    /// A node, and not on its way out.
    #[inline]
    pub(super) fn is_staying_node(&self, slot: u32) -> bool {
        self.of(slot).load(Ordering::Acquire) == NODE
    }

    pub(super) fn is_node(&self, slot: u32) -> bool {
        self.of(slot).load(Ordering::Acquire) & NODE != 0
    }

    pub(super) fn memory_bytes(&self, vectors: u32) -> usize {
        self.flags.resident_bytes(vectors)
    }

    /// Is anything on its way out?
    pub(super) fn are_any_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire) > 0
    }

    #[inline]
    fn of(&self, slot: u32) -> &AtomicU8 {
        &self.flags.row(slot)[0]
    }
}
