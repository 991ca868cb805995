//! The leader's duties: begin a reign with a new epoch, settle who votes, keep
//! every source with a living consumer ([`assignment`]), forget consumers long gone, tend the moves
//! of replicas. Runs on every coordinator and acts on the one that leads.

use crate::coordinator::Coordinator;
use crate::{assignment, membership, moves, raft};
use cluster_core::control::{Command, Reign, Response};
use cluster_core::ids::ConsumerId;
use cluster_core::map::{PartitionMap, ReplicaState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// A consumer that holds nothing is forgotten after this many lease times.
const FORGET_AFTER_TTLS: u32 = 30;

/// Ends when `shutdown` is cancelled, or with the error that stopped Raft.
pub async fn run(coordinator: Arc<Coordinator>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut metrics = coordinator.raft.metrics();
    let mut ticks = interval(Duration::from_millis(coordinator.config.duties_every_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let seen = metrics.borrow_and_update().clone();
        if let Err(fatal) = &seen.running_state {
            coordinator.leases.end_reign();
            if shutdown.is_cancelled() {
                return Ok(());
            }
            anyhow::bail!("Raft has stopped: {fatal}");
        }
        observe(&coordinator, &seen);
        if seen.state == openraft::ServerState::Leader {
            let reign = Reign {
                term: seen.current_term,
                leader: coordinator.config.id,
                start: coordinator.start,
            };
            tokio::select! {
                () = rule(&coordinator, reign) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        } else {
            coordinator.leases.end_reign();
        }
        let (seen_state, seen_term) = (seen.state, seen.current_term);
        // Most changes of Raft's metrics are none of leadership.
        let turned = |m: &raft::Metrics| {
            m.state != seen_state || m.current_term != seen_term || m.running_state.is_err()
        };
        tokio::select! {
            // Its error means that Raft is gone; the next look says why.
            _ = metrics.wait_for(turned) => {}
            _ = ticks.tick() => {}
            () = coordinator.duties.notified() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

fn observe(coordinator: &Coordinator, seen: &raft::Metrics) {
    let to_gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let metrics = &coordinator.metrics;
    metrics.raft_term.set(to_gauge(seen.current_term));
    metrics
        .raft_log_index
        .set(to_gauge(seen.last_log_index.unwrap_or(0)));
    metrics
        .raft_applied_index
        .set(to_gauge(seen.last_applied.map_or(0, |id| id.index)));
    metrics
        .is_leader
        .set(i64::from(coordinator.leases.reigning().is_some()));
    let (epoch, version) = coordinator.state.read(|s| (s.map().epoch, s.map().version));
    metrics.epoch.set(to_gauge(epoch.0));
    metrics.map_version.set(to_gauge(version.0));
    let (running, demoted, stale) = coordinator.state.read(|s| {
        let stale = in_state(s.map(), ReplicaState::Stale);
        (
            s.moves().len(),
            in_state(s.map(), ReplicaState::Demoted),
            stale,
        )
    });
    let paused = coordinator
        .state
        .read(|s| s.map().sources.values().filter(|s| s.is_paused).count());
    metrics.sources_paused.set(to_gauge(paused as u64));
    metrics.moves_running.set(to_gauge(running as u64));
    metrics.replicas_demoted.set(to_gauge(demoted as u64));
    metrics.replicas_stale.set(to_gauge(stale as u64));
}

fn in_state(map: &PartitionMap, state: ReplicaState) -> usize {
    let partitions = map.partitions.values();
    partitions.map(|p| p.in_state(state).count()).sum()
}

async fn rule(coordinator: &Coordinator, reign: Reign) {
    if coordinator.leases.reigning().map(|(current, _)| current) != Some(reign) {
        coordinator.leases.end_reign();
        match coordinator.write(Command::NewEpoch { reign }).await {
            Ok(Response::Epoch { epoch }) => {
                tracing::info!(term = reign.term, epoch = epoch.0, "begins to reign");
                coordinator.metrics.elections.inc();
                coordinator.leases.begin_reign(reign, epoch, Instant::now());
            }
            Ok(other) => tracing::error!(?other, "a new epoch was answered with something else"),
            Err(status) => tracing::info!(%status, "cannot begin to reign yet"),
        }
    }
    if coordinator.leases.reigning().is_some() {
        if let Err(status) = membership::settle(coordinator).await {
            tracing::debug!(%status, "membership not settled yet");
        }
        assignment::assign_sources(coordinator, reign).await;
        forget_consumers(coordinator).await;
        moves::tend(coordinator, reign).await;
    }
}

async fn forget_consumers(coordinator: &Coordinator) {
    let now = Instant::now();
    let ttl = Duration::from_millis(coordinator.leases.terms().ttl_ms);
    let idle: Vec<ConsumerId> = coordinator.state.read(|state| {
        let ids = state.consumers().keys().copied();
        ids.filter(|consumer| state.held_by(*consumer).next().is_none())
            .collect()
    });
    for consumer in idle {
        let silence = coordinator
            .leases
            .consumer_silence(consumer, now)
            .unwrap_or_default();
        if silence > ttl * FORGET_AFTER_TTLS
            && coordinator
                .propose(Command::ForgetConsumer { consumer })
                .await
                .is_ok()
        {
            coordinator.leases.forget_consumer(consumer);
        }
    }
}
