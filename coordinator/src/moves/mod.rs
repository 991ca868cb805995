//! The leader's duties towards replicas: give up hopeless moves, finish
//! releases, begin what repairs, drains and balances.
//!
//! What to do is decided in `cluster_core::rebalance`; here the facts are
//! gathered and the answers proposed. Every proposal may be refused by a state
//! that has gone on meanwhile: the next look plans anew.

pub mod memory;
mod split;
mod stuck;

use crate::coordinator::Coordinator;
use crate::leases::ReignOver;
use crate::metrics::ReasonLabel;
use cluster_core::control::{ClusterState, Command, MoveReason, PlannedMove, RebalanceMode, Reign};
use cluster_core::ids::{LeaseEpoch, MapVersion, NodeId};
use cluster_core::rebalance::{
    Liveness, Plan, admit, cancellations, is_void, plan, releases, wanted,
};
use memory::MoveMemory;
use proto::error::not_leader;
use std::time::Instant;
use tonic::Status;

/// All that a plan depends on: planning twice in one situation is in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Situation {
    epoch: LeaseEpoch,
    version: MapVersion,
    mode: RebalanceMode,
    asked: Vec<PlannedMove>,
    /// Which nodes are live, and which are dead.
    nodes: Vec<(NodeId, bool, bool)>,
}

pub async fn tend(coordinator: &Coordinator, reign: Reign) {
    if observe(coordinator, reign).is_err() {
        return;
    }
    give_up_hopeless(coordinator, reign).await;
    stuck::give_up(coordinator).await;
    finish_releases(coordinator, reign).await;
    forget_void(coordinator).await;
    begin(coordinator, reign).await;
    split::tend(coordinator, reign).await;
}

/// What the reigning leader knows of the map's nodes.
pub fn liveness(coordinator: &Coordinator, reign: Reign) -> Result<Liveness, Status> {
    let nodes: Vec<NodeId> = coordinator
        .state
        .read(|state| state.map().nodes.keys().copied().collect());
    let seen = coordinator.leases.liveness(reign, nodes, Instant::now());
    seen.map_err(|ReignOver| not_leader(None))
}

/// What would move now, and what the plan could not have. Repairs and drains
/// begin by themselves, whoever asks.
pub async fn plan_now(coordinator: &Coordinator, reign: Reign) -> Result<Plan, Status> {
    let nodes = liveness(coordinator, reign)?;
    let state = coordinator.state.read(ClusterState::clone);
    let (_, plan) = plan_apart(coordinator, state, nodes).await?;
    Ok(plan)
}

/// Plans on a thread of its own: a large map takes some ten milliseconds.
async fn plan_apart(
    coordinator: &Coordinator,
    state: ClusterState,
    nodes: Liveness,
) -> Result<(ClusterState, Plan), Status> {
    let policy = coordinator.config.rebalance();
    let planning = tokio::task::spawn_blocking(move || {
        let plan = plan(state.map(), state.moves(), policy, &nodes);
        (state, plan)
    });
    let planned = planning.await;
    planned.map_err(|error| Status::internal(format!("the planner failed: {error}")))
}

fn observe(coordinator: &Coordinator, reign: Reign) -> Result<(), ReignOver> {
    let ended = coordinator.state.read(|state| {
        let look = |memory: &mut MoveMemory| memory.observe(state, Instant::now());
        coordinator.leases.with_moves(reign, look)
    })?;
    let metrics = &coordinator.metrics;
    metrics.moves_finished.inc_by(ended.finished);
    metrics.moves_cancelled.inc_by(ended.cancelled);
    Ok(())
}

async fn give_up_hopeless(coordinator: &Coordinator, reign: Reign) {
    let Ok(nodes) = liveness(coordinator, reign) else {
        return;
    };
    let dead_after_ms = coordinator.config.dead_after_ms;
    let hopeless = coordinator
        .state
        .read(|state| cancellations(state.map(), state.moves(), &nodes, dead_after_ms));
    for given_up in hopeless {
        let (partition, reason) = (given_up.partition, given_up.reason);
        let command = Command::CancelMove {
            partition,
            generation: given_up.generation,
        };
        match coordinator.propose(command).await {
            Ok(_) => tracing::info!(%partition, %reason, "move given up"),
            Err(status) => tracing::warn!(%partition, %status, "move not given up yet"),
        }
    }
}

