//! What holders and grantor agree on.

use crate::ids::MapStamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseTerms {
    pub ttl_ms: u64,
    pub renew_every_ms: u64,
    pub drift_percent: u64,
    /// How long a node that holds a newer epoch answers requests of an older.
    pub epoch_grace_ms: u64,
}

impl Default for LeaseTerms {
    fn default() -> Self {
        Self {
            ttl_ms: 10_000,
            renew_every_ms: 3_000,
            drift_percent: 10,
            epoch_grace_ms: 2_000,
        }
    }
}

impl LeaseTerms {
    /// How long the grantor waits before it gives away what a silent holder had.
    pub fn wait_out_ms(&self) -> u64 {
        self.ttl_ms + self.ttl_ms * self.drift_percent / 100
    }

    /// Whether a lease that was renewed so long ago is over for certain.
    pub fn is_waited_out(&self, silent_ms: u64) -> bool {
        silent_ms > self.wait_out_ms()
    }

    /// Whether a node answers no more as a map older than `since` told it to: the
    /// map that it knows (`None`: it has not said) is that one or a newer, or its
    /// lease is over.
    pub fn has_let_go(&self, knows: Option<MapStamp>, silent_ms: u64, since: MapStamp) -> bool {
        knows.is_some_and(|map| map >= since) || self.is_waited_out(silent_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grantor_waits_longer_than_any_holder_counts() {
        assert_eq!(LeaseTerms::default().wait_out_ms(), 11_000);
    }
}
