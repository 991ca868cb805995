//! Gives back the disk that dropped partitions took. Deleting a range only hides its
//! records; they stay in the files until these are rewritten, which RocksDB does when
//! it comes to them. What a source or an index was dropped for must not wait for
//! that.
//!
//! Never by deleting whole files: the partition may be made anew meanwhile, and its
//! records could lie in them.

use super::{Storage, keys};
use cluster_core::ids::PartitionId;
use rocksdb::{BottommostLevelCompaction, CompactOptions};

impl Storage {
    /// Rewrites the files in which the partition's records were. Blocks.
    pub fn reclaim(&self, partition: PartitionId) {
        let mut options = CompactOptions::default();
        // Other files are compacted meanwhile as ever.
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        let (from, to) = (
            keys::partition_start(partition),
            keys::partition_end(partition),
        );
        self.db.compact_range_opt(Some(from), Some(to), &options);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::metrics::Metrics;
    use crate::storage::{StorageConfig, WriteSet};
    use cluster_core::apply::{StoredRow, StoredVector};
    use cluster_core::ids::Incarnation;
    use cluster_core::row_key::RowKey;
    use cluster_core::wal_position::{Lsn, WalPosition};
    use rocksdb::{Direction, IteratorMode};
    use std::sync::Arc;

    const GONE: PartitionId = PartitionId(7);
    const KEPT: PartitionId = PartitionId(8);
    const ROWS: i64 = 2_000;

    fn fill(storage: &Storage, partition: PartitionId) {
        let mut set = WriteSet::default();
        for id in 0..ROWS {
            // Nothing that compresses.
            let noise = |n: i64| (id * 7_919 + n * 104_729) as f32 * 1.000_1;
            let row = StoredRow {
                position: WalPosition::end_of(Incarnation(1), Lsn(1)),
                xid_high: 1,
                vector: StoredVector::Value((0..64).map(noise).collect()),
            };
            let id = id.to_be_bytes();
            let key = RowKey::from_columns([&id[..]]).unwrap();
            set.put_row(partition, &key, &row);
        }
        storage.commit(set).unwrap();
        storage.db.flush().unwrap();
    }

    fn keys_of(storage: &Storage, partition: PartitionId) -> usize {
        let from = keys::partition_start(partition);
        let mode = IteratorMode::From(&from, Direction::Forward);
        let entries = storage.db.iterator(mode).map(Result::unwrap);
        entries
            .take_while(|(key, _)| keys::partition_of(key) == Some(partition))
            .count()
    }

    #[test]
    fn p9_of_a_dropped_partition_no_key_is_left_and_its_bytes_leave_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::default());
        let storage = Storage::open(dir.path(), &StorageConfig::default(), metrics).unwrap();
        fill(&storage, KEPT);
        let kept_bytes = storage.disk_bytes();
        fill(&storage, GONE);
        let all_bytes = storage.disk_bytes();
        assert!(all_bytes > kept_bytes * 3 / 2, "{all_bytes}, {kept_bytes}");

        let mut set = WriteSet::default();
        set.drop_partition(GONE);
        storage.commit(set).unwrap();
        assert_eq!(keys_of(&storage, GONE), 0, "at once");
        storage.reclaim(GONE);
        let left_bytes = storage.disk_bytes();
        assert!(
            left_bytes < all_bytes * 2 / 3,
            "{left_bytes} of {all_bytes}"
        );
        assert_eq!(keys_of(&storage, GONE), 0);
        assert_eq!(keys_of(&storage, KEPT), ROWS as usize);
    }
}
