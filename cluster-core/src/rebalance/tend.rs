//! What becomes of moves that have begun, and of plans that nobody needs.

use super::nodes::Liveness;
use super::planner::is_ready;
use crate::control::{Move, PlannedMove};
use crate::ids::{Generation, MapStamp, NodeId, PartitionId};
use crate::lease::LeaseTerms;
use crate::map::{PartitionMap, Replica, ReplicaState};
use std::collections::BTreeMap;

/// A replica that gives its place to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    pub partition: PartitionId,
    pub node: NodeId,
    pub generation: Generation,
}

/// A move to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancellation {
    pub partition: PartitionId,
    pub generation: Generation,
    pub reason: Hopeless,
}

/// Why a move will not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hopeless {
    #[error("the node that it goes to is dead")]
    Dead,
    #[error("the node that it goes to is draining, or was removed")]
    Leaving,
    #[error("nobody is left to copy from")]
    NoSource,
    #[error("its collection is not ready any more")]
    NotReady,
}

/// Moves to give up. Nothing is lost with a learner.
pub fn cancellations(
    map: &PartitionMap,
    moves: &BTreeMap<PartitionId, Move>,
    nodes: &Liveness,
    dead_after_ms: u64,
) -> Vec<Cancellation> {
    let hopeless = |id: &PartitionId, running: &Move| {
        let partition = map.partitions.get(id)?;
        let replica = partition.replica_on(running.to)?;
        let is_leaving = map.nodes.get(&running.to).is_none_or(|n| n.is_draining);
        if replica.state != ReplicaState::Learner {
            None
        } else if nodes.is_dead(running.to, dead_after_ms) {
            Some(Hopeless::Dead)
        } else if is_leaving {
            Some(Hopeless::Leaving)
        } else if !partition.is_served() {
            Some(Hopeless::NoSource)
        } else {
            (!is_ready(map, partition)).then_some(Hopeless::NotReady)
        }
    };
    let cancelled = |(id, running): (&PartitionId, &Move)| {
        Some(Cancellation {
            partition: *id,
            generation: running.generation,
            reason: hopeless(id, running)?,
        })
    };
    moves.iter().filter_map(cancelled).collect()
}

/// Every replica that is being released; it belongs to a move.
pub fn releasing<'a>(
    map: &'a PartitionMap,
    moves: &'a BTreeMap<PartitionId, Move>,
) -> impl Iterator<Item = Release> + 'a {
    let partitions = moves.keys().filter_map(|id| map.partitions.get(id));
    partitions.flat_map(|partition| {
        let release = |replica: &Replica| Release {
            partition: partition.id,
            node: replica.node,
            generation: replica.generation,
        };
        partition.in_state(ReplicaState::Releasing).map(release)
    })
}

/// The releases that are over: the node answers by a map that says so, or its
/// lease has run out for certain. `made_by` is the map, or a newer one, that made
/// the replica releasing.
pub fn releases(
    releasing: &BTreeMap<Release, MapStamp>,
    nodes: &Liveness,
    terms: LeaseTerms,
) -> Vec<Release> {
    let is_over = |release: &Release, made_by: &MapStamp| {
        let view = nodes.0.get(&release.node);
        view.is_some_and(|view| terms.has_let_go(view.map, view.silent_ms, *made_by))
    };
    releasing
        .iter()
        .filter(|(release, made_by)| is_over(release, made_by))
        .map(|(release, _)| *release)
        .collect()
}

/// Whether a plan can never begin, or has been carried out: its node is gone or
/// leaves, holds the partition already, nobody serves it, or the giver has nothing to
/// give. Not
/// while another move of the partition is running.
pub fn is_void(
    planned: &PlannedMove,
    map: &PartitionMap,
    moves: &BTreeMap<PartitionId, Move>,
) -> bool {
    let Some(partition) = map.partitions.get(&planned.partition) else {
        return true;
    };
    if moves.contains_key(&planned.partition) {
        return false;
    }
    let is_leaving = map.nodes.get(&planned.to).is_none_or(|n| n.is_draining);
    let held = partition.replica_on(planned.to);
    let is_held = held.is_some_and(|r| !r.state.is_left_behind());
    let gives = |node: NodeId| {
        let replica = partition.replica_on(node);
        replica.is_some_and(|r| r.state.gives_its_place())
    };
    !partition.is_served() || is_leaving || is_held || planned.from.is_some_and(|from| !gives(from))
}
