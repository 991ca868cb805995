//! Who serves and who is waited for, as the coordinators are asked to record it:
//! counted learners are promoted, and replicas that hold the slot are demoted, or
//! marked stale at [its limit](super::slot_limit).
//!
//! Runs beside the stream, which may itself be waiting for the replica that is to
//! go. A request whose outcome is not known is made again; a learner stays counted
//! until it is. A request is in flight once at a time for a replica.

use super::SourceContext;
use super::coordination::{Asked, ReplicaChange, change_replica};
use super::slot_limit::SlotLimit;
use crate::clock::boot_ms;
use crate::feed::node::NodeFeed;
use crate::feed::progress::{Progress, RunEnd};
use crate::feed::router::Feeds;
use cluster_core::collection::{Collection, CollectionState};
use cluster_core::confirm::ReplicaKey;
use cluster_core::demotion::{DemotionWatch, Limits, Observed};
use cluster_core::map::{PartitionMap, Replica, ReplicaState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Requests in flight. What is still due then is asked later.
const ASKS_MAX: usize = 16;

/// Why what the slot no longer has is asked for.
const BELOW_SLOT: &str = "below_slot";

/// How often a replica is looked at before it is demoted, at least.
const LOOKS_MIN: u64 = 8;

/// What is asked, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub replica: ReplicaKey,
    pub change: ReplicaChange,
    pub reason: &'static str,
}

pub struct ReplicaChanges {
    context: SourceContext,
    progress: Arc<Progress>,
    feeds: watch::Receiver<Feeds>,
    watch: DemotionWatch,
    limit: SlotLimit,
    in_flight: BTreeSet<ReplicaKey>,
    asking: JoinSet<(Ask, Asked)>,
    /// Promoted; the map is on its way.
    promoted: BTreeSet<ReplicaKey>,
    /// Below the slot, and asked for: asked again at this time, if the map does not show
    /// it by then.
    asked_below: BTreeMap<ReplicaKey, u64>,
}

impl Drop for ReplicaChanges {
    /// The queues end with the run.
    fn drop(&mut self) {
        self.context.metrics.queued(self.context.source, 0, 0);
    }
}

impl ReplicaChanges {
    pub fn new(
        context: SourceContext,
        progress: Arc<Progress>,
        feeds: watch::Receiver<Feeds>,
    ) -> Self {
        let limits = Limits {
            after_ms: context.config.demote_after_ms,
            lag_bytes: context.config.demote_lag_bytes,
        };
        let limit = SlotLimit::new(context.clone());
        Self {
            context,
            progress,
            feeds,
            watch: DemotionWatch::new(limits),
            limit,
            in_flight: BTreeSet::new(),
            asking: JoinSet::new(),
            promoted: BTreeSet::new(),
            asked_below: BTreeMap::new(),
        }
    }

