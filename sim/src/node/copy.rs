//! Copies of a partition: what a serving replica gives, and what a learner asks.

use super::CALL_TIMEOUT_MS;
use super::Node;
use super::checkpoint::{self, CheckpointPage};
use super::writer::{Job, Replica};
use crate::message::Message;
use crate::process::{Effects, Proc, Ticket};
use cluster_core::ids::{NodeId, PartitionId};
use cluster_core::learner::{choose_parent, choose_peer};
use cluster_core::map::{HashRange, PartitionMap, ReplicaState};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;

/// Whom a learner copies, and what of it.
struct Peer {
    process: Proc,
    partition: PartitionId,
    range: Option<HashRange>,
}

/// A peer that the map lets serve: for a half, one of the partition that is being
/// split.
fn peer(map: &PartitionMap, id: PartitionId, learner: NodeId, turn: u32) -> Option<Peer> {
    let (partition, range, chosen) = match map.partitions.get(&id) {
        Some(partition) => (partition.id, None, choose_peer(partition, learner, turn)?),
        None => {
            let (parent, half) = map.split_of(id)?;
            let chosen = choose_parent(parent, learner, turn)?;
            (parent.id, Some(half.range), chosen)
        }
    };
    Some(Peer {
        process: Proc::at(&map.nodes.get(&chosen.node)?.address)?,
        partition,
        range,
    })
}

impl Node {
    pub(super) fn checkpoint(
        &self,
        partition: PartitionId,
        at_least: WalPosition,
        wanted: (Option<&RowKey>, Option<HashRange>),
    ) -> Option<CheckpointPage> {
        let replica = self.replicas.get(&partition)?;
        let state = self.assigned(partition, replica.data.generation);
        let serves = state == Some(ReplicaState::Serving)
            && replica.data.learning.is_none()
            && replica.data.open_backfill.is_none()
            && replica.applied >= at_least;
        serves.then(|| checkpoint::page(&replica.data, replica.applied, wanted))
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
            let Some(member) = self.member else { continue };
            // Turns stand for failures in a row: any peer may be the next.
            let turn = effects.rng.below(8) as u32;
            let Some(peer) = peer(&self.map, *partition, member, turn) else {
                continue;
            };
            let call = effects.ticket();
            replica.fetching = Some((call, effects.now));
            let fetch = Message::FetchCheckpoint {
                call,
                partition: peer.partition,
                at_least: wanted.at_least,
                after: RowKey::from_bytes(wanted.after.0).ok(),
                range: peer.range,
            };
            effects.call(peer.process, fetch);
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
