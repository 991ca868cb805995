//! Leases: who may answer, and until when.
//!
//! Times are milliseconds of CLOCK_BOOTTIME of the machine that counts them,
//! handed in; no second machine's clock takes part. A holder counts from the
//! moment it *sent* the renewal, the grantor from the moment it received it and
//! adds the drift: whatever the network did, the holder stops first.

use crate::ids::LeaseEpoch;
use serde::{Deserialize, Serialize};

/// Milliseconds of CLOCK_BOOTTIME.
pub type BootMs = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// The holder's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldLease {
    epoch: LeaseEpoch,
    expires_at: BootMs,
    epoch_since: BootMs,
}

impl HeldLease {
    /// Takes a grant for a renewal sent at `sent_at`. A grant of an older epoch
    /// is void: epochs only rise (P6).
    pub fn granted(&mut self, epoch: LeaseEpoch, sent_at: BootMs, ttl_ms: u64, now: BootMs) {
        if epoch < self.epoch {
            return;
        }
        if epoch > self.epoch {
            self.epoch = epoch;
            self.epoch_since = now;
        }
        self.expires_at = self.expires_at.max(sent_at.saturating_add(ttl_ms));
    }

    pub fn epoch(&self) -> LeaseEpoch {
        self.epoch
    }

    pub fn is_held(&self, now: BootMs) -> bool {
        now < self.expires_at
    }

    /// Whether a request that bears `epoch` is too old: the node has held a
    /// newer one for longer than the grace (an election costs no query).
    pub fn is_stale_request(&self, epoch: LeaseEpoch, now: BootMs, grace_ms: u64) -> bool {
        epoch < self.epoch && now.saturating_sub(self.epoch_since) > grace_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_a_lease_counts_from_the_sending_of_its_renewal() {
        let mut lease = HeldLease::default();
        assert!(!lease.is_held(0));
        lease.granted(LeaseEpoch(1), 1_000, 10_000, 9_000);
        assert!(lease.is_held(10_999));
        assert!(!lease.is_held(11_000));
    }

    #[test]
    fn p6_an_older_epochs_grant_is_void() {
        let mut lease = HeldLease::default();
        lease.granted(LeaseEpoch(2), 0, 10, 0);
        lease.granted(LeaseEpoch(1), 50, 1_000, 50);
        assert!(!lease.is_held(60));
        assert_eq!(lease.epoch(), LeaseEpoch(2));
    }

    #[test]
    fn an_older_requests_epoch_is_served_within_the_grace() {
        let mut lease = HeldLease::default();
        lease.granted(LeaseEpoch(1), 0, 10_000, 0);
        lease.granted(LeaseEpoch(2), 5_000, 10_000, 5_000);
        assert!(!lease.is_stale_request(LeaseEpoch(1), 7_000, 2_000));
        assert!(lease.is_stale_request(LeaseEpoch(1), 7_001, 2_000));
        assert!(!lease.is_stale_request(LeaseEpoch(3), 99_000, 2_000));
    }

    #[test]
    fn the_grantor_waits_longer_than_any_holder_counts() {
        assert_eq!(LeaseTerms::default().wait_out_ms(), 11_000);
    }
}
