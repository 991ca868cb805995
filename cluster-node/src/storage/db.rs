//! Opens, reads and commits.

use super::format::{self, Identity, PartitionMeta};
use super::keys::{self, Kind};
use super::{StorageError, WriteSet};
use crate::metrics::Metrics;
use cluster_core::apply::{FormerVersion, StoredRow, StoredVector, Tombstone};
use cluster_core::ids::{ConsumerEpoch, PartitionId, SourceId};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, Options, ReadOptions,
    WriteOptions, properties,
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const BLOOM_BITS_PER_KEY: f64 = 10.0;
/// Of a write buffer, for a bloom filter over its keys: some ten bits each where rows
/// have half a kilobyte.
const WRITE_BUFFER_BLOOM_RATIO: f64 = 0.005;
const OPEN_FILES_MAX: i32 = 512;
const LOG_FILES_MAX: usize = 4;
const SCAN_READAHEAD_BYTES: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    pub block_cache_bytes: usize,
    pub write_buffer_bytes: usize,
    /// The most of RocksDB's own log that a restart replays.
    pub log_bytes_max: u64,
    pub background_jobs_max: i32,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            block_cache_bytes: 64 << 20,
            write_buffer_bytes: 64 << 20,
            log_bytes_max: 512 << 20,
            background_jobs_max: 2,
        }
    }
}

pub struct Storage {
    pub(super) db: DB,
    metrics: Arc<Metrics>,
}

/// A key and its record.
pub(super) type Entry = (Box<[u8]>, Box<[u8]>);

pub(super) fn disk(action: &'static str) -> impl FnOnce(rocksdb::Error) -> StorageError {
    move |cause| StorageError::Disk { action, cause }
}

