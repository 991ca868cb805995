//! Which partitions have grown too large, and which splits lead nowhere.

use super::nodes::Liveness;
use crate::collection::Collection;
use crate::control::Move;
use crate::ids::PartitionId;
use crate::map::{PartitionMap, ReplicaState};
use std::collections::BTreeMap;

/// The partitions of more than `rows_max` rows, with the hash after which each is
/// to be cut: the middle of its range, which hashes fill evenly. Every serving
/// replica's node must be live, for each of them makes its own halves.
pub fn splits(
    map: &PartitionMap,
    moves: &BTreeMap<PartitionId, Move>,
    nodes: &Liveness,
    rows: &BTreeMap<PartitionId, u64>,
    rows_max: u64,
) -> Vec<(PartitionId, u64)> {
    let is_due = |id: &PartitionId| {
        let Some(partition) = map.partitions.get(id) else {
            return false;
        };
        let collection = map.collections.get(&partition.collection);
        let is_ready = collection.is_some_and(Collection::can_be_copied);
        let mut replicas = partition.replicas.iter();
        let is_whole = replicas.all(|r| r.state == ReplicaState::Serving && nodes.is_live(r.node));
        is_ready && is_whole && !moves.contains_key(id) && !map.splits.contains_key(id)
    };
    let large = rows.iter().filter(|(_, rows)| **rows > rows_max);
    let due = large.filter(|(id, _)| is_due(id));
    due.filter_map(|(id, _)| {
        let range = map.partitions.get(id)?.range;
        (range.lo < range.hi).then(|| (*id, range.lo + (range.hi - range.lo) / 2))
    })
    .collect()
}

/// Splits whose halves learn on a node that is dead: they would never end.
pub fn hopeless_splits(
    map: &PartitionMap,
    nodes: &Liveness,
    dead_after_ms: u64,
) -> Vec<PartitionId> {
    let is_dead = |node| nodes.is_dead(node, dead_after_ms) || !map.nodes.contains_key(&node);
    let splits = map.splits.iter().filter(|(_, split)| {
        let mut replicas = split.halves().into_iter().flat_map(|h| &h.replicas);
        replicas.any(|r| is_dead(r.node))
    });
    splits.map(|(parent, _)| *parent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;
    use crate::map::{HashRange, Split};
    use crate::rebalance::nodes::NodeView;
    use crate::rebalance::world::World;

    const P: PartitionId = PartitionId(1);

    fn live(nodes: &[u64]) -> Liveness {
        let view = NodeView {
            silent_ms: 0,
            is_live: true,
            map: None,
        };
        Liveness(nodes.iter().map(|n| (NodeId(*n), view)).collect())
    }

    fn map() -> PartitionMap {
        let mut world = World::new(&[0, 0], 2);
        let collection = world.new_collection();
        world.add_partition(collection, &[NodeId(1), NodeId(2)]);
        let partition = world.map.partitions.get_mut(&P).expect("the first");
        partition.range = HashRange { lo: 10, hi: 21 };
        world.map
    }

    fn due(map: &PartitionMap, nodes: &Liveness, rows: u64) -> Vec<(PartitionId, u64)> {
        let rows = BTreeMap::from([(P, rows)]);
        splits(map, &BTreeMap::new(), nodes, &rows, 100)
    }

    #[test]
    fn a_partition_past_the_limit_is_cut_in_the_middle_of_its_range() {
        let all = live(&[1, 2]);
        assert_eq!(due(&map(), &all, 100), []);
        assert_eq!(due(&map(), &all, 101), [(P, 15)]);
        let mut narrow = map();
        narrow.partitions.get_mut(&P).expect("it").range.hi = 10;
        assert_eq!(due(&narrow, &all, 101), [], "one hash cannot be divided");
    }

    #[test]
    fn nothing_is_split_while_a_replica_is_missing_or_not_serving() {
        assert_eq!(due(&map(), &live(&[1]), 101), []);
        let mut demoted = map();
        let partition = demoted.partitions.get_mut(&P).expect("it");
        partition.replicas[1].state = ReplicaState::Demoted;
        assert_eq!(due(&demoted, &live(&[1, 2]), 101), []);
    }

    #[test]
    fn a_split_on_a_dead_node_is_given_up() {
        let mut map = map();
        let half = map.partitions[&P].clone();
        let split = Split {
            low: half.clone(),
            high: half,
        };
        map.splits.insert(P, split);
        assert_eq!(hopeless_splits(&map, &live(&[1, 2]), 1_000), []);
        let mut nodes = live(&[1, 2]);
        let silent = NodeView {
            silent_ms: 1_001,
            is_live: false,
            map: None,
        };
        nodes.0.insert(NodeId(2), silent);
        assert_eq!(hopeless_splits(&map, &nodes, 1_000), [P]);
    }
}
