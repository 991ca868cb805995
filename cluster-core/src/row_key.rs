//! The row key: the table's replica identity as canonical bytes, and the hash
//! that places it. Both are stored formats, pinned by golden tests.
//!
//! For every column of the replica identity, in the order of the table's
//! attribute numbers: a big-endian `u32` length and the column's binary send
//! format (`typsend`; the text output for a type without one). Replica identity
//! columns are never NULL. A heap TID is never part of a key: logical decoding
//! has none.

use serde::{Deserialize, Serialize};
use std::fmt;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The most bytes that a key may have; a btree entry is smaller than this.
pub const KEY_BYTES_MAX: usize = 8192;

/// Seed of the hash that HNSW levels are drawn from. It differs from the
/// placement hash because a partition is a range of that one: drawn from the
/// same hash, levels would correlate with the partition.
const LEVEL_SEED: u64 = 0x5275_5665_6374_6F72;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowKey(Box<[u8]>);

/// Why bytes are not a row key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRowKey {
    #[error("row key of {0} bytes exceeds the limit of {KEY_BYTES_MAX}")]
    TooLong(usize),
    #[error("row key has no columns")]
    Empty,
    #[error("row key is cut off at byte {0}")]
    Truncated(usize),
}

impl RowKey {
    /// Joins column values, given in attribute-number order.
    pub fn from_columns<'a>(
        columns: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, BadRowKey> {
        let mut bytes = Vec::with_capacity(16);
        for column in columns {
            let len = u32::try_from(column.len()).map_err(|_| BadRowKey::TooLong(column.len()))?;
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(column);
        }
        Self::from_bytes(bytes)
    }

    /// Takes bytes from the wire or the disk, checking their structure.
    pub fn from_bytes(bytes: impl Into<Box<[u8]>>) -> Result<Self, BadRowKey> {
        let key = Self(bytes.into());
        if key.0.len() > KEY_BYTES_MAX {
            return Err(BadRowKey::TooLong(key.0.len()));
        }
        if key.0.is_empty() {
            return Err(BadRowKey::Empty);
        }
        let mut rest = &key.0[..];
        while !rest.is_empty() {
            rest = key.split_column(rest)?.1;
        }
        Ok(key)
    }

    /// The column values, in attribute-number order.
    pub fn columns(&self) -> Result<Vec<&[u8]>, BadRowKey> {
        let mut columns = Vec::new();
        let mut rest = &self.0[..];
        while !rest.is_empty() {
            let (column, tail) = self.split_column(rest)?;
            columns.push(column);
            rest = tail;
        }
        Ok(columns)
    }

    /// The first column of the key's rest, and what follows.
    fn split_column<'a>(&self, rest: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), BadRowKey> {
        let cut = || BadRowKey::Truncated(self.0.len());
        let (len, tail) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let len = u32::from_be_bytes(*len) as usize;
        tail.split_at_checked(len).ok_or_else(cut)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn into_bytes(self) -> Box<[u8]> {
        self.0
    }

    /// Places the row: XXH3-64, seed 0, over the canonical bytes.
    pub fn placement_hash(&self) -> u64 {
        xxh3_64(&self.0)
    }

    /// Draws the row's HNSW level.
    pub fn level_hash(&self) -> u64 {
        xxh3_64_with_seed(&self.0, LEVEL_SEED)
    }
}

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowKey(")?;
        for byte in &self.0 {
            write!(f, "{byte:02x}")?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_format_of_keys_and_hashes_is_pinned() {
        let key = RowKey::from_columns([42i64.to_be_bytes().as_slice()]).expect("valid");
        assert_eq!(format!("{key:?}"), "RowKey(00000008000000000000002a)");
        assert_eq!(key.placement_hash(), 0xD9795CE00B2C11DF);
        assert_eq!(key.level_hash(), 0x7A2859E54DCE0F3E);
    }

    #[test]
    fn columns_come_back_and_a_cut_key_is_refused() {
        let key = RowKey::from_columns([b"ab".as_slice(), b"", b"c"]).expect("valid");
        assert_eq!(key.columns().expect("valid"), [b"ab".as_slice(), b"", b"c"]);
        let cut = &key.as_bytes()[..key.as_bytes().len() - 1];
        assert!(matches!(
            RowKey::from_bytes(cut),
            Err(BadRowKey::Truncated(_))
        ));
        assert!(RowKey::from_bytes(vec![]).is_err());
        assert!(RowKey::from_bytes(vec![0u8; KEY_BYTES_MAX + 1]).is_err());
    }
}
