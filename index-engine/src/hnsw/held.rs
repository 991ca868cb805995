//! The tree of held links, on level 0 of an index with codes.
//!
//! Every node but the root is held by exactly one other, whose link to it is never
//! given up, and no node holds one that it hangs from. So held links reach every node
//! from the root, whatever pruning does; and the root is the entry, or becomes it as soon
//! as nothing is being hung elsewhere. A new node hangs from one that was there before.
//! When nodes leave, what they held is hung from others: only one thread does that at a
//! time, while others may hang new nodes, which hold nothing yet.

use std::collections::VecDeque;

use super::{Candidate, Coding, Hnsw};
use crate::arena::Segments;
use crate::codes::Link;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// One in so many links of a node may be held, and two at least.
const HELD_ONE_IN: usize = 4;
const HELD_MIN: usize = 2;

pub(super) struct Holders {
    /// Who holds each node: `id + 1`, or zero.
    words: Segments<AtomicU32>,
    /// Leaving nodes may still be in the tree. Set and taken back by who repairs.
    is_unsettled: AtomicBool,
    /// Held by who moves the root.
    turning: Mutex<()>,
}

impl Holders {
    pub(super) fn new() -> Self {
        Self {
            words: Segments::new(1),
            is_unsettled: AtomicBool::new(false),
            turning: Mutex::new(()),
        }
    }

    /// For a vector that nobody can reach yet. One writer at a time.
    pub(super) fn reserve(&self, slot: u32) {
        self.words.ensure(slot);
        self.set(slot, None);
    }

    pub(super) fn set(&self, node: u32, holder: Option<u32>) {
        let word = holder.map_or(0, |holder| holder + 1);
        self.words.row(node)[0].store(word, Ordering::Release);
    }

    pub(super) fn set_unsettled(&self, is_unsettled: bool) {
        self.is_unsettled.store(is_unsettled, Ordering::Release);
    }

    pub(super) fn of(&self, node: u32) -> Option<u32> {
        self.words.row(node)[0]
            .load(Ordering::Acquire)
            .checked_sub(1)
    }

    pub(super) fn memory_bytes(&self, vectors: u32) -> usize {
        self.words.resident_bytes(vectors)
    }

    /// The node and all that it hangs from, up to one that nobody holds.
    fn line(&self, node: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(Some(node), |node| self.of(*node))
    }

    /// The root of the tree that the node hangs in.
    pub(super) fn root(&self, node: u32) -> u32 {
        self.line(node).last().unwrap_or(node)
    }
}

impl Hnsw {
    /// Reads from the links who holds whom, in an index that was loaded. Where they do not
    /// make trees, links are held no more: a checkpoint may be of the middle of a repair,
    /// and bytes of a disk are not to be followed in a circle.
    pub(super) fn restore_holders(&self, coding: &Coding, slots: u32) {
        (0..slots).for_each(|slot| coding.holders.reserve(slot));
        for node in 0..slots {
            let links: Vec<Link> = coding.blocks.links(node).collect();
            for link in links.iter().filter(|link| link.is_held) {
                if coding.holders.of(link.neighbour).is_none() {
                    coding.holders.set(link.neighbour, Some(node));
                } else {
                    coding.blocks.set_held(node, link.slot, false);
                }
            }
        }
        // In which line each was met first.
        let mut lines = vec![u32::MAX; slots as usize];
        for first in 0..slots {
            let mut node = first;
            while lines[node as usize] == u32::MAX {
                lines[node as usize] = first;
                let Some(holder) = coding.holders.of(node) else {
                    break;
                };
                if lines[holder as usize] == first {
                    self.let_go(coding, holder, node);
                    coding.holders.set(node, None);
                    break;
                }
                node = holder;
            }
        }
    }

    /// Links of a node that it may hold, where another has room.
    pub(super) fn held_max(&self) -> usize {
        (self.graph.capacity(0) / HELD_ONE_IN).max(HELD_MIN)
    }

    /// Makes `node`, which stays,
    /// Makes `node`, which stays, the root in place of one that leaves.
    pub(super) fn make_root(&self, coding: &Coding, node: u32) {
        if let Some(holder) = coding.holders.of(node) {
            self.let_go(coding, holder, node);
        }
        coding.holders.set(node, None);
    }

    /// Moves the root along the line to it until it is the entry, unless nodes of the tree
    /// may be leaving. The caller is a linking thread, or the one that repairs.
    pub(super) fn turn_to_entry(&self, coding: &Coding) {
        let _turning = coding.holders.turning.lock();
        let Some((_, entry)) = self.graph.entry() else {
            return;
        };
        if coding.holders.is_unsettled.load(Ordering::Acquire) {
            return;
        }
        let line: Vec<u32> = coding.holders.line(entry).collect();
        for step in line.windows(2).rev() {
            let (next, root) = (step[0], step[1]);
            if !self.link_if_room(coding, next, root, self.graph.capacity(0)) {
                return;
            }
            self.let_go(coding, root, next);
            coding.holders.set(next, None);
        }
    }

