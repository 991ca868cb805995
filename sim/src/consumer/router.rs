//! Which change goes to which partition, and when a partition's batch leaves.

use super::backfill::Backfill;
use super::feed::{Feed, Retention};
use super::replicas::{is_fed, key};
use super::run::{Run, end_of};
use super::splits::ranges_of;
use crate::mutant::Mutant;
use crate::process::{Effects, Proc};
use cluster_core::change::{Change, PositionedChange};
use cluster_core::collection::CollectionState;
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::*;
use cluster_core::map::{HashRange, PartitionMap, ReplicaState};
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_core::xid::FullXid;
use std::sync::Arc;

const TELL_EVERY_MS: u64 = 60;
const REFRESH_EVERY_MS: u64 = 1_000;
/// Changes of a partition that are sent together.
const BATCH_CHANGES_MAX: usize = 4;

/// What the nodes were last told, and when.
#[derive(Clone, Copy, Default)]
pub(super) struct Told {
    pub end: Lsn,
    at: u64,
    oldest_xmin: FullXid,
    confirmed: WalPosition,
}

impl Run {
    pub fn add_collection(&mut self, map: &Arc<PartitionMap>, id: CollectionId) {
        let Some(collection) = map.collections.get(&id) else {
            return;
        };
        if self.collections.contains_key(&id) || !is_fed(map, id) {
            return;
        }
        let is_complete = matches!(collection.state, CollectionState::Ready { .. });
        let from = match is_complete {
            true => end_of(self.start),
            false => WalPosition::ZERO,
        };
        self.collections.insert(id, ranges_of(map, id));
        self.take_halves(map);
        let held = map.held_partitions().map(|(partition, _)| partition);
        for partition in held.filter(|partition| partition.collection == id) {
            // One that is released may lie below the slot by now: it is left alone.
            for replica in partition.in_state(ReplicaState::Serving) {
                let Some(feed) = self.feed(map, replica.node) else {
                    continue;
                };
                feed.add(partition.id, replica.generation, from, is_complete);
                self.require(key(partition.id, replica.node, replica.generation));
            }
        }
        if !is_complete {
            self.backfills.insert(id, Backfill::new(id));
        }
    }

    pub(super) fn feed(&mut self, map: &PartitionMap, node: NodeId) -> Option<&mut Feed> {
        let process = Proc::at(&map.nodes.get(&node)?.address)?;
        let (token, start) = (self.token, end_of(self.start));
        let feed = self.feeds.entry(node);
        Some(feed.or_insert_with(|| Feed::new(process, token, start)))
    }

    pub fn drop_gone(&mut self, map: &PartitionMap) {
        let gone = self.collections.keys().filter(|id| !is_fed(map, **id));
        for id in gone.copied().collect::<Vec<_>>() {
            for (_, partition) in self.collections.remove(&id).unwrap_or_default() {
                for (_, half) in self.halves.remove(&partition).unwrap_or_default() {
                    self.remove_partition(half);
                }
                self.remove_partition(partition);
            }
            self.backfills.remove(&id);
        }
        let routed = self.routed_partitions();
        self.tracker
            .retain(|replica| routed.contains(&replica.partition));
    }

    pub fn partition_for(&self, id: CollectionId, hash: u64) -> Option<PartitionId> {
        let ranges = self.collections.get(&id)?.iter();
        let mut found = ranges.filter(|(range, _)| range.contains(hash));
        found.next().map(|(_, partition)| *partition)
    }

    /// A node whose serving replica has applied a position.
    pub fn replica_at(
        &self,
        id: PartitionId,
        at: WalPosition,
        effects: &mut Effects<'_>,
    ) -> Option<Proc> {
        let has = |feed: &&Feed| {
            let fed = feed.partitions.get(&id);
            feed.is_up() && fed.is_some_and(|f| !f.is_learner && f.applied >= at)
        };
        let nodes: Vec<Proc> = self.feeds.values().filter(has).map(Feed::process).collect();
        effects.rng.pick(&nodes).copied()
    }

