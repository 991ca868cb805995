//! The navigable graph over the vectors.
//!
//! - `candidate`: an id with its rank as one integer.
//! - `visited`: which ids a search has met.
//! - `graph`: links, entry point, levels.
//! - `search`: greedy descent and the expansion of one node.
//! - `insert`, `insert_coded`: linking a vector, with the paper's neighbour selection.
//! - `roles`, `held`: what a vector is to the graph, and the tree that reaches all nodes.
//! - `leave`, `relink`: how removed vectors leave, and what is linked in their stead.
//! - `walk`: the resumable best-first search on level 0, by exact distances.
//! - `rotated`: what codes see of a vector.
//! - `pool`, `beam`: the same over one-bit codes, from 32 dimensions on.
//! - `told`: whether sketches tell near from far.
//! - `ranked`: rows met, ranked roughly and then exactly.
//! - `hops`: a search among some of the nodes, through the others.
//! - `aim`: what is searched for, and steps that keep no state.
//! - `stored`: all of it as a checkpoint holds it.
//! - `coarse`, `insert_coarse`: search and linking by codes of the vectors themselves, which
//!   lie elsewhere.
//!
//! A removed vector remains a waypoint until it has left.

mod aim;
mod beam;
mod candidate;
mod coarse;
mod graph;
mod held;
mod hops;
mod insert;
mod insert_coarse;
mod insert_coded;
mod leave;
mod pool;
mod ranked;
mod relink;
mod roles;
mod rotated;
mod search;
mod stored;
mod told;
mod visited;
mod walk;

use std::sync::Arc;

use crate::accesses::Counters;
use crate::codes::{Blocks, Coarse, Origin, Rotation, Sketches};
use crate::distance::{Lane, Scorer, lanes_of};
use crate::footprint::Footprint;
use crate::memory::Backing;
use crate::params::{CodeBits, Element, IndexParams, Representation};
use crate::vector::Vector;
use crate::vectors::VectorArena;

pub(crate) use aim::{Aim, Codes};
pub(crate) use beam::{Beam, Eligible, Sight};
pub(crate) use candidate::Candidate;
pub(crate) use coarse::{CoarseSight, CoarseWalk};
#[cfg(all(loom, test))]
pub(crate) use graph::Graph;
pub(crate) use graph::level_of;
pub(crate) use hops::Nodes;
pub(crate) use leave::Heirs;
pub(crate) use ranked::Ranked;
pub(crate) use visited::{Visited, VisitedPool};
pub(crate) use walk::Walk;

/// Where a search over codes beside the links leaves the upper levels: a step on level 0 costs less
/// than the sixteen exact distances of one on level 1.
const START_LEVEL: u8 = 2;

/// Level 0's links with one-bit codes beside them.
pub(crate) struct Coding {
    rotation: Rotation,
    origin: Origin,
    pub(crate) blocks: Blocks,
    pub(crate) sketches: Sketches,
    holders: held::Holders,
}

/// Codes to go by where vectors lie elsewhere.
pub(crate) struct Compact {
    rotation: Rotation,
    pub(crate) codes: Coarse,
}

impl Compact {
    fn new(params: &IndexParams, bits: CodeBits) -> Self {
        let rotation = Rotation::new(params.dimensions);
        let codes = Coarse::new(params.metric, rotation.dimensions(), bits);
        Self { rotation, codes }
    }
}

/// The prepared vectors and the graph over those of them that are linked.
pub(crate) struct Hnsw {
    pub(crate) vectors: VectorArena,
    pub(crate) scorer: Scorer,
    pub(crate) accesses: Counters,
    pub(crate) visited: Arc<VisitedPool>,
    /// `None`: level 0 is walked by exact distances, and its links lie in `graph`.
    pub(crate) coding: Option<Coding>,
    /// At most one of the two is there.
    pub(crate) compact: Option<Compact>,
    graph: graph::Graph,
    roles: roles::Roles,
    ef_construction: usize,
    dimensions: usize,
}

