//! A collection: one indexed column of one table of one source.

use crate::ids::{BackfillId, CollectionId, SourceId};
use crate::xid::FullXid;
use serde::{Deserialize, Serialize};
use std::fmt;

/// pgvector's limit on the dimensions of a `vector`.
pub const DIMENSIONS_MAX: u32 = 16_000;

/// How distance is measured. The number that the index ranks by is the one that
/// SQL's operator returns: `<->`, `<=>`, `<#>` (negative inner product).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    L2,
    Cosine,
    InnerProduct,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Metric::L2 => "l2",
            Metric::Cosine => "cosine",
            Metric::InnerProduct => "inner_product",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Metric::L2, Metric::Cosine, Metric::InnerProduct]
            .into_iter()
            .find(|metric| metric.name() == name)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the row of `ruvector.collections` says: the definition of the index.
/// `index_oid` and `definition_generation` together name it within its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionSpec {
    pub source: SourceId,
    pub index_oid: u32,
    /// Rises when the index's contents may have changed without row changes.
    pub definition_generation: u64,
    pub table_oid: u32,
    pub schema_name: String,
    pub table_name: String,
    pub index_name: String,
    pub column_name: String,
    /// Attribute number of the vector column, from 1.
    pub column_attnum: i16,
    /// Attribute numbers of the replica identity, ascending.
    pub key_attnums: Vec<i16>,
    pub metric: Metric,
    pub dimensions: u32,
    pub m: u32,
    pub ef_construction: u32,
}

/// What the snapshot of a backfill had seen, so that the bridge can tell whether
/// a query's snapshot is one that the collection can answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillSnapshot {
    /// First transaction id that the snapshot takes for not yet started.
    pub xmax: FullXid,
    /// Transactions below `xmax` that it takes for running, ascending.
    pub running: Vec<FullXid>,
    /// OID of the row in `pg_publication_rel` by which the table was published when it
    /// was read; under another one changes are missing. `None`: not noted yet, as by
    /// 0.1.0.
    #[serde(default)]
    pub membership: Option<u32>,
}

impl BackfillSnapshot {
    /// Whether a later snapshot sees everything that the backfill saw: every
    /// transaction that the later one takes for running, the backfill took for
    /// running too. Otherwise a row removed before the backfill, and so never
    /// copied, may be visible to that snapshot, which is then scanned exactly.
    pub fn covers(
        &self,
        query_xmax: FullXid,
        query_running: impl IntoIterator<Item = FullXid>,
    ) -> bool {
        query_xmax >= self.xmax
            && query_running
                .into_iter()
                .all(|xid| xid >= self.xmax || self.running.binary_search(&xid).is_ok())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum CollectionState {
    /// The backfill runs, or waits to; the planner behaves as without an index.
    Building { backfill: BackfillId },
    /// Every row of the snapshot is durable and no column is pending.
    Ready { snapshot: BackfillSnapshot },
    /// The collection cannot be kept; scans are exact. Says why and what to do.
    Failed { reason: String },
}

impl CollectionState {
    pub fn name(&self) -> &'static str {
        match self {
            CollectionState::Building { .. } => "building",
            CollectionState::Ready { .. } => "ready",
            CollectionState::Failed { .. } => "failed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    pub id: CollectionId,
    pub spec: CollectionSpec,
    pub state: CollectionState,
    /// The most recent backfill; ids rise with every restart.
    pub last_backfill: BackfillId,
    /// Set while what its replicas hold is to be compared with the table.
    #[serde(default)]
    pub reconcile: Option<Reconcile>,
}

/// A collection is filled once more over what its replicas hold, and what the table has
/// not goes: docs/rfcs/2026-11-27-reconcile.md. A complete one goes on serving meanwhile;
/// one that the slot passed while it was first filled serves only afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconcile {
    /// What happened, in a sentence for the operator.
    pub reason: String,
    /// The first backfill of it; `None` while it waits for one. What backfills
    /// before it have copied says nothing.
    pub since: Option<BackfillId>,
}

impl Collection {
    /// Its reconcile has begun: stale replicas are fed again.
    pub fn reconciles_since(&self) -> Option<BackfillId> {
        self.reconcile.as_ref()?.since
    }

    /// Whether a backfill is to run, whatever for.
    pub fn wants_backfill(&self) -> bool {
        match self.state {
            CollectionState::Building { .. } => true,
            CollectionState::Ready { .. } => self.reconcile.is_some(),
            CollectionState::Failed { .. } => false,
        }
    }

    /// Its replicas may be copied: each is what the stream has made of it.
    pub fn can_be_copied(&self) -> bool {
        matches!(self.state, CollectionState::Ready { .. }) && self.reconcile.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_still_sees_a_transaction_the_backfill_saw_committed_is_not_covered() {
        let backfill = BackfillSnapshot {
            xmax: 100,
            running: vec![90],
            membership: None,
        };
        assert!(backfill.covers(100, []));
        assert!(backfill.covers(120, [90, 110]));
        assert!(
            !backfill.covers(120, [95]),
            "95 had committed before the backfill"
        );
        assert!(
            !backfill.covers(99, []),
            "the query is older than the backfill"
        );
    }
}
