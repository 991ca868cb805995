//! What searches read: an index and the key of each of its vectors. TRUNCATE
//! replaces the whole; a cursor keeps the one that it was opened on.
//!
//! A cursor finds what was in the index when it was opened, and nothing that came
//! later. If a version that it could still return ended under it, a row that was
//! there all the time would be missed: the new version came too late, the old
//! one is gone. So the writer ends a version only when no cursor is open that
//! was opened before the new version was inserted: before a [`Moment`] of the index.
//!
//! The index uses the slots of removed vectors again, once no cursor is left that was
//! open meanwhile. So the key of an id that a cursor returns is that of its row for as
//! long as the cursor is open.

use super::key_table::KeyTable;
use cluster_core::row_key::RowKey;
use index_engine::{Cursor, IndexError, IndexParams, Moment, Page, PartitionIndex, VectorId};
use std::sync::Arc;

pub struct LiveIndex {
    index: PartitionIndex,
    keys: KeyTable,
}

impl LiveIndex {
    pub fn new(params: IndexParams) -> Result<Self, IndexError> {
        Ok(Self {
            index: PartitionIndex::new(params)?,
            keys: KeyTable::new(),
        })
    }

    /// An index that was read from a checkpoint, and the keys of its current rows.
    pub fn restored(index: PartitionIndex, rows: &[(u32, RowKey)]) -> Self {
        let keys = KeyTable::new();
        for (id, key) in rows {
            keys.set(*id, key.clone());
        }
        Self { index, keys }
    }

    /// An id with its key.
    pub fn named(&self, id: u32) -> Option<(u32, RowKey)> {
        Some((id, self.keys.get(id)?))
    }

    pub fn index(&self) -> &PartitionIndex {
        &self.index
    }

    pub fn key(&self, id: VectorId) -> Option<RowKey> {
        self.keys.get(id.0)
    }

    /// Inserts. The key is named first, for a search may return the vector at once.
    pub fn insert(&self, key: &RowKey, vector: &[f32]) -> Result<VectorId, IndexError> {
        let name = |id: VectorId| self.keys.set(id.0, key.clone());
        self.index.insert_named(vector, key.level_hash(), name)
    }

    pub fn cursor(
        self: &Arc<Self>,
        query: &[f32],
        ef: usize,
        snapshot_xmin: u64,
        exact: bool,
    ) -> Result<LiveCursor, IndexError> {
        let cursor = self.index.cursor(query, ef, snapshot_xmin, exact)?;
        let live = self.clone();
        Ok(LiveCursor { cursor, live })
    }

    /// After all cursors that have been opened so far.
    pub fn now(&self) -> Moment {
        self.index.cursors_now()
    }

    /// Have all cursors ended that were open then?
    pub fn have_left(&self, moment: Moment) -> bool {
        self.index.cursors_have_left(moment)
    }

    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes() + self.keys.memory_bytes()
    }
}

/// A search in progress, with the index that it is over.
pub struct LiveCursor {
    cursor: Cursor,
    live: Arc<LiveIndex>,
}

impl LiveCursor {
    pub fn next_page(&mut self, rows: usize) -> Page {
        self.cursor.next_page(&self.live.index, rows)
    }

    pub fn key(&self, id: VectorId) -> Option<RowKey> {
        self.live.key(id)
    }
}
