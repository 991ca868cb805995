//! The graph, its codes and its vectors as a checkpoint holds them.
//!
//! Rows are linked while a checkpoint is written. Its lists name only rows that were
//! linked when it began: later ones are left out of the copies, and are linked again
//! from the tail once it is loaded. A list is copied under its node's lock, so that no
//! code is paired with another's id for good.

use std::cell::Cell;

use super::Hnsw;
use super::graph::Graph;
use crate::accesses::BLOCK_VECTORS;
use crate::checkpoint::{CheckpointError, Cut, Kind, Linked, Section, Taken, corrupt};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

impl Hnsw {
    /// Upper lists that there are, and the entry.
    pub(crate) fn roots(&self) -> (u32, u64) {
        let graph = &self.graph;
        let lists = graph.upper_lists.load(Ordering::Relaxed);
        (lists, graph.entry.load(Ordering::Acquire))
    }

    /// In the order of a checkpoint.
    #[allow(unsafe_code)]
    pub(crate) fn sections<'a>(&'a self, linked: Linked<'a>) -> Vec<Section<'a>> {
        let cut = linked.cut;
        use Taken::{AtStart, Beside};
        let graph = &self.graph;
        let vectors = self.vectors.arrays(cut).into_iter();
        let vectors = vectors.map(|(kind, rows, memory)| {
            // SAFETY: nobody writes to a published vector.
            unsafe { Section::new(kind, rows, Beside, memory) }
        });
        let roles = &self.roles;
        let copies = move |row, into: &mut [u8]| match roles.has_copies(row) {
            // SAFETY: atomics.
            true => unsafe { graph.copies.copy_row(row, into) },
            // What was dropped leads on for who came before; it is in no chain.
            false => into.fill(0),
        };
        // SAFETY: atomics.
        let lists = unsafe {
            [
                Section::new(Kind::Places, cut.rows, Beside, &graph.places),
                Section::new(Kind::Upper, cut.upper_lists, AtStart, &graph.upper),
                Section::read_by(Kind::Copies, cut.rows, AtStart, &graph.copies, copies),
            ]
        };
        let mut sections: Vec<Section<'_>> = vectors.chain(lists).collect();
        let Some(coding) = &self.coding else {
            sections.push(graph.base_section(linked));
            if let Some(compact) = &self.compact {
                sections.extend(compact.codes.sections(cut));
            }
            return sections;
        };
        let blocks = &coding.blocks;
        let block = move |row, into: &mut [u8]| {
            if !linked.has(row) {
                blocks.empty(into);
                return;
            }
            {
                let _guard = graph.lock(row);
                // SAFETY: a linked node's block is written to under its lock.
                unsafe { blocks.lines().copy_row(row, into) };
            }
            blocks.leave_out(into, |neighbour| !linked.has(neighbour));
        };
        let (rows, lines) = (cut.rows, blocks.lines());
        sections.push(Section::read_by(Kind::Blocks, rows, Beside, lines, block));
        let lines = coding.sketches.lines();
        let sketch = move |row, into: &mut [u8]| match linked.has(row) {
            // SAFETY: nobody writes to a linked node's sketch.
            true => unsafe { lines.copy_row(row, into) },
            false => into.fill(0),
        };
        sections.push(Section::read_by(
            Kind::Sketches,
            rows,
            Beside,
            lines,
            sketch,
        ));
        let origin = &coding.origin;
        let element = |at, into: &mut [u8]| into.copy_from_slice(&origin.element(at).to_ne_bytes());
        let (elements, loaded) = (origin.elements(), origin.loaded());
        let origin = Section::read_by(Kind::Origin, elements, AtStart, loaded, element);
        sections.push(origin);
        sections
    }

