//! A code for each node: what is kept of a vector in memory where the vector itself lies
//! elsewhere.
//!
//! An index has a width, and each block of rows may have another. Whoever ranks a node
//! looks its code up once and goes by that one's width; what a query is prepared to does for all
//! widths. So codes may become others while a search goes on. A rank keeps the error of the
//! code that it was computed from, which may not be there any more: what it may be at least is
//! then asked of both ([`Coarse::least`]).

use std::cell::{OnceCell, UnsafeCell};
use std::sync::Arc;

use super::coarse_query::CoarseQuery;
use super::coarse_stored::Loaded;
use super::code::{self, Code, Factors, Word, row_words};
use super::mixture::{BlockCodes, Mixture, rows_of};
use crate::arena::{Segments, prefetch_row};
use crate::distance::Lane;
use crate::params::{CodeBits, Metric};

pub(crate) struct Coarse {
    /// Codes of the index's own width.
    pub(super) words: Segments<UnsafeCell<Word>>,
    pub(super) bits: CodeBits,
    pub(super) dimensions: usize,
    metric: Metric,
    pub(super) mixture: Mixture,
    pub(super) loaded: Box<Loaded>,
}

// SAFETY: a code is written while nobody reads it: before its vector is published or before
// readers are led to it, and again only when its slot is another vector's, or its block had
// other codes meanwhile, and no reader is left by then to come to it.
#[allow(unsafe_code)]
unsafe impl Sync for Coarse {}

/// All codes of a block.
#[derive(Clone)]
pub(crate) enum CodesOf {
    /// In the index's own array.
    Own,
    Other(Arc<BlockCodes>),
}

impl Coarse {
    /// `dimensions` is a multiple of 16.
    pub(crate) fn new(metric: Metric, dimensions: usize, bits: CodeBits) -> Self {
        Self {
            words: Segments::new(row_words(dimensions, bits)),
            bits,
            dimensions,
            metric,
            mixture: Mixture::new(),
            loaded: Box::new(Loaded::new(dimensions)),
        }
    }

    /// Makes room for a node that nobody can reach yet, and encodes its vector. One writer
    /// at a time.
    pub(crate) fn write(&self, node: u32, vector: &[Lane]) {
        self.mixture.reserve(node);
        let (bits, row) = match self.mixture.of(node) {
            Some(other) => (other.bits, other.row(node)),
            None => {
                self.words.ensure(node);
                (self.bits, self.words.row(node))
            }
        };
        // SAFETY: the node's own words; nobody can reach the node yet.
        #[allow(unsafe_code)]
        unsafe {
            code::write(bits, vector, row);
        }
    }

    /// What queries for a prepared vector are ranked by.
    pub(crate) fn query(&self, vector: &[Lane]) -> CoarseQuery {
        CoarseQuery::new(vector, self.mixture.steps())
    }

    /// The node as its own code says it, as a query, if the code has four bits or more:
    /// fewer do not say well enough what is near the node.
    pub(crate) fn query_of(&self, node: u32) -> Option<CoarseQuery> {
        let code = self.code(node);
        let lanes = self.dimensions / Lane::WIDTH;
        match code.bits {
            CodeBits::One | CodeBits::Two => None,
            CodeBits::Four | CodeBits::Eight => Some(CoarseQuery::of_code(code, lanes)),
        }
    }

    /// The node's rank, to within its code's doubt.
    #[inline]
    pub(crate) fn rank(&self, node: u32, query: &CoarseQuery) -> f32 {
        self.code(node).rank(self.metric, query)
    }

    /// What the rank of a node may be at least, as good as surely, that `query` was given
    /// this rank for.
    #[inline]
    pub(crate) fn least(&self, node: u32, query: &CoarseQuery, rank: f32) -> f32 {
        let code = self.code(node);
        let least = |rank| match rank {
            f32::INFINITY => f32::INFINITY,
            rank => rank - code.doubt(self.metric, self.dimensions, query, rank),
        };
        if self.mixture.has_changed_since(query.steps) {
            // The rank may be of another code, and err by more than this one does.
            return rank.min(least(code.rank(self.metric, query)));
        }
        least(rank)
    }

    /// Is the vector zero?
    pub(crate) fn is_zero(&self, node: u32) -> bool {
        self.code(node).factors.squares == 0.0
    }

    /// What tells nodes of an equal vector by their codes: those of `node`, whose rotated
    /// vector this is.
    pub(crate) fn likeness<'a>(&'a self, node: u32, vector: &'a [Lane]) -> Likeness<'a> {
        Likeness {
            coarse: self,
            own: self.code(node),
            vector,
            encoded: Default::default(),
        }
    }

    /// Asks the memory system for the codes.
    #[inline]
    pub(crate) fn prefetch(&self, nodes: &[u32]) {
        const LINE_WORDS: usize = 16;
        for node in nodes {
            let (_, row) = self.row(*node);
            // Rows begin anywhere in a line, and may end in one more.
            for line in row.chunks(LINE_WORDS) {
                prefetch_row(&line[..1]);
            }
            prefetch_row(&row[row.len() - 1..]);
        }
    }

