//! `slot_hold_limit`: what is looked at, and what the operator is told.
//!
//! Which replicas the slot passes is decided in [`cluster_core::slot_hold`], and
//! recorded by the coordinators before the slot moves.

use super::SourceContext;
use super::coordination::ReplicaChange;
use super::replica_changes::Ask;
use crate::clock::boot_ms;
use crate::feed::router::Feeds;
use cluster_core::confirm::ReplicaKey;
use cluster_core::slot_hold::{Act, Holder, Limits, SlotHold};
use cluster_core::wal_position::Lsn;

/// In log lines and metrics.
pub const REASON: &str = "slot_hold_limit";
/// Of the replicas that hold the slot, so many are named.
const NAMED_MAX: usize = 8;

pub struct SlotLimit {
    context: SourceContext,
    hold: SlotHold,
}

/// The source's own limit, or the consumer's; 0: none.
pub fn limit_bytes(context: &SourceContext) -> u64 {
    let map = context.client.map();
    let own = map.sources.get(&context.source);
    let own = own.and_then(|source| source.slot_hold_limit_bytes);
    own.unwrap_or(context.config.slot_hold_limit_bytes)
}

/// The server retains more than it may, at the last look.
pub fn is_exceeded(context: &SourceContext) -> bool {
    let limit = limit_bytes(context);
    limit > 0 && context.standing.retained_wal_bytes() > limit
}

impl SlotLimit {
    pub fn new(context: SourceContext) -> Self {
        let limits = Limits {
            retained_bytes: limit_bytes(&context),
            after_ms: context.config.demote_after_ms,
        };
        Self {
            context,
            hold: SlotHold::new(limits),
        }
    }

    pub fn look(&mut self, feeds: &Feeds, routed: Lsn, now_ms: u64) -> Vec<Ask> {
        self.hold.limit(limit_bytes(&self.context));
        let retained_bytes = self.context.standing.retained_wal_bytes();
        let seen: Vec<Holder> = feeds.iter().flat_map(|f| f.holders(routed)).collect();
        let verdict = self.hold.look(now_ms, retained_bytes, &seen);
        if let Some(holders) = verdict.warning {
            self.warn(retained_bytes, &holders);
        }
        let asked = verdict.due.into_iter().map(|(replica, act)| Ask {
            replica,
            change: match act {
                Act::Demote => ReplicaChange::Demote,
                Act::MarkStale => ReplicaChange::MarkStale,
            },
            reason: REASON,
        });
        asked.collect()
    }

    fn warn(&self, retained_bytes: u64, holders: &[ReplicaKey]) {
        let named = holders.iter().take(NAMED_MAX);
        let mut named: Vec<String> = named
            .map(|r| format!("{} on {}", r.partition, r.node))
            .collect();
        if holders.len() > NAMED_MAX {
            named.push(format!("{} more", holders.len() - NAMED_MAX));
        }
        let held_by = match holders {
            [] => "no replica: a long transaction, or what was not sent yet".to_owned(),
            _ => named.join(", "),
        };
        let limit_bytes = limit_bytes(&self.context);
        let source = self.context.source;
        tracing::warn!(
            %source, retained_bytes, limit_bytes, held_by,
            "the slot retains WAL near slot_hold_limit: past it the replicas that hold the \
             slot are passed; bring their nodes back, or raise the limit"
        );
    }

    pub fn passed(&self, replica: ReplicaKey) {
        let (source, node, partition) = (self.context.source, replica.node, replica.partition);
        self.context.metrics.marked_stale(source);
        tracing::error!(
            %source, %partition, %node,
            "slot_hold_limit is reached: the slot passes the replica, which is stale from now \
             on; unless another of its partition serves, its index is reconciled with the table \
             once the node is back"
        );
    }

    pub fn refused(&mut self, replica: ReplicaKey, change: ReplicaChange) {
        match change {
            ReplicaChange::Demote => self.hold.demotion_refused(replica),
            ReplicaChange::MarkStale => self.hold.marking_refused(replica, boot_ms()),
            ReplicaChange::Promote => {}
        }
    }
}