    /// Takes up sections that were filled and found sound.
    pub(crate) fn restore(&mut self, cut: Cut) {
        self.vectors.publish(cut);
        if let Some(compact) = &mut self.compact {
            compact.codes.restore(cut);
        }
        // Counts begin anew; there has to be room for them.
        for id in (0..cut.rows).step_by(BLOCK_VECTORS as usize) {
            self.accesses.reserve(id);
        }
        self.graph.upper_lists = AtomicU32::new(cut.upper_lists);
        self.graph.entry = AtomicU64::new(cut.entry);
        self.graph.restore_upper_free(cut.rows);
        if let Some(coding) = &mut self.coding
            && cut.entry != 0
        {
            coding.origin.restore();
        }
        if let Some(coding) = &self.coding {
            self.restore_holders(coding, cut.rows);
        }
        self.restore_roles(cut.rows);
    }

    /// Nodes have links, but for one that is alone, which is the entry.
    fn restore_roles(&self, slots: u32) {
        let entry = self.graph.entry().map(|(_, entry)| entry);
        for slot in 0..slots {
            self.roles.reserve(slot);
            if Some(slot) == entry || self.has_links(slot) {
                self.roles.become_node(slot);
            }
        }
        for node in self.staying_nodes() {
            let copies = self.graph.copies(node);
            copies.for_each(|copy| self.roles.become_copy(copy));
        }
    }

    fn has_links(&self, id: u32) -> bool {
        match &self.coding {
            Some(coding) => coding.blocks.links(id).next().is_some(),
            None => self.graph.neighbours(id, 0).next().is_some(),
        }
    }

    /// Whether a search may go by what was loaded: every link leads to a linked node of
    /// its level, and no chain of copies has a circle.
    pub(crate) fn check(&self, linked: Linked<'_>) -> Result<(), CheckpointError> {
        let graph = &self.graph;
        let is_linked: Vec<bool> = (0..linked.cut.rows).map(|row| linked.has(row)).collect();
        let is_linked = |row: u32| is_linked.get(row as usize) == Some(&true);
        self.vectors.check(linked.cut, self.dimensions)?;
        if let Some(compact) = &self.compact {
            compact.codes.check(linked.cut)?;
        }
        graph.check_places(linked.cut)?;
        graph.check_entry(linked.cut.entry, is_linked)?;
        graph.check_upper(linked.cut.rows, is_linked)?;
        graph.check_copies(linked.cut.rows, is_linked)?;
        // Nobody links to a row of the tail, and it has no links. No list names a node
        // twice: a search would return it twice.
        let named_by: Vec<Cell<u32>> = vec![Cell::new(0); linked.cut.rows as usize];
        let sound = |id: u32| {
            let may_link = |neighbour| {
                is_linked(id)
                    && is_linked(neighbour)
                    && named_by[neighbour as usize].replace(id + 1) != id + 1
            };
            match &self.coding {
                Some(coding) => coding.blocks.links_only(id, may_link),
                None => graph.links_only(id, 0, may_link),
            }
        };
        let kind = match &self.coding {
            Some(_) => Kind::Blocks,
            None => Kind::Base,
        };
        match (0..linked.cut.rows).find(|id| !sound(*id)) {
            Some(id) => {
                let what = format!("the links of node {id} do not lead to as many linked ones");
                Err(corrupt(kind.name(), what))
            }
            None => Ok(()),
        }
    }
}

impl Graph {
    /// Lists that no vector has are free, one by one.
    fn restore_upper_free(&mut self, slots: u32) {
        let mut is_used = vec![false; self.upper_lists.load(Ordering::Relaxed) as usize];
        for (level, first) in (0..slots).map(|id| self.place(id)) {
            is_used[first as usize..][..usize::from(level)].fill(true);
        }
        let lists = (0..).zip(is_used);
        let free = lists.filter(|(_, is_used)| !is_used).map(|(list, _)| list);
        self.upper_free.get_mut()[1] = free.collect();
    }

    /// Level 0's links where they do not lie beside codes.
    fn base_section<'a>(&'a self, linked: Linked<'a>) -> Section<'a> {
        let read = move |row, into: &mut [u8]| {
            into.fill(0);
            if !linked.has(row) {
                return;
            }
            let _guard = self.lock(row);
            let links = self.neighbours(row, 0).filter(|n| linked.has(*n));
            for (link, into) in links.zip(into.as_chunks_mut::<4>().0) {
                *into = (link + 1).to_ne_bytes();
            }
        };
        Section::read_by(Kind::Base, linked.cut.rows, Taken::Beside, &self.base, read)
    }

