//! The coordinator's RocksDB: the Raft log in one column family, everything else
//! (vote, purge mark, commit mark, snapshot, identity) in another.
//!
//! A write that Raft counts on is synced before it is reported. A failed write
//! is final: after a failed fsync the kernel may have dropped the pages, so
//! a second one that succeeds proves nothing. The disk then refuses
//! every further write, and the process ends.

use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, DB, Options, WriteBatch, WriteOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const LOG: &str = "log";
const STATE: &str = "state";
const IDENTITY: &[u8] = b"identity";
/// Rises when what is stored can no longer be read by the version before.
const FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("RocksDB: {0}")]
    Rocks(#[from] rocksdb::Error),
    #[error("an earlier write failed; nothing is written any more")]
    FailedBefore,
    #[error("stored {what} cannot be read: {source}")]
    Unreadable {
        what: String,
        source: serde_json::Error,
    },
    #[error("the stored {what} is not one that a coordinator commits: {problem}")]
    Broken { what: String, problem: String },
    #[error("cannot encode {what}: {source}")]
    Unwritable {
        what: String,
        source: serde_json::Error,
    },
    #[error("{0}")]
    WrongDisk(String),
    #[error("the process is stopping")]
    Stopping,
}

/// Whose disk this is; checked at every start.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Identity {
    format: u32,
    coordinator_id: u64,
    /// Drawn when the disk was first used, or at the first start after 0.1.0.
    #[serde(default)]
    disk_uuid: String,
}

pub struct Disk {
    db: DB,
    uuid: String,
    has_failed: AtomicBool,
}

impl Disk {
    /// Opens the folder, or makes it. A folder of another coordinator is
    /// refused: two that vote from one log are two votes of one voter.
    pub fn open(dir: &Path, coordinator_id: u64) -> Result<Arc<Self>, DiskError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_paranoid_checks(true);
        options.set_keep_log_file_num(4);
        options.set_max_total_wal_size(64 << 20);
        let families =
            [LOG, STATE].map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
        let db = DB::open_cf_descriptors(&options, dir, families)?;
        let mut disk = Self {
            db,
            uuid: String::new(),
            has_failed: AtomicBool::new(false),
        };
        disk.uuid = disk.claim(dir, coordinator_id)?;
        Ok(Arc::new(disk))
    }

    /// Whose disk it is from now on, if it is nobody's. Answers its uuid.
    fn claim(&self, dir: &Path, coordinator_id: u64) -> Result<String, DiskError> {
        let found = self.get::<Identity>(IDENTITY)?;
        if let Some(found) = &found
            && (found.format, found.coordinator_id) != (FORMAT, coordinator_id)
        {
            return Err(DiskError::WrongDisk(format!(
                "{} belongs to coordinator {} (format {}), not to coordinator {coordinator_id} \
                 (format {FORMAT})",
                dir.display(),
                found.coordinator_id,
                found.format
            )));
        }
        if let Some(drawn) = found.map(|found| found.disk_uuid).filter(|u| !u.is_empty()) {
            return Ok(drawn);
        }
        let own = Identity {
            format: FORMAT,
            coordinator_id,
            disk_uuid: format!("{:032x}", rand::random::<u128>()),
        };
        self.put_synced(IDENTITY, &own)?;
        Ok(own.disk_uuid)
    }

    /// Tells this disk from one that was emptied, or put in its place.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    pub fn db(&self) -> &DB {
        &self.db
    }

    pub fn log(&self) -> &ColumnFamily {
        self.db.cf_handle(LOG).expect("opened with it")
    }

    pub fn state(&self) -> &ColumnFamily {
        self.db.cf_handle(STATE).expect("opened with it")
    }

    pub fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, DiskError> {
        let Some(bytes) = self.db.get_pinned_cf(self.state(), key)? else {
            return Ok(None);
        };
        decode(&bytes, &String::from_utf8_lossy(key)).map(Some)
    }

    pub fn put_synced<T: Serialize>(&self, key: &[u8], value: &T) -> Result<(), DiskError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(
            self.state(),
            key,
            encode(value, &String::from_utf8_lossy(key))?,
        );
        self.write(batch, Sync::Yes)
    }

    /// Returns once the batch is on the disk (`Sync::Yes`) or in the kernel.
    pub fn write(&self, batch: WriteBatch, sync: Sync) -> Result<(), DiskError> {
        if self.has_failed.load(Ordering::Acquire) {
            return Err(DiskError::FailedBefore);
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync == Sync::Yes);
        self.db.write_opt(batch, &options).map_err(|error| {
            self.has_failed.store(true, Ordering::Release);
            tracing::error!(%error, "a write failed; this coordinator stops");
            DiskError::Rocks(error)
        })
    }

    /// As if a write had failed.
    #[cfg(test)]
    pub fn fail(&self) {
        self.has_failed.store(true, Ordering::Release);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    Yes,
    No,
}

pub fn encode<T: Serialize>(value: &T, what: &str) -> Result<Vec<u8>, DiskError> {
    serde_json::to_vec(value).map_err(|source| DiskError::Unwritable {
        what: what.to_owned(),
        source,
    })
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, DiskError> {
    serde_json::from_slice(bytes).map_err(|source| DiskError::Unreadable {
        what: what.to_owned(),
        source,
    })
}

/// Runs what waits for the disk outside the async runtime's threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(DiskError::Stopping))
}
