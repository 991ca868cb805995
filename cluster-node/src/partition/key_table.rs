//! The row key of each vector: append-only, read without locks while it grows.
//!
//! Chunk `c` holds `FIRST << c` keys, so that 2^28 ids need few chunks and a
//! slot never moves.

use cluster_core::row_key::RowKey;
use std::sync::OnceLock;

const FIRST_BITS: u32 = 10;
const CHUNKS: usize = 32 - FIRST_BITS as usize;

pub struct KeyTable {
    chunks: [OnceLock<Box<[OnceLock<RowKey>]>>; CHUNKS],
}

/// The chunk of an id and the slot within it.
fn place(id: u32) -> (usize, usize) {
    let shifted = u64::from(id) + (1 << FIRST_BITS);
    let chunk = shifted.ilog2() - FIRST_BITS;
    let slot = shifted - (1 << (chunk + FIRST_BITS));
    (chunk as usize, slot as usize)
}

impl KeyTable {
    pub fn new() -> Self {
        Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
        }
    }

    /// Names an id, once.
    pub fn set(&self, id: u32, key: RowKey) {
        let (chunk, slot) = place(id);
        let slots = self.chunks[chunk].get_or_init(|| {
            std::iter::repeat_with(OnceLock::new)
                .take(1 << (chunk as u32 + FIRST_BITS))
                .collect()
        });
        let is_new = slots[slot].set(key).is_ok();
        assert!(is_new, "vector id {id} was named twice");
    }

    pub fn get(&self, id: u32) -> Option<&RowKey> {
        let (chunk, slot) = place(id);
        self.chunks.get(chunk)?.get()?[slot].get()
    }

    /// Memory of the slots, without the keys' bytes.
    pub fn memory_bytes(&self) -> usize {
        self.chunks
            .iter()
            .filter_map(|chunk| chunk.get())
            .map(|slots| slots.len() * size_of::<OnceLock<RowKey>>())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_id_has_its_own_slot_across_chunks() {
        let table = KeyTable::new();
        let key = |id: u32| RowKey::from_columns([id.to_be_bytes().as_slice()]).unwrap();
        for id in 0..5_000 {
            table.set(id, key(id));
        }
        for id in 0..5_000 {
            assert_eq!(table.get(id), Some(&key(id)));
        }
        assert_eq!(table.get(5_000), None);
        assert_eq!(table.get(u32::MAX), None);
        assert_eq!(place(u32::MAX), (CHUNKS, 1023));
    }
}
