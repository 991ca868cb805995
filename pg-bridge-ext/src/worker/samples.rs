//! How far the server's log was on disk, sampled by the worker into shared memory
//! for searches that bound their staleness.
//!
//! Two rings: one of samples 10 ms apart for small bounds, one of samples a second
//! apart for large ones. Together they reach back further than any bound that can
//! be set. One writer, the worker's main thread; readers take no lock.

use cluster_core::freshness::samples::{self, BootMicros, Sample};
use cluster_core::wal_position::Lsn;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

pub const SAMPLE_EVERY: Duration = Duration::from_millis(10);
const COARSE_EVERY_MS: u64 = 1_000;
const RING: usize = 1_024;
/// The largest bound on staleness; the coarse ring reaches back further.
pub const LAG_MS_MAX: i32 = 600_000;
const _: () = assert!(RING as u64 * COARSE_EVERY_MS > LAG_MS_MAX as u64);

#[repr(C)]
pub struct Samples {
    fine: Ring,
    coarse: Ring,
}

#[repr(C)]
struct Ring {
    /// Samples ever taken.
    taken: AtomicU64,
    entries: [Entry; RING],
}

/// A time of 0 says that the position is being written, or never was.
#[repr(C)]
struct Entry {
    at: AtomicU64,
    flushed: AtomicU64,
}

impl Samples {
    /// Whether the next sample is due.
    pub fn is_due(&self, now: BootMicros) -> bool {
        self.fine
            .newest_first()
            .next()
            .is_none_or(|last| now.ms_since(last.at) >= SAMPLE_EVERY.as_millis() as u64)
    }

    /// By the worker's main thread alone. `sample.at` was read before the position.
    pub fn take(&self, sample: Sample) {
        self.fine.push(sample);
        let last = self.coarse.newest_first().next();
        if last.is_none_or(|last| sample.at.ms_since(last.at) >= COARSE_EVERY_MS) {
            self.coarse.push(sample);
        }
    }

    /// See [`samples::position_at`].
    pub fn position_at(&self, bound: BootMicros) -> Option<Lsn> {
        let fine = samples::position_at(bound, self.fine.newest_first());
        let coarse = samples::position_at(bound, self.coarse.newest_first());
        fine.into_iter().chain(coarse).min()
    }

    /// See [`samples::lag_ms`].
    pub fn lag_ms(&self, position: Lsn, now: BootMicros) -> u64 {
        let fine = samples::lag_ms(position, now, self.fine.newest_first());
        fine.max(samples::lag_ms(position, now, self.coarse.newest_first()))
    }
}

impl Ring {
    fn push(&self, sample: Sample) {
        let taken = self.taken.load(Ordering::Relaxed);
        let entry = &self.entries[taken as usize % RING];
        entry.at.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        entry.flushed.store(sample.flushed.0, Ordering::Relaxed);
        entry.at.store(sample.at.0, Ordering::Release);
        self.taken.store(taken + 1, Ordering::Release);
    }

    /// Ends where the writer has overtaken the reader.
    fn newest_first(&self) -> impl Iterator<Item = Sample> {
        let taken = self.taken.load(Ordering::Acquire);
        let oldest = taken.saturating_sub(RING as u64);
        (oldest..taken).rev().map_while(|number| {
            let entry = &self.entries[number as usize % RING];
            let at = entry.at.load(Ordering::Acquire);
            let flushed = entry.flushed.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            // Times only rise: the same one before and after is the same sample.
            let is_whole = at != 0 && entry.at.load(Ordering::Relaxed) == at;
            is_whole.then_some(Sample {
                at: BootMicros(at),
                flushed: Lsn(flushed),
            })
        })
    }
}
