//! Which nodes hold the partitions of a new collection.
//!
//! The ring proposes an order of nodes per partition; zones and load decide.
//! Zones are preferred: replicas of a partition go to different ones while
//! there are such nodes below the bound. The bound wins over zones: no node holds
//! more than 1.15 times its fair share of the collection (consistent hashing with
//! bounded loads, Mirrokni et al., 2016), nor, where it can be had, of all.

use crate::control::PlacedPartition;
use crate::ids::NodeId;
use crate::map::{HashRange, PartitionMap};
use crate::ring::Ring;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hash::Hash;

/// At most this many partitions per collection, however many nodes there are.
pub const PARTITIONS_PER_COLLECTION_MAX: u32 = 1024;
/// What a node may hold, in per cent of the mean.
const LOAD_PERCENT_MAX: usize = 115;

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

/// Places a new collection on the nodes of the map; empty when there are none.
/// `seed` names the collection, so that collections spread independently.
pub fn place_collection(
    map: &PartitionMap,
    policy: PlacementPolicy,
    seed: impl Hash + Copy,
) -> Vec<PlacedPartition> {
    if map.nodes.is_empty() {
        return Vec::new();
    }
    let nodes = map.nodes.len();
    let count = u32::try_from(nodes)
        .unwrap_or(u32::MAX)
        .saturating_mul(policy.partitions_per_node.max(1))
        .min(policy.partitions_per_collection_max.max(1))
        .min(PARTITIONS_PER_COLLECTION_MAX);
    let replicas = (policy.replication_factor.max(1) as usize).min(nodes);

    let mut placing = Placing::new(map, count as usize * replicas);
    let ring = Ring::new(map.nodes.keys().copied());
    let mut placed: Vec<PlacedPartition> = HashRange::tile(count)
        .into_iter()
        .enumerate()
        .map(|(i, range)| {
            let order = ring.walk(&(seed, i as u64));
            PlacedPartition {
                range,
                nodes: placing.choose(&order, replicas),
            }
        })
        .collect();
    placing.repair(&mut placed);
    placed
}

/// Loads while a collection is being placed.
struct Placing<'a> {
    map: &'a PartitionMap,
    /// Replicas of this collection per node.
    own: BTreeMap<NodeId, usize>,
    /// Replicas of all collections per node, this one's included.
    all: BTreeMap<NodeId, usize>,
    own_max: usize,
    all_max: usize,
}

impl<'a> Placing<'a> {
    fn new(map: &'a PartitionMap, new_replicas: usize) -> Self {
        let own: BTreeMap<_, _> = map.nodes.keys().map(|node| (*node, 0)).collect();
        let mut all = own.clone();
        for replica in map.partitions.values().flat_map(|p| &p.replicas) {
            *all.entry(replica.node).or_default() += 1;
        }
        let existing: usize = all.values().sum();
        let nodes = map.nodes.len();
        Self {
            map,
            own,
            all,
            own_max: load_max(new_replicas, nodes),
            all_max: load_max(existing + new_replicas, nodes),
        }
    }

    fn choose(&mut self, order: &[NodeId], replicas: usize) -> Vec<NodeId> {
        let mut chosen: Vec<NodeId> = Vec::with_capacity(replicas);
        for _ in 0..replicas {
            let free = |node: &&NodeId| !chosen.contains(*node);
            let new_zone = |node: &NodeId| {
                !chosen
                    .iter()
                    .any(|other| self.zone(*other) == self.zone(*node))
            };
            let own_fits = |node: &NodeId| self.own[node] < self.own_max;
            let all_fits = |node: &NodeId| self.all[node] < self.all_max;
            let pick = order
                .iter()
                .filter(free)
                .find(|n| new_zone(n) && own_fits(n) && all_fits(n))
                .or_else(|| {
                    order
                        .iter()
                        .filter(free)
                        .find(|n| new_zone(n) && own_fits(n))
                })
                .or_else(|| {
                    order
                        .iter()
                        .filter(free)
                        .find(|n| own_fits(n) && all_fits(n))
                })
                .or_else(|| order.iter().filter(free).find(|n| own_fits(n)))
                .or_else(|| order.iter().find(free));
            // There are at least `replicas` nodes, so one is free.
            let node = *pick.expect("fewer nodes than replicas");
            self.hold(node);
            chosen.push(node);
        }
        chosen
    }

    fn zone(&self, node: NodeId) -> &str {
        &self.map.nodes[&node].zone
    }

    fn hold(&mut self, node: NodeId) {
        *self.own.entry(node).or_default() += 1;
        *self.all.entry(node).or_default() += 1;
    }

    fn release(&mut self, node: NodeId) {
        *self.own.entry(node).or_default() -= 1;
        *self.all.entry(node).or_default() -= 1;
    }

