//! The metrics as a rank, and as SQL shows them.

use super::Lane;
use super::kernels::Kernel;
use crate::half::Half;
use crate::params::{Element, Metric};
use crate::vector::Vector;

/// A metric with the kernel to compute it.
#[derive(Clone, Copy)]
pub(crate) struct Scorer {
    metric: Metric,
    element: Element,
    kernel: Kernel,
}

impl Scorer {
    pub(crate) fn new(metric: Metric, element: Element) -> Self {
        Self {
            metric,
            element,
            kernel: Kernel::detect(metric, element),
        }
    }

    /// The vector as the metric compares it: for cosine floats are scaled to length one,
    /// in f64 so that neither huge nor tiny elements overflow. Halves stay what they are.
    pub(crate) fn prepare(&self, vector: &Vector<'_>) -> Box<[Lane]> {
        match vector {
            Vector::F32(values) => match self.scale(values) {
                Some(scale) => Lane::pack(&scaled(values, scale)),
                None => Lane::pack(values),
            },
            Vector::F16(values) => Lane::pack_halves(values),
            Vector::Sparse {
                indices, values, ..
            } => match self.scale(values) {
                Some(scale) => Lane::pack_sparse(indices, &scaled(values, scale)),
                None => Lane::pack_sparse(indices, values),
            },
            Vector::Bits { bytes, .. } => Lane::pack_bits(bytes),
        }
    }

    pub(crate) fn element(&self) -> Element {
        self.element
    }

    /// Halves as floats, padding included; for cosine scaled to length one.
    ///
    /// # Panics
    /// If the element is another.
    pub(crate) fn floats(&self, halves: &[Lane]) -> Vec<f32> {
        assert_eq!(self.element, Element::F16, "only these are not floats yet");
        let halves = Lane::view::<Half>(halves).iter();
        let floats: Vec<f32> = halves.map(|x| x.finite_to_f32()).collect();
        match self.scale(&floats) {
            Some(scale) => scaled(&floats, scale),
            None => floats,
        }
    }

    /// What makes the length one, where that is wanted.
    fn scale(&self, values: &[f32]) -> Option<f64> {
        if self.metric != Metric::Cosine {
            return None;
        }
        let squares: f64 = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        (squares > 0.0).then(|| 1.0 / squares.sqrt())
    }

    /// Is of no use as a waypoint: a zero vector has no cosine, and is as far as can be
    /// by Jaccard from all there is. We keep these out of the graph and find them last.
    /// (pgvector does not index the former; the latter it does.)
    pub(crate) fn is_incomparable(&self, vector: &[Lane]) -> bool {
        matches!(self.metric, Metric::Cosine | Metric::Jaccard) && is_zero(vector)
    }

    /// Smaller is nearer, for prepared vectors. Never NaN: what has no distance
    /// ranks last.
    #[inline]
    pub(crate) fn rank(&self, a: &[Lane], b: &[Lane]) -> f32 {
        let rank = self.kernel.rank(a, b);
        let is_suspect = rank == 0.0 && self.metric == Metric::Cosine;
        if rank.is_nan() || (is_suspect && (is_zero(a) || is_zero(b))) {
            return f32::INFINITY;
        }
        rank
    }

    /// The rank as the SQL operator's distance. Monotone.
    pub(crate) fn distance(&self, rank: f32) -> f64 {
        let rank = f64::from(rank);
        match self.metric {
            // A rank by code may fall below zero.
            Metric::L2 => rank.max(0.0).sqrt(),
            Metric::InnerProduct | Metric::L1 | Metric::Hamming | Metric::Jaccard => rank,
            Metric::Cosine if rank == f64::INFINITY => rank,
            // Rounding may carry a cosine past one; pgvector clamps as well.
            Metric::Cosine => (1.0 + rank).clamp(0.0, 2.0),
        }
    }
}

fn scaled(values: &[f32], scale: f64) -> Vec<f32> {
    let scaled = values.iter().map(|x| (f64::from(*x) * scale) as f32);
    scaled.collect()
}

/// A sparse one without elements is.
fn is_zero(vector: &[Lane]) -> bool {
    vector.iter().all(|lane| *lane == Lane::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        let element = -100.0f32..100.0;
        (1usize..200).prop_flat_map(move |n| {
            let vector = prop::collection::vec(element.clone(), n);
            (vector.clone(), vector)
        })
    }

    proptest! {
        #[test]
        fn cosine_is_that_of_the_vectors_whatever_their_length(
            (a, b) in pairs(),
            scale in prop::sample::select(vec![1e-30f32, 1.0, 1e30]),
        ) {
            let scorer = Scorer::new(Metric::Cosine, Element::F32);
            let scaled: Vec<f32> = a.iter().map(|x| x * scale).collect();
            let wide = |v: &[f32], w: &[f32]| -> f64 {
                v.iter().zip(w).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            let norms = wide(&scaled, &scaled).sqrt() * wide(&b, &b).sqrt();
            prop_assume!(norms > 0.0);
            let (x, y) = (scorer.prepare(&(&scaled).into()), scorer.prepare(&(&b).into()));
            let got = scorer.distance(scorer.rank(&x, &y));
            prop_assert!((got - (1.0 - wide(&scaled, &b) / norms)).abs() < 1e-5);
        }
    }

    #[test]
    fn what_has_no_distance_ranks_last() {
        let rank = |metric, a: &[f32], b: &[f32]| {
            Scorer::new(metric, Element::F32).rank(&Lane::pack(a), &Lane::pack(b))
        };
        assert_eq!(
            rank(Metric::Cosine, &[0.0, 0.0], &[1.0, 0.0]),
            f32::INFINITY
        );
        assert_eq!(rank(Metric::Cosine, &[0.0, 1.0], &[1.0, 0.0]), 0.0);
        let (huge, mixed) = ([f32::MAX, f32::MAX], [f32::MAX, -f32::MAX]);
        assert_eq!(rank(Metric::InnerProduct, &huge, &mixed), f32::INFINITY);
        assert_eq!(rank(Metric::L2, &huge, &mixed), f32::INFINITY);
    }
}
