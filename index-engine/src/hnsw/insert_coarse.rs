//! Linking in an index whose vectors lie elsewhere: by codes.
//!
//! The order of the steps is that of `insert`, and so are the rules for links. Codes of
//! four and eight bits say well enough which neighbours are nearer to each other than to
//! the node, and no vector is read but where codes are equal. Fewer bits do not; a
//! neighbour with such a code is read once when it is chosen, and the others are ranked
//! against it by their codes.

use super::{Candidate, Compact, Hnsw};
use crate::codes::CoarseQuery;
use crate::distance::Lane;

impl Hnsw {
    /// `link` of an index with such codes. Once per id.
    pub(super) fn link_coarse(&self, compact: &Compact, id: u32) -> bool {
        let level = self.graph.level(id);
        let target = self.vectors.get(id);
        if self.scorer.is_incomparable(target) {
            return false;
        }
        if self.graph.found(level, id) {
            self.roles.become_node(id);
            return true;
        }
        let Some((top, _)) = self.graph.entry() else {
            unreachable!("the entry is set and never unset");
        };
        let rotated = self.rotated(target);
        let query = compact.codes.query(&rotated);
        let mut distances = 0;
        let start = self.descend_coarse(compact, &query, level.min(top), &mut distances);
        let mut nearest: Vec<Candidate> = start.into_iter().collect();
        let mut chosen = Vec::with_capacity(usize::from(level) + 1);
        for level in (0..=level.min(top)).rev() {
            nearest = self.nearest_coarse(compact, &query, level, &nearest);
            let rank = |other| Candidate::new(compact.codes.rank(other, &query), other);
            let near = self.staying(&nearest, level, rank);
            if let Some(node) = self.equal_by_codes(compact, (id, &rotated), &near) {
                self.roles.become_copy(id);
                self.graph.add_copy(node, id);
                return false;
            }
            let m = self.graph.m();
            chosen.push((level, self.select_coarse(compact, &near, m, m, |_| false)));
        }
        for (level, neighbours) in &chosen {
            let ids = neighbours.iter().map(|c| c.id());
            self.graph.set(id, *level, ids);
        }
        self.roles.become_node(id);
        for (level, neighbours) in chosen.iter().rev() {
            for neighbour in neighbours {
                self.link_back_coarse(compact, neighbour.id(), *level, id);
            }
        }
        self.graph.raise(level, id)
    }

    /// All nodes of a level that a search of width `ef_construction` expands, in order.
    fn nearest_coarse(
        &self,
        compact: &Compact,
        query: &CoarseQuery,
        level: u8,
        starts: &[Candidate],
    ) -> Vec<Candidate> {
        let width = self.ef_construction;
        let starts = &starts[..starts.len().min(width)];
        let mut visited = self.visited.take(self.vectors.len());
        let mut nearest = Vec::with_capacity(width + width / 4);
        let expanded = |node| nearest.push(node);
        self.search_coarse(
            (compact, query),
            (level, width),
            starts,
            &mut visited,
            |_| {},
            expanded,
        );
        nearest.sort_unstable();
        nearest
    }

    /// A node with this very vector.
    fn equal_by_codes(
        &self,
        compact: &Compact,
        (id, rotated): (u32, &[Lane]),
        nearest: &[Candidate],
    ) -> Option<u32> {
        let likeness = compact.codes.likeness(id, rotated);
        let mut nodes = nearest.iter().map(|c| c.id());
        nodes.find(|node| {
            likeness.is_that_of(*node) && self.vectors.get(*node) == self.vectors.get(id)
        })
    }

    /// The node, for others to be ranked against it.
    pub(super) fn pinned(&self, compact: &Compact, node: u32) -> CoarseQuery {
        let by_code = compact.codes.query_of(node);
        by_code.unwrap_or_else(|| {
            let vector = self.rotated(self.vectors.get(node));
            compact.codes.query(&vector)
        })
    }

    /// `select` by codes: candidates in order that are nearer to the node than to any
    /// chosen before, then the nearest of the others; what `is_held` in any case.
    pub(super) fn select_coarse(
        &self,
        compact: &Compact,
        candidates: &[Candidate],
        capacity: usize,
        filled: usize,
        is_held: impl Fn(u32) -> bool,
    ) -> Vec<Candidate> {
        let mut held = candidates.iter().filter(|c| is_held(c.id())).count();
        let mut chosen: Vec<Candidate> = Vec::with_capacity(capacity);
        let mut pinned: Vec<CoarseQuery> = Vec::with_capacity(capacity);
        let mut pruned = Vec::new();
        for candidate in candidates {
            let id = candidate.id();
            if chosen.len() == capacity {
                return chosen;
            }
            let is_diverse = || {
                let ranks = pinned.iter().map(|other| compact.codes.rank(id, other));
                ranks.into_iter().all(|rank| rank > candidate.rank())
            };
            if is_held(id) {
                held -= 1;
            } else if chosen.len() + held == capacity {
                continue;
            } else if !is_diverse() {
                pruned.push(*candidate);
                continue;
            }
            chosen.push(*candidate);
            pinned.push(self.pinned(compact, id));
        }
        let room = filled.saturating_sub(chosen.len());
        chosen.extend(pruned.into_iter().take(room));
        chosen
    }

    /// Adds `new` to a node's list, choosing anew if that is full: then level 0's is filled
    /// by half, and beyond with what leads elsewhere only: see `link_back`.
    pub(super) fn link_back_coarse(&self, compact: &Compact, node: u32, level: u8, new: u32) {
        let _guard = self.graph.lock(node);
        if self.graph.push(node, level, new) {
            return;
        }
        let mut neighbours: Vec<u32> = self.graph.neighbours(node, level).collect();
        neighbours.push(new);
        compact.codes.prefetch(&neighbours);
        let query = self.pinned(compact, node);
        let rank = |id: &u32| Candidate::new(compact.codes.rank(*id, &query), *id);
        let mut candidates: Vec<Candidate> = neighbours.iter().map(rank).collect();
        candidates.sort_unstable();
        let m = self.graph.m();
        let chosen =
            self.select_coarse(compact, &candidates, self.graph.capacity(level), m, |_| {
                false
            });
        self.graph.set(node, level, chosen.iter().map(|c| c.id()));
    }
}
