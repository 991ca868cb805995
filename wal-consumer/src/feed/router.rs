//! Which change goes to which partition, and when a partition's batch leaves.
//!
//! A batch never ends within an ordinal: both halves of a key change bear the
//! same position, and what lies at or below a watermark is ignored.
//!
//! Replicas come and go with the map while the stream goes on. Only a serving one
//! that this run has never fed makes the source start over.

use super::node::NodeFeed;
use super::progress::{Progress, RoutedPartition};
use crate::config::Config;
use cluster_core::change::{Change, PositionedChange, VectorColumn};
use cluster_core::collection::{CollectionSpec, CollectionState};
use cluster_core::ids::{CollectionId, NodeId, PartitionId, SourceId};
use cluster_core::map::{HashRange, Partition, PartitionMap, Replica, ReplicaState};
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// What a queued change costs in memory beyond key and vector: itself, and the headers
/// of two shared pieces of memory.
const CHANGE_OVERHEAD_BYTES: usize = 224;

/// A collection that is fed.
#[derive(Clone, Debug)]
pub struct Routed {
    pub spec: CollectionSpec,
    /// In hash order.
    ranges: Vec<(HashRange, PartitionId)>,
}

#[derive(Default)]
struct Buffer {
    changes: Vec<PositionedChange>,
    bytes: usize,
}

/// Those that are fed now, for who watches over their replicas.
pub type Feeds = Vec<Arc<NodeFeed>>;

pub struct Router {
    config: Arc<Config>,
    progress: Arc<Progress>,
    feeds: BTreeMap<NodeId, Arc<NodeFeed>>,
    feeds_told: watch::Sender<Feeds>,
    /// Feeds that nobody runs yet.
    feeds_new: Feeds,
    collections: BTreeMap<CollectionId, Routed>,
    partitions: BTreeMap<PartitionId, RoutedPartition>,
    /// By the partition that is being split: what goes to it goes to them too.
    halves: BTreeMap<PartitionId, Vec<(HashRange, PartitionId)>>,
    buffers: BTreeMap<PartitionId, Buffer>,
    /// Of all buffers: partitions are many, memory is not.
    buffered_bytes: usize,
    /// The `to` of the last batch sent for a partition in this run.
    sent_to: BTreeMap<PartitionId, WalPosition>,
}

fn ranges_of(map: &PartitionMap, id: CollectionId) -> Vec<(HashRange, PartitionId)> {
    let partitions = map.partitions_of(id).into_iter();
    partitions.map(|p| (p.range, p.id)).collect()
}

/// How many sources the consumer of this one follows.
fn sources_of_holder(map: &PartitionMap, source: SourceId) -> usize {
    let holder = map.sources.get(&source).and_then(|s| s.consumer);
    let held = map.sources.values().filter(|s| s.consumer == holder);
    held.count().max(1)
}

impl Router {
    pub fn new(config: Arc<Config>, progress: Arc<Progress>) -> Self {
        Self {
            config,
            progress,
            feeds: BTreeMap::new(),
            feeds_told: watch::Sender::new(Feeds::new()),
            feeds_new: Feeds::new(),
            collections: BTreeMap::new(),
            partitions: BTreeMap::new(),
            halves: BTreeMap::new(),
            buffers: BTreeMap::new(),
            buffered_bytes: 0,
            sent_to: BTreeMap::new(),
        }
    }

    pub fn collections(&self) -> &BTreeMap<CollectionId, Routed> {
        &self.collections
    }

    pub fn collections_of_table(&self, table_oid: u32) -> Vec<CollectionId> {
        let of_table = self
            .collections
            .iter()
            .filter(|(_, c)| c.spec.table_oid == table_oid);
        of_table.map(|(id, _)| *id).collect()
    }

    pub fn watch_feeds(&self) -> watch::Receiver<Feeds> {
        self.feeds_told.subscribe()
    }

    /// The feeds that were added since this was asked last; they must be run.
    pub fn take_new_feeds(&mut self) -> Feeds {
        std::mem::take(&mut self.feeds_new)
    }

    /// How many replicas are learning.
    pub fn learners(&self) -> usize {
        self.feeds.values().map(|feed| feed.learners()).sum()
    }

