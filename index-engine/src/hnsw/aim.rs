//! What a search looks for, and what it may ask of the graph without keeping a state.

use super::{Candidate, Coding, Hnsw, START_LEVEL};
use crate::codes::Lookup;
use crate::distance::Lane;

#[derive(Clone, Copy)]
pub(crate) struct Aim<'a> {
    pub(crate) hnsw: &'a Hnsw,
    pub(crate) lanes: &'a [Lane],
    /// `None`: there are exact distances only.
    pub(crate) codes: Option<(&'a Coding, &'a Lookup)>,
}

impl Aim<'_> {
    pub(crate) fn exact(self, id: u32) -> Candidate {
        self.hnsw.candidate(self.lanes, id)
    }

    /// By sketch where there are codes.
    #[inline]
    pub(crate) fn rough(self, id: u32) -> Candidate {
        match self.codes {
            Some((coding, lookup)) => Candidate::new(coding.sketches.rank(id, lookup), id),
            None => self.exact(id),
        }
    }

    /// A hint that `rough` will be asked.
    #[inline]
    pub(crate) fn prefetch(self, ids: &[u32]) {
        match self.codes {
            Some((coding, _)) => coding.sketches.prefetch(ids),
            None => self.hnsw.vectors.prefetch_whole(ids),
        }
    }

    /// What a rough rank errs by at most.
    pub(crate) fn doubt(self, row: Candidate) -> f32 {
        let doubt = |(coding, lookup): (&Coding, &Lookup)| {
            coding.sketches.doubt(row.id(), lookup, row.rank())
        };
        self.codes.map_or(0.0, doubt)
    }

    /// A sketch tells nothing of it: it has no distance to anything.
    pub(crate) fn is_beyond_sketches(self, id: u32) -> bool {
        self.codes
            .is_some_and(|(coding, _)| coding.sketches.is_zero(id))
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
            ([], Some((coding, lookup))) => {
                hnsw.descend_by_sketches(coding, lookup, START_LEVEL, distances)
            }
            ([], None) => hnsw.descend(self.lanes, 0, distances),
            _ => None,
        };
        let entry: Vec<Candidate> = entry.into_iter().collect();
        let starts = if starts.is_empty() { &entry } else { starts };
        let Some((coding, lookup)) = self.codes else {
            return hnsw.nearest_on(self.lanes, 0, starts, width);
        };
        let mut visited = hnsw.visited.take(hnsw.vectors.len());
        let mut nearest = Vec::with_capacity(width + width / 4);
        let met = |node| nearest.push(node);
        hnsw.beam(coding, lookup, starts, width, &mut visited, met);
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
