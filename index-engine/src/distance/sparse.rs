//! Ranks of sparse vectors: two ascending lists of indices, walked together.

use super::Lane;
use super::kernels::Function;
use crate::params::Metric;

/// Adds up a term for each index that either has; one that lacks it has zero there.
/// Without branches on what is met: which list has the smaller index next is anybody's
/// guess.
#[inline(always)]
fn merge(a: &[Lane], b: &[Lane], term: impl Fn(f64, f64) -> f64) -> f64 {
    let ((a_indices, a_values), (b_indices, b_values)) = (Lane::sparse(a), Lane::sparse(b));
    let (mut i, mut j, mut sum) = (0, 0, 0.0);
    while i < a_indices.len() && j < b_indices.len() {
        let (p, q) = (a_indices[i], b_indices[j]);
        let x = if p <= q { a_values[i] } else { 0.0 };
        let y = if q <= p { b_values[j] } else { 0.0 };
        sum += term(f64::from(x), f64::from(y));
        i += usize::from(p <= q);
        j += usize::from(q <= p);
    }
    let rest = |values: &[f32], term: &dyn Fn(f64) -> f64| -> f64 {
        values.iter().map(|x| term(f64::from(*x))).sum()
    };
    sum + rest(&a_values[i..], &|x| term(x, 0.0)) + rest(&b_values[j..], &|y| term(0.0, y))
}

fn l2_squared(a: &[Lane], b: &[Lane]) -> f32 {
    merge(a, b, |x, y| (x - y) * (x - y)) as f32
}

fn minus_product(a: &[Lane], b: &[Lane]) -> f32 {
    -merge(a, b, |x, y| x * y) as f32
}

fn l1(a: &[Lane], b: &[Lane]) -> f32 {
    merge(a, b, |x, y| (x - y).abs()) as f32
}

pub(super) fn available(metric: Metric) -> Vec<(&'static str, Function)> {
    let function: Function = match metric {
        Metric::L2 => l2_squared,
        // Prepared vectors have length one.
        Metric::InnerProduct | Metric::Cosine => minus_product,
        Metric::L1 => l1,
        Metric::Hamming | Metric::Jaccard => unreachable!("no {metric:?} distance of these"),
    };
    vec![("portable", function)]
}