    pub fn route(&mut self, id: CollectionId, change: PositionedChange, effects: &mut Effects<'_>) {
        let hash = match &change.change {
            Change::Upsert { key, .. } | Change::Delete { key } => Some(key.placement_hash()),
            Change::Truncate => None,
        };
        let feeds_halves = !effects.is_broken(Mutant::HalvesUnfed);
        let targets = self.targets(id, hash, feeds_halves);
        for partition in targets {
            let buffer = self.buffers.entry(partition).or_default();
            // Both halves of a key change bear one position.
            if let Some(last) = buffer.last().map(|c| c.position)
                && buffer.len() >= BATCH_CHANGES_MAX
                && last < change.position
            {
                self.flush_partition(partition, last, effects);
            }
            self.buffers
                .entry(partition)
                .or_default()
                .push(change.clone());
        }
    }

    /// The partitions that a hash belongs to, all without one: those in force, and
    /// halves of those.
    fn targets(&self, id: CollectionId, hash: Option<u64>, feeds_halves: bool) -> Vec<PartitionId> {
        let is_meant = |range: &HashRange| hash.is_none_or(|hash| range.contains(hash));
        let mut targets = Vec::new();
        let in_force = self.collections.get(&id).into_iter().flatten();
        for (_, partition) in in_force.filter(|(range, _)| is_meant(range)) {
            targets.push(*partition);
            let halves = self.halves.get(partition).filter(|_| feeds_halves);
            let halves = halves.into_iter().flatten();
            targets.extend(halves.filter(|(r, _)| is_meant(r)).map(|(_, half)| *half));
        }
        targets
    }

    pub fn flush_within(&mut self, partition: PartitionId, effects: &mut Effects<'_>) {
        let last = self.buffers.get(&partition).and_then(|b| b.last());
        if let Some(last) = last.map(|change| change.position) {
            self.flush_partition(partition, last, effects);
        }
    }

    pub fn sent_to(&self, partition: PartitionId) -> WalPosition {
        let sent = self.sent_to.get(&partition).copied();
        sent.unwrap_or(WalPosition::ZERO)
    }

    pub(super) fn flush(&mut self, effects: &mut Effects<'_>) {
        let to = end_of(self.complete);
        for partition in self.buffers.keys().copied().collect::<Vec<_>>() {
            self.flush_partition(partition, to, effects);
        }
    }

    fn flush_partition(
        &mut self,
        partition: PartitionId,
        to: WalPosition,
        effects: &mut Effects<'_>,
    ) {
        let changes = self.buffers.remove(&partition).unwrap_or_default();
        if changes.is_empty() {
            return;
        }
        self.sent_to.insert(partition, to);
        for feed in self.feeds.values_mut() {
            feed.push_batch(partition, to, &changes, effects);
        }
    }

    /// Sends what is buffered, then "nothing else", news or not: whoever waits for it
    /// may have missed the last.
    pub fn tell(&mut self, effects: &mut Effects<'_>) {
        let confirmed = end_of(self.tracker.confirmed());
        let retention = Retention {
            oldest_xmin: self.oldest_xmin,
            confirmed,
        };
        self.flush(effects);
        for feed in self.feeds.values_mut() {
            feed.retention = retention;
            feed.push_nothing_else(end_of(self.complete), effects);
        }
        self.tracker.sent(self.complete);
        self.told = Told {
            end: self.complete,
            at: effects.now,
            oldest_xmin: self.oldest_xmin,
            confirmed,
        };
    }

    /// Whether the nodes are to be told: of an idle source they learn what they may
    /// forget.
    pub(super) fn owes(&self, now: u64) -> bool {
        let confirmed = end_of(self.tracker.confirmed());
        let told = (self.told.oldest_xmin, self.told.confirmed);
        let is_retention_news = (self.oldest_xmin, confirmed) != told;
        let wait_ms = match (self.complete > self.told.end, is_retention_news) {
            (true, _) => TELL_EVERY_MS,
            (false, true) => REFRESH_EVERY_MS,
            (false, false) => return false,
        };
        now >= self.told.at + wait_ms
    }

    pub fn is_durable(&self, at: WalPosition, collection: CollectionId) -> bool {
        let ranges = self.collections.get(&collection);
        let is_of =
            |r: &ReplicaKey| ranges.is_some_and(|p| p.iter().any(|(_, p)| *p == r.partition));
        self.tracker.is_durable(at, is_of)
    }
}
