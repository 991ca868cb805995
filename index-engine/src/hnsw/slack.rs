//! How strictly neighbours are kept apart when links are chosen.
//!
//! The paper leaves out a candidate that is nearer to a chosen neighbour than to the
//! node. Where distances vary, a search gets along faster if it is left out only when it
//! is nearer by some slack: more of the links lead some way off, and fewer steps are
//! taken (Vamana's alpha: Subramanya et al., NeurIPS 2019). Among vectors that are noise
//! all distances lie within any such slack of each other: then nothing would be left
//! out, all links would lead to the nearest, and rows far from the middle be lost. So
//! slack grows with what the candidates' distances vary by.

use super::Candidate;
use crate::params::Metric;

/// Of squared distances. More finds no better, and takes longer to build.
const MOST: f32 = 1.2;
/// Candidates whose squared distances vary by less than this factor are given none. A
/// hundred nearest of thousands of random vectors of 128 dimensions vary by less.
const NONE_BELOW: f32 = 1.25;
/// The most is given from a factor of two on.
const POWER: f32 = 0.4;

pub(super) struct Slack {
    factor: f32,
    /// What makes a squared distance of a rank, but for a constant factor.
    offset: f32,
}

impl Slack {
    /// For candidates in order.
    pub(super) fn of(metric: Metric, candidates: &[Candidate]) -> Self {
        let none = Self {
            factor: 1.0,
            offset: 0.0,
        };
        // Of vectors of length one a rank is minus the cosine. Inner products are no
        // distances.
        let offset = match metric {
            Metric::L2 => 0.0,
            Metric::Cosine => 1.0,
            _ => return none,
        };
        let (Some(nearest), Some(farthest)) = (candidates.first(), candidates.last()) else {
            return none;
        };
        let (nearest, farthest) = (nearest.rank() + offset, farthest.rank() + offset);
        // A node near enough to be equal makes a spread without end, or none at all.
        let spread = farthest / (NONE_BELOW * nearest.max(f32::MIN_POSITIVE));
        let factor = if spread > 1.0 {
            spread.powf(POWER).min(MOST)
        } else {
            1.0
        };
        Self { factor, offset }
    }

    /// Is a candidate of this rank far enough from a chosen neighbour, whose own rank to
    /// it is `between`?
    #[inline]
    pub(super) fn keeps_apart(&self, rank: f32, between: f32) -> bool {
        self.factor * (between + self.offset) > rank + self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slack(metric: Metric, ranks: &[f32]) -> Slack {
        let candidates: Vec<_> = ranks.iter().map(|r| Candidate::new(*r, 0)).collect();
        Slack::of(metric, &candidates)
    }

    #[test]
    fn slack_grows_with_the_spread_up_to_its_most() {
        let factor = |ranks: &[f32]| slack(Metric::L2, ranks).factor;
        assert_eq!(factor(&[]), 1.0);
        assert_eq!(factor(&[5.0]), 1.0);
        assert_eq!(factor(&[4.0, 4.9]), 1.0);
        let middle = factor(&[4.0, 6.0]);
        assert!(middle > 1.0 && middle < MOST, "{middle}");
        assert_eq!(factor(&[4.0, 9.0]), MOST);
        assert_eq!(factor(&[0.0, 9.0]), MOST);
        assert_eq!(factor(&[0.0, 0.0]), 1.0);
    }

    #[test]
    fn cosines_count_as_the_squared_distances_that_they_are() {
        // Squared distances 0.2 and 0.5, and one between them of 0.45.
        let (near, far, between) = (-0.9, -0.75, -0.775);
        let of_cosines = slack(Metric::Cosine, &[near, far]);
        let of_squares = slack(Metric::L2, &[0.2, 0.5]);
        assert!((of_cosines.factor - of_squares.factor).abs() < 1e-5);
        assert!(of_cosines.keeps_apart(far, between) && of_squares.keeps_apart(0.5, 0.45));
        let nearer = -0.85;
        assert!(!of_cosines.keeps_apart(far, nearer) && !of_squares.keeps_apart(0.5, 0.3));
        // No distances: nothing is given.
        let products = slack(Metric::InnerProduct, &[near, far]);
        assert!(!products.keeps_apart(far, between));
    }
}
