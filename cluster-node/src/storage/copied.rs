//! A replica's records as they travel to a learner of the same partition: rows,
//! tombstones and former versions, in key order. Watermark and learner records
//! are each node's own and never leave it.
//!
//! A record's checksum covers its key, and the key is the same on every node of
//! the partition: a record is checked where it arrives as if it had been read
//! from the disk.

use super::StorageError;
use super::db::Storage;
use super::format::{self, Corrupt, PartitionMeta};
use super::keys::{self, Kind};
use cluster_core::apply::{FormerVersion, StoredRow, StoredVector, Tombstone};
use cluster_core::ids::PartitionId;
use cluster_core::learner::CopyKey;
use cluster_core::row_key::RowKey;

/// Key (without the partition) and record.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRecord {
    pub key: CopyKey,
    pub record: Box<[u8]>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CopiedRecord {
    Row(RowKey, StoredRow),
    Tombstone(RowKey, Tombstone),
    Former(RowKey, FormerVersion),
}

impl RawRecord {
    pub fn bytes(&self) -> usize {
        self.key.0.len() + self.record.len()
    }

    /// Where its row lies in the hash space.
    pub fn placement_hash(&self, partition: PartitionId) -> Result<u64, Corrupt> {
        let key = keys::within(partition, &self.key.0);
        let row_key = match keys::copied_kind(&key) {
            Some(Kind::Former) => keys::parse_former(&key)?.0,
            _ => keys::parse_row(&key)?,
        };
        Ok(row_key.placement_hash())
    }

    /// Checks that a peer's record is one that this partition can hold.
    pub fn decode(
        &self,
        partition: PartitionId,
        dimensions: usize,
    ) -> Result<CopiedRecord, Corrupt> {
        let key = keys::within(partition, &self.key.0);
        let record = &self.record;
        let fits = |vector: &[f32]| match vector.len() == dimensions {
            true => Ok(()),
            false => Err(Corrupt::new(
                &key,
                format!("{} dimensions, not {dimensions}", vector.len()),
            )),
        };
        match keys::copied_kind(&key) {
            Some(Kind::Row) => {
                let row = format::decode_row(&key, record)?;
                if let StoredVector::Value(vector) = &row.vector {
                    fits(vector)?;
                }
                Ok(CopiedRecord::Row(keys::parse_row(&key)?, row))
            }
            Some(Kind::Tombstone) => {
                let tombstone = format::decode_tombstone(&key, record)?;
                Ok(CopiedRecord::Tombstone(keys::parse_row(&key)?, tombstone))
            }
            Some(Kind::Former) => {
                let (row_key, ended) = keys::parse_former(&key)?;
                let (ended_xid, vector) = format::decode_former(&key, record)?;
                fits(&vector)?;
                let former = FormerVersion {
                    ended,
                    ended_xid,
                    vector,
                };
                Ok(CopiedRecord::Former(row_key, former))
            }
            _ => Err(Corrupt::new(&key, "not a record that is copied")),
        }
    }
}

impl Storage {
    /// The records behind a key, up to so many bytes; at least one if there is
    /// any. A damaged one is not passed on.
    pub fn records_behind(
        &self,
        partition: PartitionId,
        after: &CopyKey,
        bytes_max: usize,
    ) -> Result<Vec<RawRecord>, StorageError> {
        let from = match after.0.is_empty() {
            true => keys::prefix(partition, Kind::Row),
            false => keys::behind(keys::within(partition, &after.0)),
        };
        let from = from.max(keys::prefix(partition, Kind::Row));
        let (mut records, mut bytes) = (Vec::new(), 0);
        for entry in self.scan_between(from, keys::prefix_end(partition, Kind::Former)) {
            let (key, record) = entry?;
            if !format::is_intact(&key, &record) {
                return Err(Corrupt::new(&key, "checksum does not match").into());
            }
            let raw = RawRecord {
                key: CopyKey(keys::without_partition(&key).into()),
                record,
            };
            bytes += raw.bytes();
            if bytes > bytes_max && !records.is_empty() {
                break;
            }
            records.push(raw);
        }
        Ok(records)
    }
}

/// A partition's description as a peer stores it.
pub fn encode_meta(partition: PartitionId, meta: &PartitionMeta) -> Vec<u8> {
    format::encode_meta(&keys::prefix(partition, Kind::Meta), meta)
}

pub fn decode_meta(partition: PartitionId, record: &[u8]) -> Result<PartitionMeta, Corrupt> {
    format::decode_meta(&keys::prefix(partition, Kind::Meta), record)
}
