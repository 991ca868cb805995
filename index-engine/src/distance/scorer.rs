//! The metrics as a rank, and as SQL shows them.

use std::borrow::Cow;

use super::Lane;
use super::kernels::Kernels;
use crate::params::Metric;

/// A metric with the kernels to compute it.
#[derive(Clone, Copy)]
pub(crate) struct Scorer {
    metric: Metric,
    kernels: Kernels,
}

impl Scorer {
    pub(crate) fn new(metric: Metric) -> Self {
        Self {
            metric,
            kernels: Kernels::detect(),
        }
    }

    /// The vector as the metric compares it: for cosine scaled to length one, in
    /// f64 so that neither huge nor tiny elements overflow.
    pub(crate) fn prepare<'a>(&self, vector: &'a [f32]) -> Cow<'a, [f32]> {
        if self.metric != Metric::Cosine {
            return Cow::Borrowed(vector);
        }
        let squares: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        if squares == 0.0 {
            return Cow::Borrowed(vector);
        }
        let scale = 1.0 / squares.sqrt();
        vector
            .iter()
            .map(|x| (f64::from(*x) * scale) as f32)
            .collect()
    }

    /// Has no distance to anything: a zero vector has no cosine. pgvector does not
    /// index these; we keep them out of the graph and rank them last.
    pub(crate) fn is_incomparable(&self, vector: &[Lane]) -> bool {
        self.metric == Metric::Cosine && vector.iter().all(|lane| *lane == Lane::ZERO)
    }

    /// Smaller is nearer, for prepared vectors. Never NaN: what has no distance
    /// ranks last.
    #[inline]
    pub(crate) fn rank(&self, a: &[Lane], b: &[Lane]) -> f32 {
        let rank = match self.metric {
            Metric::L2 => self.kernels.l2_squared(a, b),
            Metric::InnerProduct | Metric::Cosine => -self.kernels.dot(a, b),
        };
        if rank.is_nan() || (rank == 0.0 && (self.is_incomparable(a) || self.is_incomparable(b))) {
            return f32::INFINITY;
        }
        rank
    }

    /// The rank as the SQL operator's distance. Monotone.
    pub(crate) fn distance(&self, rank: f32) -> f64 {
        let rank = f64::from(rank);
        match self.metric {
            Metric::L2 => rank.sqrt(),
            Metric::InnerProduct => rank,
            Metric::Cosine if rank == f64::INFINITY => rank,
            // Rounding may carry a cosine past one; pgvector clamps as well.
            Metric::Cosine => (1.0 + rank).clamp(0.0, 2.0),
        }
    }
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
            let scorer = Scorer::new(Metric::Cosine);
            let scaled: Vec<f32> = a.iter().map(|x| x * scale).collect();
            let wide = |v: &[f32], w: &[f32]| -> f64 {
                v.iter().zip(w).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            let norms = wide(&scaled, &scaled).sqrt() * wide(&b, &b).sqrt();
            prop_assume!(norms > 0.0);
            let (x, y) = (Lane::pack(&scorer.prepare(&scaled)), Lane::pack(&scorer.prepare(&b)));
            let got = scorer.distance(scorer.rank(&x, &y));
            prop_assert!((got - (1.0 - wide(&scaled, &b) / norms)).abs() < 1e-5);
        }
    }

    #[test]
    fn what_has_no_distance_ranks_last() {
        let rank =
            |metric, a: &[f32], b: &[f32]| Scorer::new(metric).rank(&Lane::pack(a), &Lane::pack(b));
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
