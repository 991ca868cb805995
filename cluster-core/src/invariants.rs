//! Predicates of the promises, shared by assertions, tests and fault checkers.
//!
//! A predicate answers with what is violated and the values that violate it; who
//! calls it decides whether that is its own broken assumption (assert) or bad
//! input (refuse).

use crate::collection::CollectionState;
use crate::ids::{
    CollectionId, ConsumerEpoch, ConsumerId, LeaseEpoch, NodeId, PartitionId, SourceId,
};
use crate::map::{HashRange, PartitionMap, ReplicaState, tiles_whole_space};
use crate::wal_position::WalPosition;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("P7: the partitions of {0} do not tile the hash space")]
    Untiled(CollectionId),
    #[error("{0} has no serving replica, and none that is stale")]
    NoServingReplica(PartitionId),
    #[error("{0} is being filled, and a stale replica of it is fed by nothing again")]
    StaleUnreconciled(PartitionId),
    #[error("{0} has two replicas on {1}")]
    SharedNode(PartitionId, NodeId),
    #[error("{0} is on {1}, which the map does not list")]
    UnknownNode(PartitionId, NodeId),
    #[error("{0} belongs to {1}, which the map does not list")]
    UnknownCollection(PartitionId, CollectionId),
    #[error("{0} belongs to {1}, which the map does not list")]
    UnknownSource(CollectionId, SourceId),
    #[error("P7: the halves of {0} do not tile its range")]
    HalvesDoNotTile(PartitionId),
    #[error("P6: the map went back from {before} to {after}")]
    MapWentBack { before: String, after: String },
    #[error("P6: {0} went back: {1}")]
    SourceWentBack(SourceId, String),
    #[error(
        "P2: the slot would be confirmed up to {confirmed}, beyond {durable}, which a required replica has made durable"
    )]
    ConfirmedBeyondDurable {
        confirmed: WalPosition,
        durable: WalPosition,
    },
    #[error("P5: {first} and {second} both hold a lease on {source_id}")]
    TwoHolders {
        source_id: SourceId,
        first: ConsumerId,
        second: ConsumerId,
    },
    #[error("P5: {0} answered without a lease")]
    AnsweredWithoutLease(NodeId),
    #[error("{0} answered from {1}, which had been taken from it")]
    AnsweredAfterRelease(NodeId, PartitionId),
    #[error("P4: {partition} applied up to {to}, and stood at {before} already")]
    AppliedAgain {
        partition: PartitionId,
        before: WalPosition,
        to: WalPosition,
    },
    #[error("P5: token {given} of {of} was accepted after {installed}")]
    OldTokenAccepted {
        of: SourceId,
        given: ConsumerEpoch,
        installed: ConsumerEpoch,
    },
    #[error("P5: a lease was granted in epoch {granted}, and {reigning} reigned at its renewal")]
    GrantedWithoutReign {
        granted: LeaseEpoch,
        reigning: LeaseEpoch,
    },
    #[error("P6: the epoch went back from {before} to {after}")]
    EpochWentBack {
        before: LeaseEpoch,
        after: LeaseEpoch,
    },
}

