//! What flows from the WAL to a replica.

use crate::ids::*;
use crate::row_key::RowKey;
use crate::wal_position::WalPosition;
use crate::xid::FullXid;

/// The vector column as the WAL tells it.
#[derive(Clone, Debug, PartialEq)]
pub enum VectorColumn {
    Value(Box<[f32]>),
    Null,
    /// Out of line and not touched by an UPDATE: the stored value holds. For
    /// embeddings this is the common case.
    Unchanged,
}

/// Whether no component is NaN or infinite: such a vector is none. Looks at all of
/// them, for that is quicker than to stop at the first.
pub fn is_finite(vector: &[f32]) -> bool {
    vector.iter().fold(true, |all, x| all & x.is_finite())
}

/// One typed change. Graph and text changes will be further variants.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// INSERT, or UPDATE that keeps the key.
    Upsert {
        key: RowKey,
        vector: VectorColumn,
    },
    Delete {
        key: RowKey,
    },
    /// Ends every row of the partition. TRUNCATE is not MVCC-safe in Postgres:
    /// older snapshots see an empty table too, so no former version is kept.
    Truncate,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PositionedChange {
    pub position: WalPosition,
    /// The top-level transaction.
    pub xid: FullXid,
    pub change: Change,
}

/// Everything that happened to one partition in `(previous, to]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub partition: PartitionId,
    pub generation: Generation,
    pub previous: WalPosition,
    pub to: WalPosition,
    pub changes: Vec<PositionedChange>,
}

/// A row as a backfill's snapshot saw it. NULL vectors are not sent.
#[derive(Clone, Debug, PartialEq)]
pub struct BackfillRow {
    pub key: RowKey,
    pub vector: Box<[f32]>,
}
