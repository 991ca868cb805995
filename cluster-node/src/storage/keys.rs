//! Keys: the partition's id (big-endian), a kind byte, the row key. Records of
//! one kind of one partition are adjacent and in row-key order.
//!
//! A former version's key ends with the position that ended it, so that the
//! version that stood before a position is found with one seek. A learner's log is
//! in the order of the positions that its batches end at. The keys that changed since
//! a checkpoint stand below its number.

use super::format::Corrupt;
use cluster_core::ids::{Incarnation, PartitionId, SourceId};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};

/// Holds the node's own records; no partition has this id.
const NODE: PartitionId = PartitionId(u64::MAX);
const POSITION_BYTES: usize = 20;
const PARTITION_BYTES: usize = 8;
const PREFIX_BYTES: usize = PARTITION_BYTES + 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Meta = 1,
    Watermark = 2,
    Row = 3,
    Tombstone = 4,
    Former = 5,
    Learner = 6,
    LogEnd = 7,
    Log = 8,
    Checkpoint = 9,
    Changed = 10,
    Identity = 0x81,
    SourceToken = 0x82,
}

/// The first key of a kind.
pub fn prefix(partition: PartitionId, kind: Kind) -> Vec<u8> {
    let mut key = Vec::with_capacity(PREFIX_BYTES + 32);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key.push(kind as u8);
    key
}

/// The first key behind a kind.
pub fn prefix_end(partition: PartitionId, kind: Kind) -> Vec<u8> {
    let mut key = prefix(partition, kind);
    key[PREFIX_BYTES - 1] += 1;
    key
}

pub fn partition_start(partition: PartitionId) -> Vec<u8> {
    partition.0.to_be_bytes().to_vec()
}

/// The first key behind a partition. The node's own records follow the last.
pub fn partition_end(partition: PartitionId) -> Vec<u8> {
    partition.next().0.to_be_bytes().to_vec()
}

/// The partition that a key belongs to; `None` for the node's own records.
pub fn partition_of(key: &[u8]) -> Option<PartitionId> {
    let id = PartitionId(u64::from_be_bytes(*key.first_chunk::<8>()?));
    (id != NODE).then_some(id)
}

pub fn row(partition: PartitionId, kind: Kind, row_key: &RowKey) -> Vec<u8> {
    let mut key = prefix(partition, kind);
    key.extend_from_slice(row_key.as_bytes());
    key
}

pub fn former(partition: PartitionId, row_key: &RowKey, ended: WalPosition) -> Vec<u8> {
    let mut key = row(partition, Kind::Former, row_key);
    push_position(&mut key, ended);
    key
}

fn push_position(key: &mut Vec<u8>, position: WalPosition) {
    key.extend_from_slice(&position.incarnation.0.to_be_bytes());
    key.extend_from_slice(&position.commit_end.0.to_be_bytes());
    key.extend_from_slice(&position.ordinal.to_be_bytes());
}

/// The batch of a learner's log that ends at a position.
pub fn log(partition: PartitionId, to: WalPosition) -> Vec<u8> {
    let mut key = prefix(partition, Kind::Log);
    push_position(&mut key, to);
    key
}

/// The first of the keys that changed after checkpoint `number` began.
pub fn changed_since(partition: PartitionId, number: u64) -> Vec<u8> {
    let mut key = prefix(partition, Kind::Changed);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// That a row changed, and no checkpoint had begun since `number`.
pub fn changed(partition: PartitionId, number: u64, row_key: &RowKey) -> Vec<u8> {
    let mut key = changed_since(partition, number);
    key.extend_from_slice(row_key.as_bytes());
    key
}

/// The first key behind another.
pub fn behind(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// A key without its partition, as a copy travels.
pub fn without_partition(key: &[u8]) -> &[u8] {
    key.get(PARTITION_BYTES..).unwrap_or_default()
}

/// The inverse of [`without_partition`].
pub fn within(partition: PartitionId, rest: &[u8]) -> Vec<u8> {
    let mut key = partition_start(partition);
    key.extend_from_slice(rest);
    key
}

/// The kind of a key that a copy may contain.
pub fn copied_kind(key: &[u8]) -> Option<Kind> {
    [Kind::Row, Kind::Tombstone, Kind::Former]
        .into_iter()
        .find(|kind| key.get(PARTITION_BYTES) == Some(&(*kind as u8)))
}

pub fn identity() -> Vec<u8> {
    prefix(NODE, Kind::Identity)
}

pub fn source_token(source: SourceId) -> Vec<u8> {
    let mut key = prefix(NODE, Kind::SourceToken);
    key.extend_from_slice(&source.0.to_be_bytes());
    key
}

/// The row key within a key of kind row or tombstone.
pub fn parse_row(key: &[u8]) -> Result<RowKey, Corrupt> {
    let bytes = key.get(PREFIX_BYTES..).unwrap_or_default();
    RowKey::from_bytes(bytes).map_err(|bad| Corrupt::new(key, bad.to_string()))
}

/// The row key and end within a key of kind former.
pub fn parse_former(key: &[u8]) -> Result<(RowKey, WalPosition), Corrupt> {
    let (head, ended) = split_position(key)?;
    Ok((parse_row(head)?, ended))
}

/// The position within a key of kind log.
pub fn parse_log(key: &[u8]) -> Result<WalPosition, Corrupt> {
    let (head, to) = split_position(key)?;
    match head.len() {
        PREFIX_BYTES => Ok(to),
        _ => Err(Corrupt::new(key, "key is too long")),
    }
}

/// The number and the row key within a key of kind changed.
pub fn parse_changed(key: &[u8]) -> Result<(u64, RowKey), Corrupt> {
    let rest = key.get(PREFIX_BYTES..).unwrap_or_default();
    let (number, row_key) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| Corrupt::new(key, "key is too short"))?;
    let row_key = RowKey::from_bytes(row_key).map_err(|bad| Corrupt::new(key, bad.to_string()))?;
    Ok((u64::from_be_bytes(*number), row_key))
}

fn split_position(key: &[u8]) -> Result<(&[u8], WalPosition), Corrupt> {
    let (head, position) = key
        .split_last_chunk::<POSITION_BYTES>()
        .ok_or_else(|| Corrupt::new(key, "key is too short"))?;
    let mut be = position.iter().copied();
    let mut number = |bytes: usize| {
        be.by_ref()
            .take(bytes)
            .fold(0u64, |n, byte| (n << 8) | u64::from(byte))
    };
    let position = WalPosition::new(Incarnation(number(8)), Lsn(number(8)), number(4) as u32);
    Ok((head, position))
}
