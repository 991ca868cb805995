//! Distance kernels and the metrics.
//!
//! A stored vector is whole cache lines. A search compares *ranks* (`f32`, smaller is
//! nearer, never NaN); SQL sees *distances* (`f64`). The two order alike.
//!
//! - `lane`: a cache line of a vector.
//! - `kernels`: sums over lanes, for each processor.
//! - `scorer`: a metric, by the kernels of this processor.

mod kernels;
mod lane;
mod scorer;

pub(crate) use lane::Lane;
pub(crate) use scorer::Scorer;
