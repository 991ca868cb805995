//! The writer's side of the in-memory index: which vector each key has now and
//! had before, and how a committed change becomes visible to searches.
//!
//! The new version is inserted before the old one ends, and the old one ends only
//! when no cursor is left that was opened before (see [`LiveIndex`]): a search may
//! see a key twice, never not at all. The bridge takes each key once and asks
//! the heap.

use super::formers::Formers;
use super::live_index::LiveIndex;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use index_engine::{IndexError, IndexParams, Moment, PartitionIndex, VectorId};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::sync::Arc;

/// Versions whose end waits for older cursors; beyond, the oldest end at once
/// and such a cursor may miss a row that changed under it.
const RETIRING_MAX: usize = 100_000;

/// What is searchable of a key from now on.
#[derive(Clone, Debug)]
pub enum Now {
    Value(Box<[f32]>),
    /// The row exists, its vector is not known yet.
    Pending,
    Gone,
}

/// One step of making a commit visible.
#[derive(Clone, Debug)]
pub enum Publish {
    /// TRUNCATE: begin again, with the rows that a backfill saw after it.
    Reset(Vec<(RowKey, Now)>),
    /// The key's current vector changes. The old one stays for older snapshots
    /// if it ended by a transaction, else it never counted.
    Set {
        key: RowKey,
        now: Now,
        ended: Option<(WalPosition, FullXid)>,
    },
    /// A version that had ended before it became known.
    Former {
        key: RowKey,
        ended: WalPosition,
        ended_xid: FullXid,
        vector: Box<[f32]>,
    },
    /// Nobody needs the version any more.
    Forget { key: RowKey, ended: WalPosition },
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("index: {0}")]
    Index(#[from] IndexError),
    #[error("row {0:?} ended, but the index does not hold it")]
    NotIndexed(RowKey),
}

pub struct IndexState {
    params: IndexParams,
    live: Arc<LiveIndex>,
    ids: FxHashMap<RowKey, VectorId>,
    formers: Formers,
    retiring: VecDeque<Retiring>,
}

/// A version that ends once no cursor is open that came before its successor.
struct Retiring {
    after: Moment,
    id: VectorId,
    /// `None`: it never counted, or nobody needs it any more.
    ended_xid: Option<FullXid>,
}

impl IndexState {
    pub fn new(params: IndexParams) -> Result<Self, IndexError> {
        Ok(Self {
            live: Arc::new(LiveIndex::new(params.clone())?),
            params,
            ids: FxHashMap::default(),
            formers: Formers::default(),
            retiring: VecDeque::new(),
        })
    }

    /// From an index that was read from a checkpoint. What of it is no current row goes:
    /// former versions are told by the disk.
    pub fn restored(params: IndexParams, index: PartitionIndex, rows: Vec<(u32, RowKey)>) -> Self {
        let mut current = rows.iter().map(|(id, _)| *id).peekable();
        for id in 0..index.slots_len() as u32 {
            if current.next_if_eq(&id).is_none() {
                index.remove(VectorId(id));
            }
        }
        let live = Arc::new(LiveIndex::restored(index, &rows));
        let ids = rows.into_iter().map(|(id, key)| (key, VectorId(id)));
        Self {
            live,
            params,
            ids: ids.collect(),
            formers: Formers::default(),
            retiring: VecDeque::new(),
        }
    }

    pub fn live(&self) -> &Arc<LiveIndex> {
        &self.live
    }

    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// The vector of every current row.
    pub fn ids(&self) -> impl Iterator<Item = VectorId> {
        self.ids.values().copied()
    }

    /// Whether a search finds the key's present vector.
    pub fn holds(&self, key: &RowKey) -> bool {
        let id = self.ids.get(key);
        id.is_some_and(|id| self.live.key(*id).as_ref() == Some(key))
    }

    /// A row that is on disk already.
    pub fn add_row(&mut self, key: RowKey, vector: &[f32]) -> Result<(), PublishError> {
        let id = self.live.insert(&key, vector)?;
        self.ids.insert(key, id);
        Ok(())
    }

    /// A row as it is on disk now, or none. Nobody searches yet.
    pub fn correct_row(
        &mut self,
        key: &RowKey,
        vector: Option<&[f32]>,
    ) -> Result<(), PublishError> {
        if let Some(old) = self.ids.remove(key) {
            self.live.index().remove(old);
        }
        match vector {
            Some(vector) => self.add_row(key.clone(), vector),
            None => Ok(()),
        }
    }

    pub fn formers(&self) -> &Formers {
        &self.formers
    }

    pub fn publish(&mut self, step: Publish) -> Result<(), PublishError> {
        match step {
            Publish::Reset(rows) => self.reset(rows),
            Publish::Set { key, now, ended } => self.set(key, now, ended),
            Publish::Former {
                key,
                ended,
                ended_xid,
                vector,
            } => self.add_former(key, ended, ended_xid, &vector),
            Publish::Forget { key, ended } => {
                if let Some(id) = self.formers.remove(&key, ended) {
                    self.retire(id, None);
                }
                Ok(())
            }
        }
    }

    fn reset(&mut self, rows: Vec<(RowKey, Now)>) -> Result<(), PublishError> {
        *self = Self::new(self.params.clone())?;
        rows.into_iter()
            .try_for_each(|(key, now)| self.set(key, now, None))
    }

    fn set(
        &mut self,
        key: RowKey,
        now: Now,
        ended: Option<(WalPosition, FullXid)>,
    ) -> Result<(), PublishError> {
        let old = match now {
            Now::Value(vector) => {
                let id = self.live.insert(&key, &vector)?;
                self.ids.insert(key.clone(), id)
            }
            Now::Pending | Now::Gone => self.ids.remove(&key),
        };
        match (old, ended) {
            (Some(old), Some((ended, xid))) => {
                self.retire(old, Some(xid));
                self.replace_former(key, ended, xid, old);
            }
            (Some(old), None) => self.retire(old, None),
            (None, Some(_)) => return Err(PublishError::NotIndexed(key)),
            (None, None) => {}
        }
        Ok(())
    }

    pub fn add_former(
        &mut self,
        key: RowKey,
        ended: WalPosition,
        ended_xid: FullXid,
        vector: &[f32],
    ) -> Result<(), PublishError> {
        let id = self.live.insert(&key, vector)?;
        self.live.index().end(id, ended_xid);
        self.replace_former(key, ended, ended_xid, id);
        Ok(())
    }

    fn replace_former(&mut self, key: RowKey, ended: WalPosition, xid: FullXid, id: VectorId) {
        if let Some(same) = self.formers.add(key, ended, xid, id) {
            self.retire(same, None);
        }
    }

    fn retire(&mut self, id: VectorId, ended_xid: Option<FullXid>) {
        let after = self.live.now();
        self.retiring.push_back(Retiring {
            after,
            id,
            ended_xid,
        });
        self.settle();
    }

    /// Versions that still wait for older cursors.
    pub fn retiring(&self) -> usize {
        self.retiring.len()
    }

    /// Ends what older cursors no longer hold.
    pub fn settle(&mut self) {
        while let Some(next) = self.retiring.front() {
            if !self.live.have_left(next.after) && self.retiring.len() <= RETIRING_MAX {
                return;
            }
            match next.ended_xid {
                Some(xid) => self.live.index().end(next.id, xid),
                None => self.live.index().remove(next.id),
            }
            self.retiring.pop_front();
        }
    }
}
