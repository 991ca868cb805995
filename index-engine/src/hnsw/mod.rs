//! The navigable graph over the vectors.
//!
//! - `candidate`: an id with its rank as one integer.
//! - `visited`: which ids a search has met.
//! - `graph`: links, entry point, levels.
//! - `search`: greedy descent and the expansion of one node.
//! - `insert`: linking a vector, with the paper's neighbour selection.
//! - `walk`: the resumable best-first search on level 0.
//!
//! Links are never taken out: a removed vector remains a waypoint.

mod candidate;
mod graph;
mod insert;
mod search;
mod visited;
mod walk;

use std::sync::Arc;

use crate::arena::VectorArena;
use crate::distance::{Lane, Scorer};
use crate::params::IndexParams;

pub(crate) use candidate::Candidate;
pub(crate) use graph::level_of;
pub(crate) use visited::{Visited, VisitedPool};
pub(crate) use walk::Walk;

/// The prepared vectors and the graph over those of them that are linked.
pub(crate) struct Hnsw {
    pub(crate) vectors: VectorArena,
    pub(crate) scorer: Scorer,
    pub(crate) visited: Arc<VisitedPool>,
    graph: graph::Graph,
    ef_construction: usize,
}

impl Hnsw {
    pub(crate) fn new(params: &IndexParams) -> Self {
        Self {
            vectors: VectorArena::new(params.dimensions),
            scorer: Scorer::new(params.metric),
            visited: Arc::default(),
            graph: graph::Graph::new(params.m),
            ef_construction: params.ef_construction,
        }
    }

    /// Reserves the links of a vector about to be published. One writer at a time.
    pub(crate) fn reserve(&self, id: u32, level: u8) {
        self.graph.reserve(id, level);
    }

    #[inline]
    pub(crate) fn candidate(&self, target: &[Lane], id: u32) -> Candidate {
        Candidate::new(self.scorer.rank(target, self.vectors.get(id)), id)
    }

    /// Resident bytes of what is stored for this many vectors.
    pub(crate) fn memory_bytes(&self, vectors: u32) -> usize {
        self.vectors.memory_bytes() + self.graph.memory_bytes(vectors)
    }
}
