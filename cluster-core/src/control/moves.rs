//! How copies of a partition come and go.
//!
//! A copy begins as a learner, serves once the consumer says that it has caught
//! up and counts it, and only then may another give its place: a partition never
//! has fewer serving replicas than before. One that the slot no longer waits for is
//! demoted (or [stale](super::stale)), and comes back as a learner in a new
//! generation, for what it holds lies below the slot.

use super::collections::is_ready;
use super::command::{Move, MoveReason, PlannedMove, Refusal, Response};
use super::state::*;
use crate::ids::*;
use crate::map::{Partition, Replica, ReplicaState};
use std::collections::BTreeSet;

pub(super) fn conflict<T>(what: String) -> Result<T, Refusal> {
    Err(Refusal::Conflict { what })
}

impl ClusterState {
    /// A replica on `to` that was left behind learns anew; otherwise `to` holds none.
    pub(super) fn start_move(
        &mut self,
        partition: PartitionId,
        to: NodeId,
        from: Option<NodeId>,
        reason: MoveReason,
    ) -> Outcome {
        if from == Some(to) {
            let what = format!("{partition} cannot move from {to} to itself");
            return Err(Refusal::Invalid { what });
        }
        let begun = self.moves.get(&partition).map(|m| (m.to, m.from));
        if begun == Some((to, from)) {
            return Ok((Response::Done, MapChanged::No));
        }
        let Some(node) = self.map.nodes.get(&to) else {
            return Err(Refusal::UnknownNode { node: to });
        };
        if node.is_draining {
            return conflict(format!("{to} is draining"));
        }
        let record = self.settled_partition(partition)?;
        let returns = match record.replica_on(to).map(|r| r.state) {
            None => false,
            Some(state) if state.is_left_behind() => true,
            Some(state) => return conflict(format!("{to} holds {partition} already ({state:?})")),
        };
        if let Some(from) = from
            && !record
                .replica_on(from)
                .is_some_and(|r| r.state.gives_its_place())
        {
            return conflict(format!("{from} holds no {partition} to give"));
        }
        let generation = self.last.generation.next();
        self.last.generation = generation;
        let learner = Replica {
            node: to,
            generation,
            state: ReplicaState::Learner,
        };
        let record = self.map.partitions.get_mut(&partition).expect("looked up");
        if returns {
            record.replicas.retain(|r| r.node != to);
        }
        record.replicas.push(learner);
        let begun = Move {
            to,
            generation,
            from,
            reason,
        };
        self.moves.insert(partition, begun);
        self.planned
            .retain(|p| (p.partition, p.to) != (partition, to));
        Ok((Response::Done, MapChanged::Yes))
    }

    pub(super) fn cancel_move(
        &mut self,
        partition: PartitionId,
        generation: Generation,
    ) -> Outcome {
        let Some(running) = self.moves.get(&partition) else {
            return Ok((Response::Done, MapChanged::No));
        };
        if running.generation != generation {
            return conflict(format!("another move of {partition} is running"));
        }
        let record = self.map.partitions.get_mut(&partition).expect("invariant");
        let is_learning =
            |r: &Replica| r.generation == generation && r.state == ReplicaState::Learner;
        if !record.replicas.iter().any(is_learning) {
            return conflict(format!("the new replica of {partition} serves already"));
        }
        record.replicas.retain(|r| !is_learning(r));
        self.moves.remove(&partition);
        Ok((Response::Done, MapChanged::Yes))
    }

