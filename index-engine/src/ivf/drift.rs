//! The rule that says when lists are to be made anew.
//!
//! Pure: what is, against what was when the lists were trained. Each ground has room
//! for chance, so that a partition at rest never trains twice.

use super::lists_for;

/// Fewer rows than this are scanned whole: that takes less than a millisecond.
pub const TRAIN_ROWS_MIN: usize = 1_000;
/// With fewer rows a list's centroid is mere chance.
pub const ROWS_PER_LIST_MIN: usize = 20;
/// The number of lists follows the root of the rows: at twice as many rows lists are
/// 1.4 times as long as they were meant to be.
const GROWTH_MAX: f64 = 2.0;
/// Rows that came since lie so much farther from their centroids.
const DISTANCE_GROWTH_MAX: f64 = 1.15;
/// Of the rows at training, before those that came since can tell.
const DRIFT_ROWS_MIN: f64 = 0.1;
/// Lists' imbalance against that at training.
const IMBALANCE_GROWTH_MAX: f64 = 1.5;
/// Of the rows in lists; removed ones are scanned until they are left behind.
const REMOVED_MAX: f64 = 0.5;

/// Why lists are to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Enough rows for the first lists.
    First,
    /// Many more rows than at training.
    Grown,
    /// New rows lie farther from the centroids than those trained on.
    Drifted,
    /// Some lists have become much longer than others.
    Unbalanced,
    /// Most rows in the lists are removed ones.
    Removed,
}

/// The lists when they were trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trained {
    pub(super) rows: usize,
    /// Of rows to their centroids.
    pub(super) mean_distance: f64,
    /// 1 for lists of equal length: `lists * sum n^2 / (sum n)^2`.
    pub(super) imbalance: f64,
}

/// What the lists hold now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Now {
    /// Removed ones included.
    pub(super) rows: usize,
    pub(super) removed: usize,
    /// Came since the training, and how far they lie from their centroids.
    pub(super) rows_since: usize,
    pub(super) mean_distance_since: f64,
    pub(super) imbalance: f64,
}

/// `lists`: the number asked for, `None` for the root of the rows.
pub(super) fn due(trained: Option<Trained>, now: Now, lists: Option<usize>) -> Option<Due> {
    let alive = now.rows.saturating_sub(now.removed);
    let Some(then) = trained else {
        let lists = lists.unwrap_or_else(|| lists_for(alive));
        return can_train(alive, lists).then_some(Due::First);
    };
    let then_rows = then.rows.max(1) as f64;
    if alive as f64 >= GROWTH_MAX * then_rows {
        return Some(Due::Grown);
    }
    if now.removed as f64 > REMOVED_MAX * now.rows as f64 && now.removed >= TRAIN_ROWS_MIN {
        return Some(Due::Removed);
    }
    let can_tell =
        now.rows_since >= TRAIN_ROWS_MIN && now.rows_since as f64 >= DRIFT_ROWS_MIN * then_rows;
    if can_tell && now.mean_distance_since > DISTANCE_GROWTH_MAX * then.mean_distance {
        return Some(Due::Drifted);
    }
    if can_tell && now.imbalance > IMBALANCE_GROWTH_MAX * then.imbalance {
        return Some(Due::Unbalanced);
    }
    None
}

pub(super) fn can_train(alive: usize, lists: usize) -> bool {
    alive >= TRAIN_ROWS_MIN.max(lists.saturating_mul(ROWS_PER_LIST_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: Trained = Trained {
        rows: 10_000,
        mean_distance: 2.0,
        imbalance: 1.4,
    };
    const NOW: Now = Now {
        rows: 12_000,
        removed: 0,
        rows_since: 2_000,
        mean_distance_since: 2.1,
        imbalance: 1.5,
    };

    #[test]
    fn the_first_lists_wait_for_rows_enough() {
        let rows = |rows| Now { rows, ..NOW };
        for (now, lists, expected) in [
            (rows(999), None, None),
            (rows(1_000), None, Some(Due::First)),
            (rows(1_999), Some(100), None),
            (rows(2_000), Some(100), Some(Due::First)),
            (
                Now {
                    removed: 1,
                    ..rows(1_000)
                },
                None,
                None,
            ),
            (rows(usize::MAX), Some(usize::MAX), Some(Due::First)),
        ] {
            assert_eq!(due(None, now, lists), expected, "{now:?} {lists:?}");
        }
    }

    #[test]
    fn each_ground_is_named_and_rest_is_no_ground() {
        for (now, expected) in [
            (NOW, None),
            (
                Now {
                    rows: 20_000,
                    ..NOW
                },
                Some(Due::Grown),
            ),
            (
                Now {
                    rows: 20_000,
                    removed: 1,
                    ..NOW
                },
                None,
            ),
            (
                Now {
                    removed: 6_001,
                    ..NOW
                },
                Some(Due::Removed),
            ),
            (
                Now {
                    removed: 6_000,
                    ..NOW
                },
                None,
            ),
            (
                Now {
                    mean_distance_since: 2.4,
                    ..NOW
                },
                Some(Due::Drifted),
            ),
            // Few rows tell nothing.
            (
                Now {
                    mean_distance_since: 2.4,
                    rows_since: 999,
                    ..NOW
                },
                None,
            ),
            (
                Now {
                    imbalance: 2.2,
                    ..NOW
                },
                Some(Due::Unbalanced),
            ),
            (
                Now {
                    imbalance: 2.2,
                    rows_since: 0,
                    ..NOW
                },
                None,
            ),
        ] {
            assert_eq!(due(Some(THEN), now, None), expected, "{now:?}");
        }
    }

    /// Whatever made it due: right after training nothing is.
    #[test]
    fn fresh_lists_are_never_due() {
        for (rows, mean_distance, imbalance) in
            [(0, 0.0, 1.0), (1_000, 3.0, 9.0), (1 << 28, 0.0, 1.0)]
        {
            let now = Now {
                rows,
                removed: 0,
                rows_since: 0,
                mean_distance_since: 0.0,
                imbalance,
            };
            let trained = Trained {
                rows,
                mean_distance,
                imbalance,
            };
            assert_eq!(due(Some(trained), now, None), None, "{now:?}");
        }
    }
}
