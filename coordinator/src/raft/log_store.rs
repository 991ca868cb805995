//! Raft's log and vote. Vote, append, truncate and purge are each one synced
//! write; the commit mark is not, for it only spares work at the next start.

use super::disk::{Disk, DiskError, Sync, blocking, decode, encode};
use super::{LogId, StorageError, TypeConfig, Vote};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, Entry, OptionalSend, RaftLogReader, StorageIOError};
use rocksdb::{Direction, IteratorMode, WriteBatch};
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";
const COMMITTED: &[u8] = b"committed";

#[derive(Clone)]
pub struct LogStore {
    disk: Arc<Disk>,
}

impl LogStore {
    pub fn new(disk: Arc<Disk>) -> Self {
        Self { disk }
    }

    fn last_entry(&self) -> Result<Option<Entry<TypeConfig>>, DiskError> {
        let last = self
            .disk
            .db()
            .iterator_cf(self.disk.log(), IteratorMode::End)
            .next();
        last.map(|found| decode(&found?.1, "log entry")).transpose()
    }

    fn read(&self, from: u64, before: u64) -> Result<Vec<Entry<TypeConfig>>, DiskError> {
        let start = from.to_be_bytes();
        let mode = IteratorMode::From(&start, Direction::Forward);
        let mut entries = Vec::new();
        for found in self.disk.db().iterator_cf(self.disk.log(), mode) {
            let entry: Entry<TypeConfig> = decode(&found?.1, "log entry")?;
            if entry.log_id.index >= before {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

fn any(error: &DiskError) -> AnyError {
    AnyError::new(error)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let before = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self
            .read(from, before)
            .map_err(|e| StorageIOError::read_logs(any(&e)))?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let state = || -> Result<_, DiskError> {
            let last_purged_log_id = self.disk.get::<LogId>(PURGED)?;
            let last_log_id = self
                .last_entry()?
                .map(|entry| entry.log_id)
                .or(last_purged_log_id);
            Ok(LogState {
                last_purged_log_id,
                last_log_id,
            })
        };
        Ok(state().map_err(|e| StorageIOError::read_logs(any(&e)))?)
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let (disk, vote) = (self.disk.clone(), *vote);
        let saved = blocking(move || disk.put_synced(VOTE, &vote)).await;
        Ok(saved.map_err(|e| StorageIOError::write_vote(any(&e)))?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self
            .disk
            .get(VOTE)
            .map_err(|e| StorageIOError::read_vote(any(&e)))?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let save = || -> Result<(), DiskError> {
            let mut batch = WriteBatch::default();
            match committed {
                Some(id) => batch.put_cf(self.disk.state(), COMMITTED, encode(&id, "commit mark")?),
                None => batch.delete_cf(self.disk.state(), COMMITTED),
            }
            self.disk.write(batch, Sync::No)
        };
        Ok(save().map_err(|e| StorageIOError::write(any(&e)))?)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self
            .disk
            .get(COMMITTED)
            .map_err(|e| StorageIOError::read(any(&e)))?)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let encoded: Result<Vec<_>, DiskError> = entries
            .into_iter()
            .map(|entry| Ok((entry.log_id.index, encode(&entry, "log entry")?)))
            .collect();
        let disk = self.disk.clone();
        let written = match encoded {
            Ok(encoded) => {
                blocking(move || {
                    let mut batch = WriteBatch::default();
                    for (index, bytes) in encoded {
                        batch.put_cf(disk.log(), index.to_be_bytes(), bytes);
                    }
                    disk.write(batch, Sync::Yes)
                })
                .await
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(StorageIOError::write_logs(any(&error)).into())
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let disk = self.disk.clone();
        let truncated = blocking(move || {
            let mut batch = WriteBatch::default();
            let from = log_id.index.to_be_bytes();
            batch.delete_range_cf(disk.log(), from, u64::MAX.to_be_bytes());
            disk.write(batch, Sync::Yes)
        });
        Ok(truncated
            .await
            .map_err(|e| StorageIOError::write_logs(any(&e)))?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let disk = self.disk.clone();
        let purged = blocking(move || {
            let mut batch = WriteBatch::default();
            batch.put_cf(disk.state(), PURGED, encode(&log_id, "purge mark")?);
            let before = log_id.index.saturating_add(1).to_be_bytes();
            batch.delete_range_cf(disk.log(), 0u64.to_be_bytes(), before);
            disk.write(batch, Sync::Yes)
        });
        Ok(purged
            .await
            .map_err(|e| StorageIOError::write_logs(any(&e)))?)
    }
}
