//! What a coordinator knows of the cluster, for `ctl status` and monitoring.

use crate::coordinator::Coordinator;
use crate::moves::memory::MoveMemory;
use cluster_core::control::PlannedMove;
use cluster_core::ids::{Generation, PartitionId};
use openraft::ServerState;
use proto::v1;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub fn status_of(coordinator: &Coordinator) -> v1::GetStatusResponse {
    let raft = coordinator.raft.metrics().borrow().clone();
    let now = Instant::now();
    let leader_id = raft.current_leader.unwrap_or(0);
    let (map, consumer_ids, is_initialised) = coordinator.state.read(|state| {
        let consumers: Vec<_> = state.consumers().keys().copied().collect();
        (state.map().clone(), consumers, state.is_initialised())
    });

    let members = raft.membership_config.membership();
    let learners: BTreeSet<u64> = members.learner_ids().collect();
    let coordinators = members.nodes().map(|(id, node)| v1::CoordinatorStatus {
        coordinator_id: *id,
        address: node.addr.clone(),
        is_leader: *id == leader_id,
        is_learner: learners.contains(id),
    });
    let nodes = map.nodes.keys().map(|id| {
        let known = coordinator.leases.node(*id, now);
        v1::NodeStatus {
            node_id: id.0,
            renewed_ms_ago: known.as_ref().map(|(ago, _)| ms(*ago)),
            report: known.map(|(_, report)| report),
        }
    });
    let consumers = consumer_ids.into_iter().map(|id| {
        let known = coordinator.leases.consumer(id, now);
        let renewed_ms_ago = known.as_ref().map(|(ago, _)| ms(*ago));
        let report = known.map(|(_, report)| report).unwrap_or_default();
        v1::ConsumerStatus {
            consumer_id: id.0,
            renewed_ms_ago,
            sources: report.progress,
            allows_plaintext_off_loopback: report.allows_plaintext_off_loopback,
        }
    });
    let (moves, planned, rebalance) = coordinator.state.read(|state| {
        let moves: Vec<_> = state.moves().iter().map(|(id, m)| (*id, *m)).collect();
        let planned: Vec<_> = state.planned().iter().map(|p| (*p).into()).collect();
        (moves, planned, v1::RebalanceMode::from(state.rebalance()))
    });
    let moves = moves.into_iter().map(|(partition, running)| {
        let report = coordinator.leases.node(running.to, now);
        let learner = report.and_then(|(_, report)| {
            let mut partitions = report.partitions.into_iter();
            let of_move = |p: &v1::PartitionReport| {
                (p.partition_id, p.generation) == (partition.0, running.generation.0)
            };
            partitions.find(of_move)?.learner
        });
        let planned = PlannedMove {
            partition,
            to: running.to,
            from: running.from,
            reason: running.reason,
        };
        v1::MoveStatus {
            r#move: Some(planned.into()),
            generation: running.generation.0,
            running_ms: running_ms(coordinator, partition, running.generation, now),
            learner,
        }
    });
    v1::GetStatusResponse {
        disk_uuid: coordinator.disk_uuid.clone(),
        lease_ttl_ms: coordinator.leases.terms().ttl_ms,
        highest_coordinator_id: coordinator.state.read(|state| state.highest_coordinator()),
        moves: moves.collect(),
        planned,
        rebalance: rebalance.into(),
        coordinator_id: coordinator.config.id,
        leader_id: match raft.state {
            ServerState::Leader => coordinator.config.id,
            _ => leader_id,
        },
        term: raft.current_term,
        last_applied_index: raft.last_applied.map_or(0, |id| id.index),
        is_initialised,
        coordinators: coordinators.collect(),
        nodes: nodes.collect(),
        consumers: consumers.collect(),
        is_plaintext: coordinator.config.transport.is_plaintext(),
        allows_plaintext_off_loopback: coordinator.config.transport.allow_plaintext_off_loopback,
        map: Some((&map).into()),
    }
}

/// 0 on a coordinator that does not reign: only the leader saw the move begin.
fn running_ms(
    coordinator: &Coordinator,
    partition: PartitionId,
    generation: Generation,
    now: Instant,
) -> u64 {
    let leases = &coordinator.leases;
    let running = leases.reigning().and_then(|(reign, _)| {
        let since = |memory: &mut MoveMemory| memory.running_since(partition, generation);
        leases.with_moves(reign, since).ok().flatten()
    });
    running.map_or(0, |since| ms(now.saturating_duration_since(since)))
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
