//! How often searches come by vectors: the heat of a block of them.
//!
//! A signal for whoever decides which originals stay in RAM, not an account: counts are
//! added without locking, so that two searches at the same moment may count as one, and they
//! begin anew at 2^32.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::arena::Segments;

/// Vectors with ids next to each other that are counted together, and have codes of one width.
pub const BLOCK_VECTORS: u32 = 1_024;

/// Since the index was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accesses {
    /// Nodes whose neighbours were looked at.
    pub expansions: u32,
    /// Vectors read to rank exactly what codes or sketches had found.
    pub originals: u32,
}

const EXPANSIONS: usize = 0;
const ORIGINALS: usize = 1;

pub(crate) struct Counters(Segments<AtomicU32>);

impl Counters {
    pub(crate) fn new() -> Self {
        Self(Segments::new(2))
    }

    /// Makes room for a vector about to be published. One writer at a time.
    pub(crate) fn reserve(&self, id: u32) {
        self.0.ensure(id / BLOCK_VECTORS);
    }

    #[inline]
    pub(crate) fn expanded(&self, id: u32) {
        self.count(id, EXPANSIONS);
    }

    #[inline]
    pub(crate) fn read(&self, id: u32) {
        self.count(id, ORIGINALS);
    }

    /// Not one step: a lock of the bus costs more than a count that is lost.
    #[inline]
    fn count(&self, id: u32, what: usize) {
        let count = &self.0.row(id / BLOCK_VECTORS)[what];
        let next = count.load(Ordering::Relaxed).wrapping_add(1);
        count.store(next, Ordering::Relaxed);
    }

    /// Of a block of which a vector is published.
    pub(crate) fn of(&self, block: u32) -> Accesses {
        let counts = self.0.row(block);
        Accesses {
            expansions: counts[EXPANSIONS].load(Ordering::Relaxed),
            originals: counts[ORIGINALS].load(Ordering::Relaxed),
        }
    }
}
