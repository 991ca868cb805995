//! The consistent-hash ring that proposes placements (Karger et al., 1997).
//!
//! It only proposes: what the ring said is data in the map, and nobody asks it
//! again where a partition is. `hashring` hashes with a fixed key, so equal
//! nodes give equal rings; its own replica walk repeats nodes and copies the
//! ring each time, ours does neither.

use crate::ids::NodeId;
use hashring::HashRing;
use std::hash::Hash;

/// Points per node. With 128 of them the most loaded of eight nodes has 1.16
/// times the mean, measured; more cost memory and gain little.
pub const VIRTUAL_NODES: u32 = 128;

#[derive(Clone, Debug, Hash)]
struct VirtualNode {
    node: u64,
    point: u32,
}

pub struct Ring {
    ring: HashRing<VirtualNode>,
    /// Ascending; the numbers below count in it.
    nodes: Vec<NodeId>,
    /// The node of each point, in the ring's order.
    points: Vec<usize>,
    /// Where each point of each node lies among `points`.
    positions: Vec<usize>,
}

impl Ring {
    pub fn new(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut nodes: Vec<_> = nodes.into_iter().collect();
        nodes.sort();
        nodes.dedup();
        let mut ring = HashRing::new();
        let points_of = |node: &NodeId| {
            let node = node.0;
            (0..VIRTUAL_NODES).map(move |point| VirtualNode { node, point })
        };
        ring.batch_add(nodes.iter().flat_map(points_of).collect());

        let mut positions = vec![0; ring.len()];
        let points = ring.clone().into_iter().enumerate();
        let points = points
            .map(|(position, point)| {
                let number = number_of(&nodes, &point);
                positions[slot_of(number, &point)] = position;
                number
            })
            .collect();
        Self {
            ring,
            nodes,
            points,
            positions,
        }
    }

    /// Every node once, in the order in which the ring meets it from `key` on.
    /// Lazy: who needs the first few nodes does not walk the whole ring.
    pub fn walk<K: Hash>(&self, key: &K) -> impl Iterator<Item = NodeId> + use<'_, K> {
        let first = self.ring.get(key);
        let start = first.map_or(0, |p| self.positions[slot_of(number_of(&self.nodes, p), p)]);
        let round = self.points[start..].iter().chain(&self.points[..start]);
        let mut met = vec![false; self.nodes.len()];
        round
            .filter(move |number| !std::mem::replace(&mut met[**number], true))
            .map(|number| self.nodes[*number])
    }
}

fn number_of(nodes: &[NodeId], point: &VirtualNode) -> usize {
    let found = nodes.binary_search(&NodeId(point.node));
    found.expect("the ring's points are of its nodes")
}

fn slot_of(number: usize, point: &VirtualNode) -> usize {
    number * VIRTUAL_NODES as usize + point.point as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_meets_every_node_once() {
        let ring = Ring::new((1..=7).map(NodeId));
        for key in 0..200u64 {
            let mut met: Vec<_> = ring.walk(&key).collect();
            assert_eq!(met.len(), 7);
            met.sort();
            met.dedup();
            assert_eq!(met.len(), 7, "key {key}");
        }
        assert_eq!(Ring::new([]).walk(&1u64).next(), None);
    }

    #[test]
    fn a_new_node_takes_keys_from_the_others_and_moves_no_other_key() {
        let before = Ring::new((1..=4).map(NodeId));
        let after = Ring::new((1..=5).map(NodeId));
        let mut moved = 0;
        for key in 0..2000u64 {
            let (old, new) = (before.walk(&key).next(), after.walk(&key).next());
            if old != new {
                assert_eq!(new, Some(NodeId(5)), "a key may move to the new node only");
                moved += 1;
            }
        }
        assert!(
            (200..700).contains(&moved),
            "about a fifth of 2000 moves, not {moved}"
        );
    }
}
