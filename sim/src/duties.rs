//! The reigning leader's duties: a living consumer for the source, and the steps
//! of a move that are the leader's (the protocol's 1, 5 and 6).
//!
//! A releasing replica goes once its node's report bears a map at least as new as
//! one that shows the release, or once the node's lease has surely run out.

use crate::coordinator::SOURCE;
use crate::leases::Reigning;
use crate::mutant::Mutant;
use crate::process::Effects;
use cluster_core::control::{ClusterState, Command, MoveReason};
use cluster_core::ids::*;
use cluster_core::map::{Partition, PartitionMap, Replica, ReplicaState};
use std::collections::BTreeMap;

/// A node that is silent for longer does not come back, as far as moves go.
const GRACE_MS: u64 = 9_000;
/// A command whose answer does not come is proposed again after this.
const REPEAT_MS: u64 = 1_000;

#[derive(Default)]
pub struct Duties {
    /// The first map seen that shows a replica as releasing.
    releasing: BTreeMap<(PartitionId, Generation), MapStamp>,
    /// When something was last proposed for a partition.
    proposed_at: BTreeMap<PartitionId, u64>,
    assigned_at: u64,
}

impl Duties {
    /// What is to be proposed now.
    pub fn due(
        &mut self,
        state: &ClusterState,
        reigning: &mut Reigning,
        effects: &Effects<'_>,
    ) -> Vec<Command> {
        let mut commands: Vec<Command> = self
            .assign(state, reigning, effects.now)
            .into_iter()
            .collect();
        self.note_releases(state.map());
        for partition in state.map().partitions.values() {
            let last = self.proposed_at.get(&partition.id).copied();
            if last.is_some_and(|at| effects.now < at + REPEAT_MS) {
                continue;
            }
            if let Some(command) = self.of_partition(state, partition, reigning, effects) {
                self.proposed_at.insert(partition.id, effects.now);
                commands.push(command);
            }
        }
        commands
    }

    fn assign(
        &mut self,
        state: &ClusterState,
        reigning: &mut Reigning,
        now: u64,
    ) -> Option<Command> {
        if now < self.assigned_at + REPEAT_MS {
            return None;
        }
        let source = state.map().sources.get(&SOURCE)?;
        let (holder, expected) = (source.consumer, source.consumer_epoch);
        let mut living = reigning.live_consumers(now);
        let consumer = living.find(|id| state.consumers().contains_key(id))?;
        drop(living);
        if !reigning.begin_handover(holder, expected, now) {
            return None;
        }
        self.assigned_at = now;
        Some(Command::AssignSource {
            source: SOURCE,
            consumer,
            expected,
        })
    }

    fn note_releases(&mut self, map: &PartitionMap) {
        let stamp = (map.epoch, map.version);
        let partitions = map.partitions.values();
        let now: Vec<_> = partitions
            .flat_map(|p| {
                p.in_state(ReplicaState::Releasing)
                    .map(|r| (p.id, r.generation))
            })
            .collect();
        self.releasing.retain(|replica, _| now.contains(replica));
        for replica in now {
            self.releasing.entry(replica).or_insert(stamp);
        }
    }

    fn of_partition(
        &self,
        state: &ClusterState,
        partition: &Partition,
        reigning: &Reigning,
        effects: &Effects<'_>,
    ) -> Option<Command> {
        let now = effects.now;
        let id = partition.id;
        if let Some(replica) = partition.in_state(ReplicaState::Releasing).next() {
            let may_go = effects.is_broken(Mutant::ReleaseWithoutWaiting)
                || self.has_let_go(id, replica, reigning, now);
            return may_go.then_some(Command::FinishRelease {
                partition: id,
                node: replica.node,
                generation: replica.generation,
            });
        }
        if let Some(running) = state.moves().get(&id) {
            let is_gone = reigning.node_silence(running.to, now) > GRACE_MS;
            return is_gone.then_some(Command::CancelMove {
                partition: id,
                generation: running.generation,
            });
        }
        let demoted = partition.in_state(ReplicaState::Demoted).next()?;
        self.replace(state.map(), partition, demoted.node, reigning, now)
    }

    fn has_let_go(
        &self,
        id: PartitionId,
        replica: &Replica,
        reigning: &Reigning,
        now: u64,
    ) -> bool {
        let released_in = self.releasing.get(&(id, replica.generation));
        let knows = reigning.node_knows(replica.node);
        let told = released_in.is_some_and(|stamp| knows.is_some_and(|knows| knows >= *stamp));
        told || reigning.is_node_over(replica.node, now)
    }

    /// A demoted replica learns anew, on its own node if that is back.
    fn replace(
        &self,
        map: &PartitionMap,
        partition: &Partition,
        node: NodeId,
        reigning: &Reigning,
        now: u64,
    ) -> Option<Command> {
        let start = |to, from| Command::StartMove {
            partition: partition.id,
            to,
            from,
            reason: MoveReason::Repair,
        };
        if reigning.is_node_live(node, now) {
            return Some(start(node, None));
        }
        if reigning.node_silence(node, now) <= GRACE_MS {
            return None;
        }
        let is_free =
            |n: &NodeId| partition.replica_on(*n).is_none() && reigning.is_node_live(*n, now);
        let to = map.nodes.keys().copied().find(is_free)?;
        Some(start(to, Some(node)))
    }
}
