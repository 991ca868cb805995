//! Folds changes over a replica's records. Decisions are `cluster_core::apply`'s.

use super::disk::ReplicaData;
use crate::mutant::Mutant;
use cluster_core::apply::{self, RowEffect, RowState, StoredVector};
use cluster_core::change::{BackfillRow, Change, PositionedChange};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;

pub struct Stage {
    pub data: ReplicaData,
    mutant: Option<Mutant>,
}

impl Stage {
    pub fn new(data: &ReplicaData, mutant: Option<Mutant>) -> Self {
        let data = data.clone();
        Self { data, mutant }
    }

    pub fn change(&mut self, change: &PositionedChange) {
        let (position, xid) = (change.position, change.xid);
        let open = self.data.open_backfill.is_some();
        match &change.change {
            Change::Upsert { key, vector } => {
                let state = self.state(key);
                let effect = apply::upsert(state, position, xid, vector.clone(), open);
                self.take(key, effect);
            }
            Change::Delete { key } => {
                let effect = apply::delete(self.state(key), position, xid, open);
                self.take(key, effect);
            }
            Change::Truncate => self.truncate(position),
        }
    }

    pub fn backfill(&mut self, row: &BackfillRow, stamp: WalPosition) {
        let state = self.state(&row.key);
        let truncated = self.data.truncated;
        let effect = apply::backfill(state, stamp, truncated, row.vector.clone());
        self.take(&row.key, effect);
    }

    fn state(&self, key: &RowKey) -> RowState {
        RowState {
            row: self.data.rows.get(key).cloned(),
            tombstone: self.data.tombstones.get(key).copied(),
        }
    }

    fn take(&mut self, key: &RowKey, effect: RowEffect) {
        match effect.state.row {
            Some(row) => drop(self.data.rows.insert(key.clone(), row)),
            None => drop(self.data.rows.remove(key)),
        }
        let drops = self.mutant == Some(Mutant::TombstoneDropped);
        match effect.state.tombstone.filter(|_| !drops) {
            Some(tombstone) => drop(self.data.tombstones.insert(key.clone(), tombstone)),
            None => drop(self.data.tombstones.remove(key)),
        }
        if let Some(former) = effect.former
            && self.mutant != Some(Mutant::FormersDropped)
        {
            let record = (former.ended_xid, former.vector);
            self.data
                .formers
                .insert((key.clone(), former.ended), record);
        }
    }

    /// Ends every row that stands below; rows above it are a backfill's that
    /// outran the stream.
    fn truncate(&mut self, position: WalPosition) {
        let outran = self.data.stamp_high > position;
        self.data
            .rows
            .retain(|_, row| outran && row.position > position);
        self.data.tombstones.clear();
        self.data.formers.clear();
        self.data.truncated = self.data.truncated.max(position);
    }
}

impl ReplicaData {
    /// The row as it stood before a position: what a key change moves.
    pub fn row_before(&self, key: &RowKey, before: WalPosition) -> Option<Box<[f32]>> {
        if let Some(row) = self.rows.get(key).filter(|row| row.position < before) {
            return match &row.vector {
                StoredVector::Value(vector) => Some(vector.clone()),
                StoredVector::Pending => None,
            };
        }
        let from = (key.clone(), before);
        let former = self.formers.range(from..).next();
        let former = former.filter(|((of, _), _)| of == key);
        former.map(|(_, (_, vector))| vector.clone())
    }

    pub fn pending(&self) -> impl Iterator<Item = &RowKey> {
        let pending = self.rows.iter();
        pending
            .filter(|(_, row)| row.vector == StoredVector::Pending)
            .map(|(key, _)| key)
    }
}
