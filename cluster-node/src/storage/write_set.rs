//! What is written at once or not at all. Later calls win over earlier ones.

use super::CopiedRecord;
use super::format::{self, PartitionMeta};
use super::keys::{self, Kind};
use super::learner_format::{self, LearnerRecord};
use cluster_core::apply::{StoredRow, Tombstone};
use cluster_core::change::PositionedChange;
use cluster_core::ids::PartitionId;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;

#[derive(Default)]
pub struct WriteSet {
    pub(super) batch: rocksdb::WriteBatch,
    /// The checkpoint since whose beginning changed rows are noted.
    noted_since: Option<u64>,
    rows: u64,
}

impl WriteSet {
    /// Notes the rows that it changes, for whoever loads a checkpoint that began before.
    pub fn noting(since: Option<u64>) -> Self {
        Self {
            noted_since: since,
            ..Self::default()
        }
    }

    /// Rows written and deleted so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub fn put_meta(&mut self, partition: PartitionId, meta: &PartitionMeta) {
        let key = keys::prefix(partition, Kind::Meta);
        self.batch.put(&key, format::encode_meta(&key, meta));
    }

    pub fn put_watermark(&mut self, partition: PartitionId, watermark: WalPosition) {
        let key = keys::prefix(partition, Kind::Watermark);
        self.batch
            .put(&key, format::encode_watermark(&key, watermark));
    }

    pub fn put_row(&mut self, partition: PartitionId, row_key: &RowKey, row: &StoredRow) {
        let key = keys::row(partition, Kind::Row, row_key);
        self.batch.put(&key, format::encode_row(&key, row));
        self.note(partition, row_key);
    }

    pub fn delete_row(&mut self, partition: PartitionId, row_key: &RowKey) {
        self.batch.delete(keys::row(partition, Kind::Row, row_key));
        self.note(partition, row_key);
    }

    fn note(&mut self, partition: PartitionId, row_key: &RowKey) {
        self.rows += 1;
        if let Some(number) = self.noted_since {
            let key = keys::changed(partition, number, row_key);
            self.batch.put(&key, format::encode_changed(&key));
        }
    }

    /// The index may be loaded from this checkpoint from now on. What changed before it
    /// began is in it.
    pub fn put_checkpoint(&mut self, partition: PartitionId, number: u64) {
        let key = keys::prefix(partition, Kind::Checkpoint);
        self.batch
            .put(&key, format::encode_checkpoint(&key, number));
        self.batch.delete_range(
            keys::prefix(partition, Kind::Changed),
            keys::changed_since(partition, number),
        );
    }

    /// The index may be loaded from no checkpoint.
    pub fn drop_checkpoint(&mut self, partition: PartitionId) {
        self.batch.delete(keys::prefix(partition, Kind::Checkpoint));
        self.clear(partition, Kind::Changed);
    }

    pub fn put_tombstone(&mut self, partition: PartitionId, row_key: &RowKey, t: Tombstone) {
        let key = keys::row(partition, Kind::Tombstone, row_key);
        self.batch.put(&key, format::encode_tombstone(&key, t));
    }

    pub fn delete_tombstone(&mut self, partition: PartitionId, row_key: &RowKey) {
        self.batch
            .delete(keys::row(partition, Kind::Tombstone, row_key));
    }

    pub fn put_former(
        &mut self,
        partition: PartitionId,
        row_key: &RowKey,
        ended: WalPosition,
        ended_xid: FullXid,
        vector: &[f32],
    ) {
        let key = keys::former(partition, row_key, ended);
        self.batch
            .put(&key, format::encode_former(&key, ended_xid, vector));
    }

    pub fn delete_former(&mut self, partition: PartitionId, row_key: &RowKey, ended: WalPosition) {
        self.batch.delete(keys::former(partition, row_key, ended));
    }

    /// A record that a peer sent, as it stands there.
    pub fn put_copied(&mut self, partition: PartitionId, record: &CopiedRecord) {
        match record {
            CopiedRecord::Row(key, row) => self.put_row(partition, key, row),
            CopiedRecord::Tombstone(key, tombstone) => {
                self.put_tombstone(partition, key, *tombstone);
            }
            CopiedRecord::Former(key, former) => {
                let (ended, xid) = (former.ended, former.ended_xid);
                self.put_former(partition, key, ended, xid, &former.vector);
            }
        }
    }

    pub fn put_learner(&mut self, partition: PartitionId, learner: &LearnerRecord) {
        let key = keys::prefix(partition, Kind::Learner);
        self.batch
            .put(&key, learner_format::encode_learner(&key, learner));
    }

    /// Everything up to here is in the learner's log.
    pub fn put_log_end(&mut self, partition: PartitionId, end: WalPosition) {
        let key = keys::prefix(partition, Kind::LogEnd);
        self.batch.put(&key, format::encode_watermark(&key, end));
    }

    /// Returns the bytes that the changes take.
    pub fn append_log(
        &mut self,
        partition: PartitionId,
        to: WalPosition,
        changes: &[PositionedChange],
    ) -> u64 {
        let key = keys::log(partition, to);
        let record = learner_format::encode_changes(&key, changes);
        self.batch.put(&key, &record);
        (key.len() + record.len()) as u64
    }

    /// What was applied up to `to` is logged no longer.
    pub fn delete_log_through(&mut self, partition: PartitionId, to: WalPosition) {
        let last = keys::behind(keys::log(partition, to));
        self.batch
            .delete_range(keys::prefix(partition, Kind::Log), last);
    }

    /// The replica is one like others from now on.
    pub fn end_learning(&mut self, partition: PartitionId) {
        for kind in [Kind::Learner, Kind::LogEnd, Kind::Log] {
            self.clear(partition, kind);
        }
    }

    /// Deletes every row, tombstone and former version.
    pub fn clear_rows(&mut self, partition: PartitionId) {
        for kind in [Kind::Row, Kind::Tombstone, Kind::Former] {
            self.clear(partition, kind);
        }
    }

    pub fn clear_tombstones(&mut self, partition: PartitionId) {
        self.clear(partition, Kind::Tombstone);
    }

    /// Deletes everything that is known of the partition.
    pub fn drop_partition(&mut self, partition: PartitionId) {
        self.batch.delete_range(
            keys::partition_start(partition),
            keys::partition_end(partition),
        );
    }

    fn clear(&mut self, partition: PartitionId, kind: Kind) {
        self.batch.delete_range(
            keys::prefix(partition, kind),
            keys::prefix_end(partition, kind),
        );
    }
}
