//! The prepared vectors, as readers find them while one writer appends.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;

use crate::arena::{Segments, prefetch, prefetch_rows};
use crate::checkpoint::{Array, CheckpointError, Cut, Kind};
use crate::distance::Lane;
use crate::memory::{Advice, Backing};
use crate::params::IndexError;
use crate::sync::Accessed;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::varying::Varying;

#[allow(
    clippy::large_enum_variant,
    reason = "one an index, and the common one is reached without a detour"
)]
enum Storage {
    Even(Segments<UnsafeCell<Lane>>),
    Varying(Box<Varying>),
}

impl Storage {
    #[inline]
    fn row(&self, row: u32) -> &[UnsafeCell<Lane>] {
        match self {
            Self::Even(lanes) => lanes.row(row),
            Self::Varying(rows) => rows.row(row),
        }
    }
}

/// The vectors as whole lanes, and how many are published.
pub(crate) struct VectorArena {
    rows: Storage,
    is_backed: bool,
    published: AtomicU32,
    accessed: Accessed,
}

// SAFETY: a cell is written by `append` to rows at or above `published`, by one
// caller at a time (its contract); it is read only below `published`, whose release
// store in `append` makes the bytes visible. It is written again by `rewrite` only,
// while nobody reads it (its contract).
#[allow(unsafe_code)]
unsafe impl Sync for VectorArena {}

impl VectorArena {
    /// Of vectors of so many lanes each; without a number each has its own.
    pub(crate) fn new(lanes: Option<usize>, backing: Option<Arc<dyn Backing>>) -> Self {
        Self {
            is_backed: backing.is_some(),
            rows: match lanes {
                Some(lanes) => Storage::Even(Segments::backed(lanes, backing)),
                None => Storage::Varying(Box::new(Varying::new(backing))),
            },
            published: AtomicU32::new(0),
            accessed: Accessed::new(),
        }
    }

    /// Lanes given out to vectors of varying length. One writer at a time.
    pub(crate) fn lanes_used(&self) -> u32 {
        match &self.rows {
            Storage::Even(_) => 0,
            Storage::Varying(rows) => rows.used(),
        }
    }

    /// The arrays of the rows that a cut has, and how many rows each has. Nobody writes to
    /// them.
    pub(crate) fn arrays(&self, cut: Cut) -> Vec<(Kind, u32, &dyn Array)> {
        match &self.rows {
            Storage::Even(lanes) => vec![(Kind::Vectors, cut.rows, lanes)],
            Storage::Varying(rows) => rows.arrays(cut),
        }
    }

    /// Publishes rows that were filled by way of [`Self::arrays`], if they can be.
    pub(crate) fn publish(&mut self, cut: Cut) {
        self.published = AtomicU32::new(cut.rows);
        if let Storage::Varying(rows) = &mut self.rows {
            rows.restore(cut);
        }
    }

    /// Whether what was filled in can be vectors of so many dimensions.
    pub(crate) fn check(&self, cut: Cut, dimensions: usize) -> Result<(), CheckpointError> {
        match &self.rows {
            // Any floats, halves or bits have distances.
            Storage::Even(_) => Ok(()),
            Storage::Varying(rows) => rows.check(cut, dimensions),
        }
    }

    /// Bytes of the published rows, wherever they lie; what may be read of them if they
    /// lie in memory that was handed in.
    pub(crate) fn bytes(&self) -> usize {
        match &self.rows {
            Storage::Even(lanes) => lanes.resident_bytes(self.len()),
            Storage::Varying(rows) => rows.bytes(self.len()),
        }
    }

    /// Are the rows in memory that was handed in?
    pub(crate) fn is_backed(&self) -> bool {
        self.is_backed
    }

    /// Tells the memory that was handed in what is going to be read of it.
    pub(crate) fn advise(&self, rows: Range<u32>, advice: Advice) {
        let rows = rows.start..rows.end.min(self.len());
        match &self.rows {
            Storage::Even(lanes) => lanes.advise(rows, advice),
            Storage::Varying(varying) => varying.advise(rows, advice),
        }
    }

