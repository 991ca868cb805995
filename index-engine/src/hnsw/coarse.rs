//! Best-first search by codes of a few bits a dimension: the resumable walk of an index
//! whose vectors lie elsewhere.
//!
//! Links are plain, and every neighbour that a search has not met is ranked by its code.
//! Rows that are given out are then ranked exactly, and with them those behind that their
//! codes, which know what they err by, may have misplaced. A search that asks for no exact
//! ranks gives rows out as their codes rank them.
//!
//! On the first page no more than `width` nodes are kept in sight. What fell out of sight is
//! remembered, and a later page goes on from there, keeping everything.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::pool::Pool;
use super::ranked::rows_that_do;
use super::{Aim, Candidate, Codes, Compact, Eligible, Hnsw, Ranked, Visited};
use crate::codes::CoarseQuery;

impl Hnsw {
    /// From the entry down to `level` by codes, always to the nearest neighbour.
    pub(super) fn descend_coarse(
        &self,
        compact: &Compact,
        query: &CoarseQuery,
        level: u8,
        distances: &mut usize,
    ) -> Option<Candidate> {
        let codes = &compact.codes;
        let rank = |id| Candidate::new(codes.rank(id, query), id);
        let prefetch = |ids: &[u32]| codes.prefetch(ids);
        self.descend_by(rank, prefetch, level, distances)
    }

    /// Expands nodes of a level from `starts` on until the `width` nearest are all expanded.
    /// Passes each that it expands to `expanded`, and all that it ranks to `met`.
    pub(super) fn search_coarse(
        &self,
        (compact, query): (&Compact, &CoarseQuery),
        (level, width): (u8, usize),
        starts: &[Candidate],
        visited: &mut Visited,
        mut met: impl FnMut(Candidate),
        mut expanded: impl FnMut(Candidate),
    ) {
        let codes = &compact.codes;
        let mut pool = Pool::new(width);
        for start in starts {
            if visited.insert(start.id()) {
                met(*start);
                pool.insert(*start);
            }
        }
        let mut fresh = Vec::with_capacity(self.graph.capacity(level));
        let mut next = pool.pop();
        while let Some(node) = next {
            expanded(node);
            self.unvisited(node.id(), level, visited, &mut fresh);
            codes.prefetch(&fresh);
            // Chosen before these neighbours are ranked, so that its links are here when
            // its turn comes.
            next = pool.pop();
            if let Some(node) = next {
                self.graph.prefetch_links(node.id(), level);
            }
            for id in fresh.drain(..) {
                let node = Candidate::new(codes.rank(id, query), id);
                met(node);
                pool.insert(node);
            }
            next = next.or_else(|| pool.pop());
        }
    }

    /// The neighbours that were not met before; they are from now on.
    #[inline]
    fn unvisited(&self, node: u32, level: u8, visited: &mut Visited, fresh: &mut Vec<u32>) {
        let neighbours = self.graph.neighbours(node, level);
        fresh.extend(neighbours.filter(|id| visited.insert(*id)));
    }
}

/// One search, as its cursor lends it for a page.
pub(crate) struct CoarseSight<'a, E> {
    pub(crate) aim: Aim<'a>,
    pub(crate) eligible: E,
    pub(crate) visited: &'a mut Visited,
    pub(crate) distances: &'a mut usize,
}

impl<'a, E: Eligible> CoarseSight<'a, E> {
    fn codes(&self) -> (&'a Compact, &'a CoarseQuery) {
        match self.aim.codes {
            Codes::OfVectors(compact, query) => (compact, query),
            _ => unreachable!("such a walk is made beside codes of vectors"),
        }
    }

    /// The rows that an expanded node stands for: itself and its copies.
    fn offer(&mut self, node: Candidate, mut each: impl FnMut(Candidate)) {
        self.aim.hnsw.accesses.expanded(node.id());
        if self.eligible.is_eligible(node.id()) {
            each(node);
        }
        for copy in self.aim.copies(node.id()) {
            if self.eligible.is_eligible(copy) && self.visited.insert(copy) {
                each(Candidate::new(node.rank(), copy));
            }
        }
    }
}

pub(crate) struct CoarseWalk {
    started: bool,
    /// Rows are ranked exactly before they are given out.
    is_exact: bool,
    rows: Ranked,
    /// Nodes that the first page expanded, and all that it met.
    expanded: Vec<Candidate>,
    met: Vec<Candidate>,
    /// Met and not expanded. Empty on the first page.
    frontier: BinaryHeap<Reverse<Candidate>>,
}

