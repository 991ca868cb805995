//! How far a table has been copied, and what of it holds when the copy goes on.
//!
//! A table is copied in ranges of heap blocks, under snapshots that follow one
//! another. A row that moves between two of them is missed by both, or seen by
//! both; the stream, followed since before the first, carries the move either
//! way. What the stream does not carry is a rewrite of the file (VACUUM FULL,
//! CLUSTER, a rewriting ALTER): it moves every row, so that a mark holds for the
//! file that it was made in alone. Nor does the stream carry what happened while
//! the table was not published: a mark holds for one membership in the
//! publication. docs/rfcs/2026-11-26-backfill-ranges.md tells the cases.
//!
//! A mark says: every row that its snapshots saw below `next_block` is durable
//! on the replica that holds it. Each replica keeps its own, written with the
//! last chunk of the range, and loses it with its rows.

use crate::ids::Incarnation;
use crate::wal_position::WalPosition;
use std::fmt;

/// Blocks of a first range: 2 MiB of heap.
pub const FIRST_RANGE_BLOCKS: u32 = 256;
/// 1 GiB of heap.
pub const RANGE_BLOCKS_MAX: u32 = 1 << 17;

/// A block of a table's main fork, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockNumber(pub u32);

impl fmt::Display for BlockNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a block number belongs to. Neither number comes back within the life of
/// a backfill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TableFile {
    /// Another one after each rewrite and TRUNCATE.
    pub relfilenode: u32,
    /// OID of the table's row in `pg_publication_rel`: another one each time that
    /// the table enters the publication.
    pub membership: u32,
}

/// How far one replica has the rows of a backfill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackfillMark {
    pub file: TableFile,
    /// Blocks below are done.
    pub next_block: BlockNumber,
    /// Of the first snapshot: a row that still stands below, once all ranges are
    /// done, was in none of them.
    pub first_stamp: WalPosition,
    /// Of the last one.
    pub last_stamp: WalPosition,
    /// Rows sent, those of all partitions.
    pub rows: u64,
    pub snapshots: u32,
}

/// Where a copy goes on whose replicas hold these marks; `None`: at its first
/// block. A replica without a mark has lost its rows, or never had them. One that
/// began under another snapshot, because it was opened or attached anew, lacks what
/// others have from before, and may refuse a mark that goes back before it: the sweep
/// goes by the first stamp.
pub fn resume(
    marks: impl IntoIterator<Item = Option<BackfillMark>>,
    file: TableFile,
    incarnation: Incarnation,
) -> Option<BackfillMark> {
    let mut lowest: Option<BackfillMark> = None;
    for mark in marks {
        let first_stamp = lowest.map(|lowest| lowest.first_stamp);
        let mark = mark.filter(|mark| {
            mark.file == file
                && first_stamp.is_none_or(|first| mark.first_stamp == first)
                && mark.first_stamp.incarnation == incarnation
                && mark.last_stamp.incarnation == incarnation
        })?;
        let known = lowest.unwrap_or(mark);
        let low = match mark.next_block < known.next_block {
            true => mark,
            false => known,
        };
        lowest = Some(BackfillMark {
            last_stamp: mark.last_stamp.max(known.last_stamp),
            snapshots: mark.snapshots.max(known.snapshots),
            ..low
        });
    }
    lowest
}

/// How many blocks the next range shall have, for it to take about as long as
/// wished. It at most doubles, so that one quick range does not decide.
pub fn next_range_blocks(blocks: u32, took_ms: u64, wished_ms: u64) -> u32 {
    let wished = u64::from(blocks).saturating_mul(wished_ms) / took_ms.max(1);
    let wished = wished.min(u64::from(blocks).saturating_mul(2));
    let wished = wished.clamp(1, u64::from(RANGE_BLOCKS_MAX));
    u32::try_from(wished).unwrap_or(RANGE_BLOCKS_MAX)
}

/// Whether a collection may become ready under the last snapshot that its rows
/// were copied from, or needs a further one.
///
/// Where one snapshot saw every row, each version that ended since is known: a
/// row comes to the index with the value that it had. Where there were several, a
/// row may have gone from a range not yet copied to one that was, by an UPDATE
/// without its value, and changed again: what it had in between is known to
/// nobody. A query whose snapshot is no older than one taken once no column is
/// pending does not see that version. Nor is it known what a pending row
/// had that was read again under a later snapshot than that of the query.
pub fn needs_last_snapshot(snapshots: u32, had_pending: bool) -> bool {
    snapshots > 1 || had_pending
}

#[cfg(test)]
#[path = "backfill_tests.rs"]
mod tests;
