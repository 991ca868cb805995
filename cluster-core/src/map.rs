//! The partition map: explicit data that the coordinator leader computes and
//! Raft commits. Nobody else recomputes it.

use crate::collection::Collection;
use crate::ids::*;
use crate::wal_position::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// An inclusive range `[lo, hi]` of the 64-bit placement hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HashRange {
    pub lo: u64,
    pub hi: u64,
}

impl HashRange {
    pub const WHOLE: HashRange = HashRange {
        lo: 0,
        hi: u64::MAX,
    };

    pub fn contains(self, hash: u64) -> bool {
        self.lo <= hash && hash <= self.hi
    }

    /// So many ranges as large as this one fill the whole hash space.
    pub fn fit_into_whole(self) -> u64 {
        let width = u128::from(self.hi - self.lo) + 1;
        // Rounded, for tiles of three are not all as large.
        let fit = ((1u128 << 64) + width / 2) / width;
        u64::try_from(fit).unwrap_or(u64::MAX)
    }

    /// Cuts the whole hash space into `count` ranges of equal size.
    pub fn tile(count: u32) -> Vec<HashRange> {
        assert!(count > 0, "a collection has at least one partition");
        let bound = |i: u32| ((u128::from(i) << 64) / u128::from(count)) as u64;
        (0..count)
            .map(|i| HashRange {
                lo: bound(i),
                hi: if i + 1 == count {
                    u64::MAX
                } else {
                    bound(i + 1) - 1
                },
            })
            .collect()
    }
}

impl fmt::Display for HashRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:016x}, {:016x}]", self.lo, self.hi)
    }
}

/// Whether ranges tile the whole hash space: no gap, no overlap (P7).
pub fn tiles_whole_space(ranges: impl IntoIterator<Item = HashRange>) -> bool {
    let mut ranges: Vec<_> = ranges.into_iter().collect();
    ranges.sort();
    let mut next = Some(0u64);
    for range in ranges {
        if next != Some(range.lo) || range.hi < range.lo {
            return false;
        }
        next = range.hi.checked_add(1);
        if next.is_none() && range.hi != u64::MAX {
            return false;
        }
    }
    next.is_none()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Copying or catching up; answers no search, and no slot waits for it.
    Learner,
    /// Answers searches; the slot waits for it.
    Serving,
    /// Fell too far behind for the slot to wait. It answers nothing, and comes
    /// back as a learner.
    Demoted,
    /// The slot has passed it for the sake of the primary's disk, and no peer had
    /// what it lacks. It keeps its data, and, of a
    /// complete collection, answers only who takes old data,
    /// flagged, or asks for a position that it has reached.
    Stale,
    /// Gives its place to another; answers nothing from the moment its node
    /// knows, and is fed until then.
    Releasing,
}

impl ReplicaState {
    /// Whether the consumer sends it the stream; a releasing one only if it was
    /// sent everything before.
    pub fn is_fed(self) -> bool {
        !self.is_left_behind()
    }

    /// Below the slot: it can only learn anew, from a peer that serves.
    pub fn is_left_behind(self) -> bool {
        matches!(self, ReplicaState::Demoted | ReplicaState::Stale)
    }

    /// Whether another replica may take its place.
    pub fn gives_its_place(self) -> bool {
        self == ReplicaState::Serving || self.is_left_behind()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    pub node: NodeId,
    pub generation: Generation,
    pub state: ReplicaState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    pub id: PartitionId,
    pub collection: CollectionId,
    pub range: HashRange,
    pub replicas: Vec<Replica>,
}

/// The halves of a partition that is being split. Their replicas learn from the
/// parent's, on the same nodes; the parent serves until all of them do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    pub low: Partition,
    pub high: Partition,
}

impl Split {
    pub fn halves(&self) -> [&Partition; 2] {
        [&self.low, &self.high]
    }
}

