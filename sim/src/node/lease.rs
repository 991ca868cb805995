//! The node's right to answer: the core's lease, and the maps that its grants named.

use crate::mutant::Mutant;
use crate::process::Effects;
use cluster_core::ids::LeaseEpoch;
use cluster_core::lease::{BootMs, Granted, HeldLease, Standing};
use cluster_core::scan::MapStamp;

#[derive(Default)]
pub struct NodeLease {
    held: HeldLease,
    /// The newest map that a grant spoke of: nothing is deleted on an older map's word.
    pub floor: MapStamp,
    /// The map of the grant that ended the last gap in the lease.
    regained_under: MapStamp,
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
        if self.held.granted(map.0, sent_at, ttl_ms, now) == Granted::Regained {
            self.regained_under = map;
        }
    }

    /// Whether replicas may be answered from by this map. What the node had may
    /// have been given away in a gap of its lease.
    pub fn lets_answer_by(&self, map: MapStamp, effects: &Effects<'_>) -> bool {
        map >= self.regained_under || effects.is_broken(Mutant::AnswerOnOldMap)
    }

    /// Judges a request, and whether it is to renew at once.
    pub fn admit(&self, request: LeaseEpoch, now: BootMs, grace_ms: u64) -> (Standing, bool) {
        let admission = self.held.admit(request, now, grace_ms);
        (admission.standing, admission.renews_at_once)
    }
}
