//! How a replica that holds something is brought into agreement with its table although changes
//! are missing, and why nothing that is visible goes missing meanwhile. The rule and
//! its reasons: docs/rfcs/2026-11-27-reconcile.md.
//!
//! A stale replica is *attached* at a position X: it keeps its rows, moves its
//! watermark to X, and trusts no row that stands below. The stream carries
//! everything above X. Then the table is copied as for a new collection, under
//! snapshots whose stamps are at or above X, so that they have seen every change
//! that the gap below X hides. Once all ranges are done and the stream has been
//! applied up to the last stamp, a *sweep* removes each row that stands below the
//! first stamp.
//!
//! Why the sweep removes no row of the table, on a replica that serves all the while
//! too: a row that the table holds at the end was either seen by a snapshot, and
//! then stands at its stamp or above; or it was seen by none. That happens only to
//! a row that came, or went from one block to another, after the first snapshot: the
//! stream has told of it at a position above the first stamp, and was applied
//! before the sweep. Why it leaves no other row: a row that is not in the table was
//! removed in the gap, so that nothing has told of it above X, or after it, so that
//! the stream has removed it, or never was one. A first backfill sweeps by the same
//! argument: what the stream told of before the first stamp and no snapshot saw is gone.

use crate::apply::RowState;
use crate::backfill::BackfillMark;
use crate::ids::BackfillId;
use crate::wal_position::WalPosition;

/// What a change of the stream meets on a replica that trusts nothing below a
/// position: as if there were no row, so that "unchanged" does not keep a vector that
/// may have changed in the gap. Whether there was one: it leaves the index.
pub fn distrust(state: RowState, trusted_from: Option<WalPosition>) -> (RowState, bool) {
    let is_below = |from: WalPosition| state.row.as_ref().is_some_and(|r| r.position < from);
    match trusted_from.is_some_and(is_below) {
        false => (state, false),
        true => {
            let tombstone = state.tombstone;
            let row = None;
            (RowState { row, tombstone }, true)
        }
    }
}

/// Whether a chunk may be taken: rows of a snapshot from before the attachment have not
/// seen what the gap hides, and a mark that goes back before it says that such rows
/// are done.
pub fn admits_chunk(
    stamp: WalPosition,
    mark: Option<&BackfillMark>,
    trusted_from: Option<WalPosition>,
) -> bool {
    let first = mark.map_or(stamp, |mark| mark.first_stamp.min(stamp));
    admits_stamp(first, trusted_from)
}

/// Whether what was copied since that stamp has seen all that the gap hides.
pub fn admits_stamp(stamp: WalPosition, trusted_from: Option<WalPosition>) -> bool {
    trusted_from.is_none_or(|from| stamp >= from)
}

/// The mark that holds for a backfill: of one that belongs to a reconcile only what
/// the reconcile itself has copied, since `since` began it.
pub fn mark_that_holds(
    mark: Option<BackfillMark>,
    last_backfill: BackfillId,
    since: Option<BackfillId>,
) -> Option<BackfillMark> {
    mark.filter(|_| since.is_none_or(|since| last_backfill >= since))
}

/// What a table was published by, and a position of the server's since that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenPublished {
    /// As in [`crate::backfill::TableFile`].
    pub membership: u32,
    pub seen_at: WalPosition,
    /// The collection is complete: under which membership its rows came is noted with it.
    pub is_noted: bool,
}

/// From where on a replica trusts its rows, once a backfill is opened on it, and the mark
/// that still holds. What left the publication, and came back, may have changed unseen
/// below `seen_at`, whenever the stream tells the rest: copied under another membership,
/// or before anything was copied, when nobody has noted which it was. What was `applied`
/// since rests on such rows.
pub fn trust_at_opening(
    mark: Option<BackfillMark>,
    trusted: Option<WalPosition>,
    published: Option<SeenPublished>,
    applied: WalPosition,
) -> (Option<BackfillMark>, Option<WalPosition>) {
    let Some(published) = published else {
        return (mark, trusted);
    };
    let is_told = match mark {
        Some(mark) => mark.file.membership == published.membership,
        // What changed since an attachment may have gone by unseen as well.
        None => published.is_noted && trusted.is_none(),
    };
    match is_told {
        true => (mark, trusted),
        false => (None, trusted.max(Some(published.seen_at.max(applied)))),
    }
}

/// Whether a row that stands there was in none of the snapshots and in no change.
pub fn is_swept(row: WalPosition, first_stamp: WalPosition) -> bool {
    row < first_stamp
}

/// Whether a version that ended there belongs to a history that has broken since:
/// its transaction id means nothing any more, and no query that the collection
/// answers afterwards can see it.
pub fn is_former_swept(ended: WalPosition, first_stamp: WalPosition) -> bool {
    ended.incarnation < first_stamp.incarnation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backfill::{BlockNumber, TableFile};
    use crate::ids::Incarnation;
    use crate::wal_position::Lsn;

    fn at(lsn: u64) -> WalPosition {
        WalPosition::end_of(Incarnation(1), Lsn(lsn))
    }

    fn mark(membership: u32) -> BackfillMark {
        BackfillMark {
            file: TableFile {
                relfilenode: 1,
                membership,
            },
            next_block: BlockNumber(7),
            first_stamp: at(10),
            last_stamp: at(10),
            rows: 1,
            snapshots: 1,
        }
    }

    #[test]
    fn p2_rows_that_came_under_a_membership_that_nobody_noted_are_not_trusted() {
        let published = |is_noted| {
            Some(SeenPublished {
                membership: 5,
                seen_at: at(20),
                is_noted,
            })
        };
        let (same, other) = (Some(mark(5)), Some(mark(4)));
        let (before, after) = (Some(at(15)), Some(at(20)));
        let cases = [
            (same, None, published(false), (same, None), "the same"),
            (other, None, published(false), (None, after), "another"),
            (
                None,
                None,
                published(false),
                (None, after),
                "nothing copied",
            ),
            (None, None, published(true), (None, None), "noted"),
            (None, before, published(true), (None, after), "attached"),
            (same, before, published(true), (same, before), "goes on"),
            (other, before, None, (other, before), "nobody says"),
            (
                other,
                Some(at(30)),
                published(false),
                (None, Some(at(30))),
                "higher",
            ),
        ];
        for (mark, trusted, published, expected, what) in cases {
            let got = trust_at_opening(mark, trusted, published, at(19));
            assert_eq!(got, expected, "{what}");
        }
        let got = trust_at_opening(other, None, published(false), at(40));
        assert_eq!(got, (None, Some(at(40))), "applied before it was opened");
    }
}
