//! What one node is fed, and as what: its required replicas, its learners, those
//! that give their place to another.
//!
//! A node that is gone costs the others nothing. What waits for it is bounded:
//! past the limit its required replicas are left out until they answer, and then
//! the source starts over at the confirmed position, which they still hold; a
//! learner is left out and attached anew, and the source goes on.

use super::progress::Progress;
use super::queue::{Fed, LeftOut, NodeQueue, Role};
use crate::config::Config;
use cluster_core::confirm::ReplicaKey;
use cluster_core::demotion::Observed;
use cluster_core::ids::{Generation, NodeId, PartitionId};
use cluster_core::slot_hold::Holder;
use cluster_core::wal_position::{Lsn, WalPosition};
use parking_lot::Mutex;
use proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How a learner's being counted stands; a counted one is none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    No,
    /// Confirmation pauses for it.
    Approaching {
        since: Instant,
    },
    /// It did not arrive in time.
    Resting {
        until: Instant,
    },
    /// The coordinators do not want it.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Learner {
    /// What it has made durable, once it is live.
    pub live: Option<WalPosition>,
    pub counting: Counting,
}

impl Learner {
    const NEW: Learner = Learner {
        live: None,
        counting: Counting::No,
    };
}

pub(super) struct State {
    pub queue: NodeQueue,
    pub is_up: bool,
    /// Partitions that must be found at or above the start of the stream.
    pub complete: BTreeSet<PartitionId>,
    pub learners: BTreeMap<PartitionId, Learner>,
    /// When the node last made something durable.
    pub moved_at: Instant,
    /// When a learner here last logged something.
    pub learner_moved_at: Instant,
    bytes_max: usize,
    learner_bytes_max: usize,
}

pub struct NodeFeed {
    pub node: NodeId,
    pub(super) state: Mutex<State>,
    pub(super) has_more: Notify,
    pub(super) progress: Arc<Progress>,
    /// The node holds nothing of the source any more.
    pub(super) ended: CancellationToken,
}

