//! Learners that report to be quarantined go no further: their move or split is
//! given up, so that the partition can be repaired, drained and split again.

use crate::coordinator::Coordinator;
use cluster_core::control::{ClusterState, Command};
use cluster_core::ids::{Generation, NodeId, PartitionId};
use proto::v1;
use std::time::Instant;

pub async fn give_up(coordinator: &Coordinator) {
    let nodes: Vec<NodeId> = coordinator
        .state
        .read(|state| state.map().nodes.keys().copied().collect());
    let now = Instant::now();
    for node in nodes {
        let Some((_, report)) = coordinator.leases.node(node, now) else {
            continue;
        };
        for stuck in report.partitions.iter().filter(|p| is_stuck(p)) {
            let command = coordinator.state.read(|state| ending(state, stuck));
            let Some(command) = command else { continue };
            let partition = PartitionId(stuck.partition_id);
            let problem = &stuck.problem;
            match coordinator.propose(command).await {
                Ok(_) => {
                    tracing::error!(%partition, %node, problem, "the learner is stuck: given up")
                }
                Err(status) => {
                    tracing::warn!(%partition, %node, %status, "stuck learner not given up yet")
                }
            }
        }
    }
}

fn is_stuck(partition: &v1::PartitionReport) -> bool {
    partition.learner.is_some_and(|learner| learner.is_stuck)
}

/// What ends the move or split that made the learner, if it is still under way.
fn ending(state: &ClusterState, stuck: &v1::PartitionReport) -> Option<Command> {
    let partition = PartitionId(stuck.partition_id);
    let generation = Generation(stuck.generation);
    if let Some((parent, half)) = state.map().split_of(partition) {
        let is_it = half.replicas.iter().any(|r| r.generation == generation);
        return is_it.then_some(Command::CancelSplit {
            partition: parent.id,
        });
    }
    let running = state.moves().get(&partition)?;
    (running.generation == generation).then_some(Command::CancelMove {
        partition,
        generation,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p10_only_a_learner_that_says_so_is_stuck() {
        let learner = v1::LearnerProgress {
            is_stuck: true,
            ..Default::default()
        };
        let report = v1::PartitionReport {
            partition_id: 1,
            learner: Some(learner),
            ..Default::default()
        };
        assert!(is_stuck(&report));
        assert!(!is_stuck(&v1::PartitionReport::default()));
        assert_eq!(ending(&ClusterState::default(), &report), None);
    }
}
