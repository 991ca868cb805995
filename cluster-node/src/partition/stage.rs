//! Folds changes of one commit, in order, over what the disk holds, and says
//! what to write and what to publish. Decisions are `cluster_core::apply`'s.

use super::index_state::{Now, Publish};
use crate::storage::{PartitionMeta, Storage, StorageError, WriteSet};
use cluster_core::apply::{self, FormerVersion, RowEffect, RowState, StoredRow, StoredVector};
use cluster_core::change::{BackfillRow, Change, PositionedChange};
use cluster_core::ids::PartitionId;
use cluster_core::reconcile;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use rustc_hash::FxHashMap;

pub struct Stage<'a> {
    storage: &'a Storage,
    partition: PartitionId,
    meta: PartitionMeta,
    meta_changed: bool,
    /// The keys that were touched, as they will be.
    keys: FxHashMap<RowKey, RowState>,
    /// A TRUNCATE was staged: of the disk's rows only those in `keys` remain.
    is_cleared: bool,
    formers: Formers,
    publish: Vec<Publish>,
}

type Formers = Vec<(RowKey, FormerVersion)>;

/// A commit, ready to be written and then published.
pub struct Staged {
    pub set: WriteSet,
    pub meta: PartitionMeta,
    pub publish: Vec<Publish>,
}

fn now(row: Option<&StoredRow>) -> Now {
    match row.map(|row| &row.vector) {
        Some(StoredVector::Value(vector)) => Now::Value(vector.clone()),
        Some(StoredVector::Pending) => Now::Pending,
        None => Now::Gone,
    }
}

impl<'a> Stage<'a> {
    pub fn new(storage: &'a Storage, partition: PartitionId, meta: &PartitionMeta) -> Self {
        Self {
            storage,
            partition,
            meta: meta.clone(),
            meta_changed: false,
            keys: FxHashMap::default(),
            is_cleared: false,
            formers: Vec::new(),
            publish: Vec::new(),
        }
    }

    /// A change of the stream, above the watermark.
    pub fn change(&mut self, change: PositionedChange) -> Result<(), StorageError> {
        let PositionedChange {
            position,
            xid,
            change,
        } = change;
        let open = self.meta.open_backfill.is_some();
        let from = self.meta.trusted_from;
        match change {
            Change::Upsert { key, vector } => {
                let (state, was_there) = reconcile::distrust(self.state(&key)?, from);
                let mut effect = apply::upsert(state, position, xid, vector, open);
                effect.vector_changed |= was_there;
                self.take(key, effect);
            }
            Change::Delete { key } => {
                let (state, was_there) = reconcile::distrust(self.state(&key)?, from);
                let mut effect = apply::delete(state, position, xid, open);
                effect.vector_changed |= was_there;
                self.take(key, effect);
            }
            Change::Truncate => self.truncate(position)?,
        }
        Ok(())
    }

    /// Rows of a backfill's chunk; the meta record counts the chunk with them.
    pub fn chunk(
        &mut self,
        rows: Vec<BackfillRow>,
        stamp: WalPosition,
        meta: PartitionMeta,
    ) -> Result<(), StorageError> {
        self.meta = meta;
        self.meta_changed = true;
        for BackfillRow { key, vector } in rows {
            let state = self.state(&key)?;
            let effect = apply::backfill(state, stamp, self.meta.truncated, vector);
            self.take(key, effect);
        }
        Ok(())
    }

    fn state(&mut self, key: &RowKey) -> Result<RowState, StorageError> {
        if let Some(state) = self.keys.remove(key) {
            return Ok(state);
        }
        if self.is_cleared {
            return Ok(RowState::default());
        }
        let tombstone = match self.meta.open_backfill {
            Some(_) => self.storage.tombstone(self.partition, key)?,
            None => None,
        };
        let row = self.storage.row(self.partition, key)?;
        Ok(RowState { row, tombstone })
    }

