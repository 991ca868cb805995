//! Which replicas are fed, as the map has them.

use super::asks::Purpose;
use super::feed::Fed;
use super::run::{Run, end_of};
use crate::coordinator::SOURCE;
use crate::message::Report;
use crate::process::Effects;
use cluster_core::collection::CollectionState;
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::*;
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::wal_position::WalPosition;
use std::sync::Arc;

impl Run {
    /// Learners that a run before this one, under the same token, may have counted
    /// and asked to promote: that may still come about, so that the slot waits for
    /// them from the beginning. One that is being copied or stands below the slot
    /// was never counted; of one whose node does not answer nobody knows.
    pub(super) fn count_inherited(&mut self, map: &PartitionMap, effects: &mut Effects<'_>) {
        let start = end_of(self.start);
        for (partition, _) in map.held_partitions() {
            for replica in partition.in_state(ReplicaState::Learner) {
                let node = replica.node;
                let inherited = key(partition.id, node, replica.generation);
                let of = |r: &&(NodeId, Report)| r.0 == node;
                let mut reports = self.reports.iter().filter(of).map(|(_, report)| report);
                let is_this =
                    |r: &&Report| (r.partition, r.generation) == (partition.id, replica.generation);
                let has_answered = self.answered.contains(&node);
                let report = reports.find(is_this);
                let durable = match report {
                    Some(r) if !r.is_learning && r.durable >= start => r.durable,
                    None if !has_answered => WalPosition::ZERO,
                    _ => continue,
                };
                effects.note(format!("inherits {inherited:?} at {durable}"));
                self.counted.insert(inherited);
                self.tracker.require(inherited);
                self.tracker.durable(inherited, durable);
            }
        }
    }

    /// Never within a transaction: what a learner is attached at must be the end
    /// of one.
    pub(super) fn follow_map(&mut self, map: &Arc<PartitionMap>, effects: &mut Effects<'_>) {
        self.drop_gone(map);
        self.follow_splits(map);
        for id in self.routed_partitions() {
            let learners = map.held_partition(id).into_iter();
            let learners = learners.flat_map(|p| p.in_state(ReplicaState::Learner));
            for replica in learners {
                let (node, generation) = (replica.node, replica.generation);
                if self.fed(id, node, generation).is_none() {
                    self.attach(map, id, (node, generation), effects);
                }
            }
        }
        self.follow_replicas(map);
    }

    fn fed(&self, id: PartitionId, node: NodeId, generation: Generation) -> Option<&Fed> {
        let fed = self.feeds.get(&node)?.partitions.get(&id);
        fed.filter(|fed| fed.generation == generation)
    }

    /// Who serves now, who goes, and for whom the slot waits.
    pub(super) fn follow_replicas(&mut self, map: &Arc<PartitionMap>) {
        for id in self.routed_partitions() {
            let Some(partition) = map.held_partition(id) else {
                continue;
            };
            for replica in &partition.replicas {
                let (node, generation) = (replica.node, replica.generation);
                let is_learner = self.fed(id, node, generation).map(|f| f.is_learner);
                let feed = self.feeds.get_mut(&node);
                match (replica.state, is_learner, feed) {
                    (ReplicaState::Serving, None, _) => self.end("a replica serves unfed"),
                    (ReplicaState::Serving, Some(true), Some(feed)) => {
                        feed.promoted(id);
                        self.require(key(id, node, generation));
                    }
                    (ReplicaState::Releasing, Some(_), Some(feed)) => feed.releasing(id),
                    (ReplicaState::Demoted, Some(_), Some(feed)) => feed.remove(id),
                    _ => {}
                }
            }
        }
        self.forget_gone(map);
    }

    fn forget_gone(&mut self, map: &Arc<PartitionMap>) {
        for (node, feed) in &mut self.feeds {
            let fed = feed.partitions.iter();
            let gone = fed
                .filter(|(id, fed)| state_of_key(map, &key(**id, *node, fed.generation)).is_none());
            for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
                feed.remove(id);
            }
        }
        self.counted.retain(|r| state_of_key(map, r).is_some());
        self.promoted
            .retain(|r| state_of_key(map, r) == Some(ReplicaState::Learner));
        self.counting.retain(|r, _| state_of_key(map, r).is_some());
        let counted = &self.counted;
        self.tracker.retain(|r| match state_of_key(map, r) {
            Some(ReplicaState::Serving) => true,
            Some(ReplicaState::Learner) => counted.contains(r),
            _ => false,
        });
        self.asks.retain(|purpose| match purpose {
            Purpose::Promote(r) => state_of_key(map, r) == Some(ReplicaState::Learner),
            Purpose::Demote(r) => matches!(
                state_of_key(map, r),
                Some(ReplicaState::Serving | ReplicaState::Learner)
            ),
            _ => true,
        });
    }

    fn attach(
        &mut self,
        map: &Arc<PartitionMap>,
        id: PartitionId,
        (node, generation): (NodeId, Generation),
        effects: &mut Effects<'_>,
    ) {
        self.flush(effects);
        let from = end_of(self.complete);
        if let Some(feed) = self.feed(map, node) {
            feed.attach(id, generation, from, effects);
        }
    }
}

pub fn key(partition: PartitionId, node: NodeId, generation: Generation) -> ReplicaKey {
    ReplicaKey {
        partition,
        node,
        generation,
    }
}

pub(super) fn state_of_key(map: &PartitionMap, of: &ReplicaKey) -> Option<ReplicaState> {
    let replica = map.held_partition(of.partition)?.replica_on(of.node)?;
    (replica.generation == of.generation).then_some(replica.state)
}

pub(super) fn state_of(map: &PartitionMap, node: NodeId, report: &Report) -> Option<ReplicaState> {
    state_of_key(map, &key(report.partition, node, report.generation))
}

pub fn is_ready(map: &PartitionMap, partition: PartitionId) -> bool {
    let record = map.held_partition(partition);
    let collection = record.and_then(|p| map.collections.get(&p.collection));
    collection.is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }))
}

pub(super) fn is_fed(map: &PartitionMap, id: CollectionId) -> bool {
    map.collections.get(&id).is_some_and(|c| {
        c.spec.source == SOURCE && !matches!(c.state, CollectionState::Failed { .. })
    })
}