impl CoarseWalk {
    pub(crate) fn new(is_exact: bool) -> Self {
        Self {
            started: false,
            is_exact,
            rows: Ranked::default(),
            expanded: Vec::new(),
            met: Vec::new(),
            frontier: BinaryHeap::new(),
        }
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Searches until `width` rows are met and `rows` at hand, or until the graph's
    /// reachable part is used up: false then.
    pub(crate) fn advance(
        &mut self,
        sight: &mut CoarseSight<'_, impl Eligible>,
        rows: usize,
        width: usize,
    ) -> bool {
        let mut is_enough = false;
        if !self.started {
            self.started = true;
            self.begin(sight, width);
            is_enough = self.rows.rough_len() >= rows_that_do(width);
        }
        if !is_enough {
            self.take_up_met();
            self.go_on(sight, width);
        }
        match self.is_exact {
            true => self.rows.refine(sight.aim, rows, width, sight.distances),
            false => self.rows.hand_over(rows),
        }
        self.has_frontier() || self.rows.rough_len() > 0
    }

    fn begin(&mut self, sight: &mut CoarseSight<'_, impl Eligible>, width: usize) {
        let (hnsw, codes) = (sight.aim.hnsw, sight.codes());
        let start = hnsw.descend_coarse(codes.0, codes.1, 0, sight.distances);
        let Some(start) = start else { return };
        self.expanded.reserve(width + width / 4);
        let (expanded, met, eligible) = (&mut self.expanded, &mut self.met, &sight.eligible);
        hnsw.search_coarse(
            codes,
            (0, width),
            &[start],
            sight.visited,
            |node| met.push(node),
            |node| {
                eligible.prefetch(node.id());
                hnsw.graph.prefetch_copies(node.id());
                expanded.push(node);
            },
        );
        *sight.distances += self.met.len();
        let mut rough = Vec::with_capacity(self.expanded.len());
        let turn = turn(sight.aim, self.is_exact);
        for node in &self.expanded {
            sight.offer(*node, |row| rough.push(Reverse(turn(row))));
        }
        self.rows.extend_rough(rough);
    }

    /// What the first page met and did not expand.
    fn take_up_met(&mut self) {
        let mut expanded = std::mem::take(&mut self.expanded);
        expanded.sort_unstable();
        let met = std::mem::take(&mut self.met).into_iter();
        let left = met.filter(|node| expanded.binary_search(node).is_err());
        self.frontier.extend(left.map(Reverse));
    }

    fn go_on(&mut self, sight: &mut CoarseSight<'_, impl Eligible>, width: usize) {
        let (hnsw, (compact, query)) = (sight.aim.hnsw, sight.codes());
        let mut fresh = Vec::with_capacity(hnsw.graph.capacity(0));
        let turn = turn(sight.aim, self.is_exact);
        while self.rows.len() < width
            && let Some(Reverse(node)) = self.frontier.pop()
        {
            let rows = &mut self.rows;
            sight.offer(node, |row| rows.push_rough(turn(row)));
            hnsw.unvisited(node.id(), 0, sight.visited, &mut fresh);
            compact.codes.prefetch(&fresh);
            *sight.distances += fresh.len();
            for id in fresh.drain(..) {
                let rank = compact.codes.rank(id, query);
                self.frontier.push(Reverse(Candidate::new(rank, id)));
            }
        }
    }

    /// The nearest row at hand.
    pub(crate) fn peek(&self) -> Option<Candidate> {
        self.rows.peek()
    }

    pub(crate) fn pop(&mut self) -> Option<Candidate> {
        self.rows.pop()
    }

    /// What no row is nearer than that was met and not given out, as good as surely.
    pub(crate) fn least_pending(&self, aim: Aim<'_>) -> Option<f32> {
        match self.is_exact {
            true => self.rows.least_pending(aim),
            false => self.rows.least_handed_over(aim),
        }
    }

    pub(crate) fn originals(&self) -> usize {
        self.rows.originals()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let candidates = self.expanded.capacity() + self.met.capacity() + self.frontier.capacity();
        self.rows.memory_bytes() + candidates * size_of::<Candidate>()
    }

    /// Every row met has been given out, and none is left to meet.
    pub(crate) fn is_spent(&self) -> bool {
        self.started && self.rows.is_empty() && !self.has_frontier()
    }

    fn has_frontier(&self) -> bool {
        !self.met.is_empty() || !self.frontier.is_empty()
    }
}

/// How rows wait: what is given out as it is ranked keeps its rank.
fn turn(aim: Aim<'_>, is_exact: bool) -> impl Fn(Candidate) -> Candidate + '_ {
    move |row| match is_exact {
        true => aim.turn(row),
        false => row,
    }
}
