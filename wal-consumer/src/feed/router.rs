//! Which change goes to which partition, and when a partition's batch leaves.
//!
//! A batch never ends within an ordinal: both halves of a key change bear the
//! same position, and what lies at or below a watermark is ignored.

use super::progress::{Progress, RoutedPartition};
use super::stream::NodeFeed;
use crate::config::Config;
use cluster_core::change::{Change, PositionedChange, VectorColumn};
use cluster_core::collection::{CollectionSpec, CollectionState};
use cluster_core::ids::{CollectionId, Generation, NodeId, PartitionId, SourceId};
use cluster_core::map::{HashRange, PartitionMap};
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What a change costs on the wire and in memory beyond key and vector.
const CHANGE_OVERHEAD_BYTES: usize = 96;

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

pub struct Router {
    config: Arc<Config>,
    progress: Arc<Progress>,
    feeds: BTreeMap<NodeId, Arc<NodeFeed>>,
    collections: BTreeMap<CollectionId, Routed>,
    partitions: BTreeMap<PartitionId, (RoutedPartition, Vec<(NodeId, Generation)>)>,
    buffers: BTreeMap<PartitionId, Buffer>,
    /// The `to` of the last batch sent for a partition in this run.
    sent_to: BTreeMap<PartitionId, WalPosition>,
}

/// The partitions of a collection with their replicas, to tell a changed
/// assignment from an unchanged one.
type Assignment = Vec<(HashRange, PartitionId, Vec<(NodeId, Generation)>)>;

fn assignment(map: &PartitionMap, collection: CollectionId) -> Assignment {
    let replicas = |p: &cluster_core::map::Partition| {
        p.replicas.iter().map(|r| (r.node, r.generation)).collect()
    };
    map.partitions_of(collection)
        .into_iter()
        .map(|p| (p.range, p.id, replicas(p)))
        .collect()
}

impl Router {
    pub fn new(config: Arc<Config>, progress: Arc<Progress>) -> Self {
        Self {
            config,
            progress,
            feeds: BTreeMap::new(),
            collections: BTreeMap::new(),
            partitions: BTreeMap::new(),
            buffers: BTreeMap::new(),
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

    pub fn feeds(&self) -> impl Iterator<Item = &Arc<NodeFeed>> {
        self.feeds.values()
    }

    /// Adds a collection of the map; answers the feeds that are new and must be
    /// run.
    pub fn add_collection(&mut self, map: &PartitionMap, id: CollectionId) -> Vec<Arc<NodeFeed>> {
        let Some(collection) = map.collections.get(&id) else {
            return Vec::new();
        };
        let is_complete = matches!(collection.state, CollectionState::Ready { .. });
        let nodes = map.nodes.len().max(1);
        let mut new_feeds = Vec::new();
        let assigned = assignment(map, id);
        for (_, partition, replicas) in &assigned {
            for (node, generation) in replicas {
                let feed = self.feeds.entry(*node).or_insert_with(|| {
                    let bytes_max = self.config.node_queue_bytes / nodes;
                    let feed = NodeFeed::new(*node, bytes_max, self.progress.clone());
                    new_feeds.push(feed.clone());
                    feed
                });
                feed.add_partition(*partition, *generation, is_complete);
            }
            let routed = RoutedPartition {
                id: *partition,
                collection: id,
                replicas: replicas.iter().map(|(node, _)| *node).collect(),
            };
            self.partitions
                .insert(*partition, (routed, replicas.clone()));
        }
        let ranges = assigned
            .iter()
            .map(|(range, partition, _)| (*range, *partition))
            .collect();
        self.collections.insert(
            id,
            Routed {
                spec: collection.spec.clone(),
                ranges,
            },
        );
        new_feeds
    }

    pub fn remove_collection(&mut self, id: CollectionId) {
        let Some(collection) = self.collections.remove(&id) else {
            return;
        };
        for (_, partition) in collection.ranges {
            self.partitions.remove(&partition);
            self.buffers.remove(&partition);
            self.sent_to.remove(&partition);
            for feed in self.feeds.values() {
                feed.remove_partition(partition);
            }
        }
        let partitions = &self.partitions;
        self.progress
            .retain(|replica| partitions.contains_key(&replica.partition));
    }

    /// Takes away what the map no longer feeds. `Err`: a collection that is
    /// fed lies elsewhere now, so the source must start over.
    pub fn follow_map(&mut self, map: &PartitionMap, source: SourceId) -> Result<(), CollectionId> {
        for id in self.collections.keys().copied().collect::<Vec<_>>() {
            if !is_fed(map, source, id) {
                self.remove_collection(id);
                continue;
            }
            let fed: Assignment = self.collections[&id]
                .ranges
                .iter()
                .map(|(range, p)| (*range, *p, self.partitions[p].1.clone()))
                .collect();
            if fed != assignment(map, id) {
                return Err(id);
            }
        }
        Ok(())
    }

    pub fn partition_for(&self, id: CollectionId, hash: u64) -> Option<&RoutedPartition> {
        let ranges = &self.collections.get(&id)?.ranges;
        let index = ranges.partition_point(|(range, _)| range.hi < hash);
        let (range, partition) = ranges.get(index)?;
        let routed = &self.partitions.get(partition)?.0;
        range.contains(hash).then_some(routed)
    }

    pub fn feed(&self, node: NodeId) -> Option<&Arc<NodeFeed>> {
        self.feeds.get(&node)
    }

    /// Routes a change. Both halves of a key change come by themselves.
    pub async fn route(&mut self, id: CollectionId, change: PositionedChange) {
        let targets: Vec<PartitionId> = match &change.change {
            Change::Upsert { key, .. } | Change::Delete { key } => self
                .partition_for(id, key.placement_hash())
                .map(|p| p.id)
                .into_iter()
                .collect(),
            Change::Truncate => match self.collections.get(&id) {
                Some(collection) => collection.ranges.iter().map(|(_, p)| *p).collect(),
                None => Vec::new(),
            },
        };
        for partition in targets {
            self.buffer(partition, change.clone()).await;
        }
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
        let buffer = self.buffers.entry(partition).or_default();
        buffer.bytes += change_bytes(&change);
        buffer.changes.push(change);
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
        let Some(buffer) = self.buffers.remove(&partition) else {
            return;
        };
        let Some((_, replicas)) = self.partitions.get(&partition) else {
            return;
        };
        self.sent_to.insert(partition, to);
        let changes: Vec<v1::RowChange> = buffer.changes.iter().map(Into::into).collect();
        let stall = Duration::from_millis(self.config.node_stall_ms);
        for (node, _) in replicas {
            let Some(feed) = self.feeds.get(node) else {
                continue;
            };
            feed.wait_for_room(stall).await;
            // Keys and vectors are shared between the copies.
            feed.push_batch(partition, to, changes.clone(), buffer.bytes);
        }
    }

    /// Tells every node that there is nothing else up to `end`, after a flush.
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
