//! What somebody should look at, found in map and reports, in sentences.

use super::progress::{is_assigned, waits_for};
use super::table::{bytes, span};
use super::{Observed, words};
use cluster_core::collection::CollectionState;
use cluster_core::ids::{CollectionId, NodeId, SourceId};
use cluster_core::map::{Partition, ReplicaState, Source};
use proto::v1::NodeStatus;
use std::collections::BTreeMap;

/// How many partitions are named for what most likely has one cause.
const NAMED_MAX: usize = 8;

impl Observed {
    /// Of an initialised cluster.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.silent_nodes();
        problems.extend(self.full_nodes());
        problems.extend(self.missing_replicas());
        problems.extend(self.running_splits().iter().map(|split| split.sentence()));
        problems.extend(self.source_problems());
        problems.extend(self.slot_problems());
        problems.extend(self.paused_sources());
        problems.extend(self.failed_collections());
        problems.extend(self.stale_collections());
        problems.extend(self.reported_problems());
        problems.extend(self.waits(|_| true));
        problems
    }

    /// Only the leader knows who renews.
    fn silent_nodes(&self) -> Vec<String> {
        let is_of_leader = self.is_of_leader();
        let nodes = self.map.nodes.keys().filter(|_| is_of_leader);
        nodes.filter_map(|node| self.silence_of(*node)).collect()
    }

    fn silence_of(&self, node: NodeId) -> Option<String> {
        let id = node.0;
        if self.is_alive(node) {
            return None;
        }
        let silence = match self.silent_ms(node) {
            Some(ms) => format!("node {id} is silent for {}", span(ms)),
            None => format!("node {id} has not been heard of since this leader leads"),
        };
        let holds_none = self.held_by(node).is_empty();
        Some(match holds_none {
            true => {
                format!("{silence}; it holds nothing: ruvector ctl node remove {id} forgets it")
            }
            false => format!("{silence}; its replicas are made elsewhere after dead_after_ms"),
        })
    }

    /// Those that refuse work, as they reported last.
    fn full_nodes(&self) -> Vec<String> {
        let full = |status: &NodeStatus| {
            let report = status.report.as_ref()?;
            let refused = match &*report.memory_pressure {
                "" | "free" => return None,
                "tight" => "backfills and copies to it are refused",
                _ => "it takes no rows, backfills or copies until there is room",
            };
            let (used, limit) = (report.memory_used_bytes, report.memory_limit_bytes);
            Some(format!(
                "node {}: memory is {}, {} of {}: {refused}; move partitions to other nodes, or raise memory_limit_bytes",
                status.node_id,
                report.memory_pressure,
                bytes(used),
                bytes(limit)
            ))
        };
        self.status.nodes.iter().filter_map(full).collect()
    }

    /// Partitions with demoted replicas, and those that fewer replicas serve than
    /// most.
    fn missing_replicas(&self) -> Vec<String> {
        let usual = self.usual_serving();
        let missing = |partition| missing_replicas(partition, usual);
        let problems = self.map.partitions.values().filter_map(missing).collect();
        name_some(problems, |more| {
            let partitions = words::counted(more, "more partition");
            format!("{partitions} like these: ruvector ctl map")
        })
    }

    /// How many replicas serve most of the partitions; the more when two numbers
    /// are as frequent.
    fn usual_serving(&self) -> usize {
        let mut frequency: BTreeMap<usize, usize> = BTreeMap::new();
        for partition in self.map.partitions.values() {
            *frequency.entry(serving(partition)).or_default() += 1;
        }
        let most = frequency.into_iter().max_by_key(|(_, times)| *times);
        most.map_or(0, |(serving, _)| serving)
    }

    fn source_problems(&self) -> Vec<String> {
        let sources = self.map.sources.values();
        sources
            .filter(|source| !source.problem.is_empty())
            .map(|s| format!("source {} ({}): {}", s.id.0, s.name, s.problem))
            .collect()
    }

    /// What consumers say of their slots' WAL.
    fn slot_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for source in self.map.sources.values() {
            let progress = self.source_progress(source.id.0);
            for warning in progress.iter().flat_map(|p| &p.slot_warnings) {
                problems.push(format!(
                    "source {} ({}): {warning}",
                    source.id.0, source.name
                ));
            }
            for backfill in progress.iter().flat_map(|p| &p.backfills) {
                let Some(waits_for) = waits_for(backfill) else {
                    continue;
                };
                let collection = CollectionId(backfill.collection_id);
                let collection = self.map.collections.get(&collection);
                let index = collection.map_or("?", |c| c.spec.index_name.as_str());
                problems.push(format!(
                    "collection {} ({index}): the next snapshot of its backfill {waits_for}",
                    backfill.collection_id
                ));
            }
        }
        problems
    }

    /// Not forgotten: a slot that nobody reads fills the disk.
    fn paused_sources(&self) -> Vec<String> {
        let paused = self.map.sources.values().filter(|source| source.is_paused);
        let sentence = |source: &Source| {
            let kept = match self.source_progress(source.id.0) {
                Some(progress) => format!("{} of WAL", bytes(progress.retained_wal_bytes)),
                None => "WAL".to_owned(),
            };
            let (id, name) = (source.id.0, &source.name);
            format!(
                "source {id} ({name}) is paused, and its slot keeps {kept}: ruvector ctl source resume {name}"
            )
        };
        paused.map(sentence).collect()
    }

    fn failed_collections(&self) -> Vec<String> {
        let collections = self.map.collections.values();
        let failed = collections.filter_map(|collection| match &collection.state {
            CollectionState::Failed { reason } => Some(format!(
                "collection {} ({}): {reason}",
                collection.id.0, collection.spec.index_name
            )),
            _ => None,
        });
        failed.collect()
    }

    fn stale_collections(&self) -> Vec<String> {
        let collections = self.map.collections.values();
        let stale = collections.filter_map(|collection| {
            let said = words::needs_reconcile(self.map.partitions_of(collection.id))?;
            let (id, index) = (collection.id.0, &collection.spec.index_name);
            Some(match &collection.reconcile {
                Some(reconcile) => {
                    format!("collection {id} ({index}): {said}: {}", reconcile.reason)
                }
                None => format!("collection {id} ({index}): {said}"),
            })
        });
        stale.collect()
    }

    /// What nodes say of their replicas.
    fn reported_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for partition in self.map.partitions.keys() {
            for (node, report) in self.replica_reports(*partition) {
                if !report.problem.is_empty() {
                    let (id, problem) = (partition.0, &report.problem);
                    problems.push(format!("partition {id} on node {node}: {problem}"));
                }
            }
        }
        problems
    }

    /// Replicas of some sources whose changes wait, and for what. What a silent node said last
    /// may be long over.
    pub fn waits(&self, is_asked_for: impl Fn(SourceId) -> bool) -> Vec<String> {
        let mut waits = Vec::new();
        for partition in self.map.partitions.values() {
            let Some(collection) = self.map.collections.get(&partition.collection) else {
                continue;
            };
            if !is_asked_for(collection.spec.source) {
                continue;
            }
            for (node, report) in self.replica_reports(partition.id) {
                let is_current =
                    is_assigned(partition, node, report) && self.is_alive(NodeId(node));
                if is_current && !report.waits_for.is_empty() {
                    let replica = self.map.replica_name(partition, NodeId(node));
                    waits.push(format!("{replica} {}", report.waits_for));
                }
            }
        }
        name_some(waits, |more| {
            let replicas = words::counted(more, "more replica");
            let verb = if more == 1 { "waits" } else { "wait" };
            format!("{replicas} {verb} likewise")
        })
    }
}

