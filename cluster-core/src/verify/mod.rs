//! Whether a replica holds what the heap holds, while both go on changing.
//!
//! In reading order: what rows and ranges of rows are compared by ([`digest`]), how a
//! replica is asked for them ([`ask`]), which
//! keys a range that differs is about ([`merge`]), what three readings of one key
//! say ([`judge`]), and how keys that move are read again ([`settle`]).
//!
//! The first comparison only nominates keys: the heap is read at one moment, the
//! replica at later ones. A key is judged by a *sandwich*: the heap, then the replica
//! once it has applied everything up to that reading, then the heap again. Nobody
//! else's work in between may look like a difference, and none may hide one.

pub mod ask;
pub mod digest;
pub mod judge;
pub mod merge;
pub mod settle;

pub use ask::{Piece, Wanted};
pub use digest::{RangeDigest, RowDigest, RunDigest};
pub use judge::{Difference, HeapRow, HeapVersion, ReplicaRow, Sandwich, Verdict};
pub use merge::differing_keys;
pub use settle::Settling;

#[cfg(test)]
mod race_tests;
