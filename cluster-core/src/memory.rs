//! What a node still takes on at the memory that it uses.
//!
//! A kernel that runs out of memory kills the process, and with it every partition
//! of the node; so the node stops before. Bulk work is refused first: a backfill or
//! a copy can be taken up later, or elsewhere. Vectors that the stream brings are
//! committed and cannot be refused: they wait, and the slot with them, until the replica
//! is demoted as one that makes nothing durable, or the slot's limit is reached. Removals,
//! and vectors for slots of removed ones, take no memory. Searches are always answered.

/// Bulk work is refused from so many per cent of the limit on …
const TIGHT_FROM_PERCENT: u64 = 85;
/// … until it is below this again.
const FREE_BELOW_PERCENT: u64 = 80;
/// The stream waits from here on …
const FULL_FROM_PERCENT: u64 = 95;
/// … until it is below this.
const TIGHT_BELOW_PERCENT: u64 = 92;

/// In rising order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemoryPressure {
    #[default]
    Free,
    /// Backfills and copies are refused.
    Tight,
    /// Vectors that the stream brings wait as well.
    Full,
}

impl MemoryPressure {
    /// As metrics and `ctl` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Tight => "tight",
            Self::Full => "full",
        }
    }
}

/// Judges one node's memory against its limit.
#[derive(Clone, Copy, Debug)]
pub struct MemoryGuard {
    limit_bytes: u64,
    pressure: MemoryPressure,
}

impl MemoryGuard {
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            pressure: MemoryPressure::Free,
        }
    }

    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// As judged last.
    pub fn pressure(&self) -> MemoryPressure {
        self.pressure
    }

    /// What stands between two thresholds stays as it was, so that work at the edge
    /// is not refused and admitted by turns.
    pub fn judge(&mut self, used_bytes: u64) -> MemoryPressure {
        let is_from = |percent| used_bytes >= share(self.limit_bytes, percent);
        let was = self.pressure;
        let is_full = is_from(FULL_FROM_PERCENT)
            || (was == MemoryPressure::Full && is_from(TIGHT_BELOW_PERCENT));
        let is_tight = is_from(TIGHT_FROM_PERCENT)
            || (was >= MemoryPressure::Tight && is_from(FREE_BELOW_PERCENT));
        self.pressure = match (is_full, is_tight) {
            (true, _) => MemoryPressure::Full,
            (false, true) => MemoryPressure::Tight,
            (false, false) => MemoryPressure::Free,
        };
        self.pressure
    }
}

fn share(bytes: u64, percent: u64) -> u64 {
    (u128::from(bytes) * u128::from(percent) / 100) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryPressure::*;

    #[test]
    fn p10_bulk_work_stops_first_and_the_stream_before_the_limit() {
        let mut guard = MemoryGuard::new(1_000);
        let judged = [0, 849, 850, 949, 950, 1_000, 5_000].map(|used| guard.judge(used));
        assert_eq!(judged, [Free, Free, Tight, Tight, Full, Full, Full]);
    }

    #[test]
    fn between_two_thresholds_it_stays_as_it_was() {
        let mut guard = MemoryGuard::new(1_000);
        let judged = [860, 810, 799, 810].map(|used| guard.judge(used));
        assert_eq!(judged, [Tight, Tight, Free, Free]);
        let judged = [960, 930, 919, 930, 700].map(|used| guard.judge(used));
        assert_eq!(judged, [Full, Full, Tight, Tight, Free]);
    }

    #[test]
    fn a_limit_near_the_end_of_the_numbers_is_no_overflow() {
        let mut guard = MemoryGuard::new(u64::MAX);
        assert_eq!(guard.judge(u64::MAX / 2), Free);
        assert_eq!(guard.judge(u64::MAX), Full);
        assert_eq!(MemoryGuard::new(0).judge(0), Full, "no memory is no room");
    }
}
