//! Best-first search over one-bit codes: the resumable walk of an index that
//! has them.
//!
//! Expanding a node estimates its neighbours from their codes, and those that may
//! be near enough are ranked by their sketches, to within a fraction of a per cent:
//! codes only keep a search from looking at what is far. Where distances lie closer
//! together than codes can tell apart, more is looked at. The rows that are given out
//! next are ranked exactly.
//!
//! On the first page no more than `width` nodes are kept in sight. A later page
//! looks at the expanded nodes' codes once more, for what fell out of sight, and
//! goes on from there, keeping everything.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::pool::Pool;
use super::ranked::rows_that_do;
use super::{Aim, Candidate, Codes, Coding, Hnsw, Ranked, START_LEVEL, Visited};
use crate::codes::{BATCH, Lookup};
use crate::distance::Lane;

/// Neighbours are looked at whose estimate is so many of its deviations beyond what
/// is in sight. More finds little: a node that is near is some other node's neighbour
/// too.
const DOUBT: f32 = 1.0;
/// Of a node's neighbours so many at most, the nearest by estimate. The others have their
/// turn where a nearer node has them as neighbours too: on its way to the target a search
/// would look at most of what it passes. Twelve found no more of Fashion-MNIST.
const LOOKED_AT_MAX: usize = 8;
/// And so many of a node that was the nearest in sight: the search is on its way, most
/// neighbours are nearer than what it has seen, and few will matter.
const LOOKED_AT_ON_THE_WAY: usize = 5;

/// Which rows a search may return.
pub(crate) trait Eligible {
    /// A hint that `is_eligible` will be asked.
    fn prefetch(&self, id: u32);
    fn is_eligible(&self, id: u32) -> bool;
    /// Whether a vector is a row of the search but for what it asks of attributes. Of such
    /// a row everything is written that it is ranked by: it was linked when the search
    /// began. A slot that is not may be about to be another vector's.
    fn is_linked_row(&self, id: u32) -> bool;
}

impl Hnsw {
    /// Expands nodes from `starts` on until the `width` nearest are all expanded, and
    /// passes each to `met` with its rank by sketch. Answers how many it ranked by sketch.
    pub(super) fn beam(
        &self,
        coding: &Coding,
        lookup: &Lookup,
        starts: &[Candidate],
        width: usize,
        visited: &mut Visited,
        mut met: impl FnMut(Candidate),
    ) -> usize {
        let (blocks, sketches) = (&coding.blocks, &coding.sketches);
        let mut pool = Pool::new(width);
        for start in starts {
            if visited.insert(start.id()) {
                pool.insert(*start);
            }
        }
        let mut near = Vec::with_capacity(2 * BATCH);
        let mut chosen = Vec::with_capacity(LOOKED_AT_MAX);
        let mut ranked = 0;
        let mut next = pool.pop_placed();
        while let Some((node, nearer)) = next {
            let looked_at = match nearer {
                0 => LOOKED_AT_ON_THE_WAY,
                _ => LOOKED_AT_MAX,
            };
            // Chosen before this node's neighbours are seen, so that its memory is
            // here when its turn comes: a few nodes more, and none waited for.
            next = pool.pop_placed();
            met(node);
            let ahead = next.map_or(node, |(next, _)| next).id();
            let doubt = DOUBT * sketches.distance(node.id(), lookup, node.rank());
            let threshold = pool.threshold();
            let of = (node.id(), node.rank());
            blocks.scan(of, ahead, lookup, doubt, threshold, |id, estimate| {
                if !visited.contains(id) {
                    near.push(Candidate::new(estimate, id));
                }
            });
            if near.len() > looked_at {
                near.select_nth_unstable(looked_at);
                near.truncate(looked_at);
            }
            for node in near.drain(..) {
                visited.insert(node.id());
                chosen.push(node.id());
            }
            sketches.prefetch(&chosen);
            ranked += chosen.len();
            for id in chosen.drain(..) {
                pool.insert(Candidate::new(sketches.rank(id, lookup), id));
            }
            next = next.or_else(|| pool.pop_placed());
        }
        ranked
    }
}

/// One search, as its cursor lends it for a page.
pub(crate) struct Sight<'a, E> {
    pub(crate) hnsw: &'a Hnsw,
    pub(crate) coding: &'a Coding,
    pub(crate) lanes: &'a [Lane],
    pub(crate) lookup: &'a Lookup,
    pub(crate) eligible: E,
    pub(crate) visited: &'a mut Visited,
    pub(crate) distances: &'a mut usize,
}

impl<'a, E: Eligible> Sight<'a, E> {
    fn rank(&mut self, id: u32) -> Candidate {
        *self.distances += 1;
        Candidate::new(self.coding.sketches.rank(id, self.lookup), id)
    }

