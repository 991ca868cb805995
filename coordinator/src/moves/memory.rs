//! What the leader remembers of moves, for as long as it reigns: since when they
//! run, which map made a replica releasing, and what was planned in vain.
//!
//! A new leader remembers nothing: it counts from its reign's beginning, and
//! takes the map that it finds for the one that made a replica releasing, which
//! is the safe side.

use super::Situation;
use cluster_core::control::{ClusterState, Move};
use cluster_core::ids::{Generation, MapStamp, PartitionId};
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::rebalance::Conflict;
use cluster_core::rebalance::tend::{Release, releasing};
use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Default)]
pub struct MoveMemory {
    running: BTreeMap<PartitionId, (Move, Instant)>,
    releasing: BTreeMap<Release, MapStamp>,
    /// Planning in this situation began nothing.
    idle: Option<Situation>,
    conflicts: Vec<Conflict>,
}

/// How many moves have ended since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub finished: u64,
    pub cancelled: u64,
}

impl MoveMemory {
    /// Looks at the applied state.
    pub fn observe(&mut self, state: &ClusterState, now: Instant) -> Ended {
        let (map, moves) = (state.map(), state.moves());
        let mut ended = Ended::default();
        self.running.retain(|partition, (known, _)| {
            let runs = moves.get(partition).map(|m| m.generation) == Some(known.generation);
            match (runs, serves(map, *partition, known)) {
                (true, _) => {}
                (false, true) => ended.finished += 1,
                (false, false) => ended.cancelled += 1,
            }
            runs
        });
        for (partition, begun) in moves {
            self.running.entry(*partition).or_insert((*begun, now));
        }
        let seen_in = map.stamp();
        let known = std::mem::take(&mut self.releasing);
        self.releasing = releasing(map, moves)
            .map(|release| (release, known.get(&release).copied().unwrap_or(seen_in)))
            .collect();
        ended
    }

    pub fn running_since(&self, partition: PartitionId, generation: Generation) -> Option<Instant> {
        let (known, since) = self.running.get(&partition)?;
        (known.generation == generation).then_some(*since)
    }

    /// Replicas being released, with the map in which each was first seen so.
    pub fn releasing(&self) -> &BTreeMap<Release, MapStamp> {
        &self.releasing
    }

    pub fn is_idle_in(&self, situation: &Situation) -> bool {
        self.idle.as_ref() == Some(situation)
    }

    pub fn set_idle(&mut self, situation: Situation) {
        self.idle = Some(situation);
    }

    /// The conflicts that were not there when the last plan was made.
    pub fn new_conflicts(&mut self, conflicts: Vec<Conflict>) -> Vec<Conflict> {
        let known = std::mem::replace(&mut self.conflicts, conflicts);
        let new = self.conflicts.iter().filter(|c| !known.contains(c));
        new.cloned().collect()
    }
}

fn serves(map: &PartitionMap, partition: PartitionId, ended: &Move) -> bool {
    let partition = map.partitions.get(&partition);
    let replica = partition.and_then(|p| p.replica_on(ended.to));
    replica.is_some_and(|r| r.generation == ended.generation && r.state == ReplicaState::Serving)
}
