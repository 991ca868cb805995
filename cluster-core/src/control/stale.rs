//! Replicas that the slot passes for the sake of the primary's disk.
//!
//! The one exception to P2, taken only when the holder of the source's token says
//! that a limit is reached. A stale replica is not copied from: what it lacks would
//! be missing in the copy as well. With a peer that serves it learns anew, like one
//! that was demoted; without one its collection is reconciled with its table. Of a
//! collection that is still being filled one with a peer is demoted, for it answers nobody;
//! without one it is stale, and the backfill becomes a reconcile: nothing of it is served
//! before that has gone over all of it.

use super::command::Response;
use super::moves::{conflict, replica_of};
use super::state::*;
use crate::collection::CollectionState;
use crate::ids::*;
use crate::map::ReplicaState;

impl ClusterState {
    /// Whoever is only on its way to serve is given up instead: a half with its
    /// split, a learner with its move.
    pub(super) fn mark_stale(
        &mut self,
        token: ConsumerEpoch,
        partition: PartitionId,
        (node, generation): (NodeId, Generation),
        reason: String,
    ) -> Outcome {
        if let Some(parent) = self.parent_of(partition) {
            self.check_partition_token(token, parent)?;
            return self.cancel_split(parent);
        }
        self.check_partition_token(token, partition)?;
        let collection = self.partition(partition)?.collection;
        let state = &self.map.collections[&collection].state;
        let is_building = matches!(state, CollectionState::Building { .. });
        match state {
            CollectionState::Building { .. } if reason.is_empty() => {
                return conflict(format!(
                    "{collection} is not complete, and release 0.1.0 fails such ones instead"
                ));
            }
            CollectionState::Failed { .. } => {
                return conflict(format!("{collection} has failed: nothing of it is served"));
            }
            CollectionState::Ready { .. } | CollectionState::Building { .. } => {}
        }
        let record = self.map.partitions.get_mut(&partition).expect("checked");
        let has_peer = record.in_state(ReplicaState::Serving).count() > 1;
        let Some(replica) = replica_of(record, node, generation) else {
            return Ok((Response::Done, MapChanged::No));
        };
        let reconciles = self.map.collections[&collection].reconciles_since();
        match replica.state {
            ReplicaState::Serving if is_building && has_peer => {
                replica.state = ReplicaState::Demoted;
                return Ok((Response::Done, MapChanged::Yes));
            }
            ReplicaState::Serving => replica.state = ReplicaState::Stale,
            ReplicaState::Learner => return self.cancel_move(partition, generation),
            // Fed again, and passed again: what was copied to it has a hole.
            ReplicaState::Stale if reconciles.is_some() => {}
            // No slot waits for these.
            ReplicaState::Stale | ReplicaState::Demoted | ReplicaState::Releasing => {
                return Ok((Response::Done, MapChanged::No));
            }
        }
        let needs_reconcile = record.needs_reconcile();
        if needs_reconcile {
            // The halves have nobody left to copy from.
            self.map.splits.remove(&partition);
        }
        if needs_reconcile || reconciles.is_some() {
            let reason = match reason.is_empty() {
                true => passed(partition, node),
                false => reason,
            };
            self.want_reconcile(collection, reason);
        }
        Ok((Response::Done, MapChanged::Yes))
    }
}

/// Why a replica that the slot has passed is stale, and its collection reconciled.
pub fn passed(partition: PartitionId, node: NodeId) -> String {
    format!(
        "the slot has passed {partition} on {node}, and no other replica has what it lacks: \
         it is compared with the table"
    )
}
