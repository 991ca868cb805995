//! When a node's folding gives way to apply.
//!
//! A row is searchable from the tail, exactly, as soon as it is applied; linking it
//! into the graph only makes searches cheaper, and costs many times what applying it
//! does. So while a large amount waits to be applied, folding leaves the cores to it.
//!
//! It never gives way for good: a tail that is half full is folded whatever waits
//! (apply itself waits for one that is full), and otherwise one slice is folded every
//! [`GIVES_WAY_MS_MAX`].

/// Changes that wait from which on apply counts as behind. Rows that are committed one
/// by one never come near it.
pub const BEHIND_CHANGES: usize = 1_000;
/// How long apply counts as behind after that: the pause between two batches of one
/// transaction is no time for folding.
const BEHIND_FOR_MS: u64 = 100;
/// Without a slice in between.
pub const GIVES_WAY_MS_MAX: u64 = 2_000;

/// Whether a tail that was full is folded enough for nobody to be told of it any more. Rows
/// that come faster than they are folded hold it at its limit, and wait once a commit: that
/// is one wait, and not one a commit.
pub fn is_relieved(tail_rows: usize, tail_rows_max: usize) -> bool {
    tail_rows.saturating_mul(10) < tail_rows_max.saturating_mul(9)
}

/// What a node's folders see when they look for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoldLoad {
    /// Changes of all replicas that streams have brought and that are not applied.
    pub waiting_changes: usize,
    /// The longest tail.
    pub tail_rows: usize,
    /// From which on apply waits for folding.
    pub tail_rows_max: usize,
}

/// What a folder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoldTurn {
    /// Fold, and ask again soon.
    Freely,
    /// Fold one slice, though apply is behind.
    OneSlice,
    GiveWay,
}

/// Shared by all folders of a node.
#[derive(Debug, Default)]
pub struct FoldPace {
    behind_until_ms: u64,
    gives_way_since_ms: Option<u64>,
}

impl FoldPace {
    pub fn turn(&mut self, now_ms: u64, load: FoldLoad) -> FoldTurn {
        if load.waiting_changes >= BEHIND_CHANGES {
            self.behind_until_ms = now_ms + BEHIND_FOR_MS;
        }
        let is_behind = now_ms < self.behind_until_ms;
        if !is_behind || load.tail_rows > load.tail_rows_max / 2 {
            self.gives_way_since_ms = None;
            return FoldTurn::Freely;
        }
        let since = *self.gives_way_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since) < GIVES_WAY_MS_MAX {
            return FoldTurn::GiveWay;
        }
        self.gives_way_since_ms = Some(now_ms);
        FoldTurn::OneSlice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_at_its_limit_is_not_relieved_by_a_few_rows() {
        for (rows, is_so) in [
            (101, false),
            (100, false),
            (90, false),
            (89, true),
            (0, true),
        ] {
            assert_eq!(is_relieved(rows, 100), is_so, "{rows}");
        }
        assert!(is_relieved(0, 1) && !is_relieved(1, 1));
        assert!(is_relieved(200_000, usize::MAX));
    }

    fn load(waiting_changes: usize, tail_rows: usize) -> FoldLoad {
        FoldLoad {
            waiting_changes,
            tail_rows,
            tail_rows_max: 10_000,
        }
    }

    #[test]
    fn rows_that_come_one_by_one_are_folded_as_they_come() {
        let mut pace = FoldPace::default();
        for now_ms in 0..5_000 {
            let waiting = (now_ms % 4) as usize;
            assert_eq!(pace.turn(now_ms, load(waiting, 500)), FoldTurn::Freely);
        }
    }

    #[test]
    fn folding_gives_way_to_a_large_amount_and_to_the_pauses_within_it() {
        let mut pace = FoldPace::default();
        assert_eq!(pace.turn(0, load(0, 500)), FoldTurn::Freely);
        assert_eq!(pace.turn(1, load(BEHIND_CHANGES, 500)), FoldTurn::GiveWay);
        assert_eq!(pace.turn(BEHIND_FOR_MS, load(0, 900)), FoldTurn::GiveWay);
        assert_eq!(pace.turn(BEHIND_FOR_MS + 1, load(0, 900)), FoldTurn::Freely);
    }

    #[test]
    fn p10_a_tail_that_is_half_full_is_folded_whatever_waits() {
        let mut pace = FoldPace::default();
        assert_eq!(pace.turn(0, load(1 << 20, 5_000)), FoldTurn::GiveWay);
        assert_eq!(pace.turn(1, load(1 << 20, 5_001)), FoldTurn::Freely);
        assert_eq!(pace.turn(2, load(1 << 20, 10_001)), FoldTurn::Freely);
    }

    #[test]
    fn p10_folding_is_never_kept_from_work_longer_than_the_bound() {
        let mut pace = FoldPace::default();
        let mut last_ms = 0;
        let mut slices = 0;
        for now_ms in 0..10 * GIVES_WAY_MS_MAX {
            if pace.turn(now_ms, load(1 << 20, 5_000)) != FoldTurn::GiveWay {
                last_ms = now_ms;
                slices += 1;
            }
            assert!(now_ms - last_ms <= GIVES_WAY_MS_MAX, "at {now_ms} ms");
        }
        assert_eq!(slices, 9, "and no oftener: the stream comes first");
    }
}
