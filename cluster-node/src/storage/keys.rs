//! Keys: the partition's id (big-endian), a kind byte, the row key. Records of
//! one kind of one partition are adjacent and in row-key order.
//!
//! A former version's key ends with the position that ended it, so that the
//! version that stood before a position is found with one seek.

use super::format::Corrupt;
use cluster_core::ids::{Incarnation, PartitionId, SourceId};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};

/// Holds the node's own records; no partition has this id.
const NODE: PartitionId = PartitionId(u64::MAX);
const POSITION_BYTES: usize = 20;
const PREFIX_BYTES: usize = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Meta = 1,
    Watermark = 2,
    Row = 3,
    Tombstone = 4,
    Former = 5,
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
    key.extend_from_slice(&ended.incarnation.0.to_be_bytes());
    key.extend_from_slice(&ended.commit_end.0.to_be_bytes());
    key.extend_from_slice(&ended.ordinal.to_be_bytes());
    key
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
    let (head, position) = key
        .split_last_chunk::<POSITION_BYTES>()
        .ok_or_else(|| Corrupt::new(key, "key is too short"))?;
    let mut be = position.iter().copied();
    let mut number = |bytes: usize| {
        be.by_ref()
            .take(bytes)
            .fold(0u64, |n, byte| (n << 8) | u64::from(byte))
    };
    let ended = WalPosition::new(Incarnation(number(8)), Lsn(number(8)), number(4) as u32);
    Ok((parse_row(head)?, ended))
}
