//! For whom the slot waits no longer.
//!
//! A required replica that stands still while there is work for it, or lags too
//! far, holds the primary's log. Leaving it behind helps only while another
//! replica of its partition goes on, and costs a copy of the whole partition: so it
//! must have lasted, it must not be our own doing, and the coordinators have the
//! last word. A refusal is remembered; the slot goes on waiting.

use crate::confirm::ReplicaKey;
use crate::ids::PartitionId;
use crate::wal_position::WalPosition;
use std::collections::{BTreeMap, BTreeSet};

/// Between two proposals of the same replica, at most.
const ASK_AGAIN_MS_MAX: u64 = 300_000;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a replica may stand still, or lag, or its node be away.
    pub after_ms: u64,
    /// How far behind the newest position a replica may be.
    pub lag_bytes: u64,
}

/// A required replica as it is seen now.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    pub replica: ReplicaKey,
    pub durable: WalPosition,
    /// Its node can be reached.
    pub is_up: bool,
    /// Something was sent, or should be, that it has not made durable.
    pub has_work: bool,
    /// Between the newest position that is known and what it has made durable.
    pub bytes_behind: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Stalled,
    Lagging,
    NodeAway,
}

impl Reason {
    pub fn label(self) -> &'static str {
        match self {
            Reason::Stalled => "stalled",
            Reason::Lagging => "lagging",
            Reason::NodeAway => "node_away",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    durable: WalPosition,
    /// When it last moved, or had nothing to do.
    quiet_since_ms: u64,
    lags_since_ms: Option<u64>,
    /// Not proposed before.
    ask_at_ms: u64,
    refusals: u32,
}

impl Watched {
    fn new(durable: WalPosition, now_ms: u64) -> Self {
        Self {
            durable,
            quiet_since_ms: now_ms,
            lags_since_ms: None,
            ask_at_ms: now_ms,
            refusals: 0,
        }
    }

    fn forgive(&mut self, now_ms: u64) {
        self.quiet_since_ms = now_ms;
        self.lags_since_ms = None;
    }

    fn see(&mut self, seen: &Observed, now_ms: u64, limits: Limits) {
        let is_busy = seen.has_work || !seen.is_up;
        if seen.durable > self.durable || !is_busy {
            self.quiet_since_ms = now_ms;
        }
        self.durable = self.durable.max(seen.durable);
        self.lags_since_ms = match seen.bytes_behind > limits.lag_bytes {
            true => Some(self.lags_since_ms.unwrap_or(now_ms)),
            false => None,
        };
    }

    fn reason(&self, is_up: bool, now_ms: u64, limits: Limits) -> Option<Reason> {
        let has_lasted = |since: u64| now_ms.saturating_sub(since) >= limits.after_ms;
        if has_lasted(self.quiet_since_ms) {
            return Some(if is_up {
                Reason::Stalled
            } else {
                Reason::NodeAway
            });
        }
        self.lags_since_ms
            .is_some_and(has_lasted)
            .then_some(Reason::Lagging)
    }
}

pub struct DemotionWatch {
    limits: Limits,
    looked_at_ms: Option<u64>,
    watched: BTreeMap<ReplicaKey, Watched>,
}

impl DemotionWatch {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            looked_at_ms: None,
            watched: BTreeMap::new(),
        }
    }

    /// Takes all required replicas as they are now; answers whom to demote.
    pub fn look(&mut self, now_ms: u64, observed: &[Observed]) -> Vec<(ReplicaKey, Reason)> {
        let limits = self.limits;
        let present: BTreeSet<ReplicaKey> = observed.iter().map(|seen| seen.replica).collect();
        self.watched.retain(|replica, _| present.contains(replica));
        let paused_ms = self.looked_at_ms.map_or(0, |at| now_ms.saturating_sub(at));
        self.looked_at_ms = Some(now_ms);
        // Who has not looked, or reaches nobody, has seen nothing of anybody.
        let is_blind = paused_ms >= limits.after_ms.div_ceil(2).max(1)
            || !observed.iter().any(|seen| seen.is_up);
        for seen in observed {
            let watched = self.watched.entry(seen.replica);
            let watched = watched.or_insert_with(|| Watched::new(seen.durable, now_ms));
            watched.see(seen, now_ms, limits);
            if is_blind {
                watched.forgive(now_ms);
            }
        }
        let late: BTreeMap<ReplicaKey, Reason> = observed
            .iter()
            .filter_map(|seen| {
                let reason = self.watched[&seen.replica].reason(seen.is_up, now_ms, limits)?;
                Some((seen.replica, reason))
            })
            .collect();
        let goes_on: BTreeSet<PartitionId> = present
            .iter()
            .filter(|replica| !late.contains_key(replica))
            .map(|replica| replica.partition)
            .collect();
        late.into_iter()
            .filter(|(replica, _)| goes_on.contains(&replica.partition))
            .filter(|(replica, _)| self.watched[replica].ask_at_ms <= now_ms)
            .collect()
    }

    /// The coordinators refused: too few others serve. Asked again later, each
    /// time after twice as long.
    pub fn refused(&mut self, replica: ReplicaKey, now_ms: u64) {
        if let Some(watched) = self.watched.get_mut(&replica) {
            let factor = 1u64.checked_shl(watched.refusals).unwrap_or(u64::MAX);
            let pause_ms = self.limits.after_ms.saturating_mul(factor);
            watched.ask_at_ms = now_ms + pause_ms.min(ASK_AGAIN_MS_MAX);
            watched.refusals = (watched.refusals + 1).min(u64::BITS - 1);
        }
    }
}

#[cfg(test)]
#[path = "demotion_tests.rs"]
mod tests;