impl Partition {
    pub fn replica_on(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.node == node)
    }

    pub fn in_state(&self, state: ReplicaState) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(move |r| r.state == state)
    }

    /// Whether somebody has what a learner would copy.
    pub fn is_served(&self) -> bool {
        self.in_state(ReplicaState::Serving).next().is_some()
    }

    /// Only stale replicas are left: what they lack is nowhere in the cluster.
    pub fn needs_reconcile(&self) -> bool {
        !self.is_served() && self.in_state(ReplicaState::Stale).next().is_some()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    /// Drawn once when the node's disk was first used; tells a known id with an
    /// empty disk from the node itself.
    pub disk_uuid: String,
    /// `host:port` of the node's gRPC server.
    pub address: String,
    pub zone: String,
    /// Its replicas go to other nodes, and no new ones come.
    #[serde(default)]
    pub is_draining: bool,
}

/// What the cluster knows of a Postgres database's replication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub system_identifier: u64,
    pub database_oid: u32,
    pub timeline: u32,
    /// Where the slot became consistent: nothing before it is in the stream.
    pub consistent_point: Lsn,
    /// What it is read through. `None` until a consumer noted it: those of 0.1.0 did not.
    #[serde(default)]
    pub publication: Option<PublicationId>,
}

/// A publication as the server numbers it: made again under its name it is another one,
/// and what was changed in between is missing in the stream, or ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationId {
    /// OID of its row in `pg_publication`.
    pub publication: u32,
    /// OID of the row in `pg_publication_rel` by which it has `ruvector.collections`.
    pub definitions: u32,
}

impl Slot {
    /// Whether `told` is the same slot, and says no less of it.
    pub fn is_told_by(&self, told: &Slot) -> bool {
        let known = Slot {
            publication: self.publication.or(told.publication),
            ..self.clone()
        };
        known == *told
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub id: SourceId,
    pub name: String,
    pub incarnation: Incarnation,
    /// `None` until the consumer has created the slot.
    pub slot: Option<Slot>,
    /// The start of the very server that the consumer streams from; searches of any
    /// other one are not answered. `None` until it was told.
    #[serde(default)]
    pub server_start: Option<ServerStart>,
    /// WAL that the server may retain for the slot; 0: any amount. `None`: as the
    /// consumer's `slot_hold_limit_bytes` says.
    #[serde(default)]
    pub slot_hold_limit_bytes: Option<u64>,
    /// Names of slot and publication on the server.
    pub slot_name: String,
    pub publication_name: String,
    /// Why the source is not followed, and what to do; empty when it is.
    pub problem: String,
    /// Who consumes, under which token.
    pub consumer: Option<ConsumerId>,
    pub consumer_epoch: ConsumerEpoch,
    /// An operator has stopped the following. The slot stays, and keeps WAL.
    #[serde(default)]
    pub is_paused: bool,
    #[serde(default)]
    pub dsn_version: DsnVersion,
}

/// How the problem of a source begins that was let go from inside its database.
pub const DETACHED: &str = "detached";

impl Source {
    /// Its slot was dropped by `ruvector_detach_source()`, on purpose.
    pub fn is_detached(&self) -> bool {
        self.problem.starts_with(DETACHED)
    }
}

/// Everything that clients, nodes and consumers know of the cluster. The
/// pair `(epoch, version)` only rises at every observer (P6).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionMap {
    pub cluster_id: String,
    pub epoch: LeaseEpoch,
    pub version: MapVersion,
    pub nodes: BTreeMap<NodeId, Node>,
    pub sources: BTreeMap<SourceId, Source>,
    pub collections: BTreeMap<CollectionId, Collection>,
    pub partitions: BTreeMap<PartitionId, Partition>,
    /// By the partition that is being split: the two that will take its place.
    #[serde(default)]
    pub splits: BTreeMap<PartitionId, Split>,
    /// `host:port` of every coordinator.
    pub coordinators: Vec<String>,
}

impl PartitionMap {
    pub fn stamp(&self) -> MapStamp {
        (self.epoch, self.version)
    }

    /// Whether a client that holds `self` takes `other`: a newer epoch, or the
    /// same epoch with a newer version.
    pub fn is_superseded_by(&self, other: &PartitionMap) -> bool {
        self.stamp() < other.stamp()
    }

