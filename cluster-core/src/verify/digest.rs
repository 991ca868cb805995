//! Digests of rows and of ranges of rows. Bridge and nodes compute them apart and
//! compare: a format of the wire, pinned by a golden test.

use crate::row_key::RowKey;
use xxhash_rust::xxh3::xxh3_128;

/// XXH3-128 over the length of the key (little-endian `u32`), the key, a byte that
/// says whether the vector is known, and its components' bits (little-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowDigest(pub u128);

/// So many rows in any order, and the wrapping sum of their digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeDigest {
    pub rows: u64,
    pub sum: u128,
}

/// A replica's rows behind the run before, up to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDigest {
    pub through: RowKey,
    pub digest: RangeDigest,
    /// Rows on disk that a search would not find.
    pub unsearchable: u32,
}

impl RowDigest {
    /// `None`: the row exists, its vector is not known yet.
    pub fn of(key: &RowKey, vector: Option<&[f32]>) -> Self {
        let key = key.as_bytes();
        let components = vector.map_or(0, <[f32]>::len);
        let mut bytes = Vec::with_capacity(5 + key.len() + 4 * components);
        bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(key);
        bytes.push(u8::from(vector.is_some()));
        for component in vector.unwrap_or_default() {
            bytes.extend_from_slice(&component.to_bits().to_le_bytes());
        }
        Self(xxh3_128(&bytes))
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

impl RangeDigest {
    pub fn add(&mut self, row: RowDigest) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(row.0);
    }
}

impl FromIterator<RowDigest> for RangeDigest {
    fn from_iter<I: IntoIterator<Item = RowDigest>>(rows: I) -> Self {
        let mut range = Self::default();
        rows.into_iter().for_each(|row| range.add(row));
        range
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> RowKey {
        RowKey::from_columns([[n].as_slice()]).expect("valid")
    }

    #[test]
    fn the_wires_digest_is_pinned() {
        let digest = RowDigest::of(&key(7), Some(&[1.0, -2.5]));
        assert_eq!(format!("{:032x}", digest.0), GOLDEN);
        assert_eq!(RowDigest::from_bytes(digest.to_bytes()), digest);
    }

    const GOLDEN: &str = "80bfc6472d77bc43b69aaddf37d4fa4a";

    #[test]
    fn every_bit_of_key_and_vector_counts_and_order_does_not() {
        let all = [
            RowDigest::of(&key(1), Some(&[0.0])),
            RowDigest::of(&key(1), Some(&[-0.0])),
            RowDigest::of(&key(1), Some(&[0.0, 0.0])),
            RowDigest::of(&key(1), None),
            RowDigest::of(&key(2), Some(&[0.0])),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        let forward: RangeDigest = all.iter().copied().collect();
        let backward: RangeDigest = all.iter().rev().copied().collect();
        assert_eq!(forward, backward);
        // A row twice is not the row once, nor two of them nothing.
        let twice: RangeDigest = [all[0], all[0]].into_iter().collect();
        assert_ne!(twice, [all[0]].into_iter().collect());
        assert_ne!(twice, RangeDigest::default());
    }
}
