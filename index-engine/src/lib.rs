//! The vector index of one partition: what is near what.
//!
//! Owns distances, the HNSW graph and its repair, the exact tail, inverted lists, attributes
//! and filters, resumable searches of one index or of several, and an index's form as bytes.
//! It computes and nothing else: no files, sockets, clocks, randomness or threads of its own.
//! Durability is the caller's; everything here can be rebuilt from the rows.
//!
//! In reading order:
//! - [`params`]: what an index is made of, its limits, and what it refuses.
//! - [`vector`]: a vector as a caller hands it in; [`half`]: numbers of sixteen bits.
//! - `distance`: kernels, and the metrics as a rank and as SQL shows them.
//! - `arena`: growing storage that readers use without locks; `vectors`: the prepared vectors in
//!   it; `varying`: sparse ones.
//! - `region`: one reservation of zeroed memory, so that an array grows without being copied.
//! - [`memory`]: what a caller may hand in for the vectors to lie in.
//! - [`accesses`]: how often searches come by vectors, by block.
//! - `codes`: one-bit codes of a node's neighbours, scanned as a batch; or of a node's own
//!   vector in one to eight bits a dimension.
//! - `hnsw`: the navigable graph (Malkov & Yashunin, arXiv:1603.09320).
//! - [`filter`]: attributes beside the vectors, and searches by them.
//! - `life`: who may see a vector: current, former, removed.
//! - `tail`: what is not linked yet, in the order of birth.
//! - `readers`: who may still read what was taken away.
//! - `repair`: removed vectors leave the graph, and their slots are used again.
//! - [`recode`]: blocks of rows whose codes have a width of their own.
//! - [`partition_index`]: rows, their life, the tail, folding.
//! - `measuring`: the kernels of a search by themselves, for measuring.
//! - [`footprint`]: what it takes of memory, by part.
//! - [`cursor`]: one search, page by page, until nothing is left.
//! - [`group`]: one search over several partitions.
//! - [`checkpoint`]: an index as bytes, and back.
//! - [`ivf`]: inverted lists instead of a graph.
//! - `seeded`: numbers from a seed.
//! - `sync`: the primitives that threads meet by; those of a model checker under `--cfg loom`.

pub mod accesses;
mod arena;
pub mod checkpoint;
mod codes;
pub mod cursor;
mod distance;
pub mod filter;
pub mod footprint;
pub mod group;
pub mod half;
mod hnsw;
#[cfg(all(loom, test))]
mod interleavings;
pub mod ivf;
mod life;
#[doc(hidden)]
pub mod measuring;
pub mod memory;
pub mod params;
pub mod partition_index;
mod readers;
pub mod recode;
mod region;
mod repair;
#[cfg(test)]
mod repair_tests;
mod seeded;
mod sync;
mod tail;
mod varying;
pub mod vector;
mod vectors;

pub use cursor::{Cursor, Page};
pub use filter::{ColumnType, Comparison, Filter, Strategy, Value};
pub use footprint::Footprint;
pub use half::Half;
pub use params::{CodeBits, Effort, Element, IndexError, IndexParams, Metric, Representation};
pub use partition_index::{PartitionIndex, VectorId};
pub use readers::Moment;
pub use recode::Recoded;
pub use vector::Vector;
