//! Plain counters; who embeds the client exports them.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct ClientMetrics {
    pub scans: Counter,
    pub pages: Counter,
    pub search_requests: Counter,
    pub hedges: Counter,
    /// Partition attempts that failed, by what the replica said.
    pub failed_estale: Counter,
    pub failed_lagging: Counter,
    pub failed_unavailable: Counter,
    pub failed_cursor_lost: Counter,
    pub failed_corrupt: Counter,
    /// Scans that ended with an error, whatever it was.
    pub scans_failed: Counter,
}
