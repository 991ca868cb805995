//! The holder's side: until when it may answer, and under which epoch.

use crate::ids::{LeaseEpoch, MapStamp};

/// Milliseconds of CLOCK_BOOTTIME, which goes on while the machine sleeps.
pub type BootMs = u64;

/// What a grant has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// Of an epoch that is over: nothing.
    Void,
    /// The lease has gone on without a gap: nothing was given away meanwhile.
    Renewed,
    /// There was a gap. What the holder had may have been given to another, and
    /// it acts on what it knows only once that is as new as the grantor's map.
    Regained,
}

/// What a request finds at admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Held,
    /// Only what needs no lease is answered.
    Lapsed,
    /// The request's epoch is too old.
    StaleRequest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    pub standing: Standing,
    /// The request knows of a newer epoch: renew, and serve meanwhile under the
    /// lease as it is. An election costs no query.
    pub renews_at_once: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeldLease {
    epoch: LeaseEpoch,
    expires_at: BootMs,
    epoch_since: BootMs,
    /// The map of the grant that ended the last gap.
    regained_under: MapStamp,
}

impl HeldLease {
    /// Takes a grant for a renewal sent at `sent_at`. A grant of an older epoch
    /// is void: epochs only rise (P6).
    pub fn granted(
        &mut self,
        epoch: LeaseEpoch,
        sent_at: BootMs,
        ttl_ms: u64,
        now: BootMs,
    ) -> Granted {
        if epoch < self.epoch {
            return Granted::Void;
        }
        let went_on = self.is_held(now);
        if epoch > self.epoch {
            self.epoch = epoch;
            self.epoch_since = now;
        }
        self.expires_at = self.expires_at.max(sent_at.saturating_add(ttl_ms));
        match went_on {
            true => Granted::Renewed,
            false => Granted::Regained,
        }
    }

    /// As [`HeldLease::granted`], for a node: `map` is the map that the leader had
    /// when it granted.
    pub fn granted_under(
        &mut self,
        map: MapStamp,
        sent_at: BootMs,
        ttl_ms: u64,
        now: BootMs,
    ) -> Granted {
        let granted = self.granted(map.0, sent_at, ttl_ms, now);
        if granted == Granted::Regained {
            self.regained_under = map.max(self.regained_under);
        }
        granted
    }

    /// Whether replicas may be answered from by this map. What the node had may
    /// have been given away in a gap of its lease: an older map than the one that
    /// it came back under proves nothing.
    pub fn lets_answer_by(&self, map: MapStamp) -> bool {
        map >= self.regained_under
    }

    pub fn epoch(&self) -> LeaseEpoch {
        self.epoch
    }

    pub fn is_held(&self, now: BootMs) -> bool {
        now < self.expires_at
    }

    /// Judges a request that bears `epoch`.
    pub fn admit(&self, epoch: LeaseEpoch, now: BootMs, grace_ms: u64) -> Admission {
        let standing = if self.is_stale_request(epoch, now, grace_ms) {
            Standing::StaleRequest
        } else if self.is_held(now) {
            Standing::Held
        } else {
            Standing::Lapsed
        };
        Admission {
            standing,
            renews_at_once: epoch > self.epoch,
        }
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
    use crate::ids::MapVersion;

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
    fn p6_a_grant_after_a_gap_says_so() {
        let mut lease = HeldLease::default();
        let mut grant = |epoch, sent, now| lease.granted(LeaseEpoch(epoch), sent, 10, now);
        assert_eq!(grant(2, 0, 1), Granted::Regained);
        assert_eq!(grant(2, 8, 9), Granted::Renewed);
        assert_eq!(grant(3, 17, 18), Granted::Regained, "it ended at 18");
        assert_eq!(grant(2, 20, 21), Granted::Void);
    }

    #[test]
    fn p5_a_lease_that_was_lost_lets_no_older_map_answer() {
        let mut lease = HeldLease::default();
        let map = |version| (LeaseEpoch(1), MapVersion(version));
        lease.granted_under(map(3), 0, 10, 1);
        assert!(!lease.lets_answer_by(map(2)));
        assert!(lease.lets_answer_by(map(3)));
        lease.granted_under(map(9), 8, 10, 9);
        assert!(lease.lets_answer_by(map(3)), "no gap, nothing given away");
        lease.granted_under(map(9), 30, 10, 31);
        assert!(!lease.lets_answer_by(map(8)));
    }
}