    fn take(&mut self, key: RowKey, effect: RowEffect) {
        let RowEffect {
            state,
            former,
            vector_changed,
        } = effect;
        if vector_changed {
            self.publish.push(Publish::Set {
                key: key.clone(),
                now: now(state.row.as_ref()),
                ended: former.as_ref().map(|f| (f.ended, f.ended_xid)),
            });
        } else if let Some(former) = &former {
            self.publish.push(Publish::Former {
                key: key.clone(),
                ended: former.ended,
                ended_xid: former.ended_xid,
                vector: former.vector.clone(),
            });
        }
        if let Some(former) = former {
            self.formers.push((key.clone(), former));
        }
        self.keys.insert(key, state);
    }

    /// Ends every row that stands below `position`. Rows above it are there when
    /// a backfill's snapshot, taken after the TRUNCATE, outran the stream; only
    /// then the rows are read. (A learner may also have copied rows above it, and
    /// former versions; those the log holds, and brings again.)
    fn truncate(&mut self, position: WalPosition) -> Result<(), StorageError> {
        let mut survivors = FxHashMap::default();
        let mut formers = Vec::new();
        if self.meta.stamp_high > position {
            formers = self.formers_above(position)?;
            if !self.is_cleared {
                for entry in self.storage.rows(self.partition) {
                    let (key, row) = entry?;
                    if row.position > position {
                        survivors.insert(key, Some(row));
                    }
                }
            }
            for (key, state) in std::mem::take(&mut self.keys) {
                survivors.insert(key, state.row.filter(|row| row.position > position));
            }
            survivors.retain(|_, row| row.is_some());
        }
        let rows = survivors.iter();
        let rows = rows.map(|(key, row)| (key.clone(), now(row.as_ref())));
        self.publish = vec![Publish::Reset(rows.collect())];
        self.publish
            .extend(formers.iter().map(|(key, former)| Publish::Former {
                key: key.clone(),
                ended: former.ended,
                ended_xid: former.ended_xid,
                vector: former.vector.clone(),
            }));
        self.keys = survivors
            .into_iter()
            .map(|(key, row)| {
                let tombstone = None;
                (key, RowState { row, tombstone })
            })
            .collect();
        // Older snapshots see an empty table too: TRUNCATE is not MVCC-safe.
        self.formers = formers;
        self.is_cleared = true;
        self.meta.truncated = self.meta.truncated.max(position);
        self.meta_changed = true;
        Ok(())
    }

    /// Versions that ended above `position`: only a learner has some, copied from
    /// a peer that was further. Its rows may not tell of their end again.
    fn formers_above(&self, position: WalPosition) -> Result<Formers, StorageError> {
        let mut above = std::collections::BTreeMap::new();
        if !self.is_cleared {
            for entry in self.storage.formers(self.partition) {
                let (key, former) = entry?;
                above.insert((key, former.ended), former);
            }
        }
        for (key, former) in &self.formers {
            above.insert((key.clone(), former.ended), former.clone());
        }
        above.retain(|(_, ended), _| *ended > position);
        Ok(above.into_iter().map(|((k, _), f)| (k, f)).collect())
    }

    /// Rows are noted as changed since that checkpoint began. After a TRUNCATE there is
    /// none: what is left is built anew faster than a checkpoint is cleared of the rest.
    pub fn finish(self, noted_since: Option<u64>) -> Staged {
        let mut set = match self.is_cleared {
            true => WriteSet::default(),
            false => WriteSet::noting(noted_since),
        };
        let open = self.meta.open_backfill.is_some();
        if self.is_cleared {
            set.clear_rows(self.partition);
            set.drop_checkpoint(self.partition);
        }
        for (key, state) in &self.keys {
            match &state.row {
                Some(row) => set.put_row(self.partition, key, row),
                None => set.delete_row(self.partition, key),
            }
            match state.tombstone {
                Some(tombstone) => set.put_tombstone(self.partition, key, tombstone),
                None if open => set.delete_tombstone(self.partition, key),
                None => {}
            }
        }
        for (key, former) in &self.formers {
            set.put_former(
                self.partition,
                key,
                former.ended,
                former.ended_xid,
                &former.vector,
            );
        }
        if self.meta_changed {
            set.put_meta(self.partition, &self.meta);
        }
        Staged {
            set,
            meta: self.meta,
            publish: self.publish,
        }
    }
}