    pub(super) fn promote_replica(
        &mut self,
        token: ConsumerEpoch,
        partition: PartitionId,
        (node, generation): (NodeId, Generation),
        waits_out: bool,
    ) -> Outcome {
        if let Some(parent) = self.parent_of(partition) {
            self.check_partition_token(token, parent)?;
            return self.promote_half(parent, partition, (node, generation));
        }
        self.check_partition_token(token, partition)?;
        let running = self.moves.get(&partition).copied();
        let record = self.map.partitions.get_mut(&partition).expect("checked");
        let Some(replica) = replica_of(record, node, generation) else {
            return conflict(format!("{node} is not to hold {partition} any more"));
        };
        match replica.state {
            ReplicaState::Learner => replica.state = ReplicaState::Serving,
            ReplicaState::Serving => return Ok((Response::Done, MapChanged::No)),
            state => return conflict(format!("{partition} on {node} is {state:?}")),
        }
        // The learner's place in the map was made by its move.
        let running = running.expect("a learner without a move");
        let given = running
            .from
            .and_then(|from| record.replicas.iter_mut().find(|r| r.node == from));
        match given.map(|given| (given.node, &mut given.state)) {
            Some((from, state)) if state.is_left_behind() && !waits_out => {
                record.replicas.retain(|r| r.node != from);
                self.moves.remove(&partition);
            }
            // One that was left behind as well: by an older map its node may answer.
            Some((_, state)) if state.gives_its_place() => *state = ReplicaState::Releasing,
            _ => drop(self.moves.remove(&partition)),
        }
        Ok((Response::Done, MapChanged::Yes))
    }

    pub(super) fn demote_replica(
        &mut self,
        token: ConsumerEpoch,
        partition: PartitionId,
        (node, generation): (NodeId, Generation),
        min_required: u32,
    ) -> Outcome {
        if let Some(parent) = self.parent_of(partition) {
            // The parent has what the half lacks: the split begins anew.
            self.check_partition_token(token, parent)?;
            return self.cancel_split(parent);
        }
        self.check_partition_token(token, partition)?;
        let collection = self.partition(partition)?.collection;
        let reconciles = self.map.collections[&collection].reconcile.is_some();
        let record = self.map.partitions.get_mut(&partition).expect("checked");
        let serving = record.in_state(ReplicaState::Serving).count();
        let stale = record.in_state(ReplicaState::Stale).count();
        let Some(replica) = replica_of(record, node, generation) else {
            return Ok((Response::Done, MapChanged::No));
        };
        match replica.state {
            ReplicaState::Serving => {}
            // Fed again, and its node is away: the reconcile goes on with the others,
            // and this one learns from them.
            ReplicaState::Stale if reconciles => {
                let others = serving + stale - 1;
                if others < min_required.max(1) as usize {
                    return conflict(format!(
                        "{others} other replicas of {partition} are reconciled, and {min_required} \
                         are needed: the reconcile waits for {node}"
                    ));
                }
                replica.state = ReplicaState::Demoted;
                return Ok((Response::Done, MapChanged::Yes));
            }
            state if state.is_left_behind() => return Ok((Response::Done, MapChanged::No)),
            // Counted, and stuck before it was promoted: its move begins anew.
            ReplicaState::Learner => return self.cancel_move(partition, generation),
            state => return conflict(format!("{partition} on {node} is {state:?}")),
        }
        if serving <= min_required.max(1) as usize {
            return conflict(format!(
                "{partition} has {serving} serving replicas and needs {min_required}: \
                 the slot goes on waiting for {node}"
            ));
        }
        replica.state = ReplicaState::Demoted;
        Ok((Response::Done, MapChanged::Yes))
    }

    pub(super) fn finish_release(
        &mut self,
        partition: PartitionId,
        node: NodeId,
        generation: Generation,
    ) -> Outcome {
        let Some(record) = self.map.partitions.get_mut(&partition) else {
            return Ok((Response::Done, MapChanged::No));
        };
        let goes = |r: &Replica| {
            (r.node, r.generation, r.state) == (node, generation, ReplicaState::Releasing)
        };
        let before = record.replicas.len();
        record.replicas.retain(|r| !goes(r));
        let changed = record.replicas.len() != before;
        let ends = |m: &Move| m.from == Some(node);
        if changed && self.moves.get(&partition).is_some_and(ends) {
            self.moves.remove(&partition);
        }
        Ok((Response::Done, MapChanged::from(changed)))
    }

