//! Where the replicas of a map lie.

use cluster_core::control::{MoveReason, PlannedMove};
use cluster_core::ids::NodeId;
use cluster_core::map::{PartitionMap, ReplicaState};
use std::collections::BTreeMap;

/// Whether every partition has exactly so many replicas, and all of them serve.
pub fn is_settled(map: &PartitionMap, replicas: usize) -> bool {
    map.partitions.values().all(|partition| {
        partition.replicas.len() == replicas
            && partition.in_state(ReplicaState::Serving).count() == replicas
    })
}

/// Serving replicas by node, of all nodes.
pub fn serving_per_node(map: &PartitionMap) -> BTreeMap<NodeId, usize> {
    let mut counts: BTreeMap<_, _> = map.nodes.keys().map(|node| (*node, 0)).collect();
    for partition in map.partitions.values() {
        for replica in partition.in_state(ReplicaState::Serving) {
            *counts.entry(replica.node).or_default() += 1;
        }
    }
    counts
}

/// For every partition, the move of its first serving replica to a node that has
/// none of it, if there is one.
pub fn moves_of(map: &PartitionMap) -> Vec<PlannedMove> {
    let of_partition = |partition: &cluster_core::map::Partition| {
        let from = partition.in_state(ReplicaState::Serving).next()?.node;
        let mut nodes = map.nodes.keys();
        let to = nodes.find(|node| partition.replica_on(**node).is_none())?;
        Some(PlannedMove {
            partition: partition.id,
            to: *to,
            from: Some(from),
            reason: MoveReason::Operator,
        })
    };
    map.partitions.values().filter_map(of_partition).collect()
}
