//! What the bridge asks a replica for, a bounded piece at a time, and its answer.

use super::digest::RunDigest;
use super::judge::ReplicaRow;
use crate::row_key::RowKey;
use crate::wal_position::WalPosition;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All rows behind a key, as runs.
    Runs { after: Option<RowKey> },
    /// Every row behind a key, up to another.
    Rows {
        after: Option<RowKey>,
        through: Option<RowKey>,
    },
    /// The rows of these keys.
    Keys(Vec<RowKey>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What was asked to be applied, and was before anything was read, in the source's
    /// incarnation; `None` of a replica as it stands.
    pub at: Option<WalPosition>,
    pub runs: Vec<RunDigest>,
    /// Ascending by key.
    pub rows: Vec<(RowKey, ReplicaRow)>,
    /// Otherwise there is more behind the last key.
    pub is_complete: bool,
}
