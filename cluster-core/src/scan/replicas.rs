//! Which replica of a partition is asked next: serving ones only (stale ones where
//! none serves), those that have not failed before those that have, and among these the one whose failure
//! lies furthest back. Scans spread over replicas by their seed; one scan prefers
//! the same nodes for all its partitions, so that it asks few of them.

use super::protocol::Millis;
use crate::ids::{Generation, NodeId};
use crate::map::{Partition, ReplicaState};
use std::collections::BTreeMap;

/// When nodes failed last, as far as this client knows.
pub(super) type FailureTimes = BTreeMap<NodeId, Millis>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serving {
    pub node: NodeId,
    pub generation: Generation,
}

/// Those that may be asked: never a stale one beside one that serves.
pub(super) fn askable(partition: &Partition) -> Vec<Serving> {
    let state = match partition.needs_reconcile() {
        true => ReplicaState::Stale,
        false => ReplicaState::Serving,
    };
    partition
        .in_state(state)
        .map(|r| Serving {
            node: r.node,
            generation: r.generation,
        })
        .collect()
}

pub(super) fn choose(
    replicas: &[Serving],
    failed_at: impl Fn(NodeId) -> Option<Millis>,
    seed: u64,
    is_barred: impl Fn(Serving) -> bool,
) -> Option<Serving> {
    let candidates = replicas.iter().copied().filter(|r| !is_barred(*r));
    candidates.min_by_key(|r| (failed_at(r.node), mix(seed ^ mix(r.node.0))))
}

/// SplitMix64's finaliser: spreads a seed over the whole space.
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_failed_longest_ago_is_tried_first_after_those_that_did_not() {
        let at = |n| Serving {
            node: NodeId(n),
            generation: Generation(1),
        };
        let all = [at(1), at(2), at(3)];
        let failed = FailureTimes::from([(NodeId(1), 50), (NodeId(2), 40)]);
        let pick = |barred: &[u64]| {
            choose(
                &all,
                |n| failed.get(&n).copied(),
                7,
                |r| barred.contains(&r.node.0),
            )
            .map(|r| r.node.0)
        };
        assert_eq!(pick(&[]), Some(3));
        assert_eq!(pick(&[3]), Some(2));
        assert_eq!(pick(&[2, 3]), Some(1));
        assert_eq!(pick(&[1, 2, 3]), None);
    }

    #[test]
    fn seeds_spread_scans_over_replicas() {
        let all = [1, 2].map(|n| Serving {
            node: NodeId(n),
            generation: Generation(1),
        });
        let firsts =
            (0..1000).filter(|seed| choose(&all, |_| None, *seed, |_| false) == Some(all[0]));
        assert!((400..600).contains(&firsts.count()));
    }
}