impl NodeFeed {
    pub fn new(node: NodeId, progress: Arc<Progress>) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            node,
            state: Mutex::new(State {
                queue: NodeQueue::default(),
                is_up: false,
                complete: BTreeSet::new(),
                learners: BTreeMap::new(),
                moved_at: now,
                learner_moved_at: now,
                bytes_max: 0,
                learner_bytes_max: 0,
            }),
            has_more: Notify::new(),
            progress,
            ended: CancellationToken::new(),
        })
    }

    /// The source's limits are shared evenly, as the process's are by its sources.
    pub fn share_limits(&self, config: &Config, nodes: usize, sources: usize) {
        let (bytes, learner_bytes) = config.queue_share(sources);
        let mut state = self.state.lock();
        state.bytes_max = bytes / nodes.max(1);
        state.learner_bytes_max = learner_bytes / nodes.max(1);
    }

    pub(super) fn key(&self, partition: PartitionId, generation: Generation) -> ReplicaKey {
        ReplicaKey {
            partition,
            node: self.node,
            generation,
        }
    }

    /// A complete partition must already hold everything up to where the stream
    /// starts. Another one has that too, or nothing at all: it is about to be backfilled
    /// under a later snapshot, which covers whatever the stream does not. One that has
    /// something, and less than that, is left out once it has said so.
    pub fn add_serving(&self, id: PartitionId, generation: Generation, is_complete: bool) {
        let mut state = self.state.lock();
        let from = match is_complete {
            true => self.start(),
            false => WalPosition::ZERO,
        };
        if is_complete {
            state.complete.insert(id);
        }
        let queue = &mut state.queue;
        queue.add_partition(id, generation, Role::Required, from);
        self.progress.require(self.key(id, generation));
    }

    /// A learner of when the run begins: the stream has everything for it from
    /// there. One that may have been promoted is counted.
    pub fn add_learner(&self, id: PartitionId, generation: Generation) {
        let mut state = self.state.lock();
        let from = self.start();
        let queue = &mut state.queue;
        queue.add_partition(id, generation, Role::Learner, from);
        let key = self.key(id, generation);
        if self.progress.is_being_promoted(key) {
            state.queue.count(id);
            state.complete.insert(id);
            self.progress.require(key);
            self.progress.replicas_changed.notify_one();
        } else {
            state.learners.insert(id, Learner::NEW);
        }
    }

    /// A learner that the map shows since: attached at the next "nothing else".
    pub fn add_detached(&self, id: PartitionId, generation: Generation) {
        let mut state = self.state.lock();
        state.queue.add_detached(id, generation, Role::Learner);
        state.complete.remove(&id);
        state.learners.insert(id, Learner::NEW);
    }

    /// A stale replica whose collection is being reconciled, when the run begins: the
    /// slot has everything from there.
    pub fn add_reconciling(&self, id: PartitionId, generation: Generation) {
        let mut state = self.state.lock();
        let from = self.start();
        let queue = &mut state.queue;
        queue.add_partition(id, generation, Role::Reconciling, from);
        self.progress.require(self.key(id, generation));
    }

    /// The same, that the map shows since: attached at the next "nothing else", and
    /// waited for from there. One that is fed already goes on.
    pub fn reconcile(&self, id: PartitionId, generation: Generation) {
        let mut state = self.state.lock();
        let known = state.queue.partition(id);
        let is_fed =
            known.is_some_and(|f| (f.generation, f.role) == (generation, Role::Reconciling));
        if !is_fed {
            state.queue.remove_partition(id);
            state.queue.add_detached(id, generation, Role::Reconciling);
            state.complete.remove(&id);
            state.learners.remove(&id);
            self.progress.release(self.key(id, generation));
        }
    }

    fn start(&self) -> WalPosition {
        let following = &self.progress.following;
        following.end_of(following.start)
    }

    /// The map shows a learner as serving. False: its stream has a hole, so that
    /// the source must start over.
    pub fn serve(&self, id: PartitionId) -> bool {
        let mut state = self.state.lock();
        let Some(fed) = state.queue.partition(id).copied() else {
            return false;
        };
        if fed.left_out == Some(LeftOut::Detached) {
            return false;
        }
        let key = self.key(id, fed.generation);
        state.queue.set_role(id, Role::Required);
        state.complete.insert(id);
        let live = state.learners.remove(&id).and_then(|learner| learner.live);
        self.progress.require(key);
        if let Some(durable) = live {
            self.progress.durable(key, durable);
        }
        self.progress.promotion_settled(key);
        tracing::info!(node = %self.node, partition = %id, "learner promoted: it serves");
        true
    }

    /// The map shows what was reconciled as serving. False: its stream has a hole.
    pub fn serve_reconciled(&self, id: PartitionId) -> bool {
        let mut state = self.state.lock();
        let fed = state.queue.partition(id).copied();
        let Some(fed) = fed.filter(|fed| fed.left_out.is_none()) else {
            return false;
        };
        state.queue.set_role(id, Role::Required);
        state.complete.insert(id);
        self.progress.require(self.key(id, fed.generation));
        true
    }

    /// The map shows it giving its place to another: fed, and not waited for.
    pub fn release(&self, id: PartitionId) {
        let mut state = self.state.lock();
        let generation = state.queue.partition(id).map(|fed| fed.generation);
        state.queue.set_role(id, Role::Releasing);
        state.complete.remove(&id);
        state.learners.remove(&id);
        drop(state);
        if let Some(generation) = generation {
            self.let_go(self.key(id, generation));
        }
    }

    /// The slot waits no longer for a replica that is not fed any more.
    pub fn retire(&self, id: PartitionId, generation: Generation) {
        let mut state = self.state.lock();
        let is_it = state.queue.partition(id).map(|fed| fed.generation) == Some(generation);
        state.queue.retire(id, Some(generation));
        if is_it {
            state.complete.remove(&id);
            state.learners.remove(&id);
        }
        drop(state);
        self.let_go(self.key(id, generation));
    }

    fn let_go(&self, key: ReplicaKey) {
        self.progress.promotion_settled(key);
        self.progress.release(key);
    }

    /// The node may hold a replica that is not fed.
    pub fn except(&self, id: PartitionId) {
        self.state.lock().queue.retire(id, None);
    }

    /// The partition is no more.
    pub fn remove_partition(&self, id: PartitionId) {
        let mut state = self.state.lock();
        if let Some(fed) = state.queue.partition(id) {
            let key = self.key(id, fed.generation);
            self.progress.promotion_settled(key);
        }
        state.queue.remove_partition(id);
        state.complete.remove(&id);
        state.learners.remove(&id);
    }

    pub fn is_empty(&self) -> bool {
        self.state.lock().queue.is_empty()
    }

    pub fn end(&self) {
        self.ended.cancel();
    }

    pub fn push_batch(
        &self,
        id: PartitionId,
        to: WalPosition,
        changes: Vec<v1::RowChange>,
        bytes: usize,
    ) {
        let mut state = self.state.lock();
        state.queue.push_batch(id, to, changes, bytes);
        self.has_more.notify_one();
    }

    /// Everything up to `to` has been queued, so that learners can be attached.
    pub fn push_nothing_else(
        &self,
        to: WalPosition,
        oldest_xmin: Option<u64>,
        confirmed: WalPosition,
    ) {
        let mut state = self.state.lock();
        if state.is_up {
            for (id, generation) in state.queue.attach_detached(to) {
                let role = state.queue.partition(id).map(|fed| fed.role);
                if role == Some(Role::Reconciling) {
                    // Nothing beyond `to` has been confirmed yet.
                    self.progress.require(self.key(id, generation));
                }
                state.learner_moved_at = Instant::now();
                tracing::info!(node = %self.node, partition = %id, from = %to, ?role, "replica attached");
            }
        }
        state.queue.push_nothing_else(to, oldest_xmin, confirmed);
        self.has_more.notify_one();
    }

    /// A learner could be attached now.
    pub fn can_attach(&self) -> bool {
        let state = self.state.lock();
        state.is_up && state.queue.has_detached()
    }

    pub fn learners(&self) -> usize {
        self.state.lock().learners.len()
    }

    /// What waits for required replicas, and what for learners.
    pub fn queued_bytes(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.queue.bytes(), state.queue.learner_bytes())
    }

    pub fn applied(&self, id: PartitionId) -> WalPosition {
        self.state
            .lock()
            .queue
            .partition(id)
            .map_or(WalPosition::ZERO, |fed| fed.applied)
    }

    pub fn is_up(&self) -> bool {
        self.state.lock().is_up
    }

    /// Waits while what waits for the likes of the replica is too much, but only
    /// for a node that moves (P10).
    pub async fn wait_for_room(&self, id: PartitionId, config: &Config) {
        let mut changed = self.progress.watch();
        let began = Instant::now();
        loop {
            let give_up_at = {
                let mut state = self.state.lock();
                let Some(fed) = state.queue.partition(id).filter(|f| f.left_out.is_none()) else {
                    return;
                };
                let is_learner = fed.role == Role::Learner;
                let (bytes, bytes_max, moved_at, stall_ms) = match is_learner {
                    true => (
                        state.queue.learner_bytes(),
                        state.learner_bytes_max,
                        state.learner_moved_at,
                        config.learner_stall_ms,
                    ),
                    false => (
                        state.queue.bytes(),
                        state.bytes_max,
                        state.moved_at,
                        config.node_stall_ms,
                    ),
                };
                if bytes < bytes_max {
                    return;
                }
                let since = match is_learner {
                    // The source waits for a learner no longer than that, however it moves.
                    true => began.min(moved_at),
                    false => moved_at,
                };
                let give_up_at = since + Duration::from_millis(stall_ms);
                if !state.is_up || Instant::now() >= give_up_at {
                    return self.give_up(&mut state, is_learner);
                }
                give_up_at
            };
            let _ = tokio::time::timeout_at(give_up_at, changed.changed()).await;
        }
    }

    fn give_up(&self, state: &mut State, learners: bool) {
        if learners {
            tracing::warn!(node = %self.node, bytes = state.queue.learner_bytes(), "too much waits for learners that do not move: they begin anew");
            for id in state.learners.keys().copied().collect::<Vec<_>>() {
                if state.queue.partition(id).is_some_and(|fed| fed.bytes > 0) {
                    self.detach(state, id);
                }
            }
        } else {
            let waiting = state.queue.give_up();
            tracing::warn!(node = %self.node, replicas = waiting, "node's queue is full and the node does not move: given up until it answers");
        }
    }

    /// What waits for a learner is dropped; it is attached anew once its node can
    /// be reached.
    pub(super) fn detach(&self, state: &mut State, id: PartitionId) {
        let Some(fed) = state.queue.partition(id).copied() else {
            return;
        };
        state.queue.leave_out(id, LeftOut::Detached);
        if fed.role != Role::Reconciling {
            state.learners.insert(id, Learner::NEW);
        }
        self.progress.release(self.key(id, fed.generation));
    }

    /// The required replicas, counted learners included: those too hold the slot.
    /// Of one that has reported nothing yet it is not known how far it lags behind
    /// `newest`.
    pub fn observe(&self, newest: Lsn) -> Vec<Observed> {
        let state = self.state.lock();
        let required = state.queue.partitions();
        let required = required.filter(|(_, fed)| fed.role.holds_the_slot());
        let observed = required.map(|(id, fed)| Observed {
            replica: self.key(id, fed.generation),
            durable: fed.durable,
            is_up: state.is_up,
            has_work: fed.has_work(),
            bytes_behind: match fed.durable {
                WalPosition::ZERO => 0,
                at => newest.0.saturating_sub(at.commit_end.0),
            },
        });
        observed.collect()
    }

    /// What the slot keeps for each replica that it waits for. One that has not
    /// reported in this run lacks at most what the run has sent.
    pub fn holders(&self, routed: Lsn) -> Vec<Holder> {
        let start = self.progress.following.start;
        let state = self.state.lock();
        let required = state.queue.partitions();
        // One that is not attached yet holds nothing.
        let holds =
            |fed: &&Fed| fed.role.holds_the_slot() && fed.left_out != Some(LeftOut::Detached);
        let required = required.filter(|(_, fed)| holds(fed));
        let holders = required.map(|(id, fed)| Holder {
            replica: self.key(id, fed.generation),
            held_bytes: routed.0.saturating_sub(fed.durable.commit_end.max(start).0),
            is_serving: !fed.is_learner_in_map(),
        });
        holders.collect()
    }

    /// Counted learners that the map does not list as serving yet. None of a node
    /// that is away: another would give its place to it.
    pub fn counted(&self) -> Vec<ReplicaKey> {
        let state = self.state.lock();
        let counted = state.queue.partitions().filter(|(_, fed)| {
            let is_counted = fed.role == Role::Required && fed.is_learner_in_map();
            state.is_up && is_counted && fed.left_out.is_none()
        });
        let keys = counted.map(|(id, fed)| self.key(id, fed.generation));
        keys.collect()
    }

    /// Required replicas below the slot: what each has, and what it should have.
    pub fn below_slot(&self) -> Vec<(ReplicaKey, WalPosition, WalPosition)> {
        let state = self.state.lock();
        let below = state
            .queue
            .partitions()
            .filter_map(|(id, fed)| match fed.left_out {
                Some(LeftOut::Below { durable, floor }) if fed.role == Role::Required => {
                    Some((self.key(id, fed.generation), durable, floor))
                }
                _ => None,
            });
        below.collect()
    }

    /// The coordinators do not want the learner promoted.
    pub fn promotion_refused(&self, key: ReplicaKey) {
        let mut state = self.state.lock();
        let fed = state.queue.partition(key.partition);
        if fed.is_some_and(|f| f.generation == key.generation && f.is_learner_in_map()) {
            state.queue.uncount(key.partition);
            state.complete.remove(&key.partition);
            let refused = Learner {
                live: None,
                counting: Counting::Refused,
            };
            state.learners.insert(key.partition, refused);
        }
        drop(state);
        self.let_go(key);
    }

    #[cfg(test)]
    pub fn drain_for_test(&self) -> Vec<v1::apply_request::Kind> {
        let mut state = self.state.lock();
        let mut kinds = Vec::new();
        while let Some(kind) = state.queue.next_to_send().and_then(|m| m.kind) {
            kinds.push(kind);
        }
        kinds
    }
}