    /// Does the list name nothing but such nodes, and nothing behind its end, where the
    /// next link may be put?
    fn links_only(&self, id: u32, level: u8, such: impl Fn(u32) -> bool) -> bool {
        let list = self.list(id, level).iter();
        let links = list.map(|link| link.load(Ordering::Relaxed).checked_sub(1));
        let mut links = links.skip_while(|link| link.is_some_and(&such));
        links.all(|link| link.is_none())
    }

    /// A vector's lists are there, and no other's: what is linked on a level of it would
    /// be looked for on a level that it does not have.
    fn check_places(&self, cut: Cut) -> Result<(), CheckpointError> {
        let mut is_used = vec![false; cut.upper_lists as usize];
        let mut sound = |id: &u32| {
            let (level, first) = self.place(*id);
            let lists = first as usize..first as usize + usize::from(level);
            let Some(lists) = is_used.get_mut(lists) else {
                return false;
            };
            let taken = lists.iter_mut();
            let mut taken = taken.map(|is_used| std::mem::replace(is_used, true));
            taken.all(|was_used| !was_used)
        };
        match (0..cut.rows).find(|id| !sound(id)) {
            Some(id) => {
                let what = format!("node {id} has lists that are none, or another's");
                Err(corrupt(Kind::Places.name(), what))
            }
            None => Ok(()),
        }
    }

    /// The entry is a linked node, on a level that it has. Places are sound.
    fn check_entry(
        &self,
        entry: u64,
        is_linked: impl Fn(u32) -> bool,
    ) -> Result<(), CheckpointError> {
        let (level, id) = (entry >> 32, entry as u32);
        let is_sound = match id.checked_sub(1) {
            None => entry == 0,
            Some(id) => is_linked(id) && level <= u64::from(self.level(id)),
        };
        match is_sound {
            true => Ok(()),
            false => Err(corrupt(
                "header",
                format!("no node is its entry {entry:#x}"),
            )),
        }
    }

    /// Places are sound.
    fn check_upper(
        &self,
        rows: u32,
        is_linked: impl Fn(u32) -> bool,
    ) -> Result<(), CheckpointError> {
        for id in 0..rows {
            for level in 1..=self.level(id) {
                let is_sound = |n| is_linked(n) && self.level(n) >= level;
                if !self.links_only(id, level, is_sound) {
                    let what = format!("node {id} has a link on level {level} to none of it");
                    return Err(corrupt(Kind::Upper.name(), what));
                }
            }
        }
        Ok(())
    }

    /// Chains of copies: each row is in one at most, and each chain has an end.
    fn check_copies(
        &self,
        rows: u32,
        is_linked: impl Fn(u32) -> bool,
    ) -> Result<(), CheckpointError> {
        let next = |id: u32| {
            self.copies.row(id)[0]
                .load(Ordering::Relaxed)
                .checked_sub(1)
        };
        let bad = |what: String| Err(corrupt(Kind::Copies.name(), what));
        let mut is_copy = vec![false; rows as usize];
        for id in 0..rows {
            match next(id) {
                Some(copy) if !is_linked(copy) => {
                    return bad(format!("{copy} hangs on {id} and is not linked"));
                }
                Some(copy) if std::mem::replace(&mut is_copy[copy as usize], true) => {
                    return bad(format!("{copy} hangs on {id} and on another"));
                }
                _ => {}
            }
        }
        // Then chains do not join, and what no chain from a first node comes by is a circle.
        let firsts = (0..rows).filter(|id| !is_copy[*id as usize]);
        let met = firsts.map(|first| std::iter::successors(next(first), |id| next(*id)).count());
        let copies = is_copy.iter().filter(|is_copy| **is_copy).count();
        match met.sum::<usize>() == copies {
            true => Ok(()),
            false => bad("a chain of them has no end".to_owned()),
        }
    }
}
