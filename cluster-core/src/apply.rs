//! What a change does to a replica's rows. A replica's row state is a
//! deterministic function of the stream and the backfill (P2–P4).
//!
//! A backfill row bears the stamp of its snapshot and merges under whatever the
//! stream has said later; each row remembers the position of the last change
//! that decided it.

use crate::change::VectorColumn;
use crate::wal_position::WalPosition;
use crate::xid::FullXid;

/// A replica's vector for a row.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredVector {
    Value(Box<[f32]>),
    /// The stream said "unchanged" before any value was known. Not searchable;
    /// takes the backfill's value.
    Pending,
}

/// The current version of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRow {
    pub position: WalPosition,
    /// The highest transaction that touched the row: the last one, or while a
    /// backfill is open, the highest of all since it was opened.
    pub xid_high: FullXid,
    pub vector: StoredVector,
}

/// A removed row, remembered while a backfill could still bring it back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tombstone {
    pub position: WalPosition,
    pub xid_high: FullXid,
}

/// A version that has ended, kept for older snapshots and for replayed moves.
#[derive(Clone, Debug, PartialEq)]
pub struct FormerVersion {
    pub ended: WalPosition,
    /// A search whose snapshot has `xmin <= ended_xid` may still see it.
    pub ended_xid: FullXid,
    pub vector: Box<[f32]>,
}

impl FormerVersion {
    /// Whether some snapshot may see it, or the slot may replay the transaction
    /// that ended it.
    pub fn is_needed(&self, oldest_xmin: FullXid, confirmed: WalPosition) -> bool {
        is_former_needed(self.ended, self.ended_xid, oldest_xmin, confirmed)
    }
}

/// [`FormerVersion::is_needed`] for who has no vector at hand.
pub fn is_former_needed(
    ended: WalPosition,
    ended_xid: FullXid,
    oldest_xmin: FullXid,
    confirmed: WalPosition,
) -> bool {
    ended_xid >= oldest_xmin || ended > confirmed
}

/// What is known of one key before a change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowState {
    pub row: Option<StoredRow>,
    pub tombstone: Option<Tombstone>,
}

/// What a change makes of it. Former versions are only ever added here.
#[derive(Clone, Debug, PartialEq)]
pub struct RowEffect {
    pub state: RowState,
    pub former: Option<FormerVersion>,
    /// Whether the searchable vector of the key is another one than before.
    pub vector_changed: bool,
}

/// Whether a batch `(previous, to]` may be applied at a watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Apply what lies above the watermark.
    Apply,
    /// All of it has been applied.
    Duplicate,
    /// Something between watermark and `previous` is missing (P4).
    Gap,
}

pub fn admit(watermark: WalPosition, previous: WalPosition, to: WalPosition) -> Admission {
    if to <= watermark {
        Admission::Duplicate
    } else if previous <= watermark {
        Admission::Apply
    } else {
        Admission::Gap
    }
}

impl RowState {
    fn decided_at(&self) -> WalPosition {
        let row = self.row.as_ref().map_or(WalPosition::ZERO, |r| r.position);
        let tombstone = self.tombstone.map_or(WalPosition::ZERO, |t| t.position);
        row.max(tombstone)
    }

    fn xid_high(&self, xid: FullXid, backfill_open: bool) -> FullXid {
        let before = match (&self.row, self.tombstone) {
            _ if !backfill_open => 0,
            (Some(row), _) => row.xid_high,
            (None, Some(tombstone)) => tombstone.xid_high,
            (None, None) => 0,
        };
        before.max(xid)
    }

    fn unchanged(self) -> RowEffect {
        RowEffect {
            state: self,
            former: None,
            vector_changed: false,
        }
    }

    fn former(
        row: Option<StoredRow>,
        ended: WalPosition,
        ended_xid: FullXid,
    ) -> Option<FormerVersion> {
        match row?.vector {
            StoredVector::Value(vector) => Some(FormerVersion {
                ended,
                ended_xid,
                vector,
            }),
            StoredVector::Pending => None,
        }
    }
}

