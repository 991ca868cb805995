//! A search among some of the nodes, through the others (ACORN, Patel et al., SIGMOD 2024,
//! arXiv:2403.04871).
//!
//! Where a tenth or a hundredth of the nodes are rows of a search, most of what a common
//! search ranks is in vain. Here the others are never ranked: they only hand on to their
//! own neighbours, so that a node's neighbours are the rows among some hundreds of nodes
//! around it.
//!
//! The limits below were chosen on Fashion-MNIST with `m = 16`, by the example `filtered`: nodes
//! around the query as starts without limit filled the list of the nearest, and left no room
//! for rows.

use std::collections::VecDeque;

use super::pool::Pool;
use super::{Aim, Candidate, Hnsw};

/// Rows that one node may bring in sight: those of its own neighbours, then of theirs.
const FOUND_MAX: usize = 48;
/// Starts that are no rows; more of them lead to the same.
const STARTS_MAX: usize = 16;
/// Lists of links asked of the memory ahead of the one that is read.
const AHEAD: usize = 6;

/// A set of nodes.
pub(crate) struct Nodes(Box<[u64]>);

impl Nodes {
    /// Of ids below `len`; others are left out.
    pub(crate) fn new(len: u32, ids: impl IntoIterator<Item = u32>) -> Self {
        let mut words = vec![0u64; (len as usize).div_ceil(64)].into_boxed_slice();
        for id in ids {
            if let Some(word) = words.get_mut(id as usize / 64) {
                *word |= 1 << (id % 64);
            }
        }
        Self(words)
    }

    #[inline]
    pub(crate) fn contains(&self, id: u32) -> bool {
        let word = self.0.get(id as usize / 64);
        word.is_some_and(|word| word >> (id % 64) & 1 == 1)
    }
}

impl Aim<'_> {
    /// The `width` nearest of `nodes` as far as greedy search from `starts` (the
    /// nearest first) finds them, roughly ranked, in no order, and a few more that it came by.
    pub(crate) fn nearest_among(
        self,
        nodes: &Nodes,
        starts: &[Candidate],
        width: usize,
        distances: &mut usize,
    ) -> Vec<Candidate> {
        let hnsw = self.hnsw;
        let mut visited = hnsw.visited.take(hnsw.vectors.len());
        let mut pool = Pool::new(width);
        let (mut found, mut others) = (Vec::with_capacity(FOUND_MAX), VecDeque::new());
        for start in starts {
            visited.insert(start.id());
            if nodes.contains(start.id()) {
                pool.insert(*start);
            } else if others.len() < STARTS_MAX {
                others.push_back(start.id());
            }
        }
        let mut nearest = Vec::with_capacity(width + width / 4);
        // At first no node is expanded: the starts that are no rows hand on to some.
        let mut next: Option<Candidate> = None;
        loop {
            if let Some(node) = next {
                nearest.push(node);
                hnsw.links(node.id(), |id| {
                    if visited.insert(id) {
                        if nodes.contains(id) {
                            found.push(id);
                        } else {
                            others.push_back(id);
                        }
                    }
                });
            }
            others
                .iter()
                .take(AHEAD)
                .for_each(|id| hnsw.prefetch_links(*id));
            while let Some(other) = others.pop_front() {
                if found.len() >= FOUND_MAX {
                    break;
                }
                if let Some(ahead) = others.get(AHEAD - 1) {
                    hnsw.prefetch_links(*ahead);
                }
                hnsw.links(other, |id| {
                    if nodes.contains(id) && visited.insert(id) {
                        found.push(id);
                    }
                });
            }
            others.clear();
            self.prefetch(&found);
            *distances += found.len();
            for id in found.drain(..) {
                pool.insert(self.rough(id));
            }
            next = pool.pop();
            if next.is_none() {
                return nearest;
            }
        }
    }
}

impl Hnsw {
    /// A node's neighbours on level 0, wherever its links lie.
    #[inline]
    pub(super) fn links(&self, node: u32, mut each: impl FnMut(u32)) {
        match &self.coding {
            Some(coding) => coding.blocks.neighbours(node, each),
            None => self.graph.neighbours(node, 0).for_each(&mut each),
        }
    }

    /// A hint that `links` will be asked.
    #[inline]
    fn prefetch_links(&self, node: u32) {
        match &self.coding {
            Some(coding) => coding.blocks.prefetch_ids(node),
            None => self.graph.prefetch_links(node, 0),
        }
    }
}