    /// How many learners are counted, and do not serve yet.
    pub fn counted(&self) -> usize {
        self.feeds.values().map(|feed| feed.counted().len()).sum()
    }

    /// "Nothing else" would attach a learner.
    pub fn can_attach(&self) -> bool {
        self.feeds.values().any(|feed| feed.can_attach())
    }

    /// Adds a collection of the map, fed from the start of the stream.
    pub fn add_collection(&mut self, map: &PartitionMap, id: CollectionId) {
        let Some(collection) = map.collections.get(&id) else {
            return;
        };
        let is_complete = matches!(collection.state, CollectionState::Ready { .. });
        let halves = self.take_halves(map, id);
        for partition in map.partitions_of(id).into_iter().chain(halves) {
            let mut replicas = Vec::new();
            for replica in &partition.replicas {
                let generation = replica.generation;
                match replica.state {
                    ReplicaState::Serving => {
                        let feed = self.feed_of(replica.node);
                        feed.add_serving(partition.id, generation, is_complete);
                    }
                    ReplicaState::Learner => {
                        let feed = self.feed_of(replica.node);
                        feed.add_learner(partition.id, generation);
                    }
                    ReplicaState::Stale if collection.reconciles_since().is_some() => {
                        let feed = self.feed_of(replica.node);
                        feed.add_reconciling(partition.id, generation);
                    }
                    // The slot has not waited for them: where the stream begins they
                    // may lack rows.
                    ReplicaState::Releasing | ReplicaState::Demoted | ReplicaState::Stale => {
                        continue;
                    }
                }
                replicas.push(replica.clone());
            }
            let routed = RoutedPartition {
                id: partition.id,
                collection: id,
                replicas,
            };
            self.partitions.insert(partition.id, routed);
        }
        let routed = Routed {
            spec: collection.spec.clone(),
            ranges: ranges_of(map, id),
        };
        self.collections.insert(id, routed);
        self.settle_feeds(map);
    }

    pub fn remove_collection(&mut self, id: CollectionId) {
        let Some(collection) = self.collections.remove(&id) else {
            return;
        };
        for (_, partition) in collection.ranges {
            for (_, half) in self.halves.remove(&partition).unwrap_or_default() {
                self.remove_partition(half);
            }
            self.remove_partition(partition);
        }
        self.require_only_known();
        self.end_idle_feeds();
    }

    fn remove_partition(&mut self, id: PartitionId) {
        self.partitions.remove(&id);
        self.take_buffer(id);
        self.sent_to.remove(&id);
        for feed in self.feeds.values() {
            feed.remove_partition(id);
        }
    }

    /// As `remove_partition`, where nodes may hold it still: on a map that is older
    /// than ours they would take "nothing else" for it too.
    fn retire_partition(&mut self, id: PartitionId) {
        let replicas = self.partitions.remove(&id).map(|routed| routed.replicas);
        self.take_buffer(id);
        self.sent_to.remove(&id);
        for replica in replicas.unwrap_or_default() {
            if let Some(feed) = self.feeds.get(&replica.node) {
                feed.retire(id, replica.generation);
            }
        }
    }

    fn require_only_known(&self) {
        let partitions = &self.partitions;
        self.progress
            .retain(|replica| partitions.contains_key(&replica.partition));
    }

    /// Follows collections that go and replicas that change. `Err`: a collection
    /// cannot be fed as the map wants it, so the source must start over.
    pub fn follow_map(&mut self, map: &PartitionMap, source: SourceId) -> Result<(), CollectionId> {
        for id in self.collections.keys().copied().collect::<Vec<_>>() {
            if !is_fed(map, source, id) {
                self.remove_collection(id);
                continue;
            }
            self.follow_splits(map, id);
            if self.collections[&id].ranges != ranges_of(map, id) {
                return Err(id);
            }
            let halves = self.take_halves(map, id);
            let collection = map.collections.get(&id);
            let reconciles = collection.is_some_and(|c| c.reconciles_since().is_some());
            for partition in map.partitions_of(id).into_iter().chain(halves) {
                let followed = self.follow_partition(partition, reconciles);
                followed.map_err(|Unfed| id)?;
            }
        }
        self.require_only_known();
        self.settle_feeds(map);
        Ok(())
    }

