//! The node's right to answer: the core's lease, and the maps that its grants named.

use crate::mutant::Mutant;
use crate::process::Effects;
use cluster_core::ids::{LeaseEpoch, MapStamp};
use cluster_core::lease::{BootMs, HeldLease, Standing};

#[derive(Default)]
pub struct NodeLease {
    held: HeldLease,
    /// The newest map that a grant spoke of: nothing is deleted on an older map's word.
    pub floor: MapStamp,
}

impl NodeLease {
    pub fn epoch(&self) -> LeaseEpoch {
        self.held.epoch()
    }

    pub fn is_held(&self, now: BootMs) -> bool {
        self.held.is_held(now)
    }

    /// `map` is the map that the leader had when it granted.
    pub fn granted(&mut self, map: MapStamp, sent_at: BootMs, ttl_ms: u64, now: BootMs) {
        self.floor = map.max(self.floor);
        self.held.granted_under(map, sent_at, ttl_ms, now);
    }

    /// See [`HeldLease::lets_answer_by`].
    pub fn lets_answer_by(&self, map: MapStamp, effects: &Effects<'_>) -> bool {
        self.held.lets_answer_by(map) || effects.is_broken(Mutant::AnswerOnOldMap)
    }

    /// Judges a request, and whether it is to renew at once.
    pub fn admit(&self, request: LeaseEpoch, now: BootMs, grace_ms: u64) -> (Standing, bool) {
        let admission = self.held.admit(request, now, grace_ms);
        (admission.standing, admission.renews_at_once)
    }
}
