//! Rows of varying length: sparse vectors.
//!
//! Lanes are given out one row after the other; those of a row that is written again go
//! to another of their length. A row does not
//! cross from one bucket of memory to the next: what is left of a bucket stays unused,
//! and untouched.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::arena::Segments;
use crate::checkpoint::{Array, CheckpointError, Cut, Kind, corrupt};
use crate::distance::{Lane, is_sparse};
use crate::memory::{Advice, Backing};
use crate::params::IndexError;

/// What all rows of an index may take together: lanes have 32-bit numbers.
const SPARSE_BYTES_MAX: u64 = u32::MAX as u64 * size_of::<Lane>() as u64;

pub(crate) struct Varying {
    lanes: Segments<UnsafeCell<Lane>>,
    /// Of each row: `first lane << 32 | lanes`.
    spans: Segments<AtomicU64>,
    /// Lanes below are given out or left over.
    used: AtomicU32,
    filled: AtomicU64,
    /// Lanes of rows that were written again elsewhere: by their number, the first ones.
    free: Mutex<HashMap<u32, Vec<u32>>>,
}

impl Varying {
    /// Rows lie in memory that is handed in, if any.
    pub(crate) fn new(backing: Option<Arc<dyn Backing>>) -> Self {
        Self {
            lanes: Segments::backed(1, backing),
            spans: Segments::new(1),
            used: AtomicU32::new(0),
            filled: AtomicU64::new(0),
            free: Mutex::default(),
        }
    }

    /// First lane and the one after the last.
    fn place(&self, lanes: usize) -> Option<(u32, u32)> {
        let used = self.used.load(Ordering::Relaxed);
        let first = self.lanes.run_from(used, lanes)?;
        let lanes = u32::try_from(lanes).ok()?;
        Some((first, first.checked_add(lanes)?))
    }

    /// Makes room for a row about to be published, or refuses and changes nothing. One
    /// writer at a time.
    pub(crate) fn reserve(&self, row: u32, lanes: usize) -> Result<(), IndexError> {
        let (first, end) = self.place(lanes).ok_or(IndexError::SparseFull {
            limit_bytes: SPARSE_BYTES_MAX,
        })?;
        // Also what is left over, which a checkpoint holds as zeros.
        self.lanes.ensure_all(end)?;
        self.spans.ensure(row);
        let span = u64::from(first) << 32 | u64::from(end - first);
        self.spans.row(row)[0].store(span, Ordering::Relaxed);
        self.used.store(end, Ordering::Relaxed);
        self.filled.fetch_add(lanes as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The same for a row whose vector nobody needs any more. Its lanes are another row's
    /// of the same length some day: vectors of a kind have few lengths.
    pub(crate) fn reserve_again(&self, row: u32, lanes: usize) -> Result<(), IndexError> {
        let old = self.span(row);
        let mut free = self.free.lock();
        let again = u32::try_from(lanes)
            .ok()
            .filter(|lanes| *lanes as usize != old.len())
            .and_then(|lanes| free.get_mut(&lanes)?.pop().map(|first| (first, lanes)));
        match again {
            _ if old.len() == lanes => return Ok(()),
            Some((first, lanes)) => {
                let span = u64::from(first) << 32 | u64::from(lanes);
                self.spans.row(row)[0].store(span, Ordering::Relaxed);
                self.filled.fetch_add(u64::from(lanes), Ordering::Relaxed);
            }
            None => self.reserve(row, lanes)?,
        }
        let lanes = old.len() as u32;
        self.filled.fetch_sub(u64::from(lanes), Ordering::Relaxed);
        free.entry(lanes).or_default().push(old.start);
        Ok(())
    }

    #[inline]
    pub(crate) fn row(&self, row: u32) -> &[UnsafeCell<Lane>] {
        let span = self.span(row);
        self.lanes.run(span.start, span.len())
    }

    #[inline]
    fn span(&self, row: u32) -> Range<u32> {
        let span = self.spans.row(row)[0].load(Ordering::Relaxed);
        let first = (span >> 32) as u32;
        first..first + span as u32
    }

    /// Tells the memory that was handed in of rows. Neighbours in it are told as one.
    pub(crate) fn advise(&self, rows: Range<u32>, advice: Advice) {
        let mut together: Option<Range<u32>> = None;
        for row in rows {
            let span = self.span(row);
            match &mut together {
                Some(known) if known.end == span.start => known.end = span.end,
                _ => {
                    if let Some(known) = together.replace(span) {
                        self.lanes.advise(known, advice);
                    }
                }
            }
        }
        if let Some(known) = together {
            self.lanes.advise(known, advice);
        }
    }

    /// Lanes below are given out or left over.
    pub(crate) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// As a checkpoint has them, with what is left over between rows.
    pub(crate) fn arrays(&self, cut: Cut) -> Vec<(Kind, u32, &dyn Array)> {
        vec![
            (Kind::Vectors, cut.lanes, &self.lanes),
            (Kind::Spans, cut.rows, &self.spans),
        ]
    }

    /// Whether every row is a sparse vector within the lanes that were filled.
    pub(crate) fn check(&self, cut: Cut, dimensions: usize) -> Result<(), CheckpointError> {
        let bad = |row: u32, kind: Kind, what: &str| {
            Err(corrupt(kind.name(), format!("row {row} {what}")))
        };
        for row in 0..cut.rows {
            let packed = self.spans.row(row)[0].load(Ordering::Relaxed);
            let (first, lanes) = ((packed >> 32) as u32, packed as u32);
            let end = first.checked_add(lanes);
            let is_within = end.is_some_and(|end| lanes > 0 && end <= cut.lanes);
            if !is_within || self.lanes.run_from(first, lanes as usize) != Some(first) {
                return bad(row, Kind::Spans, "is not within the lanes");
            }
            let cells = self.row(row);
            // SAFETY: the rows were filled, and nobody writes to them.
            #[allow(unsafe_code)]
            let lanes =
                unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<Lane>(), cells.len()) };
            if !is_sparse(lanes, dimensions) {
                return bad(row, Kind::Vectors, "is no sparse vector");
            }
        }
        Ok(())
    }