/// What holds of every map that a coordinator commits.
pub fn check_map(map: &PartitionMap) -> Result<(), Violation> {
    let mut ranges: BTreeMap<CollectionId, Vec<HashRange>> = BTreeMap::new();
    for partition in map.partitions.values() {
        let of_collection = ranges.entry(partition.collection).or_default();
        of_collection.push(partition.range);
    }
    for collection in map.collections.values() {
        if !tiles_whole_space(ranges.remove(&collection.id).unwrap_or_default()) {
            return Err(Violation::Untiled(collection.id));
        }
        if !map.sources.contains_key(&collection.spec.source) {
            return Err(Violation::UnknownSource(
                collection.id,
                collection.spec.source,
            ));
        }
    }
    for (parent, split) in &map.splits {
        let (low, high) = (split.low.range, split.high.range);
        let whole = map.partitions.get(parent).map(|p| p.range);
        let joined = HashRange {
            lo: low.lo,
            hi: high.hi,
        };
        let touch = low.lo <= low.hi && low.hi < high.lo && high.lo - low.hi == 1;
        if whole != Some(joined) || !touch || high.lo > high.hi {
            return Err(Violation::HalvesDoNotTile(*parent));
        }
    }
    for partition in map.partitions.values() {
        if !map.collections.contains_key(&partition.collection) {
            return Err(Violation::UnknownCollection(
                partition.id,
                partition.collection,
            ));
        }
        let collection = &map.collections[&partition.collection];
        let is_building = matches!(collection.state, CollectionState::Building { .. });
        let is_stale = partition.in_state(ReplicaState::Stale).next().is_some();
        if is_building && is_stale && collection.reconcile.is_none() {
            return Err(Violation::StaleUnreconciled(partition.id));
        }
        if !partition.is_served() && !partition.needs_reconcile() {
            return Err(Violation::NoServingReplica(partition.id));
        }
        let mut nodes = BTreeSet::new();
        for replica in &partition.replicas {
            if !nodes.insert(replica.node) {
                return Err(Violation::SharedNode(partition.id, replica.node));
            }
            if !map.nodes.contains_key(&replica.node) {
                return Err(Violation::UnknownNode(partition.id, replica.node));
            }
        }
    }
    Ok(())
}

/// What holds between a map and its successor at any observer (P6).
pub fn check_successor(before: &PartitionMap, after: &PartitionMap) -> Result<(), Violation> {
    if after.stamp() < before.stamp() {
        return Err(Violation::MapWentBack {
            before: format!("epoch {} version {}", before.epoch, before.version),
            after: format!("epoch {} version {}", after.epoch, after.version),
        });
    }
    for (id, source) in &before.sources {
        let Some(next) = after.sources.get(id) else {
            continue;
        };
        if next.incarnation < source.incarnation {
            let went = format!("incarnation {} to {}", source.incarnation, next.incarnation);
            return Err(Violation::SourceWentBack(*id, went));
        }
        if next.consumer_epoch < source.consumer_epoch {
            let went = format!("token {} to {}", source.consumer_epoch, next.consumer_epoch);
            return Err(Violation::SourceWentBack(*id, went));
        }
    }
    Ok(())
}

/// P2: a slot is confirmed only up to what every required replica has on disk.
pub fn check_confirmation(
    confirmed: WalPosition,
    required_durable: impl IntoIterator<Item = WalPosition>,
) -> Result<(), Violation> {
    match required_durable.into_iter().min() {
        Some(durable) if confirmed > durable => {
            Err(Violation::ConfirmedBeyondDurable { confirmed, durable })
        }
        _ => Ok(()),
    }
}

/// P5: at most one consumer holds an unexpired lease on a source.
pub fn check_holders(
    source_id: SourceId,
    holders: impl IntoIterator<Item = ConsumerId>,
) -> Result<(), Violation> {
    let mut holders = holders.into_iter();
    match (holders.next(), holders.next()) {
        (Some(first), Some(second)) => Err(Violation::TwoHolders {
            source_id,
            first,
            second,
        }),
        _ => Ok(()),
    }
}

/// P5: who answers holds a lease, and the partition has not been taken from it.
pub fn check_answer(
    (node, partition): (NodeId, PartitionId),
    holds_lease: bool,
    is_assigned: bool,
) -> Result<(), Violation> {
    if !holds_lease {
        return Err(Violation::AnsweredWithoutLease(node));
    }
    if !is_assigned {
        return Err(Violation::AnsweredAfterRelease(node, partition));
    }
    Ok(())
}

/// P4: a batch moves a watermark forward; at or below it nothing is applied.
pub fn check_applied(
    partition: PartitionId,
    before: WalPosition,
    to: WalPosition,
) -> Result<(), Violation> {
    if to > before {
        return Ok(());
    }
    Err(Violation::AppliedAgain {
        partition,
        before,
        to,
    })
}

