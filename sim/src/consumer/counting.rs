//! For whom the slot waits: learners are counted where the core's tracker lets them
//! be, and only then promoted; who holds the slot is demoted when the core's watch
//! says so.

use super::asks::{Purpose, Wish};
use super::feed::Fed;
use super::replicas::key;
use super::run::Run;
use crate::mutant::Mutant;
use crate::process::Effects;
use cluster_core::confirm::ReplicaKey;
use cluster_core::control::Command;
use cluster_core::demotion::{Limits, Observed};
use cluster_core::map::PartitionMap;
use cluster_core::wal_position::{Lsn, WalPosition};

pub(super) const DEMOTION: Limits = Limits {
    after_ms: 5_000,
    lag_bytes: 1_500,
};
/// For so long confirmation pauses for a learner that has nearly caught up.
const HOLD_MS: u64 = 1_500;
/// A learner that did not arrive meanwhile tries again after this many times as long.
const REST_FACTOR: u64 = 5;

/// How a learner's being counted stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counting {
    /// Confirmation pauses for it.
    Approaching {
        since: u64,
    },
    Resting {
        until: u64,
    },
}

/// A learner that its node says to be live.
#[derive(Clone, Copy)]
struct Live {
    replica: ReplicaKey,
    durable: WalPosition,
    is_half: bool,
}

impl Run {
    pub(super) fn count_learners(&mut self, map: &PartitionMap, effects: &mut Effects<'_>) {
        let is_early = effects.is_broken(Mutant::LearnerCountedEarly);
        for live in self.live_learners(map, is_early) {
            let is_forced = live.is_half && effects.is_broken(Mutant::HalfPromotedUncounted);
            if !is_forced && !self.count(live, effects) {
                continue;
            }
            let replica = live.replica;
            if self.promoted.contains(&replica) {
                continue;
            }
            let command = Command::PromoteReplica {
                token: self.token,
                partition: replica.partition,
                node: replica.node,
                generation: replica.generation,
                waits_out: true,
            };
            self.asks
                .ask(Purpose::Promote(replica), Wish::Command(command));
        }
    }

    /// None of a node that is away: another would give its place to it.
    fn live_learners(&self, map: &PartitionMap, is_early: bool) -> Vec<Live> {
        let mut live = Vec::new();
        for (node, feed) in self.feeds.iter().filter(|(_, feed)| feed.is_up()) {
            let is_live = |fed: &Fed| {
                fed.is_learner && fed.durable > WalPosition::ZERO && (!fed.is_learning || is_early)
            };
            for (id, fed) in feed.partitions.iter().filter(|(_, fed)| is_live(fed)) {
                live.push(Live {
                    replica: key(*id, *node, fed.generation),
                    durable: fed.durable,
                    is_half: !map.partitions.contains_key(id),
                });
            }
        }
        live
    }

    /// Whether the slot waits for it, from now on at the latest.
    fn count(&mut self, live: Live, effects: &mut Effects<'_>) -> bool {
        let Live {
            replica, durable, ..
        } = live;
        let now = effects.now;
        if !self.counted.contains(&replica) {
            match self.counting.get(&replica).copied() {
                Some(Counting::Resting { until }) if now < until => return false,
                Some(Counting::Approaching { since }) if now >= since + HOLD_MS => {
                    let until = now + HOLD_MS * REST_FACTOR;
                    self.counting.insert(replica, Counting::Resting { until });
                    self.tracker.retain(|required| *required != replica);
                    return false;
                }
                _ => {}
            }
            if effects.is_broken(Mutant::LearnerCountedBelow) {
                self.tracker.require(replica);
            }
            if !self.tracker.count(replica, durable) {
                let is_new = !matches!(
                    self.counting.get(&replica),
                    Some(Counting::Approaching { .. })
                );
                if is_new {
                    let approaching = Counting::Approaching { since: now };
                    self.counting.insert(replica, approaching);
                }
                return false;
            }
            effects.note(format!("counts {replica:?} at {durable}"));
            self.counting.remove(&replica);
            self.counted.insert(replica);
        }
        if let Some(feed) = self.feeds.get_mut(&replica.node) {
            feed.counted(replica.partition);
        }
        true
    }

    /// Asks to demote whom the slot shall not wait for.
    pub(super) fn demote_late(&mut self, effects: &mut Effects<'_>) {
        let newest = self.server_end.max(self.complete);
        let observed: Vec<Observed> = self
            .feeds
            .iter()
            .flat_map(|(node, feed)| {
                let required = feed.partitions.iter().filter(|(_, fed)| fed.is_required);
                required.map(|(id, fed)| {
                    observe(key(*id, *node, fed.generation), fed, feed.is_up(), newest)
                })
            })
            .collect();
        for (replica, reason) in self.watch.look(effects.now, &observed) {
            effects.note(format!("{replica:?} is {}", reason.label()));
            let command = Command::DemoteReplica {
                token: self.token,
                partition: replica.partition,
                node: replica.node,
                generation: replica.generation,
                min_required: 1,
            };
            self.asks
                .ask(Purpose::Demote(replica), Wish::Command(command));
        }
    }
}

/// Of one that has reported nothing yet it is not known how far it lags.
fn observe(replica: ReplicaKey, fed: &Fed, is_up: bool, newest: Lsn) -> Observed {
    Observed {
        replica,
        durable: fed.durable,
        is_up,
        has_work: fed.has_work(),
        bytes_behind: match fed.durable {
            WalPosition::ZERO => 0,
            at => newest.0.saturating_sub(at.commit_end.0),
        },
    }
}