    fn aim(&self) -> Aim<'a> {
        Aim {
            hnsw: self.hnsw,
            lanes: self.lanes,
            codes: Codes::OfNeighbours(self.coding, self.lookup),
        }
    }

    /// The rows that an expanded node stands for: itself and its copies, which go to
    /// `copies` too.
    fn offer(&mut self, node: Candidate, copies: &mut Vec<u32>, mut each: impl FnMut(Candidate)) {
        self.hnsw.accesses.expanded(node.id());
        if self.eligible.is_eligible(node.id()) {
            each(node);
        }
        for copy in self.hnsw.graph.copies(node.id()) {
            if self.eligible.is_eligible(copy) && self.visited.insert(copy) {
                copies.push(copy);
                each(Candidate::new(node.rank(), copy));
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct Beam {
    started: bool,
    rows: Ranked,
    /// Expanded for the first page; nodes near them may have fallen out of sight.
    expanded: Vec<Candidate>,
    /// Copies of those that were rows of the first page. They may be no copies any more.
    copies: Vec<u32>,
    /// Met and not expanded, by estimate. Empty on the first page.
    estimated: BinaryHeap<Reverse<Candidate>>,
    /// Of those the ones that were next by estimate, by sketch.
    sketched: BinaryHeap<Reverse<Candidate>>,
}

impl Beam {
    /// Searches until `width` rows are met and `rows` at hand, or until the graph's
    /// reachable part is used up: false then.
    pub(crate) fn advance(
        &mut self,
        sight: &mut Sight<'_, impl Eligible>,
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
            self.look_again(sight);
            self.go_on(sight, width);
        }
        self.rows.refine(sight.aim(), rows, width, sight.distances);
        !(self.expanded.is_empty() && self.has_no_frontier() && self.rows.rough_len() == 0)
    }

    fn begin(&mut self, sight: &mut Sight<'_, impl Eligible>, width: usize) {
        let (hnsw, coding) = (sight.hnsw, sight.coding);
        let start = hnsw.descend_by_sketches(coding, sight.lookup, START_LEVEL, sight.distances);
        let Some(start) = start else { return };
        self.expanded.reserve(width + width / 4);
        let (expanded, eligible) = (&mut self.expanded, &sight.eligible);
        let met = |node: Candidate| {
            eligible.prefetch(node.id());
            hnsw.graph.prefetch_copies(node.id());
            expanded.push(node);
        };
        *sight.distances += hnsw.beam(coding, sight.lookup, &[start], width, sight.visited, met);
        let mut rough = Vec::with_capacity(self.expanded.len());
        for node in &self.expanded {
            sight.offer(*node, &mut self.copies, |row| rough.push(Reverse(row)));
        }
        self.rows.extend_rough(rough);
    }

    /// Takes up what fell out of sight: `visited` are the expanded nodes and what is
    /// in the frontier from here on.
    fn look_again(&mut self, sight: &mut Sight<'_, impl Eligible>) {
        if self.expanded.is_empty() {
            return;
        }
        let hnsw = sight.hnsw;
        *sight.visited = hnsw.visited.take(hnsw.vectors.len());
        let nodes = self.expanded.iter().map(|node| node.id());
        for met in nodes.chain(std::mem::take(&mut self.copies)) {
            sight.visited.insert(met);
        }
        for node in std::mem::take(&mut self.expanded) {
            self.meet_neighbours(sight, node);
        }
    }

    fn go_on(&mut self, sight: &mut Sight<'_, impl Eligible>, width: usize) {
        while self.rows.len() < width
            && let Some(node) = self.next(sight)
        {
            let rows = &mut self.rows;
            sight.offer(node, &mut Vec::new(), |row| rows.push_rough(row));
            self.meet_neighbours(sight, node);
        }
    }

    /// The nearest node of the frontier. An estimate is good for coming to be looked at.
    fn next(&mut self, sight: &mut Sight<'_, impl Eligible>) -> Option<Candidate> {
        loop {
            let sketched = self.sketched.peek().map(|node| node.0);
            let estimated = self.estimated.peek().map(|node| node.0);
            match (sketched, estimated) {
                (Some(node), estimate) if estimate.is_none_or(|e| node <= e) => {
                    return self.sketched.pop().map(|node| node.0);
                }
                (_, Some(estimate)) => {
                    self.estimated.pop();
                    self.sketched.push(Reverse(sight.rank(estimate.id())));
                }
                (_, None) => return None,
            }
        }
    }

    fn meet_neighbours(&mut self, sight: &mut Sight<'_, impl Eligible>, node: Candidate) {
        let visited = &mut *sight.visited;
        let meet = |id, estimate| {
            if visited.insert(id) {
                self.estimated.push(Reverse(Candidate::new(estimate, id)));
            }
        };
        let blocks = &sight.coding.blocks;
        let of = (node.id(), node.rank());
        blocks.scan(of, node.id(), sight.lookup, 0.0, f32::INFINITY, meet);
    }

    /// Whether sketches told the nearest rows from others.
    pub(crate) fn is_told(&self) -> bool {
        self.rows.is_told()
    }

    /// The nearest row at hand.
    pub(crate) fn peek(&self) -> Option<Candidate> {
        self.rows.peek()
    }

    pub(crate) fn pop(&mut self) -> Option<Candidate> {
        self.rows.pop()
    }

    /// The nearest row met but not given out.
    pub(crate) fn nearest_pending(&self) -> Option<Candidate> {
        self.rows.nearest_pending()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let candidates =
            self.expanded.capacity() + self.estimated.capacity() + self.sketched.capacity();
        let copies = self.copies.capacity() * size_of::<u32>();
        self.rows.memory_bytes() + candidates * size_of::<Candidate>() + copies
    }

    /// Every row met has been given out, and none is left to meet.
    pub(crate) fn is_spent(&self) -> bool {
        self.started && self.rows.is_empty() && self.expanded.is_empty() && self.has_no_frontier()
    }
    fn has_no_frontier(&self) -> bool {
        self.estimated.is_empty() && self.sketched.is_empty()
    }
}
