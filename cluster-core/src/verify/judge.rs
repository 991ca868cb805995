//! What three readings of one key say.
//!
//! Two things could make a difference of what is none. A commit between the readings: then
//! the heap shows another row version afterwards, or the replica's row stands above
//! where the log ended before the first of them. And a commit that is in the log, and so
//! with the replica, while the server does not show it yet (it waits for a synchronous
//! standby, for however long): then the transaction still counts as running, and the
//! row bears its mark. Such keys are in flux.
//!
//! Both marks and position are needed on both sides. Without the position from before
//! the first reading, or without looking for writers before it, a row that came between
//! that reading and the replica's, and went again before the last, would be *extra*.
//! Without looking for writers after the replica, one that is deleted in the log only
//! would be *missing*.

use super::digest::RowDigest;
use crate::wal_position::WalPosition;

/// Which version of a row: another one has another inserter or stands elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapVersion {
    /// The 32-bit xid of the transaction that made it.
    pub xmin: u32,
    /// Block and offset.
    pub tid: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapRow {
    pub version: HeapVersion,
    /// `None`: the vector is NULL, so that no index has the row.
    pub digest: Option<RowDigest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// Of the last change that decided it.
    pub position: WalPosition,
    pub digest: RowDigest,
    /// Whether a search would find it. Said of a row with a known vector only: without
    /// one it is not to be found, and differs by its digest.
    pub is_searchable: bool,
}

/// The readings of one key, in the order in which they were made.
#[derive(Clone, Copy, Debug)]
pub struct Sandwich {
    /// The end of the log before anything was read.
    pub known: WalPosition,
    /// Whether a running transaction had written the key, looked up twice: behind
    /// `known`, before the snapshot of `before` was taken, and behind `replica`, before
    /// that of `after` was.
    pub is_busy: bool,
    pub before: Option<HeapRow>,
    /// It has applied at least what the log held once `before` had been read, unless it
    /// is a replica that nobody feeds.
    pub replica: Option<ReplicaRow>,
    pub after: Option<HeapRow>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The heap has the row, the replica has not.
    Missing,
    /// The replica has a row that the heap has not.
    Extra,
    /// Both have it, with other vectors.
    Different,
    /// The replica has it on disk, and no search finds it.
    Unsearchable,
}

impl Difference {
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Different => "different",
            Self::Unsearchable => "unsearchable",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Equal,
    Differs(Difference),
    /// Nothing can be said: read again.
    InFlux,
}

impl Sandwich {
    pub fn judge(&self) -> Verdict {
        let of_heap = |row: Option<HeapRow>| row.and_then(|row| row.digest);
        let (before, after) = (of_heap(self.before), of_heap(self.after));
        let replica = self.replica.map(|row| row.digest);
        if replica == before || replica == after {
            return match self.replica {
                // The node has looked at disk and index at one moment.
                Some(row) if !row.is_searchable => Verdict::Differs(Difference::Unsearchable),
                _ => Verdict::Equal,
            };
        }
        let has_changed = self.before.map(|row| row.version) != self.after.map(|row| row.version);
        let is_newer = self.replica.is_some_and(|row| row.position > self.known);
        if has_changed || is_newer || self.is_busy {
            return Verdict::InFlux;
        }
        Verdict::Differs(match (before, replica) {
            (Some(_), None) => Difference::Missing,
            (None, _) => Difference::Extra,
            (Some(_), Some(_)) => Difference::Different,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;
    use crate::wal_position::Lsn;

    fn at(lsn: u64) -> WalPosition {
        WalPosition::end_of(Incarnation(1), Lsn(lsn))
    }

    fn heap(xmin: u32, value: Option<u128>) -> Option<HeapRow> {
        Some(HeapRow {
            version: HeapVersion { xmin, tid: 1 },
            digest: value.map(RowDigest),
        })
    }

    fn replica(lsn: u64, value: u128) -> Option<ReplicaRow> {
        Some(ReplicaRow {
            position: at(lsn),
            digest: RowDigest(value),
            is_searchable: true,
        })
    }

    fn judge(
        before: Option<HeapRow>,
        replica: Option<ReplicaRow>,
        after: Option<HeapRow>,
    ) -> Verdict {
        Sandwich {
            before,
            known: at(100),
            replica,
            is_busy: false,
            after,
        }
        .judge()
    }

    #[test]
    fn what_stands_still_on_both_sides_is_judged() {
        use Difference::*;
        let row = heap(1, Some(7));
        assert_eq!(judge(row, replica(9, 7), row), Verdict::Equal);
        assert_eq!(judge(None, None, None), Verdict::Equal);
        assert_eq!(judge(row, None, row), Verdict::Differs(Missing));
        assert_eq!(judge(None, replica(9, 7), None), Verdict::Differs(Extra));
        assert_eq!(judge(row, replica(9, 8), row), Verdict::Differs(Different));
        // NULL vectors are in no index.
        let null = heap(1, None);
        assert_eq!(judge(null, None, null), Verdict::Equal);
        assert_eq!(judge(null, replica(9, 7), null), Verdict::Differs(Extra));
        let hidden = replica(9, 7).map(|row| ReplicaRow {
            is_searchable: false,
            ..row
        });
        assert_eq!(judge(row, hidden, row), Verdict::Differs(Unsearchable));
    }

    #[test]
    fn what_moves_is_never_a_difference() {
        let (old, new) = (heap(1, Some(7)), heap(2, Some(8)));
        // Either side of a commit is a state that the replica may be in.
        assert_eq!(judge(old, replica(9, 7), new), Verdict::Equal);
        assert_eq!(judge(old, replica(101, 8), new), Verdict::Equal);
        assert_eq!(judge(old, replica(101, 9), new), Verdict::InFlux);
        // Removed and written again with the same value in between.
        assert_eq!(judge(old, None, heap(3, Some(7))), Verdict::InFlux);
        // Written and undone by later commits, the heap being the same version.
        assert_eq!(judge(old, replica(101, 8), old), Verdict::InFlux);
        // In the log, not shown by the server yet.
        let waiting = Sandwich {
            before: old,
            known: at(100),
            replica: replica(99, 8),
            is_busy: true,
            after: old,
        };
        assert_eq!(waiting.judge(), Verdict::InFlux);
        let deleted = Sandwich {
            replica: None,
            ..waiting
        };
        assert_eq!(deleted.judge(), Verdict::InFlux);
    }
}
