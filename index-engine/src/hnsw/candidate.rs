//! A vector with its rank, packed into one integer that compares like both.

/// Ordered by rank; among equals the newer id comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate(u64);

impl Candidate {
    #[inline]
    pub(crate) fn new(rank: f32, id: u32) -> Self {
        debug_assert!(!rank.is_nan(), "a rank is never NaN");
        // IEEE floats order like sign-magnitude integers: flip negatives whole,
        // positives by the sign bit.
        let bits = rank.to_bits();
        let ordered = if bits >> 31 == 1 {
            !bits
        } else {
            bits | 1 << 31
        };
        Self(u64::from(ordered) << 32 | u64::from(!id))
    }

    #[inline]
    pub(crate) fn id(self) -> u32 {
        !(self.0 as u32)
    }

    #[inline]
    pub(crate) fn rank(self) -> f32 {
        let ordered = (self.0 >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 {
            ordered & !(1 << 31)
        } else {
            !ordered
        })
    }

    /// Strictly nearer; ties are not.
    #[inline]
    pub(crate) fn nearer_than(self, other: Self) -> bool {
        self.0 >> 32 < other.0 >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_order_by_rank_then_newest_first() {
        let ranks = [
            f32::NEG_INFINITY,
            -3.5e30,
            -1.0,
            -1e-40,
            0.0,
            1e-40,
            0.25,
            7.0,
            f32::MAX,
            f32::INFINITY,
        ];
        for pair in ranks.windows(2) {
            assert!(Candidate::new(pair[0], 9).nearer_than(Candidate::new(pair[1], 1)));
        }
        for rank in ranks {
            let (older, newer) = (Candidate::new(rank, 1), Candidate::new(rank, 2));
            assert!(newer < older && !newer.nearer_than(older));
            assert_eq!((older.rank(), older.id()), (rank, 1));
        }
    }
}
