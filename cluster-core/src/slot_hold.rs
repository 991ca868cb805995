//! When the primary's disk outranks the index (P2's one exception).
//!
//! Past a limit of retained WAL the slot passes the replicas that hold it: one with a
//! peer that goes on is demoted, one without is marked stale. A replica holds the slot
//! if it alone accounts for half of the limit: for longer than a while, more than
//! that lies between what it has made durable and what the nodes were sent. So nobody
//! is passed for WAL that a long transaction retains, or that a consumer which was
//! away has not sent yet; and once the slot has moved, nobody else is.
//!
//! Caveat: a replica that moves, only more slowly than the primary writes, slows the
//! stream to its own pace. It never falls that far behind what was sent, and the
//! primary's `max_slot_wal_keep_size` is what bounds the WAL then.

use crate::confirm::ReplicaKey;
use std::collections::BTreeMap;

/// The operator is warned at this part of the limit, in per cent.
const WARN_PERCENT: u64 = 80;
/// Warned again only after the WAL has fallen below this part.
const CALM_PERCENT: u64 = 50;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// WAL that the server may retain for the slot; 0: any amount.
    pub retained_bytes: u64,
    /// How long a replica must have held the slot.
    pub after_ms: u64,
}

impl Limits {
    fn share_bytes(self) -> u64 {
        self.retained_bytes / 2
    }

    fn is_past(self, retained_bytes: u64, percent: u64) -> bool {
        let at = u128::from(self.retained_bytes) * u128::from(percent);
        u128::from(retained_bytes) * 100 >= at
    }
}

/// A required replica as it is seen now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    pub replica: ReplicaKey,
    /// Sent, and neither durable there nor confirmed before.
    pub held_bytes: u64,
    /// It answers searches. A counted learner does not yet.
    pub is_serving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Demote,
    MarkStale,
}

/// What is to be done and said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub due: Vec<(ReplicaKey, Act)>,
    /// The limit is near, for the first time since it was far: who holds the slot.
    pub warning: Option<Vec<ReplicaKey>>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    since_ms: u64,
    /// Not proposed before.
    ask_at_ms: u64,
    /// The coordinators keep it, peer or not: only the limit lets it go.
    is_demotion_refused: bool,
}

pub struct SlotHold {
    limits: Limits,
    looked_at_ms: Option<u64>,
    held: BTreeMap<ReplicaKey, Held>,
    has_warned: bool,
}

impl SlotHold {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            looked_at_ms: None,
            held: BTreeMap::new(),
            has_warned: false,
        }
    }

    /// The operator has set another limit.
    pub fn limit(&mut self, retained_bytes: u64) {
        self.limits.retained_bytes = retained_bytes;
    }

    /// Takes all required replicas as they are now.
    pub fn look(&mut self, now_ms: u64, retained_bytes: u64, seen: &[Holder]) -> Verdict {
        let limits = self.limits;
        if limits.retained_bytes == 0 {
            return Verdict::default();
        }
        self.watch(now_ms, seen);
        let warning = self.warn(retained_bytes);
        if retained_bytes <= limits.retained_bytes {
            return Verdict {
                due: Vec::new(),
                warning,
            };
        }
        let goes_on = |replica: &ReplicaKey| {
            seen.iter().any(|peer| {
                let is_peer = peer.replica.partition == replica.partition && peer.is_serving;
                is_peer && !self.held.contains_key(&peer.replica)
            })
        };
        let is_due = |held: &Held| {
            let lasted_ms = now_ms.saturating_sub(held.since_ms);
            lasted_ms >= limits.after_ms && held.ask_at_ms <= now_ms
        };
        let due = seen.iter().filter_map(|seen| {
            let held = self.held.get(&seen.replica).filter(|held| is_due(held))?;
            let can_return = seen.is_serving && goes_on(&seen.replica);
            let act = match can_return && !held.is_demotion_refused {
                true => Act::Demote,
                false => Act::MarkStale,
            };
            Some((seen.replica, act))
        });
        let due = due.collect();
        Verdict { due, warning }
    }

    /// Notes who holds the slot, and since when.
    fn watch(&mut self, now_ms: u64, seen: &[Holder]) {
        let paused_ms = self.looked_at_ms.map_or(0, |at| now_ms.saturating_sub(at));
        self.looked_at_ms = Some(now_ms);
        // Who has not looked has not seen it last.
        if paused_ms >= self.limits.after_ms.div_ceil(2).max(1) {
            self.held.clear();
        }
        let share_bytes = self.limits.share_bytes();
        let holds = seen.iter().filter(|seen| seen.held_bytes > share_bytes);
        let mut held = BTreeMap::new();
        for seen in holds {
            let new = Held {
                since_ms: now_ms,
                ask_at_ms: now_ms,
                is_demotion_refused: false,
            };
            let known = self.held.get(&seen.replica).copied();
            held.insert(seen.replica, known.unwrap_or(new));
        }
        self.held = held;
    }

    fn warn(&mut self, retained_bytes: u64) -> Option<Vec<ReplicaKey>> {
        if !self.limits.is_past(retained_bytes, CALM_PERCENT) {
            self.has_warned = false;
        }
        if self.has_warned || !self.limits.is_past(retained_bytes, WARN_PERCENT) {
            return None;
        }
        self.has_warned = true;
        Some(self.held.keys().copied().collect())
    }

    /// The coordinators refused to demote it, too few others serving: at the limit
    /// it is marked.
    pub fn demotion_refused(&mut self, replica: ReplicaKey) {
        if let Some(held) = self.held.get_mut(&replica) {
            held.is_demotion_refused = true;
        }
    }

    /// The coordinators refused to mark it: asked again later.
    pub fn marking_refused(&mut self, replica: ReplicaKey, now_ms: u64) {
        if let Some(held) = self.held.get_mut(&replica) {
            held.ask_at_ms = now_ms + self.limits.after_ms;
        }
    }
}

#[cfg(test)]
#[path = "slot_hold_tests.rs"]
mod tests;
