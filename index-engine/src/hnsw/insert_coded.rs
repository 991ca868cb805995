//! Linking on level 0 of an index with codes.
//!
//! What stays in a list keeps its slot and its code; only the new neighbour is
//! encoded.
//!
//! Among vectors that are noise, those far from the middle are in nobody's list of
//! the nearest: pruning by distance alone takes away every link to some of them,
//! and for many leaves links that no search for them comes by. So the nearest
//! neighbour that can *holds* its link to a new node: the link is never given up.
//! Held links make a tree that reaches every node ([`super::held`]).

use super::told::Told;
use super::{Candidate, Coding, Hnsw};
use crate::codes::{Link, Lookup};
use crate::distance::Lane;

impl Hnsw {
    /// Those near a new node on level 0, in order: all that a search of width
    /// `ef_construction` expands.
    pub(super) fn nearest_on_base(
        &self,
        coding: &Coding,
        lanes: &[Lane],
        lookup: &Lookup,
        starts: &[Candidate],
    ) -> Vec<Candidate> {
        let width = self.ef_construction;
        let mut visited = self.visited.take(self.vectors.len());
        let mut nearest = Vec::with_capacity(width + width / 4);
        let starts = &starts[..starts.len().min(width)];
        self.beam(coding, lookup, starts, width, &mut visited, |node| {
            nearest.push(node);
        });
        nearest.sort_unstable();
        // Sketches order the others well enough; among these is one that is equal.
        let mut told = Told::default();
        for node in nearest.iter_mut().take(Told::COMPARED) {
            let exact = self.candidate(lanes, node.id());
            let distance = coding.sketches.distance(node.id(), lookup, exact.rank());
            told.compare(node.rank(), exact.rank(), distance);
            *node = exact;
        }
        if !told.is_good() {
            let exact = |start: &Candidate| self.candidate(lanes, start.id());
            let starts: Vec<Candidate> = starts.iter().map(exact).collect();
            return self.nearest_on(lanes, 0, &starts, width).0;
        }
        nearest.sort_unstable();
        nearest
    }

    /// The links of a node that nobody can reach yet.
    pub(super) fn set_coded(&self, coding: &Coding, id: u32, neighbours: &[Candidate]) {
        let centre = self.rotated(self.vectors.get(id));
        for (slot, neighbour) in neighbours.iter().enumerate() {
            let neighbour = neighbour.id();
            let rotated = self.rotated(self.vectors.get(neighbour));
            let neighbour = (neighbour, &*rotated);
            let origin = coding.origin.point();
            coding
                .blocks
                .put((id, &centre), slot, neighbour, false, origin);
        }
    }

    /// Links `neighbours` back to `new`, of whom one holds it: if they hold enough
    /// others, then the nearest of `candidates` that does not.
    pub(super) fn link_back_coded(
        &self,
        coding: &Coding,
        new: u32,
        neighbours: &[Candidate],
        candidates: &[Candidate],
    ) {
        let rotated = self.rotated(self.vectors.get(new));
        let new = (new, &*rotated);
        let mut is_held = false;
        for neighbour in neighbours {
            let held_max = if is_held { 0 } else { self.held_max() };
            is_held |= self.link_one_coded(coding, neighbour.id(), new, held_max);
        }
        for candidate in candidates {
            if is_held {
                return;
            }
            if neighbours.iter().all(|c| c.id() != candidate.id()) {
                is_held = self.link_one_coded(coding, candidate.id(), new, self.held_max());
            }
        }
        if let Some(nearest) = candidates.first()
            && !is_held
        {
            // The ends below may be full of what leaves.
            self.hold_below(coding, nearest.id(), new.0, self.graph.capacity(0));
        }
    }

