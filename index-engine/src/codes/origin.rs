//! Where codes and sketches count from.
//!
//! Their steps are as fine as vectors are long, so of vectors that lie far from zero they
//! would tell little. They count from a point in the midst of the vectors instead: the
//! median, dimension by dimension, of some of those that are there when the first is linked. It
//! stays, for everything that is encoded refers to it; where the data has drifted away from
//! it, `hnsw::told` sees that sketches tell nothing.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::arena::Segments;
use crate::distance::Lane;

/// Vectors that are asked; more would hardly move it.
pub(crate) const ASKED_MAX: u32 = 64;

pub(crate) struct Origin {
    point: OnceLock<Box<[Lane]>>,
    zero: Box<[Lane]>,
    /// As a checkpoint fills it: bits of floats.
    loaded: Segments<AtomicU32>,
}

impl Origin {
    /// `dimensions` is a multiple of 16.
    pub(crate) fn new(dimensions: usize) -> Self {
        Self {
            point: OnceLock::new(),
            zero: Lane::pack(&vec![0.0; dimensions]),
            loaded: Segments::new(1),
        }
    }

    /// Zero until it is settled; nothing is encoded before.
    #[inline]
    pub(crate) fn point(&self) -> &[Lane] {
        self.point.get().unwrap_or(&self.zero)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.point.get().is_some()
    }

    /// Once, from some of the vectors. Others wait meanwhile.
    pub(crate) fn settle(&self, vectors: impl FnOnce() -> Vec<Box<[Lane]>>) -> &[Lane] {
        self.point.get_or_init(|| median(&self.zero, &vectors()))
    }

    /// Elements of the point, as rows of a checkpoint's section.
    pub(crate) fn elements(&self) -> u32 {
        (self.zero.len() * Lane::WIDTH) as u32
    }

    pub(crate) fn loaded(&self) -> &Segments<AtomicU32> {
        &self.loaded
    }

    pub(crate) fn element(&self, at: u32) -> f32 {
        Lane::view(self.point())[at as usize]
    }

    /// Takes up what a checkpoint filled.
    pub(crate) fn restore(&mut self) {
        let bits = |at| self.loaded.row(at)[0].load(Ordering::Relaxed);
        let point: Vec<f32> = (0..self.elements())
            .map(|at| f32::from_bits(bits(at)))
            .collect();
        self.point = OnceLock::from(Lane::pack(&point));
    }
}

/// Dimension by dimension: a few that lie anywhere do not move it.
fn median(zero: &[Lane], vectors: &[Box<[Lane]>]) -> Box<[Lane]> {
    let dimensions = zero.len() * Lane::WIDTH;
    let mut values = Vec::with_capacity(vectors.len());
    let mut of = |at: usize| {
        values.clear();
        values.extend(
            vectors
                .iter()
                .map(|v| Lane::view(v)[at])
                .filter(|x: &f32| x.is_finite()),
        );
        match values.len() / 2 {
            0 if values.is_empty() => 0.0,
            middle => *values.select_nth_unstable_by(middle, f32::total_cmp).1,
        }
    };
    let point: Vec<f32> = (0..dimensions).map(&mut of).collect();
    Lane::pack(&point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_median_and_stays() {
        let origin = Origin::new(16);
        assert_eq!(origin.element(3), 0.0);
        let row = |x: f32| Lane::pack(&[x; 16]);
        let rows = || vec![row(5.0), row(7.0), row(1e30), row(f32::INFINITY), row(6.0)];
        assert_eq!(origin.settle(rows), &*row(7.0));
        assert_eq!(origin.settle(|| vec![row(1.0)]), &*row(7.0));
        assert_eq!(origin.point(), &*row(7.0));
        assert_eq!(Origin::new(16).settle(Vec::new), &*row(0.0));
    }
}
