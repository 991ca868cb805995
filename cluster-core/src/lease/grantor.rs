//! The grantor's side: one reign's memory of who renewed when, and what it may
//! conclude from silence.
//!
//! Nothing here outlives a reign: a new leader knows no renewal, so it takes
//! every holder for just renewed when its reign began, and waits accordingly.
//! A renewal counts only once a quorum has confirmed the reign in a round that
//! began after the renewal's arrival: a leader that was cut off meanwhile must
//! not extend a lease that its successor waits out (P5).

use super::terms::LeaseTerms;
use crate::control::{ClusterState, Reign};
use crate::ids::{ConsumerEpoch, ConsumerId, LeaseEpoch, MapStamp, NodeId, SourceId};
use std::collections::BTreeMap;

/// Milliseconds since the reign began, cut off rather than rounded. Waits are
/// compared strictly, so that the cut never makes one shorter.
pub type ReignMs = u64;

/// Sources about to be given away, with the token that is taken: a renewal no
/// longer includes a source under that token, whatever the applied map says.
pub type Handovers = BTreeMap<SourceId, ConsumerEpoch>;

/// No quorum has confirmed the reign since the renewal arrived. Asking again is
/// right; granting would not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reign was not confirmed after the renewal had arrived: renew again")]
pub struct Unconfirmed;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NodeRecord {
    renewed_at: ReignMs,
    /// The map that it answered by when it renewed.
    knows: MapStamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Grantor {
    terms: LeaseTerms,
    reign: Reign,
    epoch: LeaseEpoch,
    /// When the last round began in which a quorum confirmed the reign.
    confirmed_at: Option<ReignMs>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    consumers: BTreeMap<ConsumerId, ReignMs>,
    /// Begun, with an outcome that is not known yet.
    handing_over: Handovers,
    /// What renewals leave out: what is handed over, and what is asked back.
    withheld: Handovers,
    /// What a holder has let go of by its own word; it never follows it again under
    /// that token.
    released: Handovers,
}

impl Grantor {
    /// The reign's epoch is committed, and its time begins to count.
    pub fn begin(terms: LeaseTerms, reign: Reign, epoch: LeaseEpoch) -> Self {
        Self {
            terms,
            reign,
            epoch,
            confirmed_at: None,
            nodes: BTreeMap::new(),
            consumers: BTreeMap::new(),
            handing_over: Handovers::new(),
            withheld: Handovers::new(),
            released: Handovers::new(),
        }
    }

    pub fn terms(&self) -> LeaseTerms {
        self.terms
    }

    pub fn reign(&self) -> Reign {
        self.reign
    }

    pub fn epoch(&self) -> LeaseEpoch {
        self.epoch
    }

    /// A quorum has answered a ReadIndex round, or taken a command, that began at
    /// `begun_at`.
    pub fn confirmed(&mut self, begun_at: ReignMs) {
        self.confirmed_at = self.confirmed_at.max(Some(begun_at));
    }

    fn check_confirmed(&self, received: ReignMs) -> Result<(), Unconfirmed> {
        match self.confirmed_at >= Some(received) {
            true => Ok(()),
            false => Err(Unconfirmed),
        }
    }

    /// Records a node's renewal, before it is answered.
    pub fn renew_node(
        &mut self,
        node: NodeId,
        received: ReignMs,
        knows: MapStamp,
    ) -> Result<(), Unconfirmed> {
        self.check_confirmed(received)?;
        let record = self.nodes.entry(node).or_insert(NodeRecord {
            renewed_at: received,
            knows,
        });
        // Answers may be given in another order than the calls came.
        if received >= record.renewed_at {
            *record = NodeRecord {
                renewed_at: received,
                knows,
            };
        }
        Ok(())
    }

    /// Records a consumer's renewal, before it is answered; says what it must not
    /// be told to hold.
    pub fn renew_consumer(
        &mut self,
        consumer: ConsumerId,
        received: ReignMs,
    ) -> Result<&Handovers, Unconfirmed> {
        self.check_confirmed(received)?;
        let renewed_at = self.consumers.entry(consumer).or_insert(received);
        *renewed_at = received.max(*renewed_at);
        Ok(&self.withheld)
    }

