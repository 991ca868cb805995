//! The row key of each vector. An id is named anew when its slot is used again, which
//! the index does only once no cursor is left that could return the vector before.
//!
//! Chunk `c` holds `FIRST << c` keys, so that 2^28 ids need few chunks and a slot
//! never moves. Readers of a key wait for one that is named beside it at most.

use cluster_core::row_key::RowKey;
use parking_lot::RwLock;
use std::sync::OnceLock;

const FIRST_BITS: u32 = 10;
const CHUNKS: usize = 32 - FIRST_BITS as usize;
/// Keys behind one lock.
const GROUP: usize = 64;

type Group = RwLock<[Option<RowKey>; GROUP]>;

pub struct KeyTable {
    chunks: [OnceLock<Box<[Group]>>; CHUNKS],
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

    /// Names an id, instead of what it was named before.
    pub fn set(&self, id: u32, key: RowKey) {
        let (chunk, slot) = place(id);
        let groups = self.chunks[chunk].get_or_init(|| {
            std::iter::repeat_with(|| RwLock::new([const { None }; GROUP]))
                .take((1 << (chunk as u32 + FIRST_BITS)) / GROUP)
                .collect()
        });
        groups[slot / GROUP].write()[slot % GROUP] = Some(key);
    }

    pub fn get(&self, id: u32) -> Option<RowKey> {
        let (chunk, slot) = place(id);
        let groups = self.chunks.get(chunk)?.get()?;
        groups[slot / GROUP].read()[slot % GROUP].clone()
    }

    /// Memory of the slots, without the keys' bytes.
    pub fn memory_bytes(&self) -> usize {
        self.chunks
            .iter()
            .filter_map(|chunk| chunk.get())
            .map(|groups| groups.len() * size_of::<Group>())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_id_has_its_own_slot_across_chunks_and_may_be_named_anew() {
        let table = KeyTable::new();
        let key = |id: u32| RowKey::from_columns([id.to_be_bytes().as_slice()]).unwrap();
        for id in 0..5_000 {
            table.set(id, key(id));
        }
        for id in (0..5_000).step_by(3) {
            table.set(id, key(id + 10_000));
        }
        for id in 0..5_000 {
            let named = if id % 3 == 0 { id + 10_000 } else { id };
            assert_eq!(table.get(id), Some(key(named)));
        }
        assert_eq!(table.get(5_000), None);
        assert_eq!(table.get(u32::MAX), None);
        assert_eq!(place(u32::MAX), (CHUNKS, 1023));
    }
}
