//! Memory that is handed in for the original vectors.
//!
//! Originals are most of an index, and a search that knows its way by codes reads few
//! of them. So they may lie in memory of the caller's: a mapped file, say, of which
//! the system keeps in RAM what is read. The engine asks for large pieces, as it
//! grows, and never gives one back while the index lives. It opens no file itself.

use std::ops::Range;
use std::ptr::NonNull;

/// Where pieces of memory come from.
pub trait Backing: Send + Sync {
    /// So many bytes, all of them zero; `None` if there is no such piece: the insertion
    /// that needs it is then refused. Sizes are whole rows, not whole pages.
    fn zeroed(&self, bytes: usize) -> Option<Box<dyn Mapping>>;
}

/// A piece of memory, valid until it is dropped.
///
/// # Safety
/// `start` always answers the same address: aligned to 64 bytes, the first of as many
/// readable and writable ones as were asked for, of which nobody else writes any. Bytes
/// must read as they were last written, whatever was advised. A file's space has to be
/// allotted beforehand: the system ends a process that touches what it cannot provide.
#[allow(unsafe_code)]
pub unsafe trait Mapping: Send + Sync {
    fn start(&self) -> NonNull<u8>;

    /// What the engine knows of coming reads, as ranges of bytes. Changes no content.
    fn advise(&self, _ranges: &[Range<usize>], _advice: Advice) {}

    /// `advise` is to be told of the rows that a search is about to read: worth a system
    /// call where they may have to come from a disk, one after the other.
    fn wants_to_know_reads(&self) -> bool {
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// To be read soon: may be fetched ahead.
    WillNeed,
    /// Not to be read for long: need not stay in RAM.
    Cold,
}
