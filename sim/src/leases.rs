//! The reigning leader's memory of who renewed when, as the coordinator's shell
//! keeps it: nothing outlives a reign, a new leader takes every holder for just
//! renewed, and what is given away is waited for.

use crate::process::Ticket;
use cluster_core::control::Reign;
use cluster_core::ids::*;
use cluster_core::lease::{BootMs, LeaseTerms};
use std::collections::BTreeMap;

pub struct Reigning {
    pub reign: Reign,
    pub epoch: LeaseEpoch,
    terms: LeaseTerms,
    since: BootMs,
    nodes: BTreeMap<NodeId, (BootMs, MapStamp)>,
    consumers: BTreeMap<ConsumerId, BootMs>,
    /// The source on its way to another consumer, with the token that is taken.
    handing_over: Option<ConsumerEpoch>,
}

/// A renewal that waits for the quorum.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    pub call: Ticket,
    pub received: BootMs,
}

impl Reigning {
    pub fn new(reign: Reign, epoch: LeaseEpoch, terms: LeaseTerms, now: BootMs) -> Self {
        Self {
            reign,
            epoch,
            terms,
            since: now,
            nodes: BTreeMap::new(),
            consumers: BTreeMap::new(),
            handing_over: None,
        }
    }

    pub fn renew_node(&mut self, node: NodeId, received: BootMs, known: MapStamp) {
        let lease = self.nodes.entry(node).or_insert((received, known));
        *lease = (received.max(lease.0), known.max(lease.1));
    }

    /// The token that the consumer must not be told to hold.
    pub fn renew_consumer(&mut self, id: ConsumerId, received: BootMs) -> Option<ConsumerEpoch> {
        let renewed_at = self.consumers.entry(id).or_insert(received);
        *renewed_at = received.max(*renewed_at);
        self.handing_over
    }

    fn is_over(&self, renewed_at: Option<BootMs>, now: BootMs) -> bool {
        let since = renewed_at.unwrap_or(self.since);
        now.saturating_sub(since) > self.terms.wait_out_ms()
    }

    /// Whether the node's lease has surely run out.
    pub fn is_node_over(&self, node: NodeId, now: BootMs) -> bool {
        self.is_over(self.nodes.get(&node).map(|n| n.0), now)
    }

    pub fn node_silence(&self, node: NodeId, now: BootMs) -> u64 {
        let renewed_at = self.nodes.get(&node).map_or(self.since, |n| n.0);
        now.saturating_sub(renewed_at)
    }

    /// The map that the node bore at its last renewal in this reign.
    pub fn node_knows(&self, node: NodeId) -> Option<MapStamp> {
        self.nodes.get(&node).map(|n| n.1)
    }

    pub fn is_node_live(&self, node: NodeId, now: BootMs) -> bool {
        let renewed_at = self.nodes.get(&node).map(|n| n.0);
        renewed_at.is_some_and(|at| now.saturating_sub(at) <= self.terms.ttl_ms)
    }

    pub fn live_consumers(&self, now: BootMs) -> impl Iterator<Item = ConsumerId> {
        let ttl_ms = self.terms.ttl_ms;
        let live = self.consumers.iter();
        live.filter(move |(_, at)| now.saturating_sub(**at) <= ttl_ms)
            .map(|(id, _)| *id)
    }

    /// From here on the holder's renewals leave the source out, whatever becomes
    /// of the command.
    pub fn begin_handover(
        &mut self,
        holder: Option<ConsumerId>,
        token: ConsumerEpoch,
        now: BootMs,
    ) -> bool {
        let renewed_at = holder.and_then(|holder| self.consumers.get(&holder).copied());
        let is_free = holder.is_none() || self.is_over(renewed_at, now);
        if is_free {
            self.handing_over = Some(token);
        }
        is_free || self.handing_over == Some(token)
    }
}
