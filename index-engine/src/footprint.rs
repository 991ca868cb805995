//! What an index takes of memory.
//!
//! Arrays double in size, but what no row has touched yet is address space, not memory.
//! Where the system has put a large array on huge pages, the last of them reaches beyond the
//! last row; it is asked how far.

use crate::params::CodeBits;

/// Bytes, by what they are for. Open cursors are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Vectors as they are compared.
    pub vectors: usize,
    /// Vectors in memory that was handed in: not part of the total.
    pub handed_in: usize,
    /// A byte a dimension of each vector.
    pub sketches: usize,
    /// Codes of neighbours, with the links of level 0 between them, or of the vectors.
    pub codes: usize,
    /// Links that lie beside no codes, levels, copies, and what a vector is to the graph.
    pub links: usize,
    /// Births and states.
    pub lives: usize,
    /// Attributes, and their lists.
    pub attributes: usize,
    /// Marks of searches, kept for the next ones; locks; the rest.
    pub other: usize,
}

/// Codes of one width, of [`Compact`](crate::Representation::Compact).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Width {
    pub bits: CodeBits,
    /// Blocks of rows that have such codes now, the last of which may not be full.
    pub blocks: usize,
    pub rows: usize,
    /// Of memory: part of [`Footprint::codes`].
    pub bytes: usize,
}

impl Footprint {
    /// Bytes of memory of the engine's own.
    pub fn total(&self) -> usize {
        self.vectors
            + self.sketches
            + self.codes
            + self.links
            + self.lives
            + self.attributes
            + self.other
    }
}
