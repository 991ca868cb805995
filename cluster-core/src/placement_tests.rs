//! Placement: tiles, distinct nodes, zones, the bound, in that order.

use super::*;
use crate::map::tiles_whole_space;
use proptest::prelude::*;

fn map_of(zones: &[u8]) -> PartitionMap {
    let mut map = PartitionMap::default();
    for (i, zone) in zones.iter().enumerate() {
        let id = NodeId(i as u64 + 1);
        let node = Node {
            id,
            disk_uuid: format!("disk-{i}"),
            address: format!("127.0.0.1:{i}"),
            zone: zone.to_string(),
            is_draining: false,
        };
        map.nodes.insert(id, node);
    }
    map
}

fn policy(partitions_per_node: u32, replication_factor: u32) -> PlacementPolicy {
    PlacementPolicy {
        partitions_per_node,
        replication_factor,
        ..PlacementPolicy::default()
    }
}

fn loads(placed: &[PlacedPartition]) -> BTreeMap<NodeId, usize> {
    let mut loads = BTreeMap::new();
    for node in placed.iter().flat_map(|p| &p.nodes) {
        *loads.entry(*node).or_default() += 1;
    }
    loads
}

/// How many nodes each zone has.
fn zone_sizes(map: &PartitionMap) -> BTreeMap<&str, usize> {
    let mut sizes = BTreeMap::new();
    for node in map.nodes.values() {
        *sizes.entry(node.zone.as_str()).or_default() += 1;
    }
    sizes
}

/// Copies per zone, most first, when they are spread as evenly as can be.
fn best_spread(map: &PartitionMap, replicas: usize) -> Vec<usize> {
    let sizes: Vec<usize> = zone_sizes(map).into_values().collect();
    let mut spread = vec![0; sizes.len()];
    for _ in 0..replicas {
        let free = (0..sizes.len()).filter(|zone| spread[*zone] < sizes[*zone]);
        let zone = free.min_by_key(|zone| spread[*zone]).expect("a free node");
        spread[zone] += 1;
    }
    most_first(spread)
}

fn spread_of(map: &PartitionMap, nodes: &[NodeId]) -> Vec<usize> {
    let zones = zone_sizes(map);
    let count = |zone: &&str| nodes.iter().filter(|n| map.nodes[n].zone == *zone).count();
    most_first(zones.keys().map(count).collect())
}

fn most_first(mut spread: Vec<usize>) -> Vec<usize> {
    spread.sort_by(|a, b| b.cmp(a));
    spread
}

/// Whether zones can be kept with nobody above the bound (each of them takes a
/// partition once, and its nodes no more than the bound).
fn zones_allow(map: &PartitionMap, partitions: usize, replicas: usize, bound: usize) -> bool {
    let sizes = zone_sizes(map);
    let room = sizes.values().map(|nodes| partitions.min(nodes * bound));
    replicas <= sizes.len() && room.sum::<usize>() >= partitions * replicas
}

fn check(map: &PartitionMap, policy: PlacementPolicy, seed: u64) {
    let placed = place_collection(map, policy, seed);
    let nodes = map.nodes.len();
    let replicas = (policy.replication_factor as usize).min(nodes);
    let partitions = (nodes * policy.partitions_per_node as usize).min(1024);
    assert_eq!(placed.len(), partitions);
    assert!(tiles_whole_space(placed.iter().map(|p| p.range)));
    for partition in &placed {
        let mut distinct = partition.nodes.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), replicas);
        assert_eq!(spread_of(map, &distinct), best_spread(map, replicas));
    }
    let bound = load_max(placed.len() * replicas, nodes);
    let is_uniform = zone_sizes(map).len() == 1;
    if is_uniform || zones_allow(map, partitions, replicas, bound) {
        assert!(loads(&placed).values().all(|load| *load <= bound));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn zones_are_kept_and_the_bound_where_they_allow_it(
        zones in prop::collection::vec(0u8..5, 1..40),
        partitions_per_node in 1u32..6,
        replication_factor in 1u32..5,
        seed: u64,
    ) {
        check(&map_of(&zones), policy(partitions_per_node, replication_factor), seed);
    }
}

#[test]
fn the_bound_holds_up_to_five_hundred_nodes() {
    for (nodes, replication_factor) in [(3, 2), (10, 3), (100, 3), (500, 1), (500, 3)] {
        let zones: Vec<u8> = (0..nodes).map(|i| (i % 3) as u8).collect();
        check(&map_of(&zones), policy(20, replication_factor), 7);
    }
}

#[test]
fn zones_win_over_the_bound() {
    let map = map_of(&[0, 1, 1, 1, 1]);
    let placed = place_collection(&map, policy(4, 2), 1);
    assert_eq!(loads(&placed)[&NodeId(1)], 20, "the only node of its zone");
    let others: Vec<usize> = loads(&placed).into_values().skip(1).collect();
    assert_eq!(others, [5, 5, 5, 5], "and the rest is shared evenly");
}

#[test]
fn a_draining_node_gets_nothing() {
    let mut map = map_of(&[0; 4]);
    map.nodes.get_mut(&NodeId(2)).expect("a node").is_draining = true;
    let placed = place_collection(&map, policy(2, 2), 1);
    assert_eq!(placed.len(), 6, "two for each node that stays");
    assert!(!loads(&placed).contains_key(&NodeId(2)));
    let all_but = |node| move |id| id != NodeId(node);
    let placed = place_among(&map, all_but(3), policy(2, 2), 1);
    assert_eq!(
        loads(&placed).into_keys().collect::<Vec<_>>(),
        [NodeId(1), NodeId(4)]
    );
    assert_eq!(place_among(&map, |_| false, policy(2, 2), 1).len(), 6);
    map.nodes
        .values_mut()
        .for_each(|node| node.is_draining = true);
    assert!(place_collection(&map, policy(2, 2), 1).is_empty());
}

#[test]
fn equal_clusters_give_equal_placements() {
    let map = map_of(&[0, 1, 2, 0, 1, 2, 0]);
    let place = |seed: u64| place_collection(&map, policy(3, 3), seed);
    assert_eq!(place(4), place(4));
    assert_ne!(place(4), place(5), "collections spread independently");
}

#[test]
fn without_nodes_nothing_is_placed() {
    assert!(place_collection(&PartitionMap::default(), policy(2, 1), 1).is_empty());
}
