//! The node's disk: one RocksDB for all partitions. RocksDB types stop here.
//!
//! Reading order: [`keys`] (where a record stands), [`format`] (what its bytes
//! are), `learner_format`, `checkpoint_format`, [`write_set`] (what is written at once), [`db`] (opening,
//! reading, committing), `learner` (a learner's log and state), `copied` (a
//! replica's records for another node). Bytes from the disk never panic: a record that does not decode
//! is [`StorageError::Corrupt`], and its reader quarantines the partition.
//!
//! Caveat: nothing here orders writers. Each partition has one writer, and the
//! watermark of a partition is written only under its commit lock.

pub mod checkpoint_format;
pub mod copied;
mod db;
pub mod format;
mod keys;
mod learner;
pub mod learner_format;
mod reclaim;
mod write_set;

pub use copied::{CopiedRecord, RawRecord};
pub use db::{Storage, StorageConfig};
pub use format::{Corrupt, Identity, OpenBackfill, PartitionMeta};
pub use learner::{LogEntry, StoredLog};
pub use learner_format::LearnerRecord;
pub use write_set::WriteSet;

/// Why the disk did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    #[error("{0}")]
    Corrupt(#[from] Corrupt),
    #[error("{action}: {cause}")]
    Disk {
        action: &'static str,
        cause: rocksdb::Error,
    },
}

#[cfg(test)]
mod tests;