    #[inline]
    fn code(&self, node: u32) -> Code<'_> {
        let (bits, row) = self.row(node);
        // SAFETY: written before the node was published or readers were led to it, and at
        // rest since.
        #[allow(unsafe_code)]
        unsafe {
            Code::of_row(bits, row)
        }
    }

    #[inline]
    pub(super) fn row(&self, node: u32) -> (CodeBits, &[UnsafeCell<Word>]) {
        match self.mixture.of(node) {
            None => (self.bits, self.words.row(node)),
            Some(other) => (other.bits, other.row(node)),
        }
    }
}

/// Widths, block by block. What changes them is called by one thread at a time.
impl Coarse {
    /// The width of the codes of a block.
    pub(crate) fn bits_of(&self, block: u32) -> CodeBits {
        self.mixture.bits_of(block).unwrap_or(self.bits)
    }

    /// Room for codes of another width of a block, which nobody is led to.
    pub(crate) fn make_room(&self, block: u32, bits: CodeBits) -> CodesOf {
        if bits != self.bits {
            let row_words = row_words(self.dimensions, bits);
            return CodesOf::Other(Arc::new(BlockCodes::new(bits, row_words)));
        }
        self.mixture.note_taken_again(block);
        self.words.take_again(rows_of(block, u32::MAX));
        CodesOf::Own
    }

    /// Encodes a node's rotated vector as one of `codes`.
    ///
    /// # Safety
    /// Nobody else reads or writes the node's row of them.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn encode(&self, node: u32, vector: &[Lane], codes: &CodesOf) {
        let bits = match codes {
            CodesOf::Own => self.bits,
            CodesOf::Other(codes) => codes.bits,
        };
        // SAFETY: by this function's contract.
        unsafe { code::write(bits, vector, self.row_of(node, codes)) };
    }

    /// A node's row of `codes`, made if it is not there.
    pub(super) fn row_of<'a>(&'a self, node: u32, codes: &'a CodesOf) -> &'a [UnsafeCell<Word>] {
        match codes {
            CodesOf::Own => {
                self.words.ensure(node);
                self.words.row(node)
            }
            CodesOf::Other(codes) => codes.row(node),
        }
    }

    /// Leads readers to these codes of all rows of a block, and returns those that they were
    /// led to.
    pub(crate) fn lead(&self, block: u32, codes: CodesOf) -> CodesOf {
        let new = match codes {
            CodesOf::Own => None,
            CodesOf::Other(codes) => Some(codes),
        };
        let old = self.mixture.lead(block, new);
        old.map_or(CodesOf::Own, CodesOf::Other)
    }

    /// Gives memory back to the system.
    ///
    /// # Safety
    /// No reader is led to these codes of the block, or left that was.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn give_back(&self, block: u32, codes: CodesOf) {
        match codes {
            // SAFETY: by this function's contract.
            CodesOf::Own => unsafe {
                self.words.give_back(rows_of(block, u32::MAX));
                self.mixture.note_given_back(block);
            },
            CodesOf::Other(codes) => drop(codes),
        }
    }

    /// Bytes in memory of the codes of so many rows that readers are led to, or were and
    /// the index's own; by width.
    pub(crate) fn resident_bytes(&self, rows: u32) -> [usize; CodeBits::ALL.len()] {
        let mut bytes = self.mixture.resident_bytes(rows);
        let given_back = self.mixture.given_back().into_iter();
        let given_back = given_back.map(|block| self.words.pages_of(rows_of(block, rows)));
        let own = self.words.resident_bytes(rows);
        bytes[self.bits as usize] += own.saturating_sub(given_back.sum());
        bytes
    }
}

impl CodesOf {
    /// Bytes of memory apart from the index's own array, and of which width.
    pub(crate) fn bytes(&self, block: u32, rows: u32) -> Option<(CodeBits, usize)> {
        match self {
            Self::Own => None,
            Self::Other(codes) => {
                let rows = rows_of(block, rows).len() as u32;
                Some((codes.bits, codes.resident_bytes(rows)))
            }
        }
    }
}

/// A node's code, and its codes of other widths if they are asked for.
pub(crate) struct Likeness<'a> {
    coarse: &'a Coarse,
    own: Code<'a>,
    vector: &'a [Lane],
    encoded: [OnceCell<(Factors, Vec<u8>)>; CodeBits::ALL.len()],
}

impl Likeness<'_> {
    /// Does the code of a node say the same? Equal vectors have equal codes of a width.
    pub(crate) fn is_that_of(&self, node: u32) -> bool {
        let other = self.coarse.code(node);
        // The same in every width, and seldom that of another vector.
        if other.factors.squares != self.own.factors.squares {
            return false;
        }
        if other.bits == self.own.bits {
            return other.factors.step == self.own.factors.step && other.bytes == self.own.bytes;
        }
        let encode = || code::encode(Lane::view(self.vector), other.bits);
        let (factors, bytes) = self.encoded[other.bits as usize].get_or_init(encode);
        other.factors.step == factors.step && other.bytes == bytes
    }
}

#[cfg(test)]
#[path = "coarse_tests.rs"]
mod tests;
