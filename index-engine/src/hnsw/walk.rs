//! The best-first search on level 0 that can go on where it stopped.
//!
//! A common HNSW search throws away what lies beyond its `ef` best. Here those
//! rows are put aside, and the next page takes them up again: nothing is computed
//! twice, and in the end every reachable row has come out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Candidate, Hnsw, Visited};
use crate::distance::Lane;

#[derive(Default)]
pub(crate) struct Walk {
    started: bool,
    /// Met, not yet expanded.
    frontier: BinaryHeap<Reverse<Candidate>>,
    /// The best rows met and not yet given out, at most the search's width.
    best: BinaryHeap<Candidate>,
    /// Rows pushed out of `best`; their nodes went to the frontier.
    evicted: Vec<Candidate>,
    /// Met beyond the worst of `best`: neither expanded nor offered as a row.
    aside: Vec<Candidate>,
    /// `evicted` of earlier pages, in order.
    later: BinaryHeap<Reverse<Candidate>>,
    fresh: Vec<u32>,
    /// The best, farthest first, while rows are given out.
    giving: Vec<Candidate>,
}

impl Walk {
    /// Searches until the `width` best rows are known, as far as greedy search
    /// knows, or the graph's reachable part is used up: false then. `eligible`
    /// says whether a vector is a row of this search or only a waypoint.
    pub(crate) fn advance(
        &mut self,
        hnsw: &Hnsw,
        target: &[Lane],
        width: usize,
        visited: &mut Visited,
        eligible: impl Fn(u32) -> bool,
        distances: &mut usize,
    ) -> bool {
        if !self.started {
            self.started = true;
            if let Some(start) = hnsw.descend(target, 0, distances)
                && visited.insert(start.id())
            {
                self.aside.push(start);
            }
        }
        self.resume(width, &eligible);
        let Self {
            frontier,
            best,
            evicted,
            aside,
            fresh,
            ..
        } = self;
        while let Some(Reverse(next)) = frontier.peek().copied() {
            if best.len() >= width && best.peek().is_some_and(|worst| worst.nearer_than(next)) {
                return true;
            }
            frontier.pop();
            hnsw.accesses.expanded(next.id());
            // Copies of this node are as near as it, so they are rows of the same search.
            for copy in hnsw.graph.copies(next.id()) {
                if eligible(copy) && visited.insert(copy) {
                    best.push(Candidate::new(next.rank(), copy));
                    if best.len() > width {
                        evicted.extend(best.pop());
                    }
                }
            }
            hnsw.expand(target, next.id(), 0, visited, fresh, |found| {
                *distances += 1;
                let within = best.len() < width
                    || best.peek().is_some_and(|worst| found.nearer_than(*worst));
                if !within {
                    aside.push(found);
                    return;
                }
                frontier.push(Reverse(found));
                if eligible(found.id()) {
                    best.push(found);
                    if best.len() > width {
                        evicted.extend(best.pop());
                    }
                }
            });
        }
        !self.aside.is_empty()
    }

    /// Takes up what earlier pages put aside.
    fn resume(&mut self, width: usize, eligible: &impl Fn(u32) -> bool) {
        self.later.extend(self.evicted.drain(..).map(Reverse));
        for candidate in self.aside.drain(..) {
            self.frontier.push(Reverse(candidate));
            if eligible(candidate.id()) {
                self.later.push(Reverse(candidate));
            }
        }
        while self.best.len() < width
            && let Some(Reverse(candidate)) = self.later.pop()
        {
            self.best.push(candidate);
        }
    }

    /// Between this and [`Self::finish_giving`] rows are given out, and the walk stands still.
    pub(crate) fn start_giving(&mut self) {
        self.giving = std::mem::take(&mut self.best).into_sorted_vec();
        self.giving.reverse();
    }

    pub(crate) fn peek(&self) -> Option<Candidate> {
        self.giving.last().copied()
    }

    pub(crate) fn pop(&mut self) -> Option<Candidate> {
        self.giving.pop()
    }

    pub(crate) fn finish_giving(&mut self) {
        self.best = BinaryHeap::from(std::mem::take(&mut self.giving));
    }

    /// The nearest row met but not given out.
    pub(crate) fn nearest_pending(&self) -> Option<Candidate> {
        if !self.best.is_empty() {
            return self.best.iter().min().copied();
        }
        let later = self.later.peek().map(|r| &r.0);
        let unordered = self.evicted.iter().chain(&self.aside);
        later.into_iter().chain(unordered).min().copied()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let candidates = self.frontier.capacity()
            + self.best.capacity()
            + self.evicted.capacity()
            + self.aside.capacity()
            + self.later.capacity();
        candidates * size_of::<Candidate>()
    }

    /// Every row met has been given out, and none is left to meet.
    pub(crate) fn is_spent(&self) -> bool {
        self.best.is_empty()
            && self.later.is_empty()
            && self.evicted.is_empty()
            && self.aside.is_empty()
            && self.frontier.is_empty()
    }
}