    /// Rows that readers may see.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.published.load(Ordering::Acquire)
    }

    /// Writes the next row and publishes it. `before_publish` prepares whatever
    /// readers expect to find beside a published row. Refuses, and changes nothing, where
    /// memory is handed in and there is no more.
    ///
    /// # Safety
    /// At most one call runs at a time: the caller holds the writer's lock.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn append(
        &self,
        vector: &[Lane],
        before_publish: impl FnOnce(u32),
    ) -> Result<u32, IndexError> {
        let row = self.published.load(Ordering::Relaxed);
        match &self.rows {
            Storage::Even(lanes) => lanes.try_ensure(row)?,
            Storage::Varying(rows) => rows.reserve(row, vector.len())?,
        }
        // SAFETY: the row is not published, so nobody reads it, and this is
        // the only writer by the function's contract.
        unsafe { self.write(row, vector) };
        before_publish(row);
        self.published.store(row + 1, Ordering::Release);
        Ok(row)
    }

    /// Writes another vector into a published row, or refuses as `append` does.
    ///
    /// # Safety
    /// Nobody reads the row or holds a reference to it, and whoever comes to it later
    /// learns of it from the caller, after this has returned. At most one call runs at a
    /// time.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn rewrite(&self, row: u32, vector: &[Lane]) -> Result<(), IndexError> {
        assert!(row < self.len(), "vector {row} is not published");
        if let Storage::Varying(rows) = &self.rows {
            rows.reserve_again(row, vector.len())?;
        }
        // SAFETY: by the function's contract.
        unsafe { self.write(row, vector) };
        Ok(())
    }

    /// # Safety
    /// Nobody else reads or writes the row.
    #[allow(unsafe_code)]
    unsafe fn write(&self, row: u32, vector: &[Lane]) {
        self.accessed.written(row);
        let cells = self.rows.row(row);
        assert_eq!(
            cells.len(),
            vector.len(),
            "vectors of one index have one length"
        );
        for (cell, lane) in cells.iter().zip(vector) {
            // SAFETY: by the function's contract.
            unsafe { *cell.get() = *lane };
        }
    }

    /// # Panics
    /// If the row is not published.
    #[inline]
    pub(crate) fn get(&self, row: u32) -> &[Lane] {
        assert!(row < self.len(), "vector {row} is not published");
        self.accessed.read(row);
        let cells = self.rows.row(row);
        // SAFETY: published rows are written again only while nobody reads them, and
        // UnsafeCell<Lane> has the layout of Lane.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(cells.as_ptr().cast::<Lane>(), cells.len())
        }
    }

    /// Asks for the whole rows: of the memory system, or of what was handed in if it wants
    /// to know.
    pub(crate) fn expect_reads(&self, rows: &[u32]) {
        match &self.rows {
            Storage::Even(lanes) if self.is_backed && lanes.wants_to_know_reads() => {
                for row in rows {
                    lanes.advise(*row..row + 1, Advice::WillNeed);
                }
            }
            _ => self.prefetch_whole(rows),
        }
    }

    /// Asks the memory system for the whole rows.
    #[inline]
    pub(crate) fn prefetch_whole(&self, rows: &[u32]) {
        prefetch_rows(rows, |row| self.get(row));
    }

    /// Asks the memory system for the row's first bytes; its prefetcher streams
    /// the rest.
    #[inline]
    pub(crate) fn prefetch(&self, row: u32) {
        const LINES: usize = 4;
        for lane in self.get(row).iter().take(LINES) {
            prefetch(lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn appended_vectors_keep_their_values() {
        let arena = VectorArena::new(Some(2), None);
        for row in 0..2_000u32 {
            let vector: Vec<f32> = (0..19).map(|i| (row * 31 + i) as f32).collect();
            let lanes = Lane::pack(&vector);
            // SAFETY: one thread.
            assert_eq!(unsafe { arena.append(&lanes, |_| {}) }, Ok(row));
            assert_eq!(arena.get(row), &*lanes);
        }
        assert_eq!(arena.len(), 2_000);
    }
}
