//! Greedy descent through the upper levels, and the expansion of one node.

use super::{Candidate, Coding, Hnsw, Visited};
use crate::codes::Lookup;
use crate::distance::Lane;

impl Hnsw {
    /// From the entry down to `level`, always to the nearest neighbour. `None`
    /// while nothing is linked. Stops at the entry's own level if that is lower.
    pub(crate) fn descend(
        &self,
        target: &[Lane],
        level: u8,
        distances: &mut usize,
    ) -> Option<Candidate> {
        let (top, entry) = self.graph.entry()?;
        let mut nearest = self.candidate(target, entry);
        *distances += 1;
        for level in (level + 1..=top).rev() {
            loop {
                let from = nearest;
                for neighbour in self.graph.neighbours(from.id(), level) {
                    let candidate = self.candidate(target, neighbour);
                    *distances += 1;
                    nearest = nearest.min(candidate);
                }
                if nearest == from {
                    break;
                }
            }
        }
        Some(nearest)
    }

    /// The same by sketches, a quarter of the memory.
    pub(super) fn descend_by_sketches(
        &self,
        coding: &Coding,
        lookup: &Lookup,
        level: u8,
        distances: &mut usize,
    ) -> Option<Candidate> {
        let sketches = &coding.sketches;
        let rank = |id| Candidate::new(sketches.rank(id, lookup), id);
        let prefetch = |ids: &[u32]| sketches.prefetch(ids);
        self.descend_by(rank, prefetch, level, distances)
    }

    /// The same by any rank; `prefetch` asks for a node's neighbours before the first is ranked.
    #[inline]
    pub(super) fn descend_by(
        &self,
        rank: impl Fn(u32) -> Candidate,
        prefetch: impl Fn(&[u32]),
        level: u8,
        distances: &mut usize,
    ) -> Option<Candidate> {
        let (top, entry) = self.graph.entry()?;
        let mut nearest = rank(entry);
        *distances += 1;
        let mut neighbours = Vec::with_capacity(self.graph.m());
        for level in (level + 1..=top).rev() {
            loop {
                let from = nearest;
                neighbours.clear();
                neighbours.extend(self.graph.neighbours(from.id(), level));
                prefetch(&neighbours);
                *distances += neighbours.len();
                let ranked = neighbours.iter().map(|id| rank(*id));
                nearest = ranked.fold(from, Candidate::min);
                if nearest == from {
                    break;
                }
            }
        }
        Some(nearest)
    }

    /// Passes each neighbour that was not met before to `each`. Memory latency is
    /// most of a search's time: the next neighbours are asked for while one is ranked.
    #[inline]
    pub(crate) fn expand(
        &self,
        target: &[Lane],
        node: u32,
        level: u8,
        visited: &mut Visited,
        fresh: &mut Vec<u32>,
        mut each: impl FnMut(Candidate),
    ) {
        fresh.clear();
        let mut meet = |neighbour| {
            if visited.insert(neighbour) {
                fresh.push(neighbour);
            }
        };
        match level {
            0 => self.links(node, meet),
            _ => self.graph.neighbours(node, level).for_each(&mut meet),
        }
        const AHEAD: usize = 3;
        for id in fresh.iter().take(AHEAD) {
            self.vectors.prefetch(*id);
        }
        for (i, id) in fresh.iter().enumerate() {
            if let Some(next) = fresh.get(i + AHEAD) {
                self.vectors.prefetch(*next);
            }
            each(self.candidate(target, *id));
        }
    }
}
