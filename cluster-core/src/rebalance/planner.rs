//! The working copy of the map on which a plan is made.

use super::conflict::Conflict;
use super::nodes::Liveness;
use super::{Plan, RebalancePolicy};
use crate::collection::Collection;
use crate::control::{Move, MoveReason, PlannedMove};
use crate::ids::{NodeId, PartitionId};
use crate::layout::{Layout, PartitionNo, Shift, Standing};
use crate::map::{Node, Partition, PartitionMap, Replica, ReplicaState};
use std::collections::BTreeMap;

pub(super) struct Planner<'a> {
    pub map: &'a PartitionMap,
    pub moves: &'a BTreeMap<PartitionId, Move>,
    pub policy: RebalancePolicy,
    pub nodes: &'a Liveness,
    /// The replicas as they will be once running and planned moves are done.
    pub layout: Layout,
    /// The partitions in the order of their numbers in the layout.
    pub partitions: Vec<&'a Partition>,
    /// Which of them a plan may move: ready, not moving, not planned yet.
    is_free: Vec<bool>,
    planned: Vec<PlannedMove>,
    pub conflicts: Vec<Conflict>,
}

impl<'a> Planner<'a> {
    pub fn new(
        map: &'a PartitionMap,
        moves: &'a BTreeMap<PartitionId, Move>,
        policy: RebalancePolicy,
        nodes: &'a Liveness,
    ) -> Self {
        let mut planner = Self {
            map,
            moves,
            policy,
            nodes,
            layout: Layout::default(),
            partitions: map.partitions.values().collect(),
            is_free: Vec::with_capacity(map.partitions.len()),
            planned: Vec::new(),
            conflicts: Vec::new(),
        };
        for node in map.nodes.values() {
            let standing = planner.standing(node);
            planner.layout.add_seat(node.id, &node.zone, 0, standing);
        }
        for partition in map.partitions.values() {
            planner.seat(partition);
        }
        planner
    }

    fn standing(&self, node: &Node) -> Standing {
        if node.is_draining || self.is_dead(node.id) {
            Standing::Leaving
        } else if self.nodes.is_live(node.id) {
            Standing::Open
        } else {
            Standing::Waiting
        }
    }

    fn seat(&mut self, partition: &Partition) {
        let number = self.layout.add_partition(partition.collection.0);
        let running = self.moves.get(&partition.id);
        let is_split = self.map.splits.contains_key(&partition.id);
        let is_free = running.is_none() && !is_split && is_ready(self.map, partition);
        self.is_free.push(is_free);
        let goes = |r: &Replica| {
            r.state == ReplicaState::Releasing || running.and_then(|m| m.from) == Some(r.node)
        };
        for replica in partition.replicas.iter().filter(|r| !goes(r)) {
            let seat = self.layout.seat_of(replica.node);
            // The map lists the node of every replica.
            let seat = seat.expect("a replica on an unknown node");
            self.layout.hold(number, seat);
            let gives = is_free && replica.state == ReplicaState::Serving;
            if gives && self.nodes.is_live(replica.node) {
                self.layout.release(number, seat);
            }
        }
    }

    pub fn is_dead(&self, node: NodeId) -> bool {
        self.nodes.is_dead(node, self.policy.dead_after_ms)
    }

    pub fn is_free(&self, number: PartitionNo) -> bool {
        self.is_free[number]
    }

    /// Nodes among which the load is shared.
    pub fn members(&self) -> usize {
        let seats = self.layout.seats().iter();
        seats.filter(|s| s.standing != Standing::Leaving).count()
    }

    /// Whether a learner has somebody to copy from.
    pub fn has_source(&self, partition: &Partition) -> bool {
        has_source(partition, self.nodes)
    }

    /// A copy on another node than before, or one more.
    pub fn plan_to(
        &mut self,
        number: PartitionNo,
        from: Option<NodeId>,
        reason: MoveReason,
    ) -> bool {
        let leaving = from.and_then(|from| self.layout.seat_of(from));
        let Some(to) = self.layout.best_seat(number, leaving) else {
            return false;
        };
        match leaving {
            Some(from) => self.layout.relocate(Shift {
                partition: number,
                from,
                to,
            }),
            None => self.layout.hold(number, to),
        }
        let to = self.layout.seats()[to].node;
        self.note(number, to, from, reason);
        true
    }

    /// A plan for a partition whose place in the layout is right already.
    pub fn note(
        &mut self,
        number: PartitionNo,
        to: NodeId,
        from: Option<NodeId>,
        reason: MoveReason,
    ) {
        let partition = self.partitions[number].id;
        self.layout.settle(number);
        self.is_free[number] = false;
        self.planned.push(PlannedMove {
            partition,
            to,
            from,
            reason,
        });
    }

    pub fn finish(mut self) -> Plan {
        self.report_conflicts();
        Plan {
            moves: self.planned,
            conflicts: self.conflicts,
        }
    }
}

pub(super) fn is_ready(map: &PartitionMap, partition: &Partition) -> bool {
    let collection = map.collections.get(&partition.collection);
    collection.is_some_and(Collection::can_be_copied)
}

pub(super) fn has_source(partition: &Partition, nodes: &Liveness) -> bool {
    let mut serving = partition.in_state(ReplicaState::Serving);
    serving.any(|replica| nodes.is_live(replica.node))
}