impl Storage {
    pub fn open(
        path: &Path,
        config: &StorageConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StorageError> {
        let mut table = BlockBasedOptions::default();
        table.set_bloom_filter(BLOOM_BITS_PER_KEY, false);
        table.set_block_cache(&Cache::new_lru_cache(config.block_cache_bytes));
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_paranoid_checks(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(config.write_buffer_bytes);
        // Each change asks for the row before it, and a new row has none.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(WRITE_BUFFER_BLOOM_RATIO);
        options.set_max_total_wal_size(config.log_bytes_max);
        options.set_max_background_jobs(config.background_jobs_max);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_keep_log_file_num(LOG_FILES_MAX);
        let db = DB::open(&options, path).map_err(disk("open the node's database"))?;
        Ok(Self { db, metrics })
    }

    /// Writes atomically and returns once it is on disk. RocksDB groups the
    /// commits of several writers into one fsync.
    pub fn commit(&self, set: WriteSet) -> Result<(), StorageError> {
        let started = Instant::now();
        let written = self.write(set, true);
        self.metrics
            .fsync_seconds
            .observe(started.elapsed().as_secs_f64());
        written
    }

    /// Writes atomically; a crash may undo it.
    pub fn commit_lazily(&self, set: WriteSet) -> Result<(), StorageError> {
        self.write(set, false)
    }

    fn write(&self, set: WriteSet, sync: bool) -> Result<(), StorageError> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db
            .write_opt(set.batch, &options)
            .map_err(disk("write to the node's database"))
    }

    pub(super) fn get<T>(
        &self,
        key: &[u8],
        decode: impl FnOnce(&[u8], &[u8]) -> Result<T, format::Corrupt>,
    ) -> Result<Option<T>, StorageError> {
        match self.db.get_pinned(key).map_err(disk("read a record"))? {
            Some(record) => Ok(Some(decode(key, &record)?)),
            None => Ok(None),
        }
    }

    pub fn identity(&self) -> Result<Option<Identity>, StorageError> {
        self.get(&keys::identity(), format::decode_identity)
    }

    pub fn put_identity(&self, identity: &Identity) -> Result<(), StorageError> {
        let key = keys::identity();
        let mut set = WriteSet::default();
        set.batch.put(&key, format::encode_identity(&key, identity));
        self.commit(set)
    }

    /// The highest consumer token that was seen for a source.
    pub fn source_token(&self, source: SourceId) -> Result<Option<ConsumerEpoch>, StorageError> {
        self.get(&keys::source_token(source), format::decode_token)
    }

    pub fn put_source_token(
        &self,
        source: SourceId,
        token: ConsumerEpoch,
    ) -> Result<(), StorageError> {
        let key = keys::source_token(source);
        let mut set = WriteSet::default();
        set.batch.put(&key, format::encode_token(&key, token));
        self.commit(set)
    }

    /// Every partition that has a record, found by seeking from one to the next.
    pub fn partition_ids(&self) -> Result<Vec<PartitionId>, StorageError> {
        let mut found = Vec::new();
        let mut from = Vec::new();
        loop {
            let mode = IteratorMode::From(&from, Direction::Forward);
            let next = self.db.iterator(mode).next();
            let Some(entry) = next else {
                return Ok(found);
            };
            let (key, _) = entry.map_err(disk("list partitions"))?;
            let Some(partition) = keys::partition_of(&key) else {
                return Ok(found);
            };
            found.push(partition);
            from = keys::partition_end(partition);
        }
    }

    pub fn meta(&self, partition: PartitionId) -> Result<Option<PartitionMeta>, StorageError> {
        self.get(&keys::prefix(partition, Kind::Meta), format::decode_meta)
    }

    pub fn watermark(&self, partition: PartitionId) -> Result<Option<WalPosition>, StorageError> {
        let key = keys::prefix(partition, Kind::Watermark);
        self.get(&key, format::decode_watermark)
    }

    /// The checkpoint that the partition's index may be loaded from.
    pub fn checkpoint(&self, partition: PartitionId) -> Result<Option<u64>, StorageError> {
        let key = keys::prefix(partition, Kind::Checkpoint);
        self.get(&key, format::decode_checkpoint)
    }

    /// The rows that changed after checkpoint `number` began, each with the newest
    /// checkpoint that had begun by then. A row may come several times.
    pub fn changed_since(
        &self,
        partition: PartitionId,
        number: u64,
    ) -> impl Iterator<Item = Result<(u64, RowKey), StorageError>> {
        let from = keys::changed_since(partition, number);
        let to = keys::prefix_end(partition, Kind::Changed);
        self.scan_between(from, to).map(|entry| {
            let (key, record) = entry?;
            format::decode_changed(&key, &record)?;
            Ok(keys::parse_changed(&key)?)
        })
    }

    pub fn row(
        &self,
        partition: PartitionId,
        row_key: &RowKey,
    ) -> Result<Option<StoredRow>, StorageError> {
        self.get(
            &keys::row(partition, Kind::Row, row_key),
            format::decode_row,
        )
    }

    pub fn tombstone(
        &self,
        partition: PartitionId,
        row_key: &RowKey,
    ) -> Result<Option<Tombstone>, StorageError> {
        let key = keys::row(partition, Kind::Tombstone, row_key);
        self.get(&key, format::decode_tombstone)
    }

    /// What the replica held for a key just before a position: the current row
    /// if it is older, else the former version that ended next. Nothing, if the row
    /// stands below where it is trusted from.
    pub fn row_before(
        &self,
        partition: PartitionId,
        row_key: &RowKey,
        before: WalPosition,
        trusted_from: Option<WalPosition>,
    ) -> Result<Option<StoredVector>, StorageError> {
        let row = self.row(partition, row_key)?;
        if let Some(row) = row.filter(|row| row.position < before) {
            let is_trusted = trusted_from.is_none_or(|from| row.position >= from);
            return Ok(is_trusted.then_some(row.vector));
        }
        if trusted_from.is_some() {
            // Where a former version began is not kept.
            return Ok(None);
        }
        let from = keys::former(partition, row_key, before);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(keys::prefix_end(partition, Kind::Former));
        let mode = IteratorMode::From(&from, Direction::Forward);
        let Some(entry) = self.db.iterator_opt(mode, options).next() else {
            return Ok(None);
        };
        let (key, record) = entry.map_err(disk("read a former version"))?;
        if keys::parse_former(&key)?.0 != *row_key {
            return Ok(None);
        }
        let (_, vector) = format::decode_former(&key, &record)?;
        Ok(Some(StoredVector::Value(vector)))
    }

    pub fn rows(
        &self,
        partition: PartitionId,
    ) -> impl Iterator<Item = Result<(RowKey, StoredRow), StorageError>> {
        self.scan(partition, Kind::Row).map(|entry| {
            let (key, record) = entry?;
            Ok((keys::parse_row(&key)?, format::decode_row(&key, &record)?))
        })
    }

    /// The rows behind a key (`None`: from the first), up to another and including it.
    pub fn rows_behind(
        &self,
        partition: PartitionId,
        after: Option<&RowKey>,
        through: Option<&RowKey>,
    ) -> impl Iterator<Item = Result<(RowKey, StoredRow), StorageError>> {
        let behind = |key| keys::behind(keys::row(partition, Kind::Row, key));
        let from = after.map_or_else(|| keys::prefix(partition, Kind::Row), behind);
        let to = through.map_or_else(|| keys::prefix_end(partition, Kind::Row), behind);
        self.scan_between(from, to).map(|entry| {
            let (key, record) = entry?;
            Ok((keys::parse_row(&key)?, format::decode_row(&key, &record)?))
        })
    }

    pub fn formers(
        &self,
        partition: PartitionId,
    ) -> impl Iterator<Item = Result<(RowKey, FormerVersion), StorageError>> {
        self.scan(partition, Kind::Former).map(|entry| {
            let (key, record) = entry?;
            let (row_key, ended) = keys::parse_former(&key)?;
            let (ended_xid, vector) = format::decode_former(&key, &record)?;
            let former = FormerVersion {
                ended,
                ended_xid,
                vector,
            };
            Ok((row_key, former))
        })
    }

    pub(super) fn scan(
        &self,
        partition: PartitionId,
        kind: Kind,
    ) -> impl Iterator<Item = Result<Entry, StorageError>> {
        let (from, to) = (
            keys::prefix(partition, kind),
            keys::prefix_end(partition, kind),
        );
        self.scan_between(from, to)
    }

    /// `from` is included, `to` is not.
    pub(super) fn scan_between(
        &self,
        from: Vec<u8>,
        to: Vec<u8>,
    ) -> impl Iterator<Item = Result<Entry, StorageError>> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options.set_readahead_size(SCAN_READAHEAD_BYTES);
        options.fill_cache(false);
        self.db
            .iterator_opt(IteratorMode::Start, options)
            .map(|entry| entry.map_err(disk("scan a partition")))
    }

    /// Bytes of the table files.
    pub fn disk_bytes(&self) -> u64 {
        self.db
            .property_int_value(properties::TOTAL_SST_FILES_SIZE)
            .ok()
            .flatten()
            .unwrap_or(0)
    }

    /// Writes arbitrary bytes where a record stands.
    #[cfg(test)]
    pub fn damage(&self, partition: PartitionId, row_key: &RowKey) {
        let key = keys::row(partition, Kind::Row, row_key);
        let mut record = self.db.get(&key).unwrap().unwrap();
        record[3] ^= 1;
        self.db.put(&key, record).unwrap();
    }
}