/// P5: nothing is accepted of a consumer once a higher token is installed.
pub fn check_token(
    of: SourceId,
    given: ConsumerEpoch,
    installed: ConsumerEpoch,
) -> Result<(), Violation> {
    if given >= installed {
        return Ok(());
    }
    Err(Violation::OldTokenAccepted {
        of,
        given,
        installed,
    })
}

/// P5: only who reigned when a renewal arrived grants it.
pub fn check_grant(granted: LeaseEpoch, reigning: LeaseEpoch) -> Result<(), Violation> {
    if granted >= reigning {
        return Ok(());
    }
    Err(Violation::GrantedWithoutReign { granted, reigning })
}

/// P6: the epoch that a holder knows.
pub fn check_epoch(before: LeaseEpoch, after: LeaseEpoch) -> Result<(), Violation> {
    if after >= before {
        return Ok(());
    }
    Err(Violation::EpochWentBack { before, after })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::*;
    use crate::map::{HashRange, Node, Partition, Replica, ReplicaState};
    use crate::wal_position::Lsn;

    fn partition(nodes: &[u64]) -> PartitionMap {
        let mut map = PartitionMap::default();
        for id in 1..=2 {
            let node = Node {
                id: NodeId(id),
                disk_uuid: String::new(),
                address: String::new(),
                zone: String::new(),
                is_draining: false,
            };
            map.nodes.insert(NodeId(id), node);
        }
        let replica = |&node| Replica {
            node: NodeId(node),
            generation: Generation(1),
            state: ReplicaState::Serving,
        };
        let partition = Partition {
            id: PartitionId(1),
            collection: CollectionId(1),
            range: HashRange::WHOLE,
            replicas: nodes.iter().map(replica).collect(),
        };
        map.partitions.insert(partition.id, partition);
        map
    }

    #[test]
    fn a_partition_without_its_collection_is_named() {
        let violation = check_map(&partition(&[1])).expect_err("no such collection");
        assert_eq!(
            violation,
            Violation::UnknownCollection(PartitionId(1), CollectionId(1))
        );
    }

    #[test]
    fn p6_a_map_that_goes_back_is_named() {
        let older = PartitionMap {
            epoch: LeaseEpoch(2),
            version: MapVersion(9),
            ..Default::default()
        };
        let newer = PartitionMap {
            epoch: LeaseEpoch(3),
            version: MapVersion(1),
            ..Default::default()
        };
        assert_eq!(check_successor(&older, &newer), Ok(()));
        assert!(check_successor(&newer, &older).is_err());
    }

    #[test]
    fn p4_applying_at_or_below_the_watermark_is_named() {
        let at = |lsn| WalPosition::end_of(Incarnation(1), Lsn(lsn));
        assert_eq!(check_applied(PartitionId(1), at(5), at(6)), Ok(()));
        assert!(check_applied(PartitionId(1), at(5), at(5)).is_err());
        assert!(check_applied(PartitionId(1), at(5), at(4)).is_err());
    }

    #[test]
    fn p5_an_older_token_or_a_grant_of_a_past_reign_is_named() {
        let token = |given, installed| {
            check_token(SourceId(1), ConsumerEpoch(given), ConsumerEpoch(installed))
        };
        assert_eq!(token(3, 3), Ok(()));
        assert!(token(2, 3).is_err());
        assert_eq!(check_grant(LeaseEpoch(4), LeaseEpoch(4)), Ok(()));
        assert!(check_grant(LeaseEpoch(3), LeaseEpoch(4)).is_err());
    }

    #[test]
    fn p6_an_epoch_that_goes_back_is_named() {
        assert_eq!(check_epoch(LeaseEpoch(4), LeaseEpoch(4)), Ok(()));
        assert!(check_epoch(LeaseEpoch(4), LeaseEpoch(3)).is_err());
    }

    #[test]
    fn p2_confirming_beyond_a_required_replica_is_named() {
        let at = |lsn| WalPosition::end_of(Incarnation(1), Lsn(lsn));
        assert_eq!(check_confirmation(at(5), [at(5), at(9)]), Ok(()));
        assert!(check_confirmation(at(6), [at(5), at(9)]).is_err());
        assert_eq!(check_confirmation(at(6), []), Ok(()));
    }
}