    /// At most one move a partition, so no more than there are partitions.
    pub(super) fn plan_moves(&mut self, moves: Vec<PlannedMove>) -> Outcome {
        let mut partitions = BTreeSet::new();
        for planned in &moves {
            if planned.from == Some(planned.to) {
                let what = format!("{} cannot move to where it is", planned.partition);
                return Err(Refusal::Invalid { what });
            }
            if !partitions.insert(planned.partition) {
                let what = format!("{} is to move twice: name it once", planned.partition);
                return Err(Refusal::Invalid { what });
            }
            if !self.map.nodes.contains_key(&planned.to) {
                return Err(Refusal::UnknownNode { node: planned.to });
            }
            self.partition(planned.partition)?;
        }
        self.planned = moves;
        Ok((Response::Done, MapChanged::No))
    }

    /// Ends the moves and splits of a collection whose new replicas do not serve yet.
    pub(super) fn give_up_learners(&mut self, collection: CollectionId) {
        self.map
            .splits
            .retain(|_, split| split.low.collection != collection);
        let partitions = self.map.partitions.values_mut();
        for partition in partitions.filter(|p| p.collection == collection) {
            let before = partition.replicas.len();
            let learns = |r: &Replica| r.state == ReplicaState::Learner;
            partition.replicas.retain(|r| !learns(r));
            if partition.replicas.len() != before {
                self.moves.remove(&partition.id);
            }
        }
    }

    pub(super) fn forget_changes_of_gone_partitions(&mut self) {
        let partitions = &self.map.partitions;
        self.map.splits.retain(|id, _| partitions.contains_key(id));
        self.moves.retain(|id, _| partitions.contains_key(id));
        self.planned
            .retain(|planned| partitions.contains_key(&planned.partition));
    }

    /// A partition that can be copied: nothing is under way with it, and it serves.
    pub(super) fn settled_partition(&self, id: PartitionId) -> Result<&Partition, Refusal> {
        let record = self.partition(id)?;
        let collection = &self.map.collections[&record.collection];
        if !is_ready(collection) {
            return conflict(format!("{} is still building", collection.id));
        }
        if let Some(reconcile) = &collection.reconcile {
            return conflict(format!(
                "{} is being reconciled with its table, and nothing of it moves before that is \
                 done: {}",
                collection.id, reconcile.reason
            ));
        }
        if self.map.splits.contains_key(&id) {
            return conflict(format!("{id} is being split"));
        }
        match self.moves.get(&id) {
            Some(running) => conflict(format!("{id} is on its way to {}", running.to)),
            None if !record.is_served() => conflict(format!(
                "the replicas of {id} are stale, and no other has what they lack: \
                 they are reconciled with the table first"
            )),
            None => Ok(record),
        }
    }

    pub(super) fn partition(&self, id: PartitionId) -> Result<&Partition, Refusal> {
        let found = self.map.partitions.get(&id);
        found.ok_or(Refusal::UnknownPartition { partition: id })
    }

    /// Only the holder of the current token speaks for a partition (P5).
    pub(super) fn check_partition_token(
        &self,
        token: ConsumerEpoch,
        partition: PartitionId,
    ) -> Result<(), Refusal> {
        let collection = self.partition(partition)?.collection;
        let source = self.map.collections[&collection].spec.source;
        self.check_token(source, token)
    }

    /// Learners and moves name each other.
    pub(super) fn moves_violation(&self) -> Option<String> {
        for (id, running) in &self.moves {
            let partition = self.map.partitions.get(id);
            let replica = partition.and_then(|p| p.replica_on(running.to));
            if replica.map(|r| r.generation) != Some(running.generation) {
                return Some(format!("the move of {id} to {} has no replica", running.to));
            }
        }
        for partition in self.map.partitions.values() {
            for learner in partition.in_state(ReplicaState::Learner) {
                let running = self.moves.get(&partition.id);
                if running.map(|m| m.generation) != Some(learner.generation) {
                    return Some(format!(
                        "{} learns on {} without a move",
                        partition.id, learner.node
                    ));
                }
            }
        }
        None
    }
}

pub(super) fn replica_of(
    partition: &mut Partition,
    node: NodeId,
    generation: Generation,
) -> Option<&mut Replica> {
    let mut replicas = partition.replicas.iter_mut();
    replicas.find(|r| (r.node, r.generation) == (node, generation))
}