    /// Until dropped.
    pub async fn run(mut self) {
        let config = &self.context.config;
        // Who looks seldom is taken for one who was away.
        let often_ms = config.demote_after_ms / LOOKS_MIN;
        let every_ms = config.replicas_every_ms.min(often_ms).max(1);
        let mut ticks = tokio::time::interval(Duration::from_millis(every_ms));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let progress = self.progress.clone();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = progress.replicas_changed.notified() => {}
                Some(asked) = self.asking.join_next() => {
                    match asked {
                        Ok((ask, outcome)) => self.settle(ask, outcome),
                        Err(problem) => tracing::error!(%problem, "a request failed"),
                    }
                    continue;
                }
            }
            self.look();
        }
    }

    fn look(&mut self) {
        let feeds = self.feeds.borrow_and_update().clone();
        let hold = Duration::from_millis(self.context.config.count_hold_ms);
        let (mut queued, mut for_learners) = (0, 0);
        for feed in &feeds {
            feed.review_learners(hold);
            let (bytes, learner_bytes) = feed.queued_bytes();
            queued += bytes;
            for_learners += learner_bytes;
        }
        let context = &self.context;
        context.metrics.queued(context.source, queued, for_learners);
        let due = self.due(&feeds);
        for ask in due {
            if self.asking.len() >= ASKS_MAX || !self.in_flight.insert(ask.replica) {
                continue;
            }
            let context = self.context.clone();
            self.asking.spawn(async move {
                let outcome = change_replica(&context, ask.replica, ask.change).await;
                (ask, outcome)
            });
        }
    }

    fn due(&mut self, feeds: &Feeds) -> Vec<Ask> {
        let now_ms = boot_ms();
        let counted: BTreeSet<ReplicaKey> = feeds.iter().flat_map(|f| f.counted()).collect();
        self.promoted.retain(|replica| counted.contains(replica));
        let promotions = counted.difference(&self.promoted).map(|replica| Ask {
            replica: *replica,
            change: ReplicaChange::Promote,
            reason: "counted",
        });
        let mut due: Vec<Ask> = promotions.collect();
        due.extend(self.due_below(feeds, now_ms));
        let routed = self.progress.feedback.reached();
        due.extend(self.limit.look(feeds, routed, now_ms));
        // A replica that is slow holds the router back, and with it what was routed:
        // how far it lags is counted from the server.
        let newest = self.context.standing.server_flush().max(routed);
        let observed: Vec<Observed> = feeds.iter().flat_map(|f| f.observe(newest)).collect();
        let late = self.watch.look(now_ms, &observed);
        due.extend(late.into_iter().map(|(replica, reason)| Ask {
            replica,
            change: ReplicaChange::Demote,
            reason: reason.label(),
        }));
        due
    }

    /// One below the slot comes back from a peer, if there is one.
    fn due_below(&mut self, feeds: &Feeds, now_ms: u64) -> Vec<Ask> {
        let below: Vec<_> = feeds.iter().flat_map(|f| f.below_slot()).collect();
        self.asked_below
            .retain(|replica, _| below.iter().any(|(key, _, _)| key == replica));
        let map = self.context.client.map();
        let mut due = Vec::new();
        for (replica, durable, floor) in below {
            let ask_at_ms = self.asked_below.get(&replica).copied().unwrap_or(0);
            if now_ms < ask_at_ms {
                continue;
            }
            match way_back(&map, replica) {
                // It holds up the backfill, however few others there are.
                WayBack::Peer if is_building(&map, replica) => due.push(Ask {
                    replica,
                    change: ReplicaChange::MarkStale,
                    reason: BELOW_SLOT,
                }),
                WayBack::Peer => due.push(Ask {
                    replica,
                    change: ReplicaChange::Demote,
                    reason: BELOW_SLOT,
                }),
                // Nobody has what it lacks: its collection is reconciled.
                WayBack::None if is_fed(&map, replica) => {
                    tracing::error!(partition = %replica.partition, node = %replica.node, %durable, %floor, "no replica has what the slot no longer has");
                    due.push(Ask {
                        replica,
                        change: ReplicaChange::MarkStale,
                        reason: BELOW_SLOT,
                    });
                }
                WayBack::None => {
                    let detail = format!("{} is no longer fed", replica.partition);
                    self.progress.end(RunEnd::restart("map_changed", detail));
                }
                WayBack::NotServing => {}
            }
        }
        due
    }

    fn settle(&mut self, ask: Ask, outcome: Asked) {
        let Ask {
            replica,
            change,
            reason,
        } = ask;
        self.in_flight.remove(&replica);
        let source = self.context.source;
        let (node, partition) = (replica.node, replica.partition);
        match (change, outcome) {
            (ReplicaChange::Promote, Asked::Done) => {
                self.promoted.insert(replica);
                self.context.metrics.promoted(source);
                tracing::info!(%source, %node, %partition, "the coordinators took the learner for serving");
            }
            (ReplicaChange::Promote, Asked::Refused(problem)) => {
                tracing::warn!(%source, %node, %partition, problem, "learner is not to serve: the slot waits for it no longer");
                match self.feed(replica) {
                    Some(feed) => feed.promotion_refused(replica),
                    None => self.progress.promotion_settled(replica),
                }
            }
            (ReplicaChange::Demote, Asked::Done) => {
                self.context.metrics.demoted(source, reason);
                tracing::warn!(%source, %node, %partition, reason, "replica demoted: the slot waits for it no longer, and it learns anew");
                // The router follows once it has room, which may be just this.
                if let Some(feed) = self.feed(replica) {
                    feed.retire(partition, replica.generation);
                }
            }
            (ReplicaChange::Demote, Asked::Refused(problem)) => {
                self.context.metrics.demotion_refused(source);
                tracing::warn!(%source, %node, %partition, reason, problem, "replica not demoted: the slot goes on waiting");
                self.watch.refused(replica, boot_ms());
                self.limit.refused(replica, change);
                self.ask_below_later(replica);
            }
            (ReplicaChange::MarkStale, Asked::Done) => {
                match reason {
                    BELOW_SLOT => self.ask_below_later(replica),
                    _ => self.limit.passed(replica),
                }
                if let Some(feed) = self.feed(replica) {
                    feed.retire(partition, replica.generation);
                }
            }
            (ReplicaChange::MarkStale, Asked::Refused(problem)) => {
                tracing::error!(%source, %node, %partition, reason, problem, "replica not marked stale: the slot goes on waiting past its limit");
                self.limit.refused(replica, change);
            }
            (_, Asked::Unknown(problem)) => {
                tracing::warn!(%source, %node, %partition, ?change, reason, problem, "outcome unknown: asked again");
            }
        }
    }

    fn ask_below_later(&mut self, replica: ReplicaKey) {
        let ask_at_ms = boot_ms() + self.context.config.demote_after_ms;
        self.asked_below.insert(replica, ask_at_ms);
    }

    fn feed(&self, replica: ReplicaKey) -> Option<Arc<NodeFeed>> {
        let feeds = self.feeds.borrow();
        feeds.iter().find(|f| f.node == replica.node).cloned()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WayBack {
    Peer,
    None,
    /// The map does not count on it.
    NotServing,
}

/// How a replica below the slot can be had back.
fn way_back(map: &PartitionMap, replica: ReplicaKey) -> WayBack {
    if map.split_of(replica.partition).is_some() {
        return WayBack::Peer;
    }
    let is_it = |r: &&Replica| (r.node, r.generation) == (replica.node, replica.generation);
    let partition = map.partitions.get(&replica.partition);
    let serving = partition.map(|p| p.in_state(ReplicaState::Serving));
    let serving: Vec<&Replica> = serving.into_iter().flatten().collect();
    let serves = serving.iter().any(is_it);
    let has_peer = serving.iter().any(|r| !is_it(r));
    match (serves, has_peer) {
        (false, _) => WayBack::NotServing,
        (true, true) => WayBack::Peer,
        (true, false) => WayBack::None,
    }
}

fn is_fed(map: &PartitionMap, replica: ReplicaKey) -> bool {
    collection(map, replica).is_some_and(|c| !matches!(c.state, CollectionState::Failed { .. }))
}

fn is_building(map: &PartitionMap, replica: ReplicaKey) -> bool {
    collection(map, replica).is_some_and(|c| matches!(c.state, CollectionState::Building { .. }))
}

fn collection(map: &PartitionMap, replica: ReplicaKey) -> Option<&Collection> {
    let partition = map.partitions.get(&replica.partition)?;
    map.collections.get(&partition.collection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::router_tests::{map, set_state};
    use cluster_core::ids::{Generation, NodeId, PartitionId};

    const P: PartitionId = PartitionId(1);

    fn key(node: u64) -> ReplicaKey {
        ReplicaKey {
            partition: P,
            node: NodeId(node),
            generation: Generation(1),
        }
    }

    #[test]
    fn p2_one_below_the_slot_comes_back_from_a_peer_that_serves_or_is_reconciled() {
        let (mut map, mut building) = (map(true), map(false));
        assert_eq!(way_back(&map, key(1)), WayBack::Peer);
        set_state(&mut map, P, 2, ReplicaState::Learner);
        assert_eq!(way_back(&map, key(1)), WayBack::None);
        set_state(&mut map, P, 1, ReplicaState::Demoted);
        assert_eq!(way_back(&map, key(1)), WayBack::NotServing);
        assert!(is_fed(&map, key(1)));
        assert!(is_fed(&building, key(1)), "it is filled by a reconcile");
        let failed = building.collections.values_mut().next().expect("one");
        failed.state = CollectionState::Failed {
            reason: String::new(),
        };
        assert!(!is_fed(&building, key(1)));
    }
}
