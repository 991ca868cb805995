//! What is told of a replica whose changes wait for its tail to be folded.
//!
//! Each commit waits until the tail is below its limit again, and the next one finds it
//! full: these waits are one, from the first to when the tail is well below the limit, or
//! nothing has waited for a while.

use cluster_core::folding::is_relieved;
use parking_lot::Mutex;
use std::fmt;
use std::time::{Duration, Instant};

/// Why changes wait, and what to do. A sentence without its subject, the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "waits for folding: its tail holds {rows} rows, of at most {limit}; \
     it goes on as they are folded; if it stays so, give the node more cores (apply.fold_threads), \
     or move partitions to other nodes"
)]
pub struct FullTail {
    pub rows: usize,
    pub limit: TailLimit,
}

/// Rows that may join a tail which recovery left over its limit.
const RECOVERED_SLACK_ROWS: usize = 1_000;

/// How long a tail may be before changes wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailLimit {
    Configured(usize),
    /// More than that: so many rows are left of what recovery put there.
    Recovered(usize),
}

impl TailLimit {
    /// Where so many rows of the tail are of a recovery: these do not push back.
    pub fn of(configured: usize, recovered: usize) -> Self {
        let by_recovery = Self::Recovered(recovered);
        match recovered > 0 && by_recovery.rows_max() > configured {
            true => by_recovery,
            false => Self::Configured(configured),
        }
    }

    pub fn rows_max(self) -> usize {
        match self {
            Self::Configured(rows) => rows,
            Self::Recovered(rows) => rows + RECOVERED_SLACK_ROWS,
        }
    }
}

impl fmt::Display for TailLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows_max = self.rows_max();
        match self {
            Self::Configured(_) => write!(f, "{rows_max} (apply.tail_rows_max)"),
            Self::Recovered(rows) => write!(
                f,
                "{rows_max}, the {rows} that are left of its recovery and {RECOVERED_SLACK_ROWS} more"
            ),
        }
    }
}

/// Whoever waits looks again every few milliseconds.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct FoldingWait(Mutex<Option<Waiting>>);

struct Waiting {
    since: Instant,
    /// When somebody has waited last.
    last: Instant,
    limit: TailLimit,
}

impl Waiting {
    fn is_over(&self, rows: usize) -> bool {
        is_relieved(rows, self.limit.rows_max()) || self.last.elapsed() > FORGOTTEN_AFTER
    }
}

impl FoldingWait {
    /// Something waits. True if nothing did before.
    pub fn begin(&self, limit: TailLimit) -> bool {
        let mut waiting = self.0.lock();
        let last = Instant::now();
        let since = waiting.as_ref().map_or(last, |waiting| waiting.since);
        waiting.replace(Waiting { since, last, limit }).is_none()
    }

    /// What is told of it, with a tail of so many rows.
    pub fn told(&self, rows: usize) -> Option<FullTail> {
        let waiting = self.0.lock();
        let waiting = waiting.as_ref().filter(|waiting| !waiting.is_over(rows))?;
        let limit = waiting.limit;
        Some(FullTail { rows, limit })
    }

    /// How long it took, if it is over with a tail of so many rows.
    pub fn end_if_relieved(&self, rows: usize) -> Option<Duration> {
        let mut waiting = self.0.lock();
        let ended = waiting.take_if(|waiting| waiting.is_over(rows))?;
        Some(ended.last - ended.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_of_one_commit_after_another_are_one() {
        let wait = FoldingWait::default();
        let limit = TailLimit::Configured(100);
        let full = |rows| Some(FullTail { rows, limit });
        assert_eq!(wait.told(500), None);
        assert!(wait.begin(limit));
        assert_eq!(wait.told(150), full(150));
        assert_eq!(wait.told(95), full(95));
        assert!(!wait.begin(limit), "told already");
        assert_eq!(wait.end_if_relieved(95), None);
        assert_eq!(wait.told(80), None);
        assert_eq!(wait.told(120), full(120), "whoever looks does not end it");
        assert!(wait.end_if_relieved(80).is_some());
        assert_eq!(wait.end_if_relieved(80), None, "once");
        assert_eq!(wait.told(120), None);
        assert!(wait.begin(limit), "another one");
    }

    #[test]
    fn a_full_tail_that_nobody_waits_for_any_more_is_not_told() {
        let wait = FoldingWait::default();
        wait.begin(TailLimit::Configured(100));
        std::thread::sleep(FORGOTTEN_AFTER + Duration::from_millis(50));
        assert_eq!(wait.told(100), None);
        assert!(wait.end_if_relieved(100).is_some());
        assert_eq!(wait.end_if_relieved(100), None, "once");
    }

    #[test]
    fn what_is_told_names_the_tail_its_limit_and_what_to_do() {
        let said = |rows, limit| FullTail { rows, limit }.to_string();
        let configured = said(150, TailLimit::of(100, 0));
        let recovered = said(4_001, TailLimit::of(100, 3_000));
        for (said, expected) in [
            (
                configured,
                "waits for folding: its tail holds 150 rows, of at most 100 (apply.tail_rows_max); \
                 it goes on",
            ),
            (
                recovered,
                "waits for folding: its tail holds 4001 rows, of at most 4000, the 3000 that are \
                 left of its recovery and 1000 more; it goes on",
            ),
        ] {
            assert!(said.starts_with(expected), "{said}");
        }
    }

    #[test]
    fn a_recovered_tail_has_a_limit_of_its_own_while_that_is_the_larger_one() {
        assert_eq!(TailLimit::of(100, 0), TailLimit::Configured(100));
        assert_eq!(TailLimit::of(5_000, 1_000), TailLimit::Configured(5_000));
        assert_eq!(TailLimit::of(100, 1).rows_max(), 1_001);
        assert_eq!(TailLimit::of(100, 3_000), TailLimit::Recovered(3_000));
    }
}
