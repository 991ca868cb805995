//! Partitions that have grown too large are split, one look at a time.

use super::liveness;
use crate::coordinator::Coordinator;
use cluster_core::control::{Command, RebalanceMode, Reign};
use cluster_core::ids::{NodeId, PartitionId};
use cluster_core::rebalance::{hopeless_splits, splits};
use std::collections::BTreeMap;
use std::time::Instant;

pub async fn tend(coordinator: &Coordinator, reign: Reign) {
    give_up_hopeless(coordinator, reign).await;
    let paused = coordinator.state.read(|s| s.rebalance()) == RebalanceMode::Paused;
    if coordinator.config.split_rows > 0 && !paused {
        begin(coordinator, reign).await;
    }
}

async fn give_up_hopeless(coordinator: &Coordinator, reign: Reign) {
    let Ok(nodes) = liveness(coordinator, reign) else {
        return;
    };
    let dead_after_ms = coordinator.config.dead_after_ms;
    let hopeless = coordinator
        .state
        .read(|state| hopeless_splits(state.map(), &nodes, dead_after_ms));
    for partition in hopeless {
        match coordinator
            .propose(Command::CancelSplit { partition })
            .await
        {
            Ok(_) => tracing::info!(%partition, "split given up: a node of it is dead"),
            Err(status) => tracing::warn!(%partition, %status, "split not given up yet"),
        }
    }
}

/// As many at once as moves: each copies a partition on each of its nodes.
async fn begin(coordinator: &Coordinator, reign: Reign) {
    let Ok(nodes) = liveness(coordinator, reign) else {
        return;
    };
    let rows = reported_rows(coordinator);
    let rows_max = coordinator.config.split_rows;
    let (due, running) = coordinator.state.read(|state| {
        let due = splits(state.map(), state.moves(), &nodes, &rows, rows_max);
        (due, state.map().splits.len())
    });
    let room = (coordinator.config.moves_max as usize).saturating_sub(running);
    for (partition, at) in due.into_iter().take(room) {
        match coordinator
            .propose(Command::StartSplit { partition, at })
            .await
        {
            Ok(_) => {
                tracing::info!(%partition, rows = rows[&partition], "split begins");
                coordinator.metrics.splits_started.inc();
            }
            Err(status) => tracing::warn!(%partition, %status, "split not begun"),
        }
    }
}

/// The rows of each partition, as the fullest of its replicas reports them.
fn reported_rows(coordinator: &Coordinator) -> BTreeMap<PartitionId, u64> {
    let nodes: Vec<NodeId> = coordinator
        .state
        .read(|state| state.map().nodes.keys().copied().collect());
    let now = Instant::now();
    let mut rows = BTreeMap::new();
    for (_, report) in nodes
        .into_iter()
        .filter_map(|n| coordinator.leases.node(n, now))
    {
        for partition in report.partitions {
            let known: &mut u64 = rows.entry(PartitionId(partition.partition_id)).or_default();
            *known = partition.rows.max(*known);
        }
    }
    rows
}