impl Hnsw {
    pub(crate) fn new(params: &IndexParams, backing: Option<Arc<dyn Backing>>) -> Self {
        let coding = (params.chosen() == Representation::Coded).then(|| {
            let rotation = Rotation::new(params.dimensions);
            let blocks = Blocks::new(params.metric, rotation.dimensions(), 2 * params.m);
            let sketches = Sketches::new(params.metric, rotation.dimensions());
            Coding {
                origin: Origin::new(rotation.dimensions()),
                rotation,
                blocks,
                sketches,
                holders: held::Holders::new(),
            }
        });
        let compact = match params.chosen() {
            Representation::Compact(bits) => Some(Compact::new(params, bits)),
            _ => None,
        };
        Self {
            vectors: VectorArena::new(lanes_of(params.element, params.dimensions), backing),
            scorer: Scorer::new(params.metric, params.element),
            accesses: Counters::new(),
            visited: Arc::default(),
            graph: graph::Graph::new(params.m, coding.is_none()),
            roles: roles::Roles::new(),
            ef_construction: params.ef_construction,
            dimensions: params.dimensions,
            coding,
            compact,
        }
    }

    /// The vector as it is stored and compared.
    pub(crate) fn prepare(&self, vector: &Vector<'_>) -> Box<[Lane]> {
        let prepared = self.scorer.prepare(vector);
        match rotation(self.coding.as_ref(), self.compact.as_ref()) {
            Some(rotation) if self.scorer.element() == Element::F32 => {
                Lane::pack(&rotation.apply(Lane::view(&prepared)))
            }
            _ => prepared,
        }
    }

    /// Reserves the links of a vector about to be published, in a slot that is new or
    /// forgotten. One writer at a time.
    pub(crate) fn reserve(&self, id: u32, level: u8, vector: &[Lane]) {
        self.accesses.reserve(id);
        self.graph.reserve(id, level);
        self.roles.reserve(id);
        if let Some(coding) = &self.coding {
            coding.holders.reserve(id);
            coding.blocks.reserve(id);
            coding.sketches.reserve(id);
        }
        if let Some(compact) = &self.compact {
            compact.codes.write(id, &self.rotated(vector));
        }
    }

    #[inline]
    pub(crate) fn candidate(&self, target: &[Lane], id: u32) -> Candidate {
        Candidate::new(self.scorer.rank(target, self.vectors.get(id)), id)
    }

    /// What is stored for the vectors that there are.
    pub(crate) fn footprint(&self) -> Footprint {
        let rows = self.vectors.len();
        let vectors = self.vectors.bytes();
        let (vectors, handed_in) = match self.vectors.is_backed() {
            true => (0, vectors),
            false => (vectors, 0),
        };
        let (coding, compact) = (self.coding.as_ref(), self.compact.as_ref());
        let blocks = coding.map_or(0, |c| c.blocks.lines().resident_bytes(rows));
        let sketches = coding.map_or(0, |c| c.sketches.lines().resident_bytes(rows));
        let codes = compact.map_or(0, |c| c.codes.resident_bytes(rows).iter().sum());
        let holders = coding.map_or(0, |c| c.holders.memory_bytes(rows));
        Footprint {
            vectors,
            handed_in,
            sketches,
            codes: blocks + codes,
            links: self.graph.memory_bytes(rows) + self.roles.memory_bytes(rows) + holders,
            other: self.visited.memory_bytes() + graph::STRIPES,
            ..Footprint::default()
        }
    }
}

/// How vectors are turned before they are stored, if they are.
fn rotation<'a>(coding: Option<&'a Coding>, compact: Option<&'a Compact>) -> Option<&'a Rotation> {
    let coded = coding.map(|coding| &coding.rotation);
    coded.or(compact.map(|compact| &compact.rotation))
}
