//! How a partition that has grown too large becomes two.
//!
//! The halves get new ids and learn from the parent's replicas where they are, as
//! the copies of a move do: watermark, tombstones and former versions come with
//! the records. The parent serves until every replica of both halves does; then
//! they take its place in one step, and it answers ESTALE.

use super::command::{Refusal, Response};
use super::moves::{conflict, replica_of};
use super::state::*;
use crate::ids::*;
use crate::map::{HashRange, Partition, Replica, ReplicaState, Split};

impl ClusterState {
    pub(super) fn start_split(&mut self, partition: PartitionId, at: u64) -> Outcome {
        let cut = |split: &Split| split.low.range.hi;
        if self.map.splits.get(&partition).map(cut) == Some(at) {
            return Ok((Response::Done, MapChanged::No));
        }
        let parent = self.settled_partition(partition)?.clone();
        let HashRange { lo, hi } = parent.range;
        if at < lo || at >= hi {
            let what = format!("{at:016x} does not divide {}", parent.range);
            return Err(Refusal::Invalid { what });
        }
        let partitions = self.map.partitions.len() + 2 * (self.map.splits.len() + 1);
        if partitions > PARTITIONS_MAX {
            return Err(Refusal::Full {
                of: "partitions".to_owned(),
                limit: PARTITIONS_MAX,
            });
        }
        let low = self.half_of(&parent, HashRange { lo, hi: at });
        let high = self.half_of(&parent, HashRange { lo: at + 1, hi });
        self.map.splits.insert(partition, Split { low, high });
        Ok((Response::Done, MapChanged::Yes))
    }

    fn half_of(&mut self, parent: &Partition, range: HashRange) -> Partition {
        self.last.partition = self.last.partition.next();
        let replicas = parent.in_state(ReplicaState::Serving).map(|serving| {
            self.last.generation = self.last.generation.next();
            Replica {
                node: serving.node,
                generation: self.last.generation,
                state: ReplicaState::Learner,
            }
        });
        let replicas = replicas.collect();
        Partition {
            id: self.last.partition,
            collection: parent.collection,
            range,
            replicas,
        }
    }

    pub(super) fn cancel_split(&mut self, partition: PartitionId) -> Outcome {
        let cancelled = self.map.splits.remove(&partition).is_some();
        Ok((Response::Done, MapChanged::from(cancelled)))
    }

    pub(super) fn parent_of(&self, half: PartitionId) -> Option<PartitionId> {
        let mut splits = self.map.splits.iter();
        let is_half = |split: &Split| split.halves().iter().any(|h| h.id == half);
        splits.find(|(_, split)| is_half(split)).map(|(id, _)| *id)
    }

    /// The last replica to serve brings the split about.
    pub(super) fn promote_half(
        &mut self,
        parent: PartitionId,
        half: PartitionId,
        (node, generation): (NodeId, Generation),
    ) -> Outcome {
        let split = self.map.splits.get_mut(&parent).expect("found by its half");
        let half = match split.low.id == half {
            true => &mut split.low,
            false => &mut split.high,
        };
        let Some(replica) = replica_of(half, node, generation) else {
            return conflict(format!("{node} is not to hold {} any more", half.id));
        };
        if replica.state == ReplicaState::Serving {
            return Ok((Response::Done, MapChanged::No));
        }
        replica.state = ReplicaState::Serving;
        let is_serving = |half: &Partition| {
            let mut replicas = half.replicas.iter();
            replicas.all(|r| r.state == ReplicaState::Serving)
        };
        if split.halves().into_iter().all(is_serving) {
            let Split { low, high } = self.map.splits.remove(&parent).expect("looked up");
            self.map.partitions.remove(&parent);
            self.map.partitions.insert(low.id, low);
            self.map.partitions.insert(high.id, high);
            self.forget_changes_of_gone_partitions();
        }
        Ok((Response::Done, MapChanged::Yes))
    }
}