    /// Asks a living holder to let go of a source: its renewals leave it out from
    /// here on.
    pub fn recall(&mut self, source: SourceId, token: ConsumerEpoch) {
        self.withheld.insert(source, token);
    }

    /// The source is not asked back any more. What is being handed over stays so.
    pub fn end_recall(&mut self, source: SourceId) {
        if !self.handing_over.contains_key(&source) {
            self.withheld.remove(&source);
        }
    }

    /// A holder has let go of a source, and follows it under that token never again:
    /// nobody needs to wait for its lease.
    pub fn released(&mut self, source: SourceId, token: ConsumerEpoch) {
        let known = self.released.entry(source).or_insert(token);
        *known = token.max(*known);
    }

    /// Whether nobody follows a source under the token any more, nor can.
    pub fn is_free(
        &self,
        source: SourceId,
        holder: Option<ConsumerId>,
        token: ConsumerEpoch,
        now: ReignMs,
    ) -> bool {
        let is_over = |holder| {
            let silent_ms = self.consumer_silence_ms(holder, now);
            self.terms.is_waited_out(silent_ms)
        };
        holder.is_none_or(is_over) || self.released.get(&source) == Some(&token)
    }

    /// Begins to take a source from its holder, unless the holder's lease may
    /// still run and it has not let go. From here on the holder's renewals leave the source out, until
    /// the handover has happened or was refused: one whose outcome is unknown
    /// goes on, even when the holder comes back meanwhile.
    pub fn begin_handover(
        &mut self,
        source: SourceId,
        holder: Option<ConsumerId>,
        token: ConsumerEpoch,
        now: ReignMs,
    ) -> bool {
        let free = self.is_free(source, holder, token, now);
        if free {
            self.handing_over.insert(source, token);
            self.withheld.insert(source, token);
        }
        free || self.handing_over.get(&source) == Some(&token)
    }

    /// The handover was refused; the holder keeps the source.
    pub fn end_handover(&mut self, source: SourceId) {
        self.handing_over.remove(&source);
        self.withheld.remove(&source);
    }

    /// Whether a consumer has renewed in this reign, within the lease's time.
    pub fn is_live(&self, consumer: ConsumerId, now: ReignMs) -> bool {
        let renewed_at = self.consumers.get(&consumer);
        renewed_at.is_some_and(|at| now.saturating_sub(*at) <= self.terms.ttl_ms)
    }

    /// Counted from the reign's beginning when it never renewed in it.
    pub fn consumer_silence_ms(&self, consumer: ConsumerId, now: ReignMs) -> u64 {
        let renewed_at = self.consumers.get(&consumer).copied();
        now.saturating_sub(renewed_at.unwrap_or(0))
    }

    /// Counted from the reign's beginning when it never renewed in it.
    pub fn node_silence_ms(&self, node: NodeId, now: ReignMs) -> u64 {
        let renewed_at = self.nodes.get(&node).map(|record| record.renewed_at);
        now.saturating_sub(renewed_at.unwrap_or(0))
    }

    /// The map that a node answered by when it renewed last; `None`: it has not in
    /// this reign.
    pub fn node_knows(&self, node: NodeId) -> Option<MapStamp> {
        self.nodes.get(&node).map(|record| record.knows)
    }

    pub fn forget_consumer(&mut self, consumer: ConsumerId) {
        self.consumers.remove(&consumer);
    }
}

/// The sources, with their tokens, that a renewal of this consumer grants. The
/// state is read after the renewal was recorded: what is taken from then on was
/// silent for a whole lease after it.
pub fn grantable<'a>(
    state: &'a ClusterState,
    consumer: ConsumerId,
    handing_over: &'a Handovers,
) -> impl Iterator<Item = (SourceId, ConsumerEpoch)> + 'a {
    let held = state.held_by(consumer);
    held.map(|source| (source.id, source.consumer_epoch))
        .filter(|(source, token)| handing_over.get(source) != Some(token))
}
