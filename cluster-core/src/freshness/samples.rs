//! How far a server's log was on disk at some moment, as the server itself saw
//! it: positions and times of one machine, so that no two clocks are compared.
//!
//! A sample's time is read *before* its position. Whatever was flushed up to that
//! time is therefore at or below the position, and a sample may be used for any
//! earlier moment: it then asks for more than needed, never for less.

use crate::wal_position::Lsn;

/// Microseconds of one machine's CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootMicros(pub u64);

impl BootMicros {
    /// So much earlier, or when the machine started.
    pub fn before(self, lag_ms: u64) -> Self {
        Self(self.0.saturating_sub(lag_ms.saturating_mul(1_000)))
    }

    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

/// At the time `at`, the log was on disk up to `flushed` or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub at: BootMicros,
    pub flushed: Lsn,
}

/// The lowest position known that includes everything flushed at or before
/// `bound`: that of the oldest sample taken after it. The newest one taken before
/// would miss what was flushed in between. `None`: no sample is as new, and the
/// caller reads the position of now.
pub fn position_at(
    bound: BootMicros,
    newest_first: impl IntoIterator<Item = Sample>,
) -> Option<Lsn> {
    let after = newest_first.into_iter().take_while(|s| s.at > bound);
    after.map(|sample| sample.flushed).min()
}

/// For how long, at least, the log has gone on behind `position`; 0 when no sample
/// shows anything behind it. Samples that reach back less far than the position
/// give what they can vouch for.
pub fn lag_ms(
    position: Lsn,
    now: BootMicros,
    newest_first: impl IntoIterator<Item = Sample>,
) -> u64 {
    let behind = newest_first
        .into_iter()
        .take_while(|sample| sample.flushed > position);
    behind.last().map_or(0, |sample| now.ms_since(sample.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(list: &[(u64, u64)]) -> impl Iterator<Item = Sample> + use<> {
        let list: Vec<_> = list.to_vec();
        list.into_iter().rev().map(|(at_ms, lsn)| Sample {
            at: BootMicros(at_ms * 1_000),
            flushed: Lsn(lsn),
        })
    }

    fn at(ms: u64) -> BootMicros {
        BootMicros(ms * 1_000)
    }

    #[test]
    fn p8_what_was_flushed_between_two_samples_before_the_bound_is_asked_for() {
        // Flushed at 14: in the sample of 20, not in that of 10.
        let taken = [(0, 100), (10, 200), (20, 300), (30, 400)];
        assert_eq!(position_at(at(15), samples(&taken)), Some(Lsn(300)));
        assert_eq!(position_at(at(9), samples(&taken)), Some(Lsn(200)));
    }

    #[test]
    fn p8_a_sample_of_the_bounds_own_moment_does_not_vouch_for_it() {
        // Its time is rounded down: what it saw may be older than the bound.
        let taken = [(10, 200), (20, 300)];
        assert_eq!(position_at(at(10), samples(&taken)), Some(Lsn(300)));
    }

    #[test]
    fn p8_a_ring_that_does_not_reach_back_asks_for_more_and_an_old_one_for_now() {
        let taken = [(50, 500), (60, 600)];
        assert_eq!(position_at(at(3), samples(&taken)), Some(Lsn(500)));
        assert_eq!(position_at(at(60), samples(&taken)), None);
        assert_eq!(position_at(at(3), samples(&[])), None);
        assert_eq!(
            position_at(at(20).before(1_000), samples(&taken)),
            Some(Lsn(500))
        );
    }

    #[test]
    fn lag_counts_from_when_the_log_first_went_on() {
        let taken = [(0, 100), (10, 200), (20, 200), (30, 300)];
        assert_eq!(lag_ms(Lsn(300), at(45), samples(&taken)), 0);
        assert_eq!(lag_ms(Lsn(200), at(45), samples(&taken)), 15);
        assert_eq!(lag_ms(Lsn(150), at(45), samples(&taken)), 35);
        assert_eq!(lag_ms(Lsn(1), at(45), samples(&taken)), 45, "at least");
        assert_eq!(lag_ms(Lsn(1), at(45), samples(&[])), 0);
    }
}
