//! How far a row is from the query: always computed from the row itself.

use crate::types::distance;
use crate::types::vector::check_same;
use cluster_core::collection::Metric;
use std::cmp::Ordering;

pub struct Ranking {
    pub metric: Metric,
    /// None when nothing is asked for, or NULL: every row is as near as any.
    pub query: Option<Vec<f32>>,
}

impl Ranking {
    pub fn distance(&self, vector: &[f32]) -> f64 {
        let Some(query) = &self.query else { return 0.0 };
        check_same(vector, query);
        match self.metric {
            Metric::L2 => distance::l2(vector, query),
            Metric::Cosine => distance::cosine(vector, query),
            Metric::InnerProduct => -distance::inner_product(vector, query),
        }
    }

    /// A query without direction has no cosine distance to anything.
    pub fn is_undefined(&self) -> bool {
        self.metric == Metric::Cosine
            && self
                .query
                .as_ref()
                .is_some_and(|query| distance::norm(query) == 0.0)
    }
}

/// A visible row and its distance.
#[derive(Clone, Copy, Debug)]
pub struct Ranked {
    pub distance: f64,
    /// Root of the HOT chain, block and offset.
    pub tid: u64,
}

impl Ranked {
    /// NaN sorts last, as Postgres sorts it.
    pub fn new(distance: f64, tid: u64) -> Self {
        let distance = if distance.is_nan() {
            f64::INFINITY
        } else {
            distance
        };
        Self { distance, tid }
    }
}

/// The nearest is the greatest, so that a heap gives it first.
impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        other
            .distance
            .total_cmp(&self.distance)
            .then(other.tid.cmp(&self.tid))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BinaryHeap;

    #[test]
    fn the_nearest_row_comes_first_and_undefined_distances_last() {
        let rows = [3.0, f64::NAN, -1.0, 0.0].into_iter().zip(0..);
        let mut heap: BinaryHeap<Ranked> = rows
            .map(|(distance, tid)| Ranked::new(distance, tid))
            .collect();
        let order: Vec<u64> = std::iter::from_fn(|| heap.pop())
            .map(|row| row.tid)
            .collect();
        assert_eq!(order, [2, 3, 0, 1]);
    }
}
