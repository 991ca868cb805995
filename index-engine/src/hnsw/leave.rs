//! How vectors leave the graph, up to the point where only lists mention them.
//!
//! A batch leaves at a time. Its vectors are marked, and links go to them no more;
//! once every thread that began to link before is done, no new link to them comes
//! up. A node's copies stay: one of them takes its place. What the others held is
//! hung elsewhere. Then each list is looked at ([`super::relink`]), and in the end
//! nothing mentions them.
//!
//! The entry never leaves: when it was removed, another node becomes the entry
//! first. So a graph is never empty again, and links have somewhere to go.

use std::collections::HashMap;

use super::Hnsw;

/// The copies that take the place of nodes that leave.
pub(crate) type Heirs = HashMap<u32, u32>;

impl Hnsw {
    /// Makes another node the entry if the present one was removed. Returns the entry,
    /// which must not leave: if all nodes were removed, it is one of them.
    pub(crate) fn settle_entry(&self, is_removed: impl Fn(u32) -> bool) -> Option<u32> {
        loop {
            let (_, entry) = self.graph.entry()?;
            if !is_removed(entry) {
                return Some(entry);
            }
            let highest = self
                .staying_nodes()
                .filter(|id| !is_removed(*id))
                .max_by_key(|id| self.graph.level(*id));
            let Some(highest) = highest else {
                return Some(entry);
            };
            self.graph.replace_entry(entry, highest);
        }
    }

    pub(crate) fn staying_nodes(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.vectors.len()).filter(|id| self.roles.is_staying_node(*id))
    }

    /// Nobody links to the vectors from now on, but for those who are at it.
    pub(crate) fn leave(&self, batch: &[u32]) {
        if let Some(coding) = &self.coding {
            coding.holders.set_unsettled(true);
        }
        batch.iter().for_each(|id| self.roles.leave(*id));
    }

    /// Puts a copy in the place of a leaving node, if it has one that stays. One caller
    /// at a time, after all have finished who linked before the batch was marked.
    pub(crate) fn succeed(&self, leaving: u32, heirs: &mut Heirs) {
        if !self.roles.is_node(leaving) {
            return;
        }
        let mut copies = self.graph.copies(leaving);
        let Some(heir) = copies.find(|copy| !self.roles.is_leaving(*copy)) else {
            return;
        };
        let shared = self.graph.level(leaving).min(self.graph.level(heir));
        for level in 1..=shared {
            let links: Vec<u32> = self.graph.neighbours(leaving, level).collect();
            self.graph.set(heir, level, links);
        }
        match &self.coding {
            Some(coding) => coding.blocks.copy(leaving, heir),
            None => {
                let links: Vec<u32> = self.graph.neighbours(leaving, 0).collect();
                self.graph.set(heir, 0, links);
            }
        }
        self.roles.become_node(heir);
        // Linked first, cut off then: who looks at a node's copies and then at its links
        // comes to the heir in any case, and who comes to it twice has it once, by what it
        // has visited. (The first page of a search by codes reads links first: it may miss
        // an heir that takes its place in between. A later page has it.)
        if let Some(coding) = &self.coding {
            self.hand_on_place(coding, leaving, heir);
        }
        self.link_to_heir(leaving, heir);
        self.graph.cut_copies(leaving);
        heirs.insert(leaving, heir);
    }

    /// Until lists mention the heir, searches come to it from the node it stands for.
    fn link_to_heir(&self, leaving: u32, heir: u32) {
        let _guard = self.graph.lock(leaving);
        match &self.coding {
            Some(coding) => {
                let slot = coding.blocks.free_slot(leaving).unwrap_or(0);
                self.put(coding, leaving, slot, heir);
            }
            None => {
                let links: Vec<u32> = self.graph.neighbours(leaving, 0).collect();
                let others = links.into_iter().take(self.graph.capacity(0) - 1);
                self.graph.set(leaving, 0, [heir].into_iter().chain(others));
            }
        }
    }

    /// Nobody holds a leaving node without an heir any more. Once all have theirs: the
    /// line from its nodes to the root leads through it.
    pub(crate) fn let_go_of(&self, leaving: u32) {
        if let Some(coding) = &self.coding
            && let Some(holder) = coding.holders.of(leaving)
        {
            self.let_go(coding, holder, leaving);
        }
    }

    /// The roots of the trees of held links, once the first is no more a node that
    /// leaves. `None` without codes. One caller at a time.
    pub(crate) fn settle_root(&self) -> Option<[u32; 2]> {
        let coding = self.coding.as_ref()?;
        let (_, entry) = self.graph.entry()?;
        let root = coding.holders.root(entry);
        if !self.roles.is_leaving(root) {
            return Some([root, root]);
        }
        self.make_root(coding, entry);
        Some([entry, root])
    }

    /// Hangs elsewhere what a leaving node without an heir held. One caller at a time.
    pub(crate) fn hand_over(&self, leaving: u32, roots: Option<[u32; 2]>) {
        if let (Some(coding), Some(roots)) = (&self.coding, roots)
            && self.roles.is_node(leaving)
        {
            self.hand_over_held(coding, leaving, roots);
        }
    }

    /// No leaving node holds one that stays, or is held by one.
    pub(crate) fn settle_tree(&self) {
        if let Some(coding) = &self.coding {
            coding.holders.set_unsettled(false);
        }
        self.turn_tree_to_entry();
    }

    /// Makes the entry the root of the tree of held links, if nobody is at the tree.
    pub(crate) fn turn_tree_to_entry(&self) {
        if let Some(coding) = &self.coding {
            self.turn_to_entry(coding);
        }
    }

    /// Nothing mentions the vector any more, and nobody is left who could come to it.
    pub(crate) fn forget(&self, id: u32) {
        self.roles.forget(id);
        self.graph.release(id);
        if let Some(coding) = &self.coding {
            coding.blocks.reserve(id);
        }
    }

    #[cfg(test)]
    pub(crate) fn level_of_tests(&self, id: u32) -> u8 {
        self.graph.level(id)
    }

    #[cfg(test)]
    pub(crate) fn copies_of_tests(&self, id: u32) -> Vec<u32> {
        self.graph.copies(id).collect()
    }

    #[cfg(test)]
    pub(crate) fn entry_of_tests(&self) -> Option<u32> {
        self.graph.entry().map(|(_, entry)| entry)
    }

    #[cfg(test)]
    pub(crate) fn holder_of_tests(&self, id: u32) -> Option<u32> {
        self.coding
            .as_ref()
            .and_then(|coding| coding.holders.of(id))
    }
}
