//! Breaks in a source's history, and what mends them.
//!
//! A break is told once, by the holder of the source's token, and named by the
//! incarnation that it ends: only this command raises an incarnation (P6), and only
//! once for each break, however often it is repeated. From then on no replica of the
//! source follows from the stream. Those of complete collections keep what they have,
//! answer whom old data suffices, and are reconciled with their tables; those of
//! collections that were being filled begin empty, or are filled by a reconcile already.
//!
//! Nothing is copied from a replica that is to be reconciled: what it holds is not
//! what the stream has made of it, and what it has too much nobody would sweep from
//! the copy. So moves and splits whose new replicas do not serve yet are given up, and
//! none begins before the end.

use super::command::{Refusal, Response};
use super::moves::conflict;
use super::sources::check_slot_name;
use super::state::*;
use crate::collection::*;
use crate::ids::*;
use crate::map::{ReplicaState, Slot};

/// Reasons are shown to people, not kept by the page.
const REASON_BYTES_MAX: usize = 1024;

/// The slot that takes the place of a broken one, and the server that it is on.
pub(super) struct NewSlot {
    pub slot: Slot,
    pub slot_name: String,
    pub server_start: Option<ServerStart>,
}

impl ClusterState {
    pub(super) fn break_history(
        &mut self,
        source: SourceId,
        token: ConsumerEpoch,
        expected: Incarnation,
        new: NewSlot,
        reason: String,
    ) -> Outcome {
        self.check_token(source, token)?;
        let record = self.map.sources.get_mut(&source).expect("checked");
        check_slot_name(&record.slot_name, &new.slot_name)?;
        let is_the_new = record.slot.as_ref() == Some(&new.slot);
        if record.incarnation == Incarnation(expected.0 + 1) && is_the_new {
            return Ok((Response::Done, MapChanged::No));
        }
        if record.incarnation != expected {
            return conflict(format!(
                "{source} is in incarnation {} by now, not in {expected}",
                record.incarnation
            ));
        }
        if record.slot.is_none() {
            return conflict(format!(
                "{source} has no slot yet: there is no history to break"
            ));
        }
        record.incarnation = Incarnation(expected.0 + 1);
        record.slot = Some(new.slot);
        record.slot_name = new.slot_name;
        record.server_start = new.server_start;
        record.problem = String::new();
        let of_source = self.map.collections.values();
        let of_source: Vec<CollectionId> = of_source
            .filter(|c| c.spec.source == source)
            .map(|c| c.id)
            .collect();
        for id in of_source {
            let record = &self.map.collections[&id];
            match record.state {
                // Its stale replicas are attached by a reconcile only.
                CollectionState::Building { .. } if record.reconcile.is_none() => {
                    self.begin_empty(id)
                }
                CollectionState::Ready { .. } | CollectionState::Building { .. } => {
                    self.pass_all(id);
                    self.want_reconcile(id, reason.clone());
                }
                CollectionState::Failed { .. } => {}
            }
        }
        Ok((Response::Done, MapChanged::Yes))
    }

    /// Positions count on across a switch of timelines: what lies at or below it is
    /// the same on both sides.
    pub(super) fn follow_timeline(
        &mut self,
        source: SourceId,
        token: ConsumerEpoch,
        (from, to): (u32, u32),
    ) -> Outcome {
        self.check_token(source, token)?;
        let record = self.map.sources.get_mut(&source).expect("checked");
        let Some(slot) = &mut record.slot else {
            return conflict(format!("{source} has no slot yet"));
        };
        if slot.timeline == to {
            return Ok((Response::Done, MapChanged::No));
        }
        if slot.timeline != from || to < from {
            return conflict(format!(
                "{source} is known on timeline {}: it does not go from {from} to {to}",
                slot.timeline
            ));
        }
        slot.timeline = to;
        Ok((Response::Done, MapChanged::Yes))
    }

    /// Asked for while one is wanted or under way, it is the same one.
    pub(super) fn request_reconcile(
        &mut self,
        collection: CollectionId,
        reason: String,
    ) -> Outcome {
        let record = self.map.collections.get(&collection);
        let record = record.ok_or(Refusal::UnknownCollection { collection })?;
        match &record.state {
            _ if record.reconcile.is_some() => Ok((Response::Done, MapChanged::No)),
            CollectionState::Ready { .. } => {
                self.want_reconcile(collection, reason);
                Ok((Response::Done, MapChanged::Yes))
            }
            CollectionState::Building { .. } => conflict(format!(
                "{collection} is still being filled: there is nothing to reconcile yet"
            )),
            CollectionState::Failed { reason } => conflict(format!(
                "{collection} cannot be kept: {reason}; REINDEX builds it anew"
            )),
        }
    }

    /// The next backfill compares everything: what an earlier one has seen is void.
    pub(super) fn want_reconcile(&mut self, collection: CollectionId, mut reason: String) {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        let record = self.map.collections.get_mut(&collection);
        record.expect("looked up").reconcile = Some(Reconcile {
            reason,
            since: None,
        });
        self.give_up_learners(collection);
    }

    /// What a reconcile has gone over serves again.
    pub(super) fn serve_reconciled(&mut self, collection: CollectionId) {
        for replica in self.replicas_of(collection) {
            if *replica == ReplicaState::Stale {
                *replica = ReplicaState::Serving;
            }
        }
    }

    fn pass_all(&mut self, collection: CollectionId) {
        for replica in self.replicas_of(collection) {
            if *replica == ReplicaState::Serving {
                *replica = ReplicaState::Stale;
            }
        }
    }

    fn replicas_of(&mut self, collection: CollectionId) -> impl Iterator<Item = &mut ReplicaState> {
        let partitions = self.map.partitions.values_mut();
        partitions
            .filter(move |p| p.collection == collection)
            .flat_map(|p| p.replicas.iter_mut().map(|r| &mut r.state))
    }

    /// New assignments: what was copied under the old history goes with the old ones.
    fn begin_empty(&mut self, collection: CollectionId) {
        let mut generation = self.last.generation;
        let partitions = self.map.partitions.values_mut();
        for partition in partitions.filter(|p| p.collection == collection) {
            for replica in &mut partition.replicas {
                generation = generation.next();
                replica.generation = generation;
            }
        }
        self.last.generation = generation;
        // What an ended backfill still asks for is void.
        if let Some(record) = self.map.collections.get_mut(&collection) {
            record.state = CollectionState::Building {
                backfill: BackfillId(0),
            };
        }
    }
}

#[cfg(test)]
#[path = "breaks_tests.rs"]
mod tests;
