//! What of a living index is of the checkpoint, and which arrays that makes.

use super::{Kind, Section, Taken};
use crate::filter::{StoredColumn, Unchanged};
use crate::life::Lives;
use crate::params::CodeBits;
use crate::partition_index::PartitionIndex;
use crate::repair::Repair;
use crate::tail::Tail;

/// Where a checkpoint cuts a living index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) rows: u32,
    pub(crate) upper_lists: u32,
    /// Given out to vectors of varying length; zero where all have one.
    pub(crate) lanes: u32,
    /// Rows with codes of each width; zeros where all have the index's own, or have none.
    pub(crate) rows_by_width: [u32; CodeBits::ALL.len()],
    /// `level << 32 | id + 1`; zero while nothing is linked.
    pub(crate) entry: u64,
    /// Rows born from here on are the tail.
    pub(crate) linked: u64,
}

impl Cut {
    pub(crate) fn is_mixed(self) -> bool {
        self.rows_by_width.iter().any(|rows| *rows > 0)
    }
}

/// Which rows a checkpoint's links may lead to.
#[derive(Clone, Copy)]
pub(crate) struct Linked<'a> {
    pub(crate) cut: Cut,
    lives: &'a Lives,
}

impl Linked<'_> {
    /// Was the row linked when the checkpoint began?
    #[inline]
    pub(crate) fn has(self, row: u32) -> bool {
        row < self.cut.rows && self.lives.birth(row) < self.cut.linked
    }
}

impl PartitionIndex {
    /// Where a checkpoint that begins now cuts, and the columns as they are there while
    /// that is held. The caller sees to it that nobody links.
    pub(super) fn cut(&self) -> (Cut, Unchanged<'_>) {
        let _writer = self.writer.lock();
        let columns = self.columns.unchanged();
        let (upper_lists, entry) = self.hnsw.roots();
        let rows = self.hnsw.vectors.len();
        let compact = self.hnsw.compact.as_ref();
        let cut = Cut {
            rows,
            rows_by_width: compact.map_or_else(Default::default, |compact| {
                compact.codes.rows_by_width(rows)
            }),
            upper_lists,
            lanes: self.hnsw.vectors.lanes_used(),
            entry,
            linked: self.tail.linked(),
        };
        (cut, columns)
    }

    pub(super) fn linked(&self, cut: Cut) -> Linked<'_> {
        let lives = &self.lives;
        Linked { cut, lives }
    }

    /// The arrays of the rows that the cut has, in the order of a checkpoint.
    pub(super) fn sections<'a>(
        &'a self,
        cut: Cut,
        columns: &'a [StoredColumn],
    ) -> Vec<Section<'a>> {
        let mut sections = self.hnsw.sections(self.linked(cut));
        let lives = self.lives.memory();
        // SAFETY: states and births are atomics.
        #[allow(unsafe_code)]
        let lives = unsafe { Section::new(Kind::Lives, cut.rows, Taken::AtStart, lives) };
        sections.push(lives);
        sections.extend(self.columns.sections(cut.rows, columns));
        sections
    }

    /// Takes up sections that were filled and found sound. The tail keeps its order, and
    /// is born anew in it.
    pub(super) fn restore(&mut self, cut: Cut) {
        self.hnsw.restore(cut);
        self.lives.restore(cut.rows);
        let removed = (0..cut.rows).filter(|row| self.lives.is_removed(*row));
        self.repair = Repair::restored(removed.collect());
        let is_tail = |row: &u32| self.lives.birth(*row) >= cut.linked;
        let mut tail: Vec<u32> = (0..cut.rows).filter(is_tail).collect();
        tail.sort_by_key(|row| self.lives.birth(*row));
        for (birth, row) in (cut.linked..).zip(&tail) {
            self.lives.set_birth(*row, birth);
        }
        self.tail = Tail::restored(cut.linked, tail);
    }
}
