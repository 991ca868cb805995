//! Rows that a search has met: roughly ranked by sketch or code, and exactly once they are
//! to be given out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::told::Told;
use super::{Aim, Candidate, Codes};

/// So many rows are ranked exactly at a time beyond those of the page: enough for a disk to
/// work on, few to read in vain.
const READ_AT_A_TIME: usize = 16;

/// Rows with which a first page of this width does. A full list of nodes holds nearly as many
/// rows, and the few that are missing are not worth looking at every code once more; where many
/// nodes are waypoints only, a quarter is missing, and the page looks farther.
pub(super) fn rows_that_do(width: usize) -> usize {
    width - width / 4
}

#[derive(Default)]
pub(crate) struct Ranked {
    /// At hand, ranked exactly.
    ready: BinaryHeap<Reverse<Candidate>>,
    /// Ranked by sketch or code, in their [`turn`](Aim::turn).
    rough: BinaryHeap<Reverse<Candidate>>,
    /// Ranked exactly so far.
    originals: usize,
    /// Of the first of them.
    told: Told,
}

impl Ranked {
    pub(crate) fn len(&self) -> usize {
        self.ready.len() + self.rough.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn rough_len(&self) -> usize {
        self.rough.len()
    }

    pub(crate) fn push_exact(&mut self, row: Candidate) {
        self.ready.push(Reverse(row));
    }

    /// In its turn, if it is to be ranked exactly.
    pub(crate) fn push_rough(&mut self, row: Candidate) {
        self.rough.push(Reverse(row));
    }

    /// Many at once.
    pub(crate) fn extend_rough(&mut self, rows: Vec<Reverse<Candidate>>) {
        if self.rough.is_empty() {
            self.rough = BinaryHeap::from(rows);
        } else {
            self.rough.extend(rows);
        }
    }

    /// Ranks rows exactly until `rows` are at hand, and as long as there is one that may be
    /// nearer than the last of the nearest `rows`. Where sketches are ranked by, which err
    /// by little, `beyond` more at most: among rows that they cannot tell apart it would be
    /// all.
    ///
    /// By codes of vectors those are ranked that have to be and no others: each of the
    /// first `rows` in turn may be nearer than the last there will be.
    pub(crate) fn refine(
        &mut self,
        aim: Aim<'_>,
        rows: usize,
        beyond: usize,
        distances: &mut usize,
    ) {
        let mut beyond = match aim.codes {
            Codes::OfVectors(..) => usize::MAX,
            Codes::OfNeighbours(..) | Codes::None => beyond,
        };
        let mut missing = rows.saturating_sub(self.ready.len());
        if matches!(aim.codes, Codes::OfNeighbours(..)) && self.told.is_asked() {
            missing = missing.max(Told::COMPARED);
        }
        let nearest = std::iter::from_fn(|| self.rough.pop()).take(missing);
        let mut read: Vec<Candidate> = nearest.map(|row| row.0).collect();
        self.rank_exactly(aim, &read, distances);
        loop {
            read.clear();
            let last = self.rank_of_ready(rows);
            while read.len() < READ_AT_A_TIME.min(beyond)
                && let Some(Reverse(row)) = self.rough.peek().copied()
                && least_in_turn(aim, row) < last
            {
                read.push(row);
                self.rough.pop();
            }
            if read.is_empty() {
                return;
            }
            beyond -= read.len();
            self.rank_exactly(aim, &read, distances);
        }
    }

    /// The rank of the `rows`-th nearest at hand.
    fn rank_of_ready(&self, rows: usize) -> f32 {
        let mut ready: Vec<Candidate> = self.ready.iter().map(|row| row.0).collect();
        if ready.len() < rows {
            return f32::INFINITY;
        }
        ready.select_nth_unstable(rows - 1).1.rank()
    }

    /// Brings the nearest rows at hand as they are ranked.
    pub(crate) fn hand_over(&mut self, rows: usize) {
        let wanted = rows.saturating_sub(self.ready.len());
        let nearest = std::iter::from_fn(|| self.rough.pop()).take(wanted);
        self.ready.extend(nearest);
    }

    /// Rows ranked exactly so far.
    pub(crate) fn originals(&self) -> usize {
        self.originals
    }

    fn rank_exactly(&mut self, aim: Aim<'_>, rows: &[Candidate], distances: &mut usize) {
        let ids: Vec<u32> = rows.iter().map(|row| row.id()).collect();
        aim.hnsw.vectors.expect_reads(&ids);
        *distances += rows.len();
        self.originals += rows.len();
        for row in rows {
            aim.hnsw.accesses.read(row.id());
            let exact = aim.exact(row.id());
            if let Codes::OfNeighbours(coding, lookup) = aim.codes
                && self.told.is_asked()
            {
                let distance = coding.sketches.distance(row.id(), lookup, exact.rank());
                self.told.compare(row.rank(), exact.rank(), distance);
            }
            self.ready.push(Reverse(exact));
        }
    }

    /// Whether sketches told the nearest rows from others, as far as they were compared.
    pub(crate) fn is_told(&self) -> bool {
        self.told.is_good()
    }

    /// The nearest row at hand.
    pub(crate) fn peek(&self) -> Option<Candidate> {
        self.ready.peek().map(|row| row.0)
    }

    pub(crate) fn pop(&mut self) -> Option<Candidate> {
        self.ready.pop().map(|row| row.0)
    }

    /// The nearest row met but not given out.
    pub(crate) fn nearest_pending(&self) -> Option<Candidate> {
        self.ready.peek().or(self.rough.peek()).map(|row| row.0)
    }

    /// What no row is nearer than that was met and not given out. A rank by sketch passes
    /// for exact; one by code is taken for what it may be at least.
    pub(crate) fn least_pending(&self, aim: Aim<'_>) -> Option<f32> {
        let ready = self.ready.peek().map(|row| row.0.rank());
        match aim.codes {
            Codes::OfVectors(..) => {
                let rough = self.rough.peek().map(|row| row.0.rank());
                rough.into_iter().chain(ready).min_by(f32::total_cmp)
            }
            _ => ready.or(self.rough.peek().map(|row| row.0.rank())),
        }
    }

    /// The same where no row is ranked exactly, and all wait by their ranks.
    pub(crate) fn least_handed_over(&self, aim: Aim<'_>) -> Option<f32> {
        let rows = self.ready.iter().chain(&self.rough);
        rows.map(|row| aim.least(row.0)).min_by(f32::total_cmp)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        (self.ready.capacity() + self.rough.capacity()) * size_of::<Candidate>()
    }
}

/// What the rank of a row that waits may be at least.
#[inline]
fn least_in_turn(aim: Aim<'_>, row: Candidate) -> f32 {
    match aim.codes {
        Codes::OfVectors(..) => row.rank(),
        Codes::OfNeighbours(..) | Codes::None => aim.least(row),
    }
}
