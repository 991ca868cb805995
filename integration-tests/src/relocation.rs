//! A move or a split that is under way, and how far it has come: by the map for what
//! all must know, by the leader's status for what the learners' nodes report.

use crate::wire::Leader;
use cluster_core::confirm::ReplicaKey;
use cluster_core::control::PlannedMove;
use cluster_core::ids::{NodeId, PartitionId};
use cluster_core::map::{Partition, PartitionMap, ReplicaState};
use proto::v1;

/// In this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The learners are in the map, and the consumer has not attached them.
    Attach,
    /// Some of the rows are there.
    Copy,
    /// All rows are there, the log is applied or has been, and nobody is counted.
    Replay,
    /// The slot waits for the learners, and the promotions are not committed.
    Promote,
    /// The new replica serves and the old one gives its place; of a split, some
    /// halves serve and the others learn.
    Release,
}

impl Step {
    pub const ALL: [Self; 5] = [
        Self::Attach,
        Self::Copy,
        Self::Replay,
        Self::Promote,
        Self::Release,
    ];
}

#[derive(Clone, Debug)]
pub struct Relocation {
    /// What moves, or is split.
    pub partition: PartitionId,
    pub learners: Vec<ReplicaKey>,
    /// The node that gives its place. All nodes of a split give and take; this is
    /// one of them.
    pub from: NodeId,
    /// The node that takes it, or another node of the split.
    pub to: NodeId,
    is_split: bool,
}

impl Relocation {
    /// The move, if the map shows its learner.
    pub fn of_move(map: &PartitionMap, planned: PlannedMove) -> Option<Self> {
        let partition = map.partitions.get(&planned.partition)?;
        let learners: Vec<_> = keys(partition, ReplicaState::Learner).collect();
        let is_it = learners.iter().any(|key| key.node == planned.to);
        is_it.then_some(Self {
            partition: partition.id,
            learners,
            from: planned.from?,
            to: planned.to,
            is_split: false,
        })
    }

    /// The first split of the map, as long as none of its halves serves.
    pub fn of_split(map: &PartitionMap) -> Option<Self> {
        let (parent, split) = map.splits.first_key_value()?;
        let halves = split.halves().into_iter();
        let learners: Vec<_> = halves
            .flat_map(|half| keys(half, ReplicaState::Learner))
            .collect();
        let mut nodes: Vec<_> = learners.iter().map(|key| key.node).collect();
        nodes.sort();
        nodes.dedup();
        let [from, to] = nodes[..] else { return None };
        (learners.len() == 4).then_some(Self {
            partition: *parent,
            learners,
            from,
            to,
            is_split: true,
        })
    }

    pub fn is_split(&self) -> bool {
        self.is_split
    }

    /// Whether this map is one of the step.
    pub fn is_at(&self, map: &PartitionMap, step: Step) -> bool {
        let state = |key: &ReplicaKey| state_of(map, *key);
        let mut states = self.learners.iter().map(state);
        let some_serve = states.any(|state| state == Some(ReplicaState::Serving));
        let mut states = self.learners.iter().map(state);
        match step {
            Step::Release if self.is_split => {
                let learns = states.any(|state| state == Some(ReplicaState::Learner));
                map.splits.contains_key(&self.partition) && some_serve && learns
            }
            Step::Release => {
                let partition = map.partitions.get(&self.partition);
                let given = partition.and_then(|partition| partition.replica_on(self.from));
                some_serve && given.is_some_and(|r| r.state == ReplicaState::Releasing)
            }
            _ => states.all(|state| state == Some(ReplicaState::Learner)),
        }
    }

    /// Whether it came about. A settled map in which it did not has it rolled back.
    pub fn is_done(&self, map: &PartitionMap) -> bool {
        let serves = |key: &ReplicaKey| state_of(map, *key) == Some(ReplicaState::Serving);
        !map.splits.contains_key(&self.partition) && self.learners.iter().all(serves)
    }

    /// On every node that takes part a learner is in the midst of its copy.
    pub fn copies(&self, leader: &Leader) -> bool {
        let is_copying = |key: &&ReplicaKey| {
            let learner = report(leader, **key).and_then(|report| report.learner);
            learner.is_some_and(|learner| learner.rows_copied > 0 && !learner.is_copied)
        };
        let on = |node: NodeId| self.learners.iter().filter(move |key| key.node == node);
        let mut nodes = self.learners.iter().map(|key| key.node);
        nodes.all(|node| on(node).any(|key| is_copying(&key)))
    }

    /// Every learner has all of its peer's rows.
    pub fn has_copied(&self, leader: &Leader) -> bool {
        let has = |key: &ReplicaKey| {
            let report = report(leader, *key);
            report.is_some_and(|report| report.learner.is_none_or(|l| l.is_copied))
        };
        self.learners.iter().all(has)
    }
}

fn keys(partition: &Partition, state: ReplicaState) -> impl Iterator<Item = ReplicaKey> + '_ {
    partition.in_state(state).map(|replica| ReplicaKey {
        partition: partition.id,
        node: replica.node,
        generation: replica.generation,
    })
}

fn state_of(map: &PartitionMap, key: ReplicaKey) -> Option<ReplicaState> {
    let replica = map.held_partition(key.partition)?.replica_on(key.node)?;
    (replica.generation == key.generation).then_some(replica.state)
}

/// What the replica's node said of it last, in this reign.
fn report(leader: &Leader, key: ReplicaKey) -> Option<v1::PartitionReport> {
    let mut nodes = leader.status.nodes.iter();
    let node = nodes.find(|node| node.node_id == key.node.0)?;
    let mut partitions = node.report.as_ref()?.partitions.iter();
    let is_it = |report: &&v1::PartitionReport| {
        (report.partition_id, report.generation) == (key.partition.0, key.generation.0)
    };
    partitions.find(is_it).cloned()
}
