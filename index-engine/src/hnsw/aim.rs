//! What a search looks for, and what it may ask of the graph without keeping a state.

use super::{Candidate, Coding, Compact, Hnsw, START_LEVEL};
use crate::codes::{CoarseQuery, Lookup};
use crate::distance::Lane;

/// What rows are ranked by before they are ranked exactly.
#[derive(Clone, Copy)]
pub(crate) enum Codes<'a> {
    /// There are exact distances only.
    None,
    /// Codes of neighbours, and a sketch of each vector.
    OfNeighbours(&'a Coding, &'a Lookup),
    /// A code of each vector.
    OfVectors(&'a Compact, &'a CoarseQuery),
}

#[derive(Clone, Copy)]
pub(crate) struct Aim<'a> {
    pub(crate) hnsw: &'a Hnsw,
    pub(crate) lanes: &'a [Lane],
    pub(crate) codes: Codes<'a>,
}

impl Aim<'_> {
    pub(crate) fn exact(self, id: u32) -> Candidate {
        self.hnsw.candidate(self.lanes, id)
    }

    pub(crate) fn has_codes(self) -> bool {
        !matches!(self.codes, Codes::None)
    }

    /// By sketch or code, where there are any.
    #[inline]
    pub(crate) fn rough(self, id: u32) -> Candidate {
        match self.codes {
            Codes::OfNeighbours(coding, lookup) => {
                Candidate::new(coding.sketches.rank(id, lookup), id)
            }
            Codes::OfVectors(compact, query) => Candidate::new(compact.codes.rank(id, query), id),
            Codes::None => self.exact(id),
        }
    }

    /// A hint that `rough` will be asked.
    #[inline]
    pub(crate) fn prefetch(self, ids: &[u32]) {
        match self.codes {
            Codes::OfNeighbours(coding, _) => coding.sketches.prefetch(ids),
            Codes::OfVectors(compact, _) => compact.codes.prefetch(ids),
            Codes::None => self.hnsw.vectors.prefetch_whole(ids),
        }
    }

    /// What the rank of a roughly ranked row may be at least.
    pub(crate) fn least(self, row: Candidate) -> f32 {
        let (id, rank) = (row.id(), row.rank());
        match self.codes {
            _ if rank == f32::INFINITY => f32::INFINITY,
            Codes::OfNeighbours(coding, lookup) => rank - coding.sketches.doubt(id, lookup, rank),
            Codes::OfVectors(compact, query) => compact.codes.least(id, query, rank),
            Codes::None => rank,
        }
    }

    /// What a met row waits behind until it is ranked exactly. Where vectors lie elsewhere
    /// that is the least that its rank may be, not the rank: one of a large doubt may be
    /// nearer than many that are ranked before it.
    #[inline]
    pub(crate) fn turn(self, row: Candidate) -> Candidate {
        match self.codes {
            Codes::OfVectors(..) => Candidate::new(self.least(row), row.id()),
            Codes::OfNeighbours(..) | Codes::None => row,
        }
    }

    /// A sketch tells nothing of it: it has no distance to anything.
    pub(crate) fn is_beyond_sketches(self, id: u32) -> bool {
        match self.codes {
            Codes::OfNeighbours(coding, _) => coding.sketches.is_zero(id),
            Codes::OfVectors(compact, _) => compact.codes.is_zero(id),
            Codes::None => false,
        }
    }

    /// The `width` nearest nodes as far as greedy search finds them, roughly ranked, in no
    /// order, and a few more that it came by. From `starts`, or else from the graph's entry.
    pub(crate) fn nearest(
        self,
        starts: &[Candidate],
        width: usize,
        distances: &mut usize,
    ) -> Vec<Candidate> {
        let hnsw = self.hnsw;
        let entry = match (starts, self.codes) {
            ([], Codes::OfNeighbours(coding, lookup)) => {
                hnsw.descend_by_sketches(coding, lookup, START_LEVEL, distances)
            }
            ([], Codes::OfVectors(compact, query)) => {
                hnsw.descend_coarse(compact, query, 0, distances)
            }
            ([], Codes::None) => hnsw.descend(self.lanes, 0, distances),
            _ => None,
        };
        let entry: Vec<Candidate> = entry.into_iter().collect();
        let starts = if starts.is_empty() { &entry } else { starts };
        let mut visited = hnsw.visited.take(hnsw.vectors.len());
        let mut nearest = Vec::with_capacity(width + width / 4);
        let met = |node| nearest.push(node);
        match self.codes {
            Codes::OfNeighbours(coding, lookup) => {
                *distances += hnsw.beam(coding, lookup, starts, width, &mut visited, met);
            }
            Codes::OfVectors(compact, query) => {
                let of = (compact, query);
                let mut ranked = 0;
                let rank = |_| ranked += 1;
                hnsw.search_coarse(of, (0, width), starts, &mut visited, rank, met);
                // Who handed in the starts has counted them.
                *distances += ranked - starts.len().min(ranked);
            }
            Codes::None => {
                let (found, ranked) = hnsw.nearest_on(self.lanes, 0, starts, width);
                *distances += ranked;
                nearest = found;
            }
        }
        nearest
    }

    /// The other vectors equal to a node's.
    pub(crate) fn copies(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        self.hnsw.graph.copies(node)
    }

    pub(crate) fn prefetch_copies(&self, node: u32) {
        self.hnsw.graph.prefetch_copies(node);
    }
}
