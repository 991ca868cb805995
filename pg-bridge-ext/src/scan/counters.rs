//! What the scans of the last statement did, for EXPLAIN (ANALYZE) and the
//! status function. Of this backend only; [`publish`] adds them to the server's.

use super::visibility;
use std::cell::RefCell;
use std::collections::HashMap;

#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub scans: u64,
    pub pages: u64,
    pub rows_fetched: u64,
    pub rows_invisible: u64,
    pub rows_late: u64,
    pub own_rows: u64,
    pub exact_rows: u64,
    pub partitions: u64,
    pub tail_rows: u64,
    pub retries: u64,
    pub hedges: u64,
    pub stale_partitions: u64,
    pub distances: u64,
    /// For the position, over all pages.
    pub waited_ms: u64,
    /// Why a scan was exact; the last reason.
    pub fallback: Option<String>,
}

/// Indexes whose last fallback is remembered.
const REASONS_MAX: usize = 1000;

thread_local! {
    static COUNTERS: RefCell<Counters> = RefCell::default();
    /// What of them the server's counters have.
    static PUBLISHED: RefCell<Counters> = RefCell::default();
    static REASONS: RefCell<HashMap<u32, String>> = RefCell::default();
}

pub fn reset() {
    publish();
    PUBLISHED.set(Counters::default());
    COUNTERS.with_borrow_mut(|counters| *counters = Counters::default());
}

pub fn snapshot() -> Counters {
    COUNTERS.with_borrow(Clone::clone)
}

/// Adds what is new to the counters of the server.
pub fn publish() {
    let now = snapshot();
    visibility::scanned(&PUBLISHED.replace(now.clone()), &now);
}

pub fn count(change: impl FnOnce(&mut Counters)) {
    COUNTERS.with_borrow_mut(change);
}

pub fn fallback(index_oid: u32, reason: &str) {
    count(|counters| counters.fallback = Some(reason.to_owned()));
    REASONS.with_borrow_mut(|reasons| {
        if reasons.len() >= REASONS_MAX {
            reasons.clear();
        }
        reasons.insert(index_oid, reason.to_owned());
    });
}

pub fn last_fallback(index_oid: u32) -> Option<String> {
    REASONS.with_borrow(|reasons| reasons.get(&index_oid).cloned())
}
