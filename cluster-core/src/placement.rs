//! Which nodes hold the partitions of a new collection.
//!
//! The ring proposes nodes, zones and load decide. Zones come first: the replicas
//! of a partition are spread over as many zones as there are. Within that, no node
//! holds more than 1.15 times its fair share of the collection (consistent
//! hashing with bounded loads, Mirrokni et al., 2016), nor, where it can be had,
//! of all. Where zones do not allow the bound they win, and the planner
//! reports the nodes above it ([`crate::rebalance::Conflict`]).

use crate::control::PlacedPartition;
use crate::ids::NodeId;
use crate::layout::{Layout, SeatNo, Standing};
use crate::map::{HashRange, Node, PartitionMap, ReplicaState};
use crate::ring::Ring;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::Hash;

/// At most this many partitions per collection, however many nodes there are.
pub const PARTITIONS_PER_COLLECTION_MAX: u32 = 1024;
/// What a node may hold, in per cent of the mean.
pub const LOAD_PERCENT_MAX: usize = 115;
/// As many nodes as the ring is asked for before the least loaded one is taken.
const PROPOSALS: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementPolicy {
    pub partitions_per_node: u32,
    pub replication_factor: u32,
    /// However many nodes there are; at most [`PARTITIONS_PER_COLLECTION_MAX`].
    pub partitions_per_collection_max: u32,
}

impl Default for PlacementPolicy {
    fn default() -> Self {
        Self {
            partitions_per_node: 2,
            replication_factor: 1,
            partitions_per_collection_max: PARTITIONS_PER_COLLECTION_MAX,
        }
    }
}

/// Places a new collection on the nodes of the map that do not drain; empty when
/// there are none. `seed` names the collection, so that collections spread
/// independently.
pub fn place_collection(
    map: &PartitionMap,
    policy: PlacementPolicy,
    seed: impl Hash + Copy,
) -> Vec<PlacedPartition> {
    place_among(map, |_| true, policy, seed)
}

/// As [`place_collection`], on those nodes only that the caller counts on, as
/// long as there are any.
pub fn place_among(
    map: &PartitionMap,
    is_counted_on: impl Fn(NodeId) -> bool,
    policy: PlacementPolicy,
    seed: impl Hash + Copy,
) -> Vec<PlacedPartition> {
    let stays: Vec<&Node> = map.nodes.values().filter(|n| !n.is_draining).collect();
    let counted = stays.iter().copied().filter(|n| is_counted_on(n.id));
    let mut nodes: Vec<&Node> = counted.collect();
    if nodes.is_empty() {
        nodes = stays;
    }
    if nodes.is_empty() {
        return Vec::new();
    }
    let count = u32::try_from(nodes.len())
        .unwrap_or(u32::MAX)
        .saturating_mul(policy.partitions_per_node.max(1))
        .min(policy.partitions_per_collection_max.max(1))
        .min(PARTITIONS_PER_COLLECTION_MAX);
    let replicas = (policy.replication_factor.max(1) as usize).min(nodes.len());
    let layout = arrange(map, &nodes, count as usize, replicas, seed);
    let placed = HashRange::tile(count).into_iter().enumerate();
    placed
        .map(|(partition, range)| PlacedPartition {
            range,
            nodes: layout
                .homes(partition)
                .iter()
                .map(|seat| layout.seats()[*seat].node)
                .collect(),
        })
        .collect()
}

/// Choosing one partition after the other can leave the last ones only full
/// nodes; levelling afterwards undoes that. It aims at the mean, so that a node
/// that joins later puts nobody above the bound.
fn arrange(
    map: &PartitionMap,
    nodes: &[&Node],
    partitions: usize,
    replicas: usize,
    seed: impl Hash + Copy,
) -> Layout {
    let held = replicas_held(map);
    let held_by = |node: &Node| held.get(&node.id).copied().unwrap_or(0);
    let mut layout = Layout::default();
    for node in nodes {
        layout.add_seat(node.id, &node.zone, held_by(node), Standing::Open);
    }
    let new = partitions * replicas;
    let all = new + nodes.iter().map(|node| held_by(node)).sum::<usize>();
    let (own_max, all_max) = (new.div_ceil(nodes.len()), load_max(all, nodes.len()));
    let ring = Ring::new(nodes.iter().map(|node| node.id));
    for i in 0..partitions {
        let walk = ring.walk(&(seed, i as u64)).take(PROPOSALS);
        let proposed: Vec<SeatNo> = walk.filter_map(|node| layout.seat_of(node)).collect();
        let partition = layout.add_partition(0);
        for _ in 0..replicas {
            let seat = layout.choose(partition, &proposed, |seat| {
                seat.load() < own_max && seat.load() + seat.others() < all_max
            });
            // There are at least `replicas` nodes, so one is free.
            let seat = seat.expect("fewer nodes than replicas");
            layout.hold(partition, seat);
            layout.release(partition, seat);
        }
    }
    layout.level(own_max, false);
    layout.level(load_max(new, nodes.len()), false);
    layout.even_zones();
    layout
}

/// Replicas per node, without those that are about to go.
fn replicas_held(map: &PartitionMap) -> BTreeMap<NodeId, usize> {
    let mut held = BTreeMap::new();
    for replica in map.partitions.values().flat_map(|p| &p.replicas) {
        if replica.state != ReplicaState::Releasing {
            *held.entry(replica.node).or_default() += 1;
        }
    }
    held
}

/// The bound on what one of so many nodes holds.
pub fn load_max(replicas: usize, nodes: usize) -> usize {
    (replicas * LOAD_PERCENT_MAX).div_ceil(nodes.max(1) * 100)
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