async fn finish_releases(coordinator: &Coordinator, reign: Reign) {
    let Ok(nodes) = liveness(coordinator, reign) else {
        return;
    };
    let terms = coordinator.leases.terms();
    let over = coordinator
        .leases
        .with_moves(reign, |memory| releases(memory.releasing(), &nodes, terms));
    for release in over.unwrap_or_default() {
        let (partition, node) = (release.partition, release.node);
        let command = Command::FinishRelease {
            partition,
            node,
            generation: release.generation,
        };
        match coordinator.propose(command).await {
            Ok(_) => {
                tracing::info!(%partition, %node, "replica released");
                coordinator.metrics.releases.inc();
            }
            Err(status) => tracing::warn!(%partition, %node, %status, "not released yet"),
        }
    }
}

/// Tidies what operators asked for and can never begin.
async fn forget_void(coordinator: &Coordinator) {
    let _asking = coordinator.asking.lock().await;
    let (asked, kept) = coordinator.state.read(|state| {
        let asked = state.planned();
        let is_kept = |m: &&PlannedMove| !is_void(m, state.map(), state.moves());
        let kept: Vec<PlannedMove> = asked.iter().filter(is_kept).copied().collect();
        (asked.len(), kept)
    });
    if kept.len() < asked {
        let moves = kept;
        if let Err(status) = coordinator.propose(Command::PlanMoves { moves }).await {
            tracing::warn!(%status, "void moves not forgotten yet");
        }
    }
}

async fn begin(coordinator: &Coordinator, reign: Reign) {
    let Ok(nodes) = liveness(coordinator, reign) else {
        return;
    };
    let situation = coordinator
        .state
        .read(|state| situation(coordinator, state, &nodes));
    let is_idle = coordinator
        .leases
        .with_moves(reign, |memory| memory.is_idle_in(&situation));
    if situation.mode == RebalanceMode::Paused || is_idle != Ok(false) {
        return;
    }
    let state = coordinator.state.read(ClusterState::clone);
    let (state, plan) = match plan_apart(coordinator, state, nodes.clone()).await {
        Ok(planned) => planned,
        Err(status) => return tracing::error!(%status, "cannot plan"),
    };
    let wanted = wanted(state.rebalance(), &plan, state.planned());
    let throttle = coordinator.config.throttle();
    let admitted = admit(&wanted, state.map(), state.moves(), &nodes, throttle);
    let remembered = coordinator.leases.with_moves(reign, |memory| {
        if admitted.is_empty() {
            memory.set_idle(situation);
        }
        memory.new_conflicts(plan.conflicts)
    });
    for conflict in remembered.unwrap_or_default() {
        tracing::warn!(%conflict, "the placement is not as it should be");
    }
    for planned in admitted {
        start(coordinator, planned).await;
    }
}

fn situation(coordinator: &Coordinator, state: &ClusterState, nodes: &Liveness) -> Situation {
    let dead_after_ms = coordinator.config.dead_after_ms;
    let standing = |node: &NodeId| {
        let is_dead = nodes.is_dead(*node, dead_after_ms);
        (*node, nodes.is_live(*node), is_dead)
    };
    Situation {
        epoch: state.map().epoch,
        version: state.map().version,
        mode: state.rebalance(),
        asked: state.planned().to_vec(),
        nodes: nodes.0.keys().map(standing).collect(),
    }
}

async fn start(coordinator: &Coordinator, planned: PlannedMove) {
    let PlannedMove {
        partition,
        to,
        from,
        reason,
    } = planned;
    let command = Command::StartMove {
        partition,
        to,
        from,
        reason,
    };
    match coordinator.propose(command).await {
        Ok(_) => {
            tracing::info!(%partition, %to, ?from, ?reason, "move begins");
            let started = &coordinator.metrics.moves_started;
            started.get_or_create(&label(reason)).inc();
        }
        Err(status) => tracing::warn!(%partition, %to, %status, "move not begun"),
    }
}

fn label(reason: MoveReason) -> ReasonLabel {
    let reason = match reason {
        MoveReason::Drain => "drain",
        MoveReason::Balance => "balance",
        MoveReason::Repair => "repair",
        MoveReason::Operator => "operator",
    };
    ReasonLabel { reason }
}