    /// Notes the halves that the map has of a collection's partitions.
    fn take_halves<'a>(&mut self, map: &'a PartitionMap, id: CollectionId) -> Vec<&'a Partition> {
        let of_collection = map.splits.iter().filter(|(_, s)| s.low.collection == id);
        let mut taken = Vec::new();
        for (parent, split) in of_collection {
            let halves = split.halves();
            let ranges = halves.iter().map(|half| (half.range, half.id)).collect();
            if self.halves.insert(*parent, ranges).is_none() {
                tracing::info!(partition = %parent, "partition is being split: its halves are fed too");
            }
            for half in halves {
                self.partitions.entry(half.id).or_insert(RoutedPartition {
                    id: half.id,
                    collection: id,
                    replicas: Vec::new(),
                });
                taken.push(half);
            }
        }
        taken
    }

    /// Halves take the place of what was split, or are given up. Both have been
    /// sent everything since they were attached, so that the stream goes on.
    fn follow_splits(&mut self, map: &PartitionMap, id: CollectionId) {
        let parents: Vec<PartitionId> = self.halves.keys().copied().collect();
        for parent in parents {
            let is_of_it = self.partitions.get(&parent).map(|p| p.collection) == Some(id);
            if !is_of_it || map.splits.contains_key(&parent) {
                continue;
            }
            let halves = self.halves.remove(&parent).unwrap_or_default();
            if map.partitions.contains_key(&parent) {
                tracing::info!(partition = %parent, "the split was given up");
                for (_, half) in halves {
                    self.remove_partition(half);
                }
                continue;
            }
            tracing::info!(partition = %parent, "partition was split: its halves have its place");
            self.retire_partition(parent);
            if let Some(collection) = self.collections.get_mut(&id) {
                collection.ranges.retain(|(_, known)| *known != parent);
                collection.ranges.extend(halves);
                collection.ranges.sort();
            }
        }
    }

    /// `reconciles`: stale replicas of the collection are fed again.
    fn follow_partition(&mut self, partition: &Partition, reconciles: bool) -> Result<(), Unfed> {
        let id = partition.id;
        let before = match self.partitions.get(&id) {
            Some(routed) => routed.replicas.clone(),
            None => return Err(Unfed),
        };
        let is_same = |a: &Replica, b: &Replica| (a.node, a.generation) == (b.node, b.generation);
        let mut replicas = Vec::new();
        let mut released = Vec::new();
        let is_fed =
            |r: &&Replica| r.state.is_fed() || (reconciles && r.state == ReplicaState::Stale);
        for replica in partition.replicas.iter().filter(is_fed) {
            let was = before.iter().find(|r| is_same(r, replica));
            let feed = self.feed_of(replica.node);
            match (was.map(|r| r.state), replica.state) {
                (_, ReplicaState::Stale) => feed.reconcile(id, replica.generation),
                (Some(ReplicaState::Stale), ReplicaState::Serving) => {
                    if !feed.serve_reconciled(id) {
                        return Err(Unfed);
                    }
                }
                (Some(was), now) if was == now => {}
                (None, ReplicaState::Learner) => feed.add_detached(id, replica.generation),
                (Some(ReplicaState::Learner), ReplicaState::Serving) => {
                    if !feed.serve(id) {
                        return Err(Unfed);
                    }
                }
                (Some(_), ReplicaState::Releasing) => released.push(feed),
                // Nobody needs what it holds.
                (None, ReplicaState::Releasing) => continue,
                _ => return Err(Unfed),
            }
            replicas.push(replica.clone());
        }
        // Only now, that whoever takes their place is waited for.
        for feed in released {
            feed.release(id);
        }
        for gone in &before {
            if replicas.iter().any(|r| is_same(r, gone)) {
                continue;
            }
            tracing::info!(node = %gone.node, partition = %id, "replica is fed no longer");
            if let Some(feed) = self.feeds.get(&gone.node) {
                feed.retire(id, gone.generation);
            }
        }
        if let Some(routed) = self.partitions.get_mut(&id) {
            routed.replicas = replicas;
        }
        Ok(())
    }

    fn feed_of(&mut self, node: NodeId) -> Arc<NodeFeed> {
        let progress = &self.progress;
        let new = &mut self.feeds_new;
        let feed = self.feeds.entry(node).or_insert_with(|| {
            let feed = NodeFeed::new(node, progress.clone());
            new.push(feed.clone());
            feed
        });
        feed.clone()
    }

    /// After the map was followed: nodes share the limits, and none takes
    /// "nothing else" for a replica that the map gives it and that is not fed.
    fn settle_feeds(&mut self, map: &PartitionMap) {
        self.end_idle_feeds();
        let sources = sources_of_holder(map, self.progress.following.source);
        for feed in self.feeds.values() {
            feed.share_limits(&self.config, map.nodes.len(), sources);
        }
        for id in self.partitions.keys() {
            let replicas = map.held_partition(*id).map(|p| &p.replicas);
            for replica in replicas.into_iter().flatten() {
                if let Some(feed) = self.feeds.get(&replica.node) {
                    feed.except(*id);
                }
            }
        }
    }

    fn end_idle_feeds(&mut self) {
        self.feeds.retain(|_, feed| {
            let is_idle = feed.is_empty();
            if is_idle {
                feed.end();
            }
            !is_idle
        });
        let feeds = &self.feeds;
        self.feeds_new.retain(|feed| feeds.contains_key(&feed.node));
        self.feeds_told
            .send_replace(feeds.values().cloned().collect());
    }

    pub fn partition_for(&self, id: CollectionId, hash: u64) -> Option<&RoutedPartition> {
        let ranges = &self.collections.get(&id)?.ranges;
        let index = ranges.partition_point(|(range, _)| range.hi < hash);
        let (range, partition) = ranges.get(index)?;
        let routed = self.partitions.get(partition)?;
        range.contains(hash).then_some(routed)
    }

    pub fn feed(&self, node: NodeId) -> Option<&Arc<NodeFeed>> {
        self.feeds.get(&node)
    }

    /// Routes a change. Both halves of a key change come by themselves.
    pub async fn route(&mut self, id: CollectionId, change: PositionedChange) {
        let hash = match &change.change {
            Change::Upsert { key, .. } | Change::Delete { key } => Some(key.placement_hash()),
            Change::Truncate => None,
        };
        let mut targets = self.targets(id, hash);
        // A vector is copied for a further target only.
        let last = targets.pop();
        for partition in targets {
            self.buffer(partition, change.clone()).await;
        }
        if let Some(partition) = last {
            self.buffer(partition, change).await;
        }
    }

    /// The partitions that a hash belongs to, all without one: those in force, and
    /// halves of those.
    fn targets(&self, id: CollectionId, hash: Option<u64>) -> Vec<PartitionId> {
        let is_meant = |range: &HashRange| hash.is_none_or(|hash| range.contains(hash));
        let mut targets = Vec::new();
        let ranges = self.collections.get(&id).map_or(&[][..], |c| &c.ranges);
        // In hash order: the first that does not end before.
        let first = ranges.partition_point(|(range, _)| hash.is_some_and(|h| range.hi < h));
        for (_, partition) in ranges[first..]
            .iter()
            .take_while(|(range, _)| is_meant(range))
        {
            targets.push(*partition);
            let halves = self.halves.get(partition).into_iter().flatten();
            targets.extend(halves.filter(|(r, _)| is_meant(r)).map(|(_, half)| *half));
        }
        targets
    }

    async fn buffer(&mut self, partition: PartitionId, change: PositionedChange) {
        let buffer = self.buffers.entry(partition).or_default();
        let is_full = buffer.changes.len() >= self.config.batch_changes_max
            || buffer.bytes >= self.config.batch_bytes_max;
        if is_full
            && let Some(last) = buffer.changes.last().map(|c| c.position)
            && last < change.position
        {
            self.flush_partition(partition, last).await;
        }
        let (position, bytes) = (change.position, change_bytes(&change));
        if self.buffered_bytes + bytes > self.config.batch_buffers_bytes {
            self.flush_below(position).await;
        }
        self.buffered_bytes += bytes;
        let buffer = self.buffers.entry(partition).or_default();
        buffer.bytes += bytes;
        buffer.changes.push(change);
    }

    /// Sends what is buffered, but for partitions of which more may come at the very
    /// position that is buffered last.
    async fn flush_below(&mut self, position: WalPosition) {
        let is_below = |buffer: &Buffer| Some(buffer.changes.last()?.position < position);
        let below = self.buffers.iter();
        let below = below.filter(|(_, buffer)| is_below(buffer) == Some(true));
        for partition in below.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.flush_within(partition).await;
        }
    }

    fn take_buffer(&mut self, partition: PartitionId) -> Option<Buffer> {
        let buffer = self.buffers.remove(&partition)?;
        self.buffered_bytes -= buffer.bytes;
        Some(buffer)
    }

    /// Sends what is buffered for a partition, up to the last change buffered:
    /// for who must read the replica within a transaction.
    pub async fn flush_within(&mut self, partition: PartitionId) {
        let last = self.buffers.get(&partition).and_then(|b| b.changes.last());
        if let Some(last) = last.map(|change| change.position) {
            self.flush_partition(partition, last).await;
        }
    }

    /// Where a replica stands that has applied every batch sent.
    pub fn sent_to(&self, partition: PartitionId) -> WalPosition {
        self.sent_to
            .get(&partition)
            .copied()
            .unwrap_or(WalPosition::ZERO)
    }

    /// Sends everything: the last transaction buffered ends at `end`.
    pub async fn flush(&mut self, end: Lsn) {
        let to = self.progress.following.end_of(end);
        let filled: Vec<PartitionId> = self.buffers.keys().copied().collect();
        for partition in filled {
            self.flush_partition(partition, to).await;
        }
    }

    async fn flush_partition(&mut self, partition: PartitionId, to: WalPosition) {
        let Some(buffer) = self.take_buffer(partition) else {
            return;
        };
        let Some(routed) = self.partitions.get(&partition) else {
            return;
        };
        self.sent_to.insert(partition, to);
        let mut changes: Vec<v1::RowChange> = buffer.changes.into_iter().map(Into::into).collect();
        // Nobody waits for a learner before the others have their batch.
        let is_learner = |r: &&Replica| r.state == ReplicaState::Learner;
        let others = routed.replicas.iter().filter(|r| !is_learner(r));
        let learners = routed.replicas.iter().filter(is_learner);
        let fed = others
            .chain(learners)
            .filter_map(|r| self.feeds.get(&r.node));
        let mut feeds: Vec<Arc<NodeFeed>> = fed.cloned().rev().collect();
        while let Some(feed) = feeds.pop() {
            feed.wait_for_room(partition, &self.config).await;
            // Keys and vectors are shared between the copies.
            let of_feed = match feeds.is_empty() {
                false => changes.clone(),
                true => std::mem::take(&mut changes),
            };
            feed.push_batch(partition, to, of_feed, buffer.bytes);
        }
    }

    /// Tells every node that there is nothing else up to `end`, after a flush;
    /// learners are attached there.
    pub fn nothing_else(&self, end: Lsn, oldest_xmin: Option<u64>) {
        assert!(
            self.buffers.is_empty(),
            "nothing else up to {end}, with changes still buffered"
        );
        let confirmed = self.progress.following.end_of(self.progress.confirmed());
        for feed in self.feeds.values() {
            feed.push_nothing_else(self.progress.following.end_of(end), oldest_xmin, confirmed);
        }
        self.progress.sent(end);
    }
}

/// A replica would need what this run has not queued for it.
struct Unfed;

/// Whether the stream of the source feeds the collection.
pub fn is_fed(map: &PartitionMap, source: SourceId, id: CollectionId) -> bool {
    map.collections.get(&id).is_some_and(|c| {
        c.spec.source == source && !matches!(c.state, CollectionState::Failed { .. })
    })
}

fn change_bytes(change: &PositionedChange) -> usize {
    CHANGE_OVERHEAD_BYTES
        + match &change.change {
            Change::Upsert {
                key,
                vector: VectorColumn::Value(vector),
            } => key.as_bytes().len() + vector.len() * 4,
            Change::Upsert { key, .. } | Change::Delete { key } => key.as_bytes().len(),
            Change::Truncate => 0,
        }
}
