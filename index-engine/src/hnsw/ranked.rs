//! Rows that a search has met: roughly ranked by sketch, and exactly once they are to be
//! given out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Aim, Candidate};

/// At most so many rows are ranked exactly beyond those of the page: sketches may order
/// them otherwise.
const REFINED_BEYOND: usize = 16;

#[derive(Default)]
pub(crate) struct Ranked {
    /// At hand, ranked exactly.
    ready: BinaryHeap<Reverse<Candidate>>,
    /// Ranked by sketch.
    rough: BinaryHeap<Reverse<Candidate>>,
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

    /// Ranks the nearest rows exactly, until `rows` are at hand, and those that sketches
    /// may have put behind them.
    pub(crate) fn refine(&mut self, aim: Aim<'_>, rows: usize, distances: &mut usize) {
        let wanted = rows.saturating_sub(self.ready.len());
        let nearest = std::iter::from_fn(|| self.rough.pop()).take(wanted);
        let nearest: Vec<u32> = nearest.map(|row| row.0.id()).collect();
        self.rank_exactly(aim, &nearest, distances);
        // Not all of them if there are more: then too many are ranked, not too few.
        let farthest = self.ready.iter().map(|row| row.0.rank());
        let farthest = farthest.fold(f32::NEG_INFINITY, f32::max);
        let mut behind = Vec::new();
        while behind.len() < REFINED_BEYOND
            && let Some(Reverse(row)) = self.rough.peek()
            && row.rank() - aim.doubt(*row) < farthest
        {
            behind.push(row.id());
            self.rough.pop();
        }
        self.rank_exactly(aim, &behind, distances);
    }

    fn rank_exactly(&mut self, aim: Aim<'_>, rows: &[u32], distances: &mut usize) {
        aim.hnsw.vectors.prefetch_whole(rows);
        *distances += rows.len();
        let exact = |id: &u32| Reverse(aim.exact(*id));
        self.ready.extend(rows.iter().map(exact));
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

    pub(crate) fn memory_bytes(&self) -> usize {
        (self.ready.capacity() + self.rough.capacity()) * size_of::<Candidate>()
    }
}
