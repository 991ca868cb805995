//! Which of the moves that are wanted start now.

use super::nodes::Liveness;
use super::planner::{has_source, is_ready};
use super::{Plan, tend};
use crate::control::{Move, MoveReason, PlannedMove, RebalanceMode};
use crate::ids::{NodeId, PartitionId};
use crate::map::{PartitionMap, ReplicaState};
use std::collections::{BTreeMap, BTreeSet};

/// Copies that may be made at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    pub moves_max: u32,
    /// Of them to or from one node.
    pub moves_per_node_max: u32,
}

/// What the mode lets begin, in the order in which it shall: repairs, drains, what
/// an operator asked for, balance; one move a partition.
pub fn wanted(mode: RebalanceMode, plan: &Plan, asked: &[PlannedMove]) -> Vec<PlannedMove> {
    let of = |reason| plan.moves.iter().filter(move |m| m.reason == reason);
    let first = of(MoveReason::Repair).chain(of(MoveReason::Drain));
    let balance = of(MoveReason::Balance).filter(|_| mode == RebalanceMode::Auto);
    if mode == RebalanceMode::Paused {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    first
        .chain(asked)
        .chain(balance)
        .filter(|m| seen.insert(m.partition))
        .copied()
        .collect()
}

/// Those that can start and that the throttle admits beside the running ones.
/// One that waits for its node does not hold up the others.
pub fn admit(
    wanted: &[PlannedMove],
    map: &PartitionMap,
    moves: &BTreeMap<PartitionId, Move>,
    nodes: &Liveness,
    throttle: Throttle,
) -> Vec<PlannedMove> {
    let mut room = Room::beside(map, moves, throttle);
    let startable = wanted.iter().filter(|m| can_start(m, map, moves, nodes));
    startable.filter(|m| room.takes(m)).copied().collect()
}

/// Whether the move could begin now: an operator's may wait for its node, or for
/// another move of the partition.
fn can_start(
    planned: &PlannedMove,
    map: &PartitionMap,
    moves: &BTreeMap<PartitionId, Move>,
    nodes: &Liveness,
) -> bool {
    let Some(partition) = map.partitions.get(&planned.partition) else {
        return false;
    };
    !moves.contains_key(&planned.partition)
        && !tend::is_void(planned, map, moves)
        && is_ready(map, partition)
        && nodes.is_live(planned.to)
        && has_source(partition, nodes)
}

/// What the throttle has left.
struct Room {
    throttle: Throttle,
    running: u32,
    by_node: BTreeMap<NodeId, u32>,
}

impl Room {
    /// A move whose replica serves copies nothing any more.
    fn beside(map: &PartitionMap, moves: &BTreeMap<PartitionId, Move>, throttle: Throttle) -> Self {
        let mut room = Self {
            throttle,
            running: 0,
            by_node: BTreeMap::new(),
        };
        for (partition, running) in moves {
            let partition = map.partitions.get(partition);
            let replica = partition.and_then(|p| p.replica_on(running.to));
            if replica.is_some_and(|r| r.state == ReplicaState::Learner) {
                room.take(running.to, running.from);
            }
        }
        room
    }

    fn takes(&mut self, planned: &PlannedMove) -> bool {
        let ends = [Some(planned.to), planned.from];
        let busy = |node: &NodeId| {
            let moves = self.by_node.get(node);
            moves.is_some_and(|moves| *moves >= self.throttle.moves_per_node_max)
        };
        let has_room = self.running < self.throttle.moves_max && !ends.iter().flatten().any(busy);
        if has_room {
            self.take(planned.to, planned.from);
        }
        has_room
    }

    fn take(&mut self, to: NodeId, from: Option<NodeId>) {
        self.running += 1;
        for node in [Some(to), from].into_iter().flatten() {
            *self.by_node.entry(node).or_default() += 1;
        }
    }
}
