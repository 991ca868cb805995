//! What is told of a replica whose changes wait for its tail to be folded.
//!
//! Each commit waits until the tail is below its limit again, and the next one finds it
//! full: these waits are one, from the first to when the tail is well below the limit.

use cluster_core::folding::is_relieved;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Why changes wait, and what to do. A sentence without its subject, the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "waits for folding: its tail holds {rows} rows, of at most {rows_max} (apply.tail_rows_max); \
     it goes on as they are folded; if it stays so, give the node more cores (apply.fold_threads), \
     or move partitions to other nodes"
)]
pub struct FullTail {
    pub rows: usize,
    pub rows_max: usize,
}

#[derive(Default)]
pub struct FoldingWait(Mutex<Option<Waiting>>);

struct Waiting {
    since: Instant,
    rows_max: usize,
}

impl FoldingWait {
    /// Something waits. True if nothing did before.
    pub fn begin(&self, rows_max: usize) -> bool {
        let mut waiting = self.0.lock();
        let is_new = waiting.is_none();
        let since = waiting.as_ref().map_or_else(Instant::now, |w| w.since);
        *waiting = Some(Waiting { since, rows_max });
        is_new
    }

    /// What is told of it, with a tail of so many rows.
    pub fn told(&self, rows: usize) -> Option<FullTail> {
        let rows_max = self.0.lock().as_ref()?.rows_max;
        (!is_relieved(rows, rows_max)).then_some(FullTail { rows, rows_max })
    }

    /// How long it took, if it is over with a tail of so many rows.
    pub fn end_if_relieved(&self, rows: usize) -> Option<Duration> {
        let mut waiting = self.0.lock();
        let ended = waiting.take_if(|waiting| is_relieved(rows, waiting.rows_max))?;
        Some(ended.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_of_one_commit_after_another_are_one() {
        let wait = FoldingWait::default();
        let full = |rows| {
            let rows_max = 100;
            Some(FullTail { rows, rows_max })
        };
        assert_eq!(wait.told(500), None);
        assert!(wait.begin(100));
        assert_eq!(wait.told(150), full(150));
        assert_eq!(wait.told(95), full(95));
        assert!(!wait.begin(100), "told already");
        assert_eq!(wait.end_if_relieved(95), None);
        assert_eq!(wait.told(80), None);
        assert_eq!(wait.told(120), full(120), "whoever looks does not end it");
        assert!(wait.end_if_relieved(80).is_some());
        assert_eq!(wait.end_if_relieved(80), None, "once");
        assert_eq!(wait.told(120), None);
        assert!(wait.begin(100), "another one");
    }

    #[test]
    fn what_is_told_names_the_tail_its_limit_and_what_to_do() {
        let (rows, rows_max) = (150, 100);
        let said = FullTail { rows, rows_max }.to_string();
        assert!(
            said.starts_with(
                "waits for folding: its tail holds 150 rows, of at most 100 (apply.tail_rows_max); \
                 it goes on"
            ),
            "{said}"
        );
    }
}
