//! Counters of the whole server, in shared memory: how searches asked for
//! freshness, what that cost them, and why scans were exact. They begin at zero
//! with the server. A backend adds what a scan did when the scan ends.

use super::counters::Counters;
use crate::settings::ReadConsistency;
use crate::worker;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a scan was exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExactReason {
    /// Nothing to order by, or no direction.
    Order,
    /// Not an ordinary snapshot, or one older than the collection.
    Snapshot,
    OwnWrites,
    Standby,
    /// `wal_level`, or the library is not preloaded.
    Prerequisites,
    NoKey,
    /// The cluster does not follow this definition of the index.
    NotFollowed,
    Building,
    Failed,
    Lagging,
    Unavailable,
    Throttled,
    Estale,
    Corrupt,
    Gated,
}

impl ExactReason {
    const ALL: [Self; 15] = [
        Self::Order,
        Self::Snapshot,
        Self::OwnWrites,
        Self::Standby,
        Self::Prerequisites,
        Self::NoKey,
        Self::NotFollowed,
        Self::Building,
        Self::Failed,
        Self::Lagging,
        Self::Unavailable,
        Self::Throttled,
        Self::Estale,
        Self::Corrupt,
        Self::Gated,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Order => "no order",
            Self::Snapshot => "snapshot",
            Self::OwnWrites => "own writes",
            Self::Standby => "standby",
            Self::Prerequisites => "prerequisites",
            Self::NoKey => "no key",
            Self::NotFollowed => "not followed",
            Self::Building => "building",
            Self::Failed => "failed",
            Self::Lagging => "lagging",
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Estale => "estale",
            Self::Corrupt => "corrupt",
            Self::Gated => "gated",
        }
    }
}

const LEVELS: [(ReadConsistency, &str); 4] = [
    (ReadConsistency::Eventual, "eventual"),
    (ReadConsistency::Bounded, "bounded"),
    (ReadConsistency::Session, "session"),
    (ReadConsistency::Strong, "strong"),
];

#[repr(C)]
pub struct VisibilityStats {
    levels: [Level; LEVELS.len()],
    exact: [AtomicU64; ExactReason::ALL.len()],
    rows: [AtomicU64; ROWS.len()],
}

#[repr(C)]
struct Level {
    searches: AtomicU64,
    waits: AtomicU64,
    wait_ms: AtomicU64,
    lagging: AtomicU64,
}

type RowCount = (&'static str, fn(&Counters) -> u64);

/// What scans counted of rows, by name.
const ROWS: [RowCount; 5] = [
    ("rechecked", |c| c.rows_fetched + c.rows_invisible),
    ("invisible", |c| c.rows_invisible),
    ("late", |c| c.rows_late),
    ("own", |c| c.own_rows),
    ("exact", |c| c.exact_rows),
];

fn add(counter: &AtomicU64, count: u64) {
    if count > 0 {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

fn with_level(level: ReadConsistency, change: impl FnOnce(&Level)) {
    let at = LEVELS.iter().position(|(known, _)| *known == level);
    if let (Some(stats), Some(at)) = (worker::visibility_stats(), at) {
        change(&stats.levels[at]);
    }
}

/// A search is sent to the cluster.
pub fn searched(level: ReadConsistency) {
    with_level(level, |counts| add(&counts.searches, 1));
}

/// A page came, and its replicas had waited for the position so long.
pub fn waited(level: ReadConsistency, wait_ms: u64) {
    if wait_ms > 0 {
        with_level(level, |counts| {
            add(&counts.waits, 1);
            add(&counts.wait_ms, wait_ms);
        });
    }
}

/// The position was not reached in time.
pub fn lagged(level: ReadConsistency, wait_ms: u64) {
    waited(level, wait_ms);
    with_level(level, |counts| add(&counts.lagging, 1));
}

pub fn scanned_exactly(reason: ExactReason) {
    if let Some(stats) = worker::visibility_stats() {
        add(&stats.exact[reason as usize], 1);
    }
}

/// Adds what is in `now` and was not in `before`.
pub fn scanned(before: &Counters, now: &Counters) {
    if let Some(stats) = worker::visibility_stats() {
        for (counter, (_, of)) in stats.rows.iter().zip(ROWS) {
            add(counter, of(now).saturating_sub(of(before)));
        }
    }
}

impl VisibilityStats {
    /// `(counter, label, value)` of all of them.
    pub fn list(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut list = Vec::new();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (level, (_, name)) in self.levels.iter().zip(LEVELS) {
            list.push(("searches", name, read(&level.searches)));
            list.push(("waits", name, read(&level.waits)));
            list.push(("wait_ms", name, read(&level.wait_ms)));
            list.push(("lagging", name, read(&level.lagging)));
        }
        for (counter, reason) in self.exact.iter().zip(ExactReason::ALL) {
            list.push(("exact_scans", reason.name(), read(counter)));
        }
        for (counter, (name, _)) in self.rows.iter().zip(ROWS) {
            list.push(("rows", name, read(counter)));
        }
        list
    }
}
