//! One-bit codes of a node's neighbours, beside the node.
//!
//! A search that expands a node estimates the distances of all its neighbours
//! from one contiguous block, 32 at a time, and goes on with those that look near.
//! Each is ranked by its own sketch, in the same block, when its turn comes, and
//! what is given out is ranked exactly. So one step costs one stream of memory
//! instead of one random access a neighbour (the idea of SymphonyQG, Gou et al.,
//! SIGMOD 2025).
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
