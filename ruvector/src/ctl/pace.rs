//! How fast a learner copies, and how long that will take at this rate.

use proto::v1::LearnerProgress;
use serde::Serialize;

/// Each is absent as long as it cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pace {
    pub percent: Option<u64>,
    pub bytes_per_second: Option<u64>,
    pub left_ms: Option<u64>,
}

impl Pace {
    /// The number of rows is the peer's estimate: until all is copied the pace
    /// says at most 99 per cent.
    pub fn of(progress: &LearnerProgress) -> Self {
        if progress.is_copied {
            return Self {
                percent: Some(100),
                ..Self::default()
            };
        }
        let LearnerProgress {
            rows_copied,
            rows_total,
            bytes_copied,
            copying_ms,
            ..
        } = *progress;
        let left = rows_total.saturating_sub(rows_copied);
        // Beyond the estimate there is no telling.
        let left_ms = scaled(copying_ms, left, rows_copied).filter(|_| left > 0);
        Self {
            percent: scaled(rows_copied, 100, rows_total).map(|percent| percent.min(99)),
            bytes_per_second: scaled(bytes_copied, 1_000, copying_ms),
            left_ms,
        }
    }
}

/// `value · times / by`, unless that is by nothing.
fn scaled(value: u64, times: u64, by: u64) -> Option<u64> {
    let product = u128::from(value) * u128::from(times);
    let scaled = product.checked_div(u128::from(by))?;
    Some(u64::try_from(scaled).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(rows: u64, of: u64, bytes: u64, ms: u64) -> LearnerProgress {
        LearnerProgress {
            rows_copied: rows,
            rows_total: of,
            bytes_copied: bytes,
            copying_ms: ms,
            ..LearnerProgress::default()
        }
    }

    #[test]
    fn what_is_left_takes_as_long_as_what_was_copied() {
        // A quarter of 100,000 rows, 50 MB in 4 s: three more such quarters.
        let pace = Pace::of(&copied(25_000, 100_000, 50_000_000, 4_000));
        assert_eq!(
            pace,
            Pace {
                percent: Some(25),
                bytes_per_second: Some(12_500_000),
                left_ms: Some(12_000),
            }
        );
    }

    #[test]
    fn what_cannot_be_told_is_not_guessed() {
        assert_eq!(Pace::of(&copied(0, 0, 0, 0)), Pace::default());
        let nothing_yet = Pace::of(&copied(0, 1_000, 0, 10));
        assert_eq!(nothing_yet.percent, Some(0));
        assert_eq!(nothing_yet.left_ms, None);
        let beyond_the_estimate = Pace::of(&copied(1_200, 1_000, 9_000, 1_000));
        assert_eq!(beyond_the_estimate.percent, Some(99));
        assert_eq!(beyond_the_estimate.left_ms, None);
    }

    #[test]
    fn a_learner_that_only_catches_up_copies_at_no_rate() {
        let mut progress = copied(1_000, 1_000, 9_000, 1_000);
        progress.is_copied = true;
        let pace = Pace::of(&progress);
        assert_eq!(pace.percent, Some(100));
        assert_eq!((pace.bytes_per_second, pace.left_ms), (None, None));
    }

    #[test]
    fn enormous_numbers_do_not_overflow() {
        let pace = Pace::of(&copied(u64::MAX / 2, u64::MAX, u64::MAX, u64::MAX));
        assert_eq!(pace.percent, Some(49));
        assert_eq!(pace.bytes_per_second, Some(1_000));
    }
}
