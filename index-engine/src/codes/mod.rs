//! One-bit codes of a node's neighbours, beside the node.
//!
//! A search that expands a node estimates the distances of all its neighbours
//! from one contiguous block, 32 at a time, and touches the vector of the few
//! that look near enough to be expanded themselves: the exact rank comes with
//! the expansion. So one step costs two streams of memory instead of one random
//! access a neighbour (the idea of SymphonyQG, Gou et al., SIGMOD 2025).
//!
//! - [`rotation`]: makes one-bit codes good for any data.
//! - [`block`]: what is stored for a node, and how a neighbour is encoded.
//! - [`lookup`]: a query's table, and the scan of 32 codes against it.

pub(crate) mod block;
pub(crate) mod lookup;
pub(crate) mod rotation;

pub(crate) use block::Blocks;
pub(crate) use lookup::Lookup;
pub(crate) use rotation::Rotation;

/// Codes that are scanned at once, and slots of a batch.
pub(crate) const BATCH: usize = 32;