    /// Choosing one partition after the other can leave the last ones only full
    /// nodes. While a node is over the bound, another holds less than it, hence
    /// lacks one of its partitions and can take it: each step lowers the excess.
    fn repair(&mut self, placed: &mut [PlacedPartition]) {
        while let Some((&over, _)) = self.own.iter().find(|(_, load)| **load > self.own_max) {
            let Some((&under, _)) = self.own.iter().min_by_key(|(_, load)| **load) else {
                return;
            };
            let movable = placed
                .iter_mut()
                .find(|p| p.nodes.contains(&over) && !p.nodes.contains(&under));
            let Some(partition) = movable else { return };
            for node in &mut partition.nodes {
                if *node == over {
                    *node = under;
                }
            }
            self.release(over);
            self.hold(under);
        }
    }
}

fn load_max(replicas: usize, nodes: usize) -> usize {
    (replicas * LOAD_PERCENT_MAX).div_ceil(nodes * 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{Node, tiles_whole_space};

    fn map_of(zones: &[&str]) -> PartitionMap {
        let mut map = PartitionMap::default();
        for (i, zone) in zones.iter().enumerate() {
            let id = NodeId(i as u64 + 1);
            let node = Node {
                id,
                disk_uuid: format!("disk-{i}"),
                address: format!("127.0.0.1:{i}"),
                zone: (*zone).to_owned(),
                is_draining: false,
            };
            map.nodes.insert(id, node);
        }
        map
    }

    fn loads(placed: &[PlacedPartition]) -> BTreeMap<NodeId, usize> {
        let mut loads = BTreeMap::new();
        for node in placed.iter().flat_map(|p| &p.nodes) {
            *loads.entry(*node).or_default() += 1;
        }
        loads
    }

    #[test]
    fn placements_tile_the_space_on_distinct_nodes_within_the_bound() {
        for nodes in 1..=9usize {
            for replication_factor in 1..=4u32 {
                for partitions_per_node in [1, 2, 5] {
                    for seed in 0..20 {
                        let map = map_of(&vec!["a"; nodes]);
                        let policy = PlacementPolicy {
                            partitions_per_node,
                            replication_factor,
                            ..PlacementPolicy::default()
                        };
                        let placed = place_collection(&map, policy, seed);
                        let replicas = (replication_factor as usize).min(nodes);
                        assert_eq!(placed.len(), nodes * partitions_per_node as usize);
                        assert!(tiles_whole_space(placed.iter().map(|p| p.range)));
                        for partition in &placed {
                            let mut distinct = partition.nodes.clone();
                            distinct.sort();
                            distinct.dedup();
                            assert_eq!(distinct.len(), replicas);
                        }
                        let max = load_max(placed.len() * replicas, nodes);
                        assert!(loads(&placed).values().all(|load| *load <= max));
                    }
                }
            }
        }
    }

    #[test]
    fn replicas_of_a_partition_go_to_different_zones() {
        let map = map_of(&["a", "a", "b", "b", "c", "c"]);
        let policy = PlacementPolicy {
            partitions_per_node: 2,
            replication_factor: 3,
            ..PlacementPolicy::default()
        };
        let placed = place_collection(&map, policy, 7);
        let spread = placed
            .iter()
            .filter(|p| {
                let mut zones: Vec<_> = p.nodes.iter().map(|n| &map.nodes[n].zone).collect();
                zones.sort();
                zones.dedup();
                zones.len() == 3
            })
            .count();
        assert!(
            spread * 10 >= placed.len() * 8,
            "{spread} of {} are spread",
            placed.len()
        );
    }

    #[test]
    fn the_bound_wins_over_zones() {
        let map = map_of(&["a", "b", "b", "b", "b"]);
        let policy = PlacementPolicy {
            partitions_per_node: 4,
            replication_factor: 2,
            ..PlacementPolicy::default()
        };
        let placed = place_collection(&map, policy, 1);
        assert!(loads(&placed)[&NodeId(1)] <= load_max(40, 5));
    }

    #[test]
    fn a_collection_has_no_more_partitions_than_the_policy_allows() {
        let map = map_of(&["a", "a", "a"]);
        let policy = PlacementPolicy {
            replication_factor: 2,
            partitions_per_collection_max: 1,
            ..PlacementPolicy::default()
        };
        let placed = place_collection(&map, policy, 1);
        assert_eq!(placed.len(), 1);
        assert_eq!(placed[0].range, HashRange::WHOLE);
        assert_eq!(placed[0].nodes.len(), 2);
    }

    #[test]
    fn without_nodes_nothing_is_placed() {
        assert!(
            place_collection(&PartitionMap::default(), PlacementPolicy::default(), 1).is_empty()
        );
    }
}
