//! One search over several partitions of the same rows.
//!
//! Searched by itself each of `n` partitions would look for as much as if the nearest
//! rows were all its own: `n` times the work of one index of all the rows. But rows go to
//! partitions by a hash, so each holds about an `n`-th of what is near. So a group's
//! search begins everywhere with a part of `ef` ([`ef_of_each`]) and asks each
//! partition for a part of the page; from then on the answers decide: whose rows hold up
//! the order is asked for more, and has as much in sight again beyond what it gave. A
//! partition that happens to hold all that is near ends up with as much as one index.
//!
//! Caveat: a partition that found its nearest rows badly does not know. What it missed
//! comes on a later page, as from any index.

use std::collections::VecDeque;

use crate::cursor::{Cursor, Page};
use crate::params::{Effort, IndexError, PAGE_ROWS_MAX};
use crate::partition_index::{PartitionIndex, VectorId};
use crate::vector::Vector;

/// Of `ef` rows in sight an even part falls to each partition, give or take the root of
/// it; so many of these deviations are looked for beyond.
const DEVIATIONS: f64 = 3.0;
/// Less finds the way to the near rows badly.
const EF_MIN: usize = 8;
/// Rows beyond an even part of the page that a partition is asked for at a time.
const ROWS_BEYOND: usize = 2;

/// The `ef` with which each of so many partitions of one collection is searched, so that
/// together they find as much as an index of all rows does with `ef`.
pub fn ef_of_each(ef: usize, partitions: usize) -> usize {
    if partitions <= 1 {
        return ef;
    }
    let part = ef as f64 / partitions as f64;
    let enough = (part + DEVIATIONS * part.sqrt()).ceil() as usize;
    enough.max(EF_MIN).min(ef)
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupHit {
    /// Counted as the partitions were handed in.
    pub partition: usize,
    pub id: VectorId,
    /// Of the SQL operator.
    pub distance: f64,
}

/// A page of all partitions: their counts are added up.
pub type GroupPage = Page<GroupHit>;

struct Member<'a> {
    index: &'a PartitionIndex,
    cursor: Cursor,
    snapshot_xmin: u64,
    /// Its rows that the group has not given out. They may go meanwhile.
    ahead: VecDeque<(VectorId, f64)>,
    bound: f64,
    exhausted: bool,
}

impl Member<'_> {
    /// What the next row of this partition is not nearer than.
    fn nearest(&self) -> f64 {
        self.ahead.front().map_or(self.bound, |hit| hit.1)
    }

    fn is_spent(&self) -> bool {
        self.exhausted && self.ahead.is_empty()
    }

    /// A row may have been removed or ended since the partition gave it to the group. Its
    /// slot is no other's as long as the cursor is open.
    fn is_there(&self, id: VectorId) -> bool {
        self.index.lives.is_visible(id.0, self.snapshot_xmin)
    }

    fn drop_gone(&mut self) {
        while let Some((id, _)) = self.ahead.front()
            && !self.is_there(*id)
        {
            self.ahead.pop_front();
        }
    }
}

/// A search in progress over several partitions.
pub struct GroupCursor<'a> {
    members: Vec<Member<'a>>,
}

impl<'a> GroupCursor<'a> {
    /// Opens a search over all partitions; `ef` is that of an index of all their rows.
    /// For the rest see [`PartitionIndex::cursor`].
    pub fn open(
        partitions: &[&'a PartitionIndex],
        query: Vector<'_>,
        ef: usize,
        snapshot_xmin: u64,
        effort: Effort,
    ) -> Result<Self, IndexError> {
        let of_each = ef_of_each(ef, partitions.len());
        let member = |index: &&'a PartitionIndex| {
            Ok(Member {
                index,
                cursor: index.cursor(query, of_each, snapshot_xmin, effort)?,
                snapshot_xmin,
                ahead: VecDeque::new(),
                bound: f64::NEG_INFINITY,
                exhausted: false,
            })
        };
        let members = partitions.iter().map(member).collect::<Result<_, _>>()?;
        Ok(Self { members })
    }

    /// The next `rows` hits (from 1 to [`PAGE_ROWS_MAX`]); fewer only when exhausted.
    pub fn next_page(&mut self, rows: usize) -> GroupPage {
        let rows = rows.clamp(1, PAGE_ROWS_MAX);
        let rows_of_each = match self.members.len() {
            0 | 1 => rows,
            partitions => (rows.div_ceil(partitions) + ROWS_BEYOND).min(rows),
        };
        let mut page = GroupPage {
            hits: Vec::with_capacity(rows),
            bound: f64::INFINITY,
            exhausted: false,
            tail_rows: 0,
            distances: 0,
            approximate: false,
            originals: 0,
            restarted: false,
        };
        while page.hits.len() < rows {
            let Some(partition) = self.nearest() else {
                break;
            };
            let member = &mut self.members[partition];
            match member.ahead.pop_front() {
                // Then another partition's row may be the next.
                Some((id, _)) if !member.is_there(id) => {}
                Some((id, distance)) => page.hits.push(GroupHit {
                    partition,
                    id,
                    distance,
                }),
                None => ask(member, rows_of_each, &mut page),
            }
        }
        // Neither the bound nor the end waits for rows that will not come.
        self.members.iter_mut().for_each(Member::drop_gone);
        // A partition that was asked for more may have found nearer ones than it expected.
        page.hits.sort_by(|a, b| a.distance.total_cmp(&b.distance));
        page.exhausted = self.members.iter().all(Member::is_spent);
        page.bound = self
            .nearest()
            .map_or(f64::INFINITY, |partition| self.members[partition].nearest());
        page
    }

    /// The partition whose next row is the nearest, as far as is known.
    fn nearest(&self) -> Option<usize> {
        let members = self.members.iter().enumerate();
        members
            .filter(|(_, member)| !member.is_spent())
            .min_by(|(_, a), (_, b)| a.nearest().total_cmp(&b.nearest()))
            .map(|(partition, _)| partition)
    }

    pub fn memory_bytes(&self) -> usize {
        let of_member = |member: &Member<'_>| {
            member.cursor.memory_bytes()
                + member.ahead.capacity() * size_of::<(VectorId, f64)>()
                + size_of::<Member<'_>>()
        };
        self.members.iter().map(of_member).sum()
    }
}

/// Asks a partition for its next rows.
fn ask(member: &mut Member<'_>, rows: usize, page: &mut GroupPage) {
    let own = member.cursor.next_page(member.index, rows);
    member.ahead.extend(own.hits);
    member.bound = own.bound;
    member.exhausted = own.exhausted;
    page.tail_rows += own.tail_rows;
    page.distances += own.distances;
    page.approximate |= own.approximate;
    page.originals += own.originals;
    page.restarted |= own.restarted;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ef_is_shared_and_never_below_what_finds_the_way() {
        for (ef, partitions, expected) in [
            (100, 0, 100),
            (100, 1, 100),
            (100, 4, 40),
            (100, 16, 14),
            (20, 16, 8),
            (400, 16, 40),
            (5, 16, 5),
            (1, 2, 1),
        ] {
            assert_eq!(ef_of_each(ef, partitions), expected);
        }
    }
}
