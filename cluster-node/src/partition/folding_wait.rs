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

/// What is to be told of a wait now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    Never,
    Goes(FullTail),
    /// It has just ended, after so long.
    Ended(Duration),
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

    /// With a tail of so many rows.
    pub fn look(&self, rows: usize) -> Wait {
        let mut waiting = self.0.lock();
        if let Some(ended) = waiting.take_if(|waiting| is_relieved(rows, waiting.rows_max)) {
            return Wait::Ended(ended.since.elapsed());
        }
        match &*waiting {
            Some(Waiting { rows_max, .. }) => Wait::Goes(FullTail {
                rows,
                rows_max: *rows_max,
            }),
            None => Wait::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_of_one_commit_after_another_are_one() {
        let wait = FoldingWait::default();
        assert_eq!(wait.look(500), Wait::Never);
        assert!(wait.begin(100));
        let full = |rows| FullTail {
            rows,
            rows_max: 100,
        };
        assert_eq!(wait.look(150), Wait::Goes(full(150)));
        assert_eq!(wait.look(95), Wait::Goes(full(95)));
        assert!(!wait.begin(100), "told already");
        assert!(matches!(wait.look(80), Wait::Ended(_)));
        assert_eq!(wait.look(120), Wait::Never);
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
