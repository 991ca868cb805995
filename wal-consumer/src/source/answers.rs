//! What the nodes that hold a source's replicas say when a consumer takes over, and what
//! the slot has passed by that.

use super::SourceContext;
use crate::feed::progress::RunEnd;
use cluster_core::collection::{Collection, CollectionState};
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::{Generation, NodeId, PartitionId, SourceId};
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What replicas that answered have made durable; learners apart.
pub(super) type Floors = BTreeMap<ReplicaKey, WalPosition>;

/// What the nodes that hold replicas said.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub floors: Floors,
    /// What nodes have applied or logged, of learners too.
    pub applied: Vec<WalPosition>,
    /// Those that did not answer.
    pub silent: BTreeSet<NodeId>,
}

impl Answers {
    /// The highest position, durable or not, that anybody has.
    pub fn highest(&self) -> Lsn {
        let positions = self.floors.values().chain(&self.applied);
        let highest = positions.max().copied();
        highest.map_or(Lsn(0), |at| at.commit_end)
    }

    /// The highest position that a serving replica of a complete collection has, if
    /// there are such, all have answered, and all are below the slot.
    pub fn all_are_below(
        &self,
        map: &PartitionMap,
        source: SourceId,
        confirmed: WalPosition,
    ) -> Option<WalPosition> {
        let mut highest = None;
        for replica in serving_of_complete(map, source) {
            let durable = *self.floors.get(&replica)?;
            highest = highest.max(Some(durable));
        }
        highest.filter(|highest| *highest < confirmed)
    }

    /// A replica of a collection that is being filled which holds something, and not what
    /// leads up to the slot; nor has any other of its partition. The slot waits for such
    /// ones as soon as they have the stream, so that nobody of ours has moved it; what was
    /// copied would lack what lies between.
    pub fn filled_below(
        &self,
        map: &PartitionMap,
        source: SourceId,
        confirmed: WalPosition,
    ) -> Option<(ReplicaKey, WalPosition)> {
        let filled = serving(map, source, |c| {
            matches!(c.state, CollectionState::Building { .. })
        });
        let mut highest = BTreeMap::new();
        for replica in filled {
            if let Some(durable) = self.floors.get(&replica) {
                let known = highest
                    .entry(replica.partition)
                    .or_insert((replica, *durable));
                if known.1 < *durable {
                    *known = (replica, *durable);
                }
            }
        }
        let is_below = |at: WalPosition| WalPosition::ZERO < at && at < confirmed;
        highest.into_values().find(|(_, at)| is_below(*at))
    }

    /// Whether some serving replica has everything up to the slot: it was followed until
    /// there.
    pub fn has_witness(
        &self,
        map: &PartitionMap,
        source: SourceId,
        confirmed: WalPosition,
    ) -> bool {
        let mut all = serving(map, source, |_| true);
        all.any(|replica| self.floors.get(&replica).is_some_and(|at| *at >= confirmed))
    }

    /// The serving replicas of partitions of complete collections of which all lack what
    /// the slot no longer has. One that has not answered may have it.
    pub fn below_slot(
        &self,
        map: &PartitionMap,
        source: SourceId,
        confirmed: WalPosition,
    ) -> Vec<ReplicaKey> {
        let mut by_partition: BTreeMap<PartitionId, Vec<ReplicaKey>> = BTreeMap::new();
        for replica in serving_of_complete(map, source) {
            by_partition
                .entry(replica.partition)
                .or_default()
                .push(replica);
        }
        let is_below = |replica: &ReplicaKey| {
            self.floors
                .get(replica)
                .is_some_and(|durable| *durable < confirmed)
        };
        let lost = by_partition.into_values();
        lost.filter(|replicas| replicas.iter().all(is_below))
            .flatten()
            .collect()
    }
}

fn serving_of_complete(
    map: &PartitionMap,
    source: SourceId,
) -> impl Iterator<Item = ReplicaKey> + '_ {
    serving(map, source, |c| {
        matches!(c.state, CollectionState::Ready { .. })
    })
}

/// The serving replicas of a source's collections that are such.
fn serving<'a>(
    map: &'a PartitionMap,
    source: SourceId,
    is_such: impl Fn(&Collection) -> bool + 'a,
) -> impl Iterator<Item = ReplicaKey> + 'a {
    let is_meant = move |p: &&cluster_core::map::Partition| {
        let collection = map.collections.get(&p.collection);
        collection.is_some_and(|c| c.spec.source == source && is_such(c))
    };
    let partitions = map.partitions.values().filter(is_meant);
    partitions.flat_map(|p| {
        p.in_state(ReplicaState::Serving).map(|r| ReplicaKey {
            partition: p.id,
            node: r.node,
            generation: r.generation,
        })
    })
}

