//! Reads what a learner keeps: its state, and its log in the order of positions.

use super::StorageError;
use super::db::Storage;
use super::format;
use super::keys::{self, Kind};
use super::learner_format::{self, LearnerRecord};
use cluster_core::change::PositionedChange;
use cluster_core::ids::PartitionId;
use cluster_core::wal_position::WalPosition;

/// A logged batch.
pub struct LogEntry {
    pub to: WalPosition,
    pub changes: Vec<PositionedChange>,
    pub bytes: u64,
}

/// How much a log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredLog {
    pub entries: u64,
    pub bytes: u64,
}

impl Storage {
    /// `None`: the replica is no learner.
    pub fn learner(&self, partition: PartitionId) -> Result<Option<LearnerRecord>, StorageError> {
        let key = keys::prefix(partition, Kind::Learner);
        self.get(&key, learner_format::decode_learner)
    }

    pub fn log_end(&self, partition: PartitionId) -> Result<Option<WalPosition>, StorageError> {
        let key = keys::prefix(partition, Kind::LogEnd);
        self.get(&key, format::decode_watermark)
    }

    pub fn measure_log(&self, partition: PartitionId) -> Result<StoredLog, StorageError> {
        let mut log = StoredLog::default();
        for entry in self.scan(partition, Kind::Log) {
            let (key, record) = entry?;
            log.entries += 1;
            log.bytes += (key.len() + record.len()) as u64;
        }
        Ok(log)
    }

    /// The first batches behind `after`: one at least, and as many as it takes
    /// to reach so many changes.
    pub fn log_behind(
        &self,
        partition: PartitionId,
        after: WalPosition,
        changes_max: usize,
    ) -> Result<Vec<LogEntry>, StorageError> {
        let from = keys::behind(keys::log(partition, after));
        let (mut entries, mut total) = (Vec::new(), 0);
        for entry in self.scan_between(from, keys::prefix_end(partition, Kind::Log)) {
            let (key, record) = entry?;
            let changes = learner_format::decode_changes(&key, &record)?;
            total += changes.len();
            entries.push(LogEntry {
                to: keys::parse_log(&key)?,
                changes,
                bytes: (key.len() + record.len()) as u64,
            });
            if total >= changes_max {
                break;
            }
        }
        Ok(entries)
    }
}