/// A stream INSERT or UPDATE. `state` is what the replica holds for the key.
pub fn upsert(
    state: RowState,
    position: WalPosition,
    xid: FullXid,
    vector: VectorColumn,
    backfill_open: bool,
) -> RowEffect {
    if position <= state.decided_at() {
        // The backfill's snapshot has already seen this change.
        return state.unchanged();
    }
    let xid_high = state.xid_high(xid, backfill_open);
    let at = |vector| StoredRow {
        position,
        xid_high,
        vector,
    };
    let new = match vector {
        VectorColumn::Null => return delete(state, position, xid, backfill_open),
        VectorColumn::Value(value) => StoredVector::Value(value),
        VectorColumn::Unchanged => match &state.row {
            Some(row) => row.vector.clone(),
            None => StoredVector::Pending,
        },
    };
    let same = state
        .row
        .as_ref()
        .is_some_and(|row| same_bits(&row.vector, &new));
    RowEffect {
        former: if same {
            None
        } else {
            RowState::former(state.row, position, xid)
        },
        state: RowState {
            row: Some(at(new)),
            tombstone: None,
        },
        vector_changed: !same,
    }
}

/// A stream DELETE, or the old half of a key change.
pub fn delete(
    state: RowState,
    position: WalPosition,
    xid: FullXid,
    backfill_open: bool,
) -> RowEffect {
    if position <= state.decided_at() {
        return state.unchanged();
    }
    let xid_high = state.xid_high(xid, backfill_open);
    RowEffect {
        vector_changed: state.row.is_some(),
        former: RowState::former(state.row, position, xid),
        state: RowState {
            row: None,
            tombstone: backfill_open.then_some(Tombstone { position, xid_high }),
        },
    }
}

/// A row of a backfill whose snapshot stands at `stamp`. `truncated` is the
/// position of the partition's last TRUNCATE.
pub fn backfill(
    state: RowState,
    stamp: WalPosition,
    truncated: WalPosition,
    vector: Box<[f32]>,
) -> RowEffect {
    if stamp < truncated {
        return state.unchanged();
    }
    if let Some(tombstone) = state.tombstone.filter(|t| t.position > stamp) {
        // Removed since (P3), yet a snapshot in between may see it (P1).
        let former = FormerVersion {
            ended: tombstone.position,
            ended_xid: tombstone.xid_high,
            vector,
        };
        return RowEffect {
            former: Some(former),
            ..state.unchanged()
        };
    }
    let new = StoredVector::Value(vector);
    match state.row {
        Some(mut row) if row.position > stamp => {
            if row.vector == StoredVector::Pending {
                row.vector = new;
                let state = RowState {
                    row: Some(row),
                    tombstone: None,
                };
                return RowEffect {
                    state,
                    former: None,
                    vector_changed: true,
                };
            }
            let former = match new {
                StoredVector::Value(vector)
                    if !same_bits(&row.vector, &StoredVector::Value(vector.clone())) =>
                {
                    Some(FormerVersion {
                        ended: row.position,
                        ended_xid: row.xid_high,
                        vector,
                    })
                }
                _ => None,
            };
            RowEffect {
                state: RowState {
                    row: Some(row),
                    tombstone: None,
                },
                former,
                vector_changed: false,
            }
        }
        before => RowEffect {
            vector_changed: !before
                .as_ref()
                .is_some_and(|row| same_bits(&row.vector, &new)),
            state: RowState {
                row: Some(StoredRow {
                    position: stamp,
                    // Another history's transaction ids mean nothing in this one.
                    xid_high: before
                        .filter(|row| row.position.incarnation == stamp.incarnation)
                        .map_or(0, |row| row.xid_high),
                    vector: new,
                }),
                tombstone: None,
            },
            former: None,
        },
    }
}

/// Equality of what would be searched: bit patterns, so that a NaN could not
/// hide a change.
fn same_bits(a: &StoredVector, b: &StoredVector) -> bool {
    match (a, b) {
        (StoredVector::Value(a), StoredVector::Value(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b.iter())
                    .all(|(x, y)| x.to_bits() == y.to_bits())
        }
        (StoredVector::Pending, StoredVector::Pending) => true,
        _ => false,
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
