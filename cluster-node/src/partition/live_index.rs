//! What searches read: an index and the key of each of its vectors. TRUNCATE and
//! rebuilding replace the whole; a cursor keeps the one that it was opened on.
//!
//! A cursor finds what was in the index when it was opened, and nothing that came
//! later. If a version that it could still return ended under it, a row that was
//! there all the time would be missed: the new version came too late, the old
//! one is gone. So the writer ends a version only when no cursor is open that
//! was opened before the new version was inserted ([`LiveIndex::oldest_cursor`]).

use super::key_table::KeyTable;
use cluster_core::row_key::RowKey;
use index_engine::{Cursor, IndexError, IndexParams, Page, PartitionIndex, VectorId};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Orders the opening of cursors against the writer's steps.
pub type CursorNumber = u64;

#[derive(Default)]
struct OpenCursors {
    last: CursorNumber,
    open: BTreeSet<CursorNumber>,
}

pub struct LiveIndex {
    index: PartitionIndex,
    keys: KeyTable,
    /// The id that the next insert gets: ids are dense, and there is one writer.
    next: AtomicU32,
    cursors: Mutex<OpenCursors>,
}

impl LiveIndex {
    pub fn new(params: IndexParams) -> Result<Self, IndexError> {
        Ok(Self {
            index: PartitionIndex::new(params)?,
            keys: KeyTable::new(),
            next: AtomicU32::new(0),
            cursors: Mutex::default(),
        })
    }

    pub fn index(&self) -> &PartitionIndex {
        &self.index
    }

    pub fn key(&self, id: VectorId) -> Option<&RowKey> {
        self.keys.get(id.0)
    }

    /// Inserts; only the partition's writer calls it. The key is named first,
    /// for a search may return the vector at once.
    pub fn insert(&self, key: &RowKey, vector: &[f32]) -> Result<VectorId, IndexError> {
        self.add(key, || self.index.insert(vector, key.level_hash()))
    }

    /// Inserts what another index of the same parameters holds.
    pub fn insert_from(
        &self,
        key: &RowKey,
        other: &LiveIndex,
        id: VectorId,
    ) -> Result<VectorId, IndexError> {
        let insert = || self.index.insert_from(&other.index, id, key.level_hash());
        self.add(key, insert)
    }

    fn add(
        &self,
        key: &RowKey,
        insert: impl FnOnce() -> Result<VectorId, IndexError>,
    ) -> Result<VectorId, IndexError> {
        let expected = self.next.load(Ordering::Relaxed);
        self.keys.set(expected, key.clone());
        let id = insert()?;
        assert_eq!(id.0, expected, "the index gave an id out of order");
        self.next.store(expected + 1, Ordering::Relaxed);
        Ok(id)
    }

    /// Opens a search. Registers it first: see the module's text.
    pub fn cursor(
        self: &Arc<Self>,
        query: &[f32],
        ef: usize,
        snapshot_xmin: u64,
        exact: bool,
    ) -> Result<LiveCursor, IndexError> {
        let number = {
            let mut cursors = self.cursors.lock();
            cursors.last += 1;
            let number = cursors.last;
            cursors.open.insert(number);
            number
        };
        let registered = Registered {
            live: self.clone(),
            number,
        };
        let cursor = self.index.cursor(query, ef, snapshot_xmin, exact)?;
        Ok(LiveCursor { cursor, registered })
    }

    pub fn last_cursor(&self) -> CursorNumber {
        self.cursors.lock().last
    }

    /// The oldest open cursor; the highest number there is when none is open.
    pub fn oldest_cursor(&self) -> CursorNumber {
        let cursors = self.cursors.lock();
        cursors.open.first().copied().unwrap_or(CursorNumber::MAX)
    }

    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes() + self.keys.memory_bytes()
    }
}

struct Registered {
    live: Arc<LiveIndex>,
    number: CursorNumber,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.live.cursors.lock().open.remove(&self.number);
    }
}

/// A search in progress, with the index that it is over.
pub struct LiveCursor {
    cursor: Cursor,
    registered: Registered,
}

impl LiveCursor {
    pub fn next_page(&mut self, rows: usize) -> Page {
        self.cursor.next_page(&self.registered.live.index, rows)
    }

    pub fn key(&self, id: VectorId) -> Option<&RowKey> {
        self.registered.live.key(id)
    }
}
