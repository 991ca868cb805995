//! When a quiet source's slot is given something of its own to move by.
//!
//! A slot keeps WAL for as long as nothing confirms it. A database in which nothing
//! is written sends nothing to confirm, however much its neighbours on the server
//! write: then a small record of our own goes through the stream. It is written only
//! where it can help: while transactions come their commits do the same, and a slot
//! that retains little costs the server nothing.

use crate::lease::BootMs;
use crate::wal_position::Lsn;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Quiet for so long, and between two heartbeats. 0: never.
    pub every_ms: u64,
    /// Less retained WAL than this is let be.
    pub retained_bytes: u64,
}

/// What is known of the source right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Where the newest transaction of the source itself ends.
    pub transaction_end: Lsn,
    /// What the server keeps for the slot.
    pub retained_bytes: u64,
}

#[derive(Debug)]
pub struct Heartbeat {
    terms: Terms,
    transaction_end: Lsn,
    /// Since the newest transaction, or the newest heartbeat.
    quiet_since_ms: BootMs,
}

impl Heartbeat {
    pub fn new(terms: Terms, now_ms: BootMs) -> Self {
        Self {
            terms,
            transaction_end: Lsn(0),
            quiet_since_ms: now_ms,
        }
    }

    /// Whether one is to be written now; asked for it counts as written, so that one
    /// that fails is not tried in a hurry.
    pub fn is_due(&mut self, now_ms: BootMs, seen: Seen) -> bool {
        if seen.transaction_end > self.transaction_end {
            self.transaction_end = seen.transaction_end;
            self.quiet_since_ms = now_ms;
            return false;
        }
        let quiet_ms = now_ms.saturating_sub(self.quiet_since_ms);
        let is_due = self.terms.every_ms > 0
            && quiet_ms >= self.terms.every_ms
            && seen.retained_bytes >= self.terms.retained_bytes;
        if is_due {
            self.quiet_since_ms = now_ms;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        every_ms: 10,
        retained_bytes: 100,
    };

    fn seen(transaction_end: u64, retained_bytes: u64) -> Seen {
        Seen {
            transaction_end: Lsn(transaction_end),
            retained_bytes,
        }
    }

    /// The moments of those that are due, when it is asked at every one.
    fn beats(terms: Terms, until_ms: u64, at: impl Fn(u64) -> Seen) -> Vec<u64> {
        let mut heartbeat = Heartbeat::new(terms, 0);
        let is_due = |now: &u64| heartbeat.is_due(*now, at(*now));
        (0..=until_ms).filter(is_due).collect()
    }

    #[test]
    fn p11_a_quiet_source_whose_slot_retains_wal_beats_at_its_interval() {
        assert_eq!(beats(TERMS, 35, |_| seen(0, 100)), [10, 20, 30]);
        // From the moment on that enough is retained.
        let grows = |now| seen(0, if now < 17 { 99 } else { 100 });
        assert_eq!(beats(TERMS, 35, grows), [17, 27]);
    }

    #[test]
    fn p11_a_busy_source_and_a_slot_that_retains_little_need_none() {
        let none: [u64; 0] = [];
        assert_eq!(beats(TERMS, 100, |now| seen(now / 5, 1_000)), none);
        assert_eq!(beats(TERMS, 100, |_| seen(0, 99)), none);
        let never = Terms {
            every_ms: 0,
            ..TERMS
        };
        assert_eq!(beats(never, 100, |_| seen(0, 1_000)), none);
    }

    #[test]
    fn p11_a_transaction_counts_as_a_heartbeat() {
        let commits_once = |now| seen(u64::from(now >= 15), 100);
        assert_eq!(beats(TERMS, 36, commits_once), [10, 25, 35]);
    }
}