    /// The link stays, as one that may be given up.
    pub(super) fn let_go(&self, coding: &Coding, holder: u32, node: u32) {
        let _guard = self.graph.lock(holder);
        let mut links = coding.blocks.links(holder);
        if let Some(link) = links.find(|link| link.neighbour == node) {
            coding.blocks.set_held(holder, link.slot, false);
        }
    }

    /// Hangs what a leaving node held from nodes that stay. `roots` are those of all
    /// trees. One caller at a time.
    pub(super) fn hand_over_held(&self, coding: &Coding, leaving: u32, roots: [u32; 2]) {
        let links: Vec<Link> = coding.blocks.links(leaving).collect();
        let near: Vec<u32> = links.iter().map(|link| link.neighbour).collect();
        let orphans = links.iter().filter(|link| link.is_held);
        for orphan in orphans.filter(|link| !self.roles.is_leaving(link.neighbour)) {
            self.hang(coding, orphan.neighbour, &near, roots);
            // One holder each, whenever a checkpoint looks.
            coding.blocks.set_held(leaving, orphan.slot, false);
        }
    }

    /// Hangs a node, with what it holds, from a near one that does not hang from it.
    fn hang(&self, coding: &Coding, orphan: u32, near: &[u32], roots: [u32; 2]) {
        let vector = self.vectors.get(orphan);
        let own = coding.blocks.links(orphan).map(|link| link.neighbour);
        let near = own.chain(near.iter().copied());
        let near = near.filter(|id| *id != orphan && self.roles.is_staying_node(*id));
        let mut near: Vec<Candidate> = near.map(|id| self.candidate(vector, id)).collect();
        near.sort_unstable();
        near.dedup();
        for candidate in near {
            // A node that is being linked this moment is in no tree yet.
            let is_elsewhere = |line: u32| line != orphan;
            let hangs_elsewhere = coding.holders.line(candidate.id()).all(is_elsewhere)
                && roots.contains(&coding.holders.root(candidate.id()));
            if hangs_elsewhere && self.hold(coding, candidate.id(), orphan, self.held_max()) {
                return;
            }
        }
        // Nobody near has room, but the ends of the tree below the root have. The orphan
        // is not among them: it hangs from what leaves, and nothing that stays holds that.
        let is_held = self.hold_below(coding, roots[0], orphan, self.held_max());
        debug_assert!(is_held, "the ends of a tree have room");
    }

    /// The first below `top`, itself included, that stays and holds less than `held_max`
    /// holds `node` from now on.
    pub(super) fn hold_below(&self, coding: &Coding, top: u32, node: u32, held_max: usize) -> bool {
        let mut queue = VecDeque::from([top]);
        while let Some(next) = queue.pop_front() {
            if self.roles.is_staying_node(next) && self.hold(coding, next, node, held_max) {
                return true;
            }
            let held = coding.blocks.links(next).filter(|link| link.is_held);
            queue.extend(held.map(|link| link.neighbour));
        }
        false
    }

    /// True if `holder` holds less than `held_max`, and the node from now on.
    fn hold(&self, coding: &Coding, holder: u32, node: u32, held_max: usize) -> bool {
        let held = coding.blocks.links(holder).filter(|link| link.is_held);
        held.count() < held_max && self.link_if_room(coding, holder, node, held_max)
    }

    pub(super) fn link_if_room(
        &self,
        coding: &Coding,
        holder: u32,
        node: u32,
        held_max: usize,
    ) -> bool {
        let rotated = self.rotated(self.vectors.get(node));
        self.link_one_coded(coding, holder, (node, &rotated), held_max)
    }

    /// A copy takes a leaving node's place in the tree. Its block is the node's.
    pub(super) fn hand_on_place(&self, coding: &Coding, leaving: u32, heir: u32) {
        for link in coding.blocks.links(heir).filter(|link| link.is_held) {
            coding.holders.set(link.neighbour, Some(heir));
            coding.blocks.set_held(leaving, link.slot, false);
        }
        let holder = coding.holders.of(leaving);
        coding.holders.set(heir, holder);
        if let Some(holder) = holder {
            let _guard = self.graph.lock(holder);
            let mut links = coding.blocks.links(holder);
            if let Some(link) = links.find(|link| link.neighbour == leaving) {
                coding.blocks.rename(holder, link.slot, heir);
            }
        }
    }
}
