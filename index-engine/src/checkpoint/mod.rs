//! An index as bytes: written beside searches, inserts and folding, and read back
//! into memory faster than rows could be linked anew.
//!
//! Owns the format (docs/formats/index-checkpoint.md) and what must hold of bytes that
//! come from a disk before anything is searched in them. It opens no file: the caller
//! hands in a sink, and something to read from.
//!
//! - `format`: header, directory of sections, checksums, the mark at the end.
//! - `cut`: what of a living index is of the checkpoint.
//! - `section`: one array of the index, as a checkpoint holds it.
//! - `staged`: memory of an array that is read, and then taken apart.
//! - [`write`]: the way to a sink.
//! - [`load`]: sections into memory, on as many threads as call it, and what must hold
//!   of them (`hnsw::stored` and `filter::stored` ask) before anything is searched.
//!
//! A checkpoint is of one moment: rows that were there, links among those of them that
//! were linked. The rest of them is the tail again. What changed since is the caller's
//! to replay, and so is what the index does not know: keys.
//!
//! Bytes from a disk never panic here, never loop and are never read out of bounds:
//! whatever is wrong is an error that names the section.

mod cut;
mod format;
pub mod load;
mod section;
mod staged;
pub mod write;

pub use load::{Loading, Source};
pub use write::Checkpoint;

pub(crate) use cut::{Cut, Linked};
pub(crate) use section::{Array, Kind, Section, Taken};
pub(crate) use staged::Staged;

use thiserror::Error;

use crate::params::IndexError;

/// Why bytes are not loaded. What the bytes are at fault for (`NotACheckpoint`,
/// `Version`, `ByteOrder`, `Truncated`, `Corrupt`) asks for a rebuild from the rows, and `Version`
/// says that another release might read them. `Unread` is the caller's, who has to read on;
/// after `Io` and `Memory` the same bytes may be read once more.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("reading a checkpoint: {0}")]
    Io(#[from] std::io::Error),
    #[error("not an index checkpoint: build the index anew from its rows")]
    NotACheckpoint,
    #[error(
        "the checkpoint is of format version {found}; this release reads versions up to {known}: build the index anew from its rows"
    )]
    Version { found: u32, known: u32 },
    #[error(
        "the checkpoint is of a machine of the other byte order: build the index anew from its rows"
    )]
    ByteOrder,
    /// A write that broke off, or a file that was cut.
    #[error(
        "the checkpoint is to have {expected} bytes, and {found} are there: build the index anew from its rows"
    )]
    Truncated { expected: u64, found: u64 },
    #[error(
        "the checkpoint is corrupt in its {section}: {what}; build the index anew from its rows"
    )]
    Corrupt { section: &'static str, what: String },
    /// Memory that was handed in is at its end.
    #[error(transparent)]
    Memory(#[from] IndexError),
    #[error("{unread} of the checkpoint's chunks were not read: call `read` until it returns")]
    Unread { unread: usize },
}

pub(crate) fn corrupt(section: &'static str, what: impl Into<String>) -> CheckpointError {
    let what = what.into();
    CheckpointError::Corrupt { section, what }
}

#[cfg(test)]
mod columns_tests;
#[cfg(test)]
mod tests;