    /// True if the node holds `new` from now on, of less than `held_max` so far.
    pub(super) fn link_one_coded(
        &self,
        coding: &Coding,
        node: u32,
        (new, rotated): (u32, &[Lane]),
        held_max: usize,
    ) -> bool {
        let _guard = self.graph.lock(node);
        let blocks = &coding.blocks;
        let links: Vec<Link> = blocks.links(node).collect();
        let held: Vec<u32> = links
            .iter()
            .filter(|link| link.is_held)
            .map(|link| link.neighbour)
            .collect();
        let (capacity, filled) = (self.graph.capacity(0), self.graph.m());
        let hold = held.len() < held_max;
        let put = |slot| {
            if hold {
                // Before the link is seen: who comes by it finds the whole line.
                coding.holders.set(new, Some(node));
            }
            let centre = self.rotated(self.vectors.get(node));
            coding.blocks.put(
                (node, &centre),
                slot,
                (new, rotated),
                hold,
                coding.origin.point(),
            );
            hold
        };
        if let Some(link) = links.iter().find(|link| link.neighbour == new) {
            if hold {
                coding.holders.set(new, Some(node));
                blocks.set_held(node, link.slot, true);
            }
            return hold;
        }
        if let Some(slot) = blocks.free_slot(node) {
            return put(slot);
        }
        let vector = self.vectors.get(node);
        let ids: Vec<u32> = links.iter().map(|link| link.neighbour).collect();
        self.vectors.prefetch_whole(&ids);
        let mut candidates: Vec<Candidate> = ids
            .into_iter()
            .chain([new])
            .map(|id| self.candidate(vector, id))
            .collect();
        candidates.sort_unstable();
        let is_held = |id| held.contains(&id) || (hold && id == new);
        let chosen = self.select(&candidates, capacity, filled, is_held);
        let is_chosen = |id| chosen.iter().any(|c| c.id() == id);
        for link in &links {
            if !is_chosen(link.neighbour) {
                blocks.clear(node, link.slot);
            }
        }
        if is_chosen(new)
            && let Some(slot) = blocks.free_slot(node)
        {
            return put(slot);
        }
        false
    }

    /// Fills a free slot of a node, under its lock.
    pub(super) fn put(&self, coding: &Coding, node: u32, slot: usize, neighbour: u32) {
        let centre = self.rotated(self.vectors.get(node));
        let rotated = self.rotated(self.vectors.get(neighbour));
        let neighbour = (neighbour, &*rotated);
        let origin = coding.origin.point();
        coding
            .blocks
            .put((node, &centre), slot, neighbour, false, origin);
    }
}

#[cfg(test)]
mod tests {
    use crate::{IndexParams, Metric, PartitionIndex};

    /// Noise, in which distances tell little: pruned by distance alone, a row in a
    /// hundred is in nobody's list here.
    fn noise(rows: usize, dimensions: usize, m: usize) -> PartitionIndex {
        let params = IndexParams {
            metric: Metric::L2,
            dimensions,
            m,
            ef_construction: 40,
            representation: crate::Representation::Coded,
            ..IndexParams::default()
        };
        let index = PartitionIndex::new(params).expect("good parameters");
        let mut state = 3u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 40
        };
        for row in 0..rows as u64 {
            let mut unit = || next() as f32 / (1u64 << 24) as f32 - 0.5;
            let vector: Vec<f32> = (0..dimensions).map(|_| unit() + unit() + unit()).collect();
            index.insert(&vector, row).expect("a good vector");
        }
        index.fold(usize::MAX);
        index
    }

    fn reached(from: u32, rows: usize, links: impl Fn(u32) -> Vec<u32>) -> usize {
        let mut met = vec![false; rows];
        met[from as usize] = true;
        let mut stack = vec![from];
        let mut count = 0;
        while let Some(node) = stack.pop() {
            count += 1;
            for next in links(node) {
                if !std::mem::replace(&mut met[next as usize], true) {
                    stack.push(next);
                }
            }
        }
        count
    }

    #[test]
    fn every_node_of_noise_is_held_by_one_and_reached_from_the_entry() {
        const ROWS: usize = 2_000;
        let index = noise(ROWS, 256, 8);
        let hnsw = &index.hnsw;
        let blocks = &hnsw.coding.as_ref().expect("codes").blocks;
        let mut holders = vec![0; ROWS];
        for node in 0..ROWS as u32 {
            let held = blocks.links(node).filter(|link| link.is_held);
            let held: Vec<_> = held.collect();
            assert!(held.len() <= hnsw.held_max());
            held.iter()
                .for_each(|link| holders[link.neighbour as usize] += 1);
        }
        let (_, entry) = hnsw.graph.entry().expect("rows are linked");
        assert_eq!(holders[entry as usize], 0);
        assert_eq!(
            holders.iter().filter(|holders| **holders == 1).count(),
            ROWS - 1
        );
        let held = |node| {
            let held = blocks.links(node).filter(|link| link.is_held);
            held.map(|link| link.neighbour).collect()
        };
        assert_eq!(reached(entry, ROWS, held), ROWS);
    }
}
