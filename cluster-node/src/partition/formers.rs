//! Former versions of a partition: which vector each has, and which of them
//! nobody needs any more.

use crate::source::Retention;
use cluster_core::apply::is_former_needed;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use index_engine::VectorId;
use std::collections::BTreeMap;

#[derive(Clone, Default)]
pub struct Formers {
    by_end: BTreeMap<(WalPosition, RowKey), (VectorId, FullXid)>,
}

impl Formers {
    /// Adds a version. Returns the vector of one that ended at the same position
    /// (a repeated backfill tells the same version again).
    pub fn add(
        &mut self,
        key: RowKey,
        ended: WalPosition,
        ended_xid: FullXid,
        id: VectorId,
    ) -> Option<VectorId> {
        let replaced = self.by_end.insert((ended, key), (id, ended_xid));
        replaced.map(|(id, _)| id)
    }

    pub fn remove(&mut self, key: &RowKey, ended: WalPosition) -> Option<VectorId> {
        self.by_end.remove(&(ended, key.clone())).map(|(id, _)| id)
    }

    /// At most `max` versions that neither a snapshot nor a replay needs.
    pub fn unneeded(&self, retention: Retention, max: usize) -> Vec<(RowKey, WalPosition)> {
        self.by_end
            .iter()
            .take_while(|((ended, _), _)| *ended <= retention.confirmed)
            .filter(|((ended, _), (_, xid))| {
                !is_former_needed(*ended, *xid, retention.oldest_xmin, retention.confirmed)
            })
            .take(max)
            .map(|((ended, key), _)| (key.clone(), *ended))
            .collect()
    }

    pub fn len(&self) -> usize {
        self.by_end.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&RowKey, WalPosition, FullXid, VectorId)> {
        self.by_end
            .iter()
            .map(|((ended, key), (id, xid))| (key, *ended, *xid, *id))
    }
}
