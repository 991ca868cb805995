//! Codes of vectors, which estimate distances: of one bit a dimension beside a node's links,
//! or of one to eight bits of the node itself.
//!
//! With codes beside its links a search that expands a node estimates the distances of all
//! its neighbours from one contiguous block, 32 at a time, and looks at those only that may be
//! near: at their sketches, of a byte a dimension, which are a quarter of their
//! vectors. What is given out is ranked exactly. (Codes beside the links are the
//! idea of SymphonyQG, Gou et al., SIGMOD 2025.)
//!
//! All of this is about inner products of floats: of the metrics there are L2, and as
//! products cosine and inner product.
//!
//! - [`rotation`]: makes one-bit codes good for any data.
//! - [`origin`]: where they count from.
//! - [`block`]: what is stored for a node, and how a neighbour is encoded.
//! - [`sketch`]: a node's own vector, a byte a dimension.
//! - [`code`], [`coarse`], [`coarse_query`]: a node's own vector in one to eight bits a
//!   dimension, where there are no codes of neighbours and vectors lie elsewhere.
//! - [`mixture`]: blocks of rows with such codes of another width than the index's.
//! - [`coarse_stored`]: such a mixture as a checkpoint holds it.
//! - [`lookup`]: a query's table, and the scan of 32 codes against it.

pub(crate) mod block;
pub(crate) mod coarse;
pub(crate) mod coarse_query;
mod coarse_stored;
mod code;
pub(crate) mod lookup;
mod mixture;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(crate) mod origin;
pub(crate) mod rotation;
pub(crate) mod sketch;

use std::cell::UnsafeCell;

use crate::arena::{AsBytes, ZeroIsValid, copy_cell};

pub(crate) use block::{Blocks, Link};
pub(crate) use coarse::{Coarse, CodesOf};
pub(crate) use coarse_query::CoarseQuery;
pub(crate) use lookup::Lookup;
pub(crate) use origin::{ASKED_MAX as ORIGIN_ASKED_MAX, Origin};
pub(crate) use rotation::Rotation;
pub(crate) use sketch::Sketches;

/// Codes that are scanned at once, and slots of a batch.
pub(crate) const BATCH: usize = 32;

/// A cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; Line::BYTES]);

impl Line {
    pub(crate) const BYTES: usize = 64;
    pub(crate) const ZERO: Line = Line([0; Line::BYTES]);
}

// SAFETY: bytes in a cell; zeros are bytes.
#[allow(unsafe_code)]
unsafe impl ZeroIsValid for UnsafeCell<Line> {}

// SAFETY: as above; any bytes are bytes.
#[allow(unsafe_code)]
unsafe impl AsBytes for UnsafeCell<Line> {
    unsafe fn copy(&self, into: &mut [u8]) {
        // SAFETY: nobody writes to it, by the contract; a line is bytes.
        unsafe { copy_cell(self, into) };
    }
}
