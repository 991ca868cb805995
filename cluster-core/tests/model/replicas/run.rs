//! A run of the source's consumer, as far as it confirms.

use super::{Ask, Broken, INCARNATION, NODES, What, World};
use crate::committed::{Committed, PARTITION};
use cluster_core::confirm::{ConfirmTracker, ReplicaKey};
use cluster_core::ids::*;
use cluster_core::map::ReplicaState::{self, *};
use cluster_core::wal_position::Lsn;

/// One run of the source's consumer.
#[derive(Clone, Hash)]
pub struct Run {
    pub token: ConsumerEpoch,
    pub view: Committed,
    pub tracker: ConfirmTracker,
    pub start: u64,
    pub routed: u64,
    /// How far each node's stream has been sent; `None` without a stream.
    pub fed: [Option<u64>; 2],
    /// Learners counted by this run, or by an earlier one under its token.
    pub counted: [Option<Counted>; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counted {
    Here,
    Before,
}

impl Run {
    /// Begins at the slot. A learner that an earlier run has asked to promote may
    /// serve at any moment: the slot waits for it, and its stream begins at the
    /// slot.
    pub fn start(world: &World, broken: Broken) -> Self {
        let view = world.committed.clone();
        let mut run = Self {
            token: view.source().consumer_epoch,
            tracker: ConfirmTracker::new(INCARNATION, Lsn(world.slot)),
            start: world.slot,
            routed: world.slot,
            fed: [None; 2],
            counted: [None; 2],
            view,
        };
        let remembers = broken != Broken::CountedForgottenAtRestart;
        for node in 0..2 {
            match run.state(node) {
                Some(Serving) => {
                    run.tracker.require(run.key(node));
                    run.fed[node] = Some(run.start);
                }
                Some(Releasing) => run.fed[node] = Some(run.start),
                Some(Learner) if remembers && world.asked.contains(&run.promotion(node)) => {
                    run.tracker.require(run.key(node));
                    run.counted[node] = Some(Counted::Before);
                }
                _ => {}
            }
        }
        run
    }

    pub fn state(&self, node: usize) -> Option<ReplicaState> {
        self.view.replica(NODES[node]).map(|(_, state)| state)
    }

    pub fn key(&self, node: usize) -> ReplicaKey {
        let (generation, _) = self.view.replica(NODES[node]).expect("in the view");
        ReplicaKey {
            partition: PARTITION,
            node: NODES[node],
            generation,
        }
    }

    pub fn promotion(&self, node: usize) -> Ask {
        Ask {
            token: self.token,
            node,
            generation: self.key(node).generation,
            what: What::Promote,
        }
    }

    pub fn forget(&mut self, node: usize) {
        self.counted[node] = None;
        let node = NODES[node];
        self.tracker.retain(|replica| replica.node != node);
    }

    pub fn see(&mut self, map: Committed, broken: Broken) {
        let before = std::mem::replace(&mut self.view, map);
        for node in 0..2 {
            let id = NODES[node];
            let generation = |map: &Committed| map.replica(id).map(|(generation, _)| generation);
            let is_same = generation(&before) == generation(&self.view);
            match self.state(node) {
                Some(Serving) => {
                    self.counted[node] = None;
                    self.tracker.require(self.key(node));
                }
                Some(Learner) if is_same && broken != Broken::CountedForgotten => {}
                _ => self.forget(node),
            }
            if !is_same || self.state(node).is_none_or(|state| !state.is_fed()) {
                self.fed[node] = None;
            }
        }
    }
}
