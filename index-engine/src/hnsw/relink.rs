//! Lists after vectors have left: each link to one is replaced by links to what
//! could be reached through it.
//!
//! Consolidation of deletes as in FreshDiskANN (Singh et al., arXiv:2105.09613,
//! Algorithm 4), with the selection of HNSW: the links that stay keep their places, and
//! of the leaving neighbours' own neighbours those are added that are nearer to the
//! node than to any link it has.

use super::leave::Heirs;
use super::{Candidate, Coding, Hnsw};

/// Of a chain of leaving nodes so many are passed at most in search of ones that stay.
const PASSED_MAX: usize = 64;

impl Hnsw {
    /// Takes what leaves out of a node's lists. `heirs` are those of the batch. Returns
    /// how many lists were chosen anew. From several threads, once per node and batch.
    pub(crate) fn relink(&self, id: u32, heirs: &Heirs) -> usize {
        if !self.roles.is_staying_node(id) {
            return 0;
        }
        let dropped = self
            .graph
            .drop_copies(id, |copy| self.roles.is_leaving(copy));
        dropped
            .into_iter()
            .for_each(|copy| self.roles.drop_copy(copy));
        let mut chosen = 0;
        for level in 0..=self.graph.level(id) {
            chosen += usize::from(match &self.coding {
                Some(coding) if level == 0 => self.relink_coded(coding, id, heirs),
                _ => self.relink_plain(id, level, heirs),
            });
        }
        chosen
    }

    fn relink_plain(&self, id: u32, level: u8, heirs: &Heirs) -> bool {
        let leaves = |link: &u32| self.roles.is_leaving(*link);
        if !self.graph.neighbours(id, level).any(|link| leaves(&link)) {
            return false;
        }
        let guard = self.graph.lock(id);
        let links: Vec<u32> = self.graph.neighbours(id, level).collect();
        let mut kept: Vec<u32> = links.iter().copied().filter(|l| !leaves(l)).collect();
        let mut gone = Vec::new();
        for leaving in links.iter().copied().filter(leaves) {
            match self.heir_on(level, leaving, heirs) {
                Some(heir) if heir == id || kept.contains(&heir) => {}
                Some(heir) => kept.push(heir),
                None => gone.push(leaving),
            }
        }
        let chosen = self.chosen_beside(id, level, &kept, &gone, heirs);
        self.graph.set(id, level, chosen.iter().map(|c| c.id()));
        drop(guard);
        self.link_back_new(id, level, &chosen, &kept);
        true
    }

    fn relink_coded(&self, coding: &Coding, id: u32, heirs: &Heirs) -> bool {
        let blocks = &coding.blocks;
        let leaves = |link: u32| self.roles.is_leaving(link);
        if !blocks.links(id).any(|link| leaves(link.neighbour)) {
            return false;
        }
        let guard = self.graph.lock(id);
        let links: Vec<_> = blocks.links(id).collect();
        let stays = links.iter().filter(|link| !leaves(link.neighbour));
        let mut kept: Vec<u32> = stays.map(|link| link.neighbour).collect();
        let (mut gone, mut free) = (Vec::new(), Vec::new());
        for link in links.iter().filter(|link| leaves(link.neighbour)) {
            match self.heir_on(0, link.neighbour, heirs) {
                Some(heir) if heir != id && !kept.contains(&heir) => {
                    // A held link was handed on before; this one is not held.
                    blocks.rename(id, link.slot, heir);
                    kept.push(heir);
                }
                Some(_) => free.push(link.slot),
                None => {
                    gone.push(link.neighbour);
                    free.push(link.slot);
                }
            }
        }
        let chosen = self.chosen_beside(id, 0, &kept, &gone, heirs);
        for slot in free {
            blocks.clear(id, slot);
        }
        for new in chosen.iter().filter(|c| !kept.contains(&c.id())) {
            if let Some(slot) = blocks.free_slot(id) {
                self.put(coding, id, slot, new.id());
            }
        }
        drop(guard);
        self.link_back_new(id, 0, &chosen, &kept);
        true
    }

