//! Copies of a partition: what a serving replica gives, and what a learner asks.

use super::CALL_TIMEOUT_MS;
use super::Node;
use super::checkpoint::{self, CheckpointPage};
use super::writer::{Job, Replica};
use crate::message::Message;
use crate::process::{Effects, Proc, Ticket};
use cluster_core::ids::PartitionId;
use cluster_core::learner::choose_peer;
use cluster_core::map::ReplicaState;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;

impl Node {
    pub(super) fn checkpoint(
        &self,
        partition: PartitionId,
        at_least: WalPosition,
        after: Option<&RowKey>,
    ) -> Option<CheckpointPage> {
        let replica = self.replicas.get(&partition)?;
        let state = self.assigned(partition, replica.data.generation);
        let serves = state == Some(ReplicaState::Serving)
            && replica.data.learning.is_none()
            && replica.data.open_backfill.is_none()
            && replica.applied >= at_least;
        serves.then(|| checkpoint::page(&replica.data, replica.applied, after))
    }

    /// Asks serving peers for the next pages of what is being copied.
    pub(super) fn fetch_checkpoints(&mut self, effects: &mut Effects<'_>) {
        for (partition, replica) in &mut self.replicas {
            let Some(learning) = &replica.data.learning else {
                continue;
            };
            let waits = |(_, at): (Ticket, u64)| effects.now < at + CALL_TIMEOUT_MS;
            let Some(wanted) = learning.wants() else {
                continue;
            };
            if replica.is_busy || replica.fetching.is_some_and(waits) {
                continue;
            }
            let Some(record) = self.map.partitions.get(partition) else {
                continue;
            };
            let Some(member) = self.member else { continue };
            // Turns stand for failures in a row: any peer may be the next.
            let turn = effects.rng.below(8) as u32;
            let peer = choose_peer(record, member, turn);
            let peer = peer.and_then(|r| Proc::at(&self.map.nodes.get(&r.node)?.address));
            let Some(peer) = peer else { continue };
            let call = effects.ticket();
            replica.fetching = Some((call, effects.now));
            let fetch = Message::FetchCheckpoint {
                call,
                partition: *partition,
                at_least: wanted.at_least,
                after: RowKey::from_bytes(wanted.after.0).ok(),
            };
            effects.call(peer, fetch);
        }
    }

    pub(super) fn copied(
        &mut self,
        call: Ticket,
        page: Option<CheckpointPage>,
        effects: &mut Effects<'_>,
    ) {
        let asked = |r: &Replica| r.fetching.is_some_and(|(c, _)| c == call);
        let found = self.replicas.iter_mut().find(|(_, r)| asked(r));
        let Some((partition, replica)) = found else {
            return;
        };
        let partition = *partition;
        // Without a page it is asked again, of whom chance names, when the call is over.
        if let Some(page) = page {
            replica.fetching = None;
            self.queue(partition, Job::Copy(page), effects);
        }
    }
}