/// The first of what most likely has one cause, and how many more there are.
fn name_some(mut problems: Vec<String>, others: impl Fn(usize) -> String) -> Vec<String> {
    let more = problems.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        problems.truncate(NAMED_MAX);
        problems.push(others(more));
    }
    problems
}

fn serving(partition: &Partition) -> usize {
    partition.in_state(ReplicaState::Serving).count()
}

/// `partition 14: 1 of 2 replicas serve; demoted on node 3`.
fn missing_replicas(partition: &Partition, usual: usize) -> Option<String> {
    let serving = serving(partition);
    let demoted: Vec<String> = partition
        .in_state(ReplicaState::Demoted)
        .map(|replica| format!("node {}", replica.node.0))
        .collect();
    if serving >= usual && demoted.is_empty() {
        return None;
    }
    let replicas = words::counted(usual.max(serving + demoted.len()), "replica");
    let mut said = format!(
        "partition {}: {serving} of {replicas} serve",
        partition.id.0
    );
    if !demoted.is_empty() {
        said += &format!("; demoted on {}", demoted.join(" and "));
    }
    Some(said)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TTL_MS, alive, collection, observed, split};
    use super::*;
    use cluster_core::map::ReplicaState::{Demoted, Learner, Releasing, Serving};

    #[test]
    fn a_healthy_cluster_and_a_running_move_are_no_problem() {
        let seen = observed(
            3,
            &[
                &[(1, 1, Serving), (2, 2, Serving)],
                &[(1, 3, Serving), (2, 4, Serving), (3, 9, Learner)],
                &[(1, 5, Releasing), (2, 6, Serving), (3, 8, Serving)],
            ],
        );
        assert_eq!(seen.problems(), Vec::<String>::new());
    }

    #[test]
    fn a_node_that_is_silent_for_longer_than_its_lease_is_named() {
        let mut seen = observed(3, &[&[(1, 1, Serving), (2, 2, Serving)]]);
        seen.status.nodes[1] = alive(2, TTL_MS + 32_000, &[]);
        seen.status.nodes[2].renewed_ms_ago = None;
        assert_eq!(
            seen.problems(),
            [
                "node 2 is silent for 42 s; its replicas are made elsewhere after dead_after_ms",
                "node 3 has not been heard of since this leader leads; it holds nothing: \
                 ruvector ctl node remove 3 forgets it",
            ]
        );
        // A follower does not know who renews.
        seen.status.coordinator_id = 2;
        assert_eq!(seen.problems(), Vec::<String>::new());
    }

    #[test]
    fn p10_a_node_without_memory_is_named_with_what_it_refuses() {
        let mut seen = observed(2, &[&[(1, 1, Serving), (2, 2, Serving)]]);
        let report = seen.status.nodes[0].report.as_mut();
        let report = report.expect("it reports");
        report.memory_pressure = "tight".into();
        report.memory_used_bytes = 9_000_000_000;
        report.memory_limit_bytes = 10_000_000_000;
        assert_eq!(
            seen.problems(),
            [
                "node 1: memory is tight, 9.0 GB of 10 GB: backfills and copies to it are refused; \
              move partitions to other nodes, or raise memory_limit_bytes"
            ]
        );
    }

    #[test]
    fn a_replica_whose_changes_wait_is_named_with_its_index_and_for_what() {
        let served: &[(u64, u64, ReplicaState)] = &[(1, 1, Serving)];
        let mut seen = observed(1, &[served; 10]);
        seen.map.collections.insert(CollectionId(1), collection());
        seen.status.nodes[0] = alive(1, 500, &[(3, 10), (4, 10)]);
        let wait = |seen: &mut Observed, partition: usize| {
            let report = seen.status.nodes[0].report.as_mut().expect("it reports");
            report.partitions[partition].waits_for = "waits for folding: its tail …".into();
            report.partitions[partition].generation = 1;
        };
        assert_eq!(seen.problems(), Vec::<String>::new());
        wait(&mut seen, 1);
        let said = "partition 4 of items_idx on node 1 waits for folding: its tail …";
        assert_eq!(seen.problems(), [said]);
        assert_eq!(seen.waits(|source| source.0 == 1), [said]);
        assert_eq!(seen.waits(|source| source.0 == 2), Vec::<String>::new());
        seen.status.nodes[0].renewed_ms_ago = Some(2 * TTL_MS);
        assert_eq!(seen.waits(|_| true), Vec::<String>::new(), "it is silent");
        seen.status.nodes[0].renewed_ms_ago = Some(500);
        let report = seen.status.nodes[0].report.as_mut().expect("it reports");
        report.partitions[1].generation = 2;
        assert_eq!(
            seen.waits(|_| true),
            Vec::<String>::new(),
            "another replica's"
        );
        let rows: Vec<(u64, u64)> = (1..=10).map(|id| (id, 10)).collect();
        seen.status.nodes[0] = alive(1, 500, &rows);
        (0..10).for_each(|partition| wait(&mut seen, partition));
        let said = seen.problems();
        assert_eq!(
            (said.len(), &*said[8]),
            (9, "2 more replicas wait likewise")
        );
    }

    #[test]
    fn demoted_and_missing_replicas_and_splits_are_named() {
        let mut seen = observed(
            3,
            &[
                &[(1, 1, Serving), (2, 2, Serving)],
                &[(1, 3, Serving), (2, 4, Demoted)],
                &[(1, 5, Serving), (3, 6, Serving)],
                &[(1, 7, Serving)],
                &[(1, 8, Serving), (2, 9, Serving), (3, 9, Demoted)],
            ],
        );
        split(&mut seen, 3, &[1, 3]);
        assert_eq!(
            seen.problems(),
            [
                "partition 2: 1 of 2 replicas serve; demoted on node 2",
                "partition 4: 1 of 2 replicas serve",
                "partition 5: 2 of 3 replicas serve; demoted on node 3",
                "partition 3 is being split: 1 of 4 replicas of its halves serve",
            ]
        );
    }

    #[test]
    fn a_partition_without_any_serving_replica_is_named_in_the_singular() {
        let seen = observed(1, &[&[(1, 1, Serving)], &[(1, 2, Serving)], &[]]);
        assert_eq!(seen.problems(), ["partition 3: 0 of 1 replica serve"]);
    }

    #[test]
    fn many_partitions_with_one_cause_are_counted() {
        let lost: &[(u64, u64, ReplicaState)] = &[(1, 1, Serving), (2, 2, Demoted)];
        let seen = observed(2, &[lost; 10]);
        let problems = seen.problems();
        assert_eq!(problems.len(), NAMED_MAX + 1);
        assert_eq!(
            problems[NAMED_MAX],
            "2 more partitions like these: ruvector ctl map"
        );
    }
}