    /// As an insertion does, but where there is room only: what leaves takes as many links
    /// to other nodes with it as it had itself.
    fn link_back_new(&self, id: u32, level: u8, chosen: &[Candidate], kept: &[u32]) {
        for new in chosen.iter().map(|c| c.id()).filter(|c| !kept.contains(c)) {
            let _guard = self.graph.lock(new);
            if self.links_on(new, level).contains(&id) {
                continue;
            }
            match &self.coding {
                Some(coding) if level == 0 => {
                    if let Some(slot) = coding.blocks.free_slot(new) {
                        self.put(coding, new, slot, id);
                    }
                }
                _ => {
                    self.graph.push(new, level, id);
                }
            }
        }
        if chosen.is_empty() && level == 0 {
            self.link_anywhere(id);
        }
    }

    /// Who stands for a leaving node on a level.
    fn heir_on(&self, level: u8, leaving: u32, heirs: &Heirs) -> Option<u32> {
        let heir = heirs.get(&leaving).copied();
        heir.filter(|heir| self.graph.level(*heir) >= level)
    }

    /// The links that a node keeps, and such beside them as lead where the links led
    /// that are gone.
    fn chosen_beside(
        &self,
        id: u32,
        level: u8,
        kept: &[u32],
        gone: &[u32],
        heirs: &Heirs,
    ) -> Vec<Candidate> {
        let behind = self.behind(level, gone, heirs).into_iter();
        let new = behind.filter(|found| *found != id && !kept.contains(found));
        let ids = new.chain(kept.iter().copied());
        let (filled, capacity) = (kept.len() + gone.len(), self.graph.capacity(level));
        let is_kept = |id| kept.contains(&id);
        if let Some(compact) = &self.compact {
            let query = self.pinned(compact, id);
            let rank = |id| Candidate::new(compact.codes.rank(id, &query), id);
            let mut candidates: Vec<Candidate> = ids.map(rank).collect();
            candidates.sort_unstable();
            return self.select_coarse(compact, &candidates, capacity, filled, is_kept);
        }
        let vector = self.vectors.get(id);
        let mut candidates: Vec<Candidate> = ids.map(|id| self.candidate(vector, id)).collect();
        candidates.sort_unstable();
        self.select(&candidates, capacity, filled, is_kept)
    }

    /// Staying nodes that leaving ones link to, or that are linked to through others
    /// that leave; in no order, each once.
    pub(super) fn behind(&self, level: u8, leaving: &[u32], heirs: &Heirs) -> Vec<u32> {
        let mut found = Vec::new();
        let mut passed = leaving.to_vec();
        let mut next = 0;
        while next < passed.len() && (next < leaving.len() || found.is_empty()) {
            for link in self.links_on(passed[next], level) {
                let stays = match self.roles.is_leaving(link) {
                    false => Some(link),
                    true => self.heir_on(level, link, heirs),
                };
                match stays {
                    Some(id) if !found.contains(&id) => found.push(id),
                    None if passed.len() < PASSED_MAX && !passed.contains(&link) => {
                        passed.push(link);
                    }
                    _ => {}
                }
            }
            next += 1;
        }
        found
    }

    pub(crate) fn links_on(&self, id: u32, level: u8) -> Vec<u32> {
        match &self.coding {
            Some(coding) if level == 0 => {
                coding.blocks.links(id).map(|link| link.neighbour).collect()
            }
            _ => self.graph.neighbours(id, level).collect(),
        }
    }

    /// A node that is left without any link gets one to the entry, and one from there.
    fn link_anywhere(&self, id: u32) {
        let Some((_, entry)) = self.graph.entry().filter(|(_, entry)| *entry != id) else {
            return;
        };
        // The entry may have had the link all along.
        let is_linked = self.links_on(entry, 0).contains(&id);
        match (&self.coding, &self.compact) {
            (Some(coding), _) => {
                self.link_if_room(coding, id, entry, 0);
                if !is_linked {
                    self.link_if_room(coding, entry, id, 0);
                }
            }
            (None, Some(compact)) => {
                self.link_back_coarse(compact, id, 0, entry);
                if !is_linked {
                    self.link_back_coarse(compact, entry, 0, id);
                }
            }
            (None, None) => {
                let rank = self.candidate(self.vectors.get(id), entry).rank();
                self.link_back(id, 0, Candidate::new(rank, entry));
                if !is_linked {
                    self.link_back(entry, 0, Candidate::new(rank, id));
                }
            }
        }
    }
}