/// Stores the token durably on every node that holds a replica. One that does
/// not answer is fenced when its stream is opened, which bears the token too;
/// until it answers it holds the slot.
pub(super) async fn install_token(context: &SourceContext) -> Result<Answers, RunEnd> {
    let map = context.client.map();
    let of_source = |p: &cluster_core::map::Partition| {
        map.collections
            .get(&p.collection)
            .is_some_and(|c| c.spec.source == context.source)
    };
    let nodes: BTreeSet<NodeId> = map
        .partitions
        .values()
        .filter(|p| of_source(p))
        .flat_map(|p| &p.replicas)
        .map(|r| r.node)
        .collect();
    let request = v1::InstallConsumerRequest {
        source_id: context.source.0,
        consumer_epoch: context.token.0,
    };
    let call_timeout = Duration::from_millis(context.config.call_timeout_ms);
    let calls = nodes.into_iter().map(|node| async move {
        let answer = match context.client.node(node) {
            Ok(mut client) => {
                tokio::time::timeout(call_timeout, client.install_consumer(request)).await
            }
            Err(problem) => Ok(Err(tonic::Status::unavailable(problem.to_string()))),
        };
        (node, answer)
    });
    let mut asked = Answers::default();
    for (node, answer) in futures::future::join_all(calls).await {
        match answer {
            Ok(Ok(answer)) => {
                for partition in answer.into_inner().partitions {
                    let known = [partition.applied, partition.durable];
                    let known = known.into_iter().flatten().map(WalPosition::from);
                    asked.applied.extend(known);
                    if partition.is_learning {
                        continue;
                    }
                    let replica = ReplicaKey {
                        partition: PartitionId(partition.partition_id),
                        node,
                        generation: Generation(partition.generation),
                    };
                    let durable = partition.durable.map_or(WalPosition::ZERO, Into::into);
                    asked.floors.insert(replica, durable);
                }
            }
            Ok(Err(status)) if proto::error::is_estale(&status) => {
                let hint = proto::error::estale_hint(&status);
                if let Some(hint) = hint {
                    let _ = context.client.refresh_map(hint).await;
                }
                return Err(RunEnd::restart(
                    "fenced",
                    format!("{node}: {}", status.message()),
                ));
            }
            Ok(Err(status)) => {
                tracing::warn!(%node, problem = status.message(), "node did not take the consumer's token");
                asked.silent.insert(node);
            }
            Err(_) => {
                tracing::warn!(%node, "node did not take the consumer's token in time");
                asked.silent.insert(node);
            }
        }
    }
    Ok(asked)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::rows::tests::spec;
    use cluster_core::collection::BackfillSnapshot;
    use cluster_core::ids::{BackfillId, CollectionId, Incarnation};
    use cluster_core::map::{HashRange, Partition, Replica};

    pub fn end(lsn: u64) -> WalPosition {
        WalPosition::end_of(Incarnation(1), Lsn(lsn))
    }

    pub fn at(partition: u64, node: u64, lsn: u64) -> (ReplicaKey, WalPosition) {
        let replica = ReplicaKey {
            partition: PartitionId(partition),
            node: NodeId(node),
            generation: Generation(1),
        };
        (replica, end(lsn))
    }

    #[test]
    fn p2_p3_what_the_slot_has_passed_is_found_complete_or_being_filled() {
        let mut map = PartitionMap::default();
        let ready = CollectionState::Ready {
            snapshot: BackfillSnapshot::default(),
        };
        let building = CollectionState::Building {
            backfill: BackfillId(1),
        };
        let states = [ready.clone(), ready.clone(), building, ready.clone(), ready];
        for (id, state) in (1..).zip(states) {
            let collection = Collection {
                id: CollectionId(id),
                spec: spec(),
                state,
                last_backfill: BackfillId(1),
                reconcile: None,
            };
            map.collections.insert(collection.id, collection);
            let replica = |node| Replica {
                node: NodeId(node),
                generation: Generation(1),
                state: ReplicaState::Serving,
            };
            let partition = Partition {
                id: PartitionId(id),
                collection: CollectionId(id),
                range: HashRange::WHOLE,
                replicas: vec![replica(1), replica(2)],
            };
            map.partitions.insert(partition.id, partition);
        }
        let floors = Floors::from([
            at(1, 1, 10),
            at(1, 2, 10),
            at(2, 1, 9),
            at(2, 2, 8),
            (at(3, 1, 0).0, WalPosition::ZERO),
            (at(3, 2, 0).0, WalPosition::ZERO),
            // A peer has it.
            at(4, 1, 9),
            at(4, 2, 10),
            // A peer may have it.
            at(5, 1, 9),
        ]);
        let source = spec().source;
        let mut asked = Answers {
            floors,
            ..Answers::default()
        };
        let lost = asked.below_slot(&map, source, end(10));
        assert_eq!(lost, [at(2, 1, 9).0, at(2, 2, 8).0]);
        assert!(asked.below_slot(&map, SourceId(99), end(10)).is_empty());

        let all = |asked: &Answers, confirmed| asked.all_are_below(&map, source, end(confirmed));
        assert_eq!(
            all(&asked, 10),
            None,
            "one has it, and one has not answered"
        );
        assert_eq!(all(&asked, 11), None, "one has not answered");
        asked.floors.extend([at(5, 2, 4)]);
        assert_eq!(all(&asked, 11), Some(end(10)));
        assert_eq!(all(&asked, 10), None, "one has it");

        // What is being filled holds nothing yet, or what leads up to the slot.
        let filled = |asked: &Answers, confirmed| asked.filled_below(&map, source, end(confirmed));
        assert_eq!(filled(&asked, 10), None, "nothing was copied");
        asked.floors.extend([at(3, 1, 7)]);
        assert_eq!(filled(&asked, 7), None);
        assert_eq!(filled(&asked, 8), Some(at(3, 1, 7)));
        asked.floors.extend([at(3, 2, 8)]);
        assert_eq!(filled(&asked, 8), None, "a peer has it");
        assert_eq!(filled(&asked, 9), Some(at(3, 2, 8)));
        assert!(asked.has_witness(&map, source, end(10)));
        assert!(!asked.has_witness(&map, source, end(11)));
    }
}
