//! Inverted lists: rows grouped around centroids, of which a search scans a few
//! groups (IVFFlat of pgvector and faiss).
//!
//! Costs less memory and time to build than a graph, and more time to search. An
//! index of its own with the life of a [`crate::PartitionIndex`]: a row is found
//! from the moment `insert` returns, every page is complete and exact in what it
//! scanned, and in the end each visible row has come out once.
//!
//! In reading order:
//! - `centroids`: the middles of the lists, and which of them is nearest.
//! - `lists`: rows of one list together in memory, appended beside readers.
//! - `kmeans`: one step of Lloyd's algorithm, and what becomes of empty clusters.
//! - [`drift`]: the rule that says when lists are to be made anew.
//! - `training`: making them, in slices that several threads may run.
//! - [`index`]: rows and their life.
//! - [`cursor`]: one search, page by page.
//!
//! What must never happen: a search that waits for training, or a row that is in no
//! list while lists are replaced.

mod centroids;
pub mod cursor;
pub mod drift;
pub mod index;
mod kmeans;
mod lists;
mod training;

pub use cursor::IvfCursor;
pub use drift::Due;
pub use index::{IvfIndex, IvfParams};

/// Lists a search probes unless told otherwise.
pub const PROBES_DEFAULT: usize = 10;
/// pgvector's range of `lists` and `probes`.
pub const LISTS_RANGE: std::ops::RangeInclusive<usize> = 1..=32_768;

/// As many lists as each has rows.
pub fn lists_for(rows: usize) -> usize {
    ((rows as f64).sqrt().round() as usize).clamp(*LISTS_RANGE.start(), *LISTS_RANGE.end())
}