    /// Takes up rows that were filled and found sound.
    pub(crate) fn restore(&mut self, cut: Cut) {
        let lanes = (0..cut.rows).map(|row| self.span(row).len() as u64);
        let filled = lanes.sum();
        *self.filled.get_mut() = filled;
        *self.used.get_mut() = cut.lanes;
    }

    pub(crate) fn bytes(&self, rows: u32) -> usize {
        self.filled.load(Ordering::Relaxed) as usize * size_of::<Lane>()
            + rows as usize * size_of::<AtomicU64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_apart_and_within_buckets() {
        let rows = Varying::new(None);
        let lanes = |row: u32| 1 + (row as usize * 7_919) % 2_001;
        for row in 0..600 {
            rows.reserve(row, lanes(row)).expect("there is room");
        }
        let mut spans: Vec<(usize, usize)> = (0..600)
            .map(|row| {
                let cells = rows.row(row);
                assert_eq!(cells.len(), lanes(row));
                (cells.as_ptr().addr(), size_of_val(cells))
            })
            .collect();
        spans.sort_unstable();
        assert!(spans.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        let total: usize = (0..600).map(lanes).sum();
        assert_eq!(rows.bytes(600), total * 64 + 600 * 8);
    }

    #[test]
    fn rows_that_are_written_again_stay_apart_and_take_little_more() {
        let rows = Varying::new(None);
        let lanes = |row: u32, round: u32| 1 + ((row + 31 * round) as usize * 7_919) % 40;
        for row in 0..600 {
            rows.reserve(row, lanes(row, 0)).expect("there is room");
        }
        let before = rows.used();
        for round in 1..20 {
            for row in 0..600 {
                rows.reserve_again(row, lanes(row, round))
                    .expect("there is room");
                assert_eq!(rows.row(row).len(), lanes(row, round));
            }
            let mut spans: Vec<Range<u32>> = (0..600).map(|row| rows.span(row)).collect();
            spans.sort_unstable_by_key(|span| span.start);
            assert!(spans.windows(2).all(|w| w[0].end <= w[1].start), "{round}");
            let total: usize = (0..600).map(|row| lanes(row, round)).sum();
            assert_eq!(rows.bytes(600), total * 64 + 600 * 8);
        }
        assert!(
            rows.used() < before + before / 4,
            "{} after {before}",
            rows.used()
        );
    }

    #[test]
    fn there_is_an_end_to_the_room() {
        let rows = Varying::new(None);
        rows.used.store(u32::MAX - 10, Ordering::Relaxed);
        assert!(rows.place(10).is_some());
        let error = rows.reserve(0, 11).expect_err("too long");
        assert!(matches!(error, IndexError::SparseFull { .. }));
        assert_eq!(rows.used.load(Ordering::Relaxed), u32::MAX - 10);
    }
}
