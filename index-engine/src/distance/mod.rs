//! Distance kernels and the metrics.
//!
//! A stored vector is whole cache lines, whatever it is made of. A search compares
//! *ranks* (`f32`, smaller is nearer, never NaN); SQL sees *distances* (`f64`). The two
//! order alike.
//!
//! - `lane`: a cache line of a vector, and how each element lies in it.
//! - `sums`: sums over pairs of elements, in plain Rust.
//! - `floats`, `halves`, `bits`, `sparse`: ranks of two vectors, by element.
//! - `kernels`: which of these functions this processor runs.
//! - `scorer`: a metric of an element, by the best of them.

mod bits;
mod floats;
mod halves;
mod kernels;
mod lane;
#[cfg(test)]
mod measure;
mod scorer;
mod sparse;
mod sums;

pub(crate) use lane::{Lane, is_sparse, lanes_of};
pub(crate) use scorer::Scorer;