    /// How many partitions of a collection have no replica with everything any more.
    pub fn stale_partitions(&self, collection: CollectionId) -> usize {
        let partitions = self.partitions_of(collection);
        partitions.iter().filter(|p| p.needs_reconcile()).count()
    }

    /// As an operator is told of a replica: `partition 3 of items_idx on node 1`.
    pub fn replica_name(&self, partition: &Partition, node: NodeId) -> String {
        let collection = self.collections.get(&partition.collection);
        let index = collection.map_or("an index that is gone", |c| &c.spec.index_name);
        format!("partition {} of {index} on node {}", partition.id.0, node.0)
    }

    /// The partitions of a collection in hash order.
    pub fn partitions_of(&self, collection: CollectionId) -> Vec<&Partition> {
        let mut found: Vec<_> = self
            .partitions
            .values()
            .filter(|p| p.collection == collection)
            .collect();
        found.sort_by_key(|p| p.range.lo);
        found
    }

    /// Every partition that nodes hold replicas of, halves of a split included,
    /// each with the partition that it comes from.
    pub fn held_partitions(&self) -> impl Iterator<Item = (&Partition, Option<PartitionId>)> {
        let halves = self.splits.iter();
        let halves = halves.flat_map(|(parent, split)| split.halves().map(|h| (h, Some(*parent))));
        self.partitions.values().map(|p| (p, None)).chain(halves)
    }

    /// A partition that nodes hold replicas of, whether in force or half of a split.
    pub fn held_partition(&self, id: PartitionId) -> Option<&Partition> {
        let in_force = self.partitions.get(&id);
        in_force.or_else(|| self.split_of(id).map(|(_, half)| half))
    }

    /// The partition that is being split, and the half of it with that id.
    pub fn split_of(&self, half: PartitionId) -> Option<(&Partition, &Partition)> {
        let mut splits = self.splits.iter();
        splits.find_map(|(parent, split)| {
            let half = split.halves().into_iter().find(|h| h.id == half)?;
            Some((self.partitions.get(parent)?, half))
        })
    }

    /// The partition of a collection that holds a placement hash.
    pub fn partition_for(&self, collection: CollectionId, hash: u64) -> Option<&Partition> {
        self.partitions
            .values()
            .find(|p| p.collection == collection && p.range.contains(hash))
    }

    /// The collection that a source's index names.
    pub fn collection_by_index(
        &self,
        source: SourceId,
        index_oid: u32,
        definition_generation: u64,
    ) -> Option<&Collection> {
        self.collections.values().find(|c| {
            c.spec.source == source
                && c.spec.index_oid == index_oid
                && c.spec.definition_generation == definition_generation
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_ranges_fit_into_the_whole_as_it_was_cut_into() {
        for count in [1, 2, 3, 7, 64, 1000] {
            for range in HashRange::tile(count) {
                assert_eq!(range.fit_into_whole(), u64::from(count));
                let half = range.lo + (range.hi - range.lo) / 2;
                let halves = [
                    HashRange { hi: half, ..range },
                    HashRange {
                        lo: half + 1,
                        ..range
                    },
                ];
                let fit = halves.map(HashRange::fit_into_whole);
                assert_eq!(fit, [2 * u64::from(count); 2]);
            }
        }
        assert_eq!(HashRange { lo: 5, hi: 5 }.fit_into_whole(), u64::MAX);
    }

    #[test]
    fn p7_tiles_cover_the_space_once() {
        for count in [1, 2, 3, 7, 64, 1000] {
            assert!(tiles_whole_space(HashRange::tile(count)), "{count}");
        }
        let mut gap = HashRange::tile(4);
        gap.remove(2);
        assert!(!tiles_whole_space(gap));
        let mut overlap = HashRange::tile(4);
        overlap[1].lo -= 1;
        assert!(!tiles_whole_space(overlap));
        assert!(!tiles_whole_space([]));
        assert!(!tiles_whole_space([HashRange::WHOLE, HashRange::WHOLE]));
    }
}
