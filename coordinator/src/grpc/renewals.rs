//! Leases as nodes and consumers ask for them.
//!
//! What is granted is recorded first and read from the state second: whoever is
//! given what the holder had, has been silent for a whole lease after that.

use super::refusal::refuse;
use crate::coordinator::Coordinator;
use crate::leases::ReignOver;
use cluster_core::control::{Command, Refusal};
use cluster_core::ids::*;
use cluster_core::lease::grantable;
use proto::error::not_leader;
use proto::v1;
use std::time::Instant;
use tonic::{Code, Status};

pub async fn renew_node(
    coordinator: &Coordinator,
    request: v1::RenewNodeLeaseRequest,
) -> Result<v1::RenewNodeLeaseResponse, Status> {
    let received = Instant::now();
    let node = NodeId(request.node_id);
    let (reign, epoch) = coordinator.confirm_reign().await?;
    check_disk(coordinator, node, request.disk_uuid)?;
    let report = request.report.unwrap_or_default();
    let leases = &coordinator.leases;
    leases
        .renew_node(reign, node, received, report)
        .map_err(|ReignOver| not_leader(None))?;
    // A release that did not see this renewal belongs to a map that is at most as
    // new as the one named here.
    let version = coordinator.state.read(|state| state.map().version);
    let terms = leases.terms();
    Ok(v1::RenewNodeLeaseResponse {
        epoch: epoch.0,
        ttl_ms: terms.ttl_ms,
        renew_every_ms: terms.renew_every_ms,
        map_version: version.0,
    })
}

fn check_disk(coordinator: &Coordinator, node: NodeId, given: String) -> Result<(), Status> {
    let known = coordinator.state.read(|state| {
        let known = state.map().nodes.get(&node);
        known.map(|node| node.disk_uuid.clone())
    });
    let known = known.ok_or_else(|| refuse(coordinator, Refusal::UnknownNode { node }))?;
    if known == given {
        return Ok(());
    }
    let explanation = "two processes claim one id, or a disk was swapped".to_owned();
    let refusal = Refusal::DiskMismatch {
        node,
        known,
        given,
        explanation,
    };
    Err(refuse(coordinator, refusal))
}

/// A process that starts has forgotten what it asked for under its tokens. With
/// other tokens, whatever of that is still on its way is refused: a promotion
/// that comes late would let a learner serve that nobody counts any more (P2).
pub async fn renew_tokens(coordinator: &Coordinator, consumer: ConsumerId) -> Result<(), Status> {
    let held: Vec<_> = coordinator.state.read(|state| {
        let held = state.held_by(consumer);
        held.map(|source| (source.id, source.consumer_epoch))
            .collect()
    });
    for (source, expected) in held {
        let assign = Command::AssignSource {
            source,
            consumer,
            expected,
        };
        match coordinator.propose(assign).await {
            Ok(_) => {}
            // Removed, or given to another meanwhile.
            Err(status) if matches!(status.code(), Code::Aborted | Code::NotFound) => {}
            Err(status) => return Err(status),
        }
    }
    Ok(())
}

pub async fn renew_consumer(
    coordinator: &Coordinator,
    request: v1::RenewConsumerLeaseRequest,
) -> Result<v1::RenewConsumerLeaseResponse, Status> {
    let received = Instant::now();
    let consumer = ConsumerId(request.consumer_id);
    let (reign, epoch) = coordinator.confirm_reign().await?;
    let is_known = coordinator
        .state
        .read(|state| state.consumers().contains_key(&consumer));
    if !is_known {
        return Err(refuse(coordinator, Refusal::UnknownConsumer { consumer }));
    }
    let leases = &coordinator.leases;
    let lets_go = !request.released.is_empty();
    let handing_over = leases
        .renew_consumer(reign, consumer, received, Some(request))
        .map_err(|ReignOver| not_leader(None))?;
    if lets_go {
        coordinator.wake_duties();
    }
    let (assignments, version) = coordinator.state.read(|state| {
        let assignments = grantable(state, consumer, &handing_over)
            .map(|(source, token)| v1::ConsumerAssignment {
                source_id: source.0,
                consumer_epoch: token.0,
            })
            .collect();
        (assignments, state.map().version)
    });
    let terms = leases.terms();
    Ok(v1::RenewConsumerLeaseResponse {
        epoch: epoch.0,
        ttl_ms: terms.ttl_ms,
        renew_every_ms: terms.renew_every_ms,
        assignments,
        map_version: version.0,
        reads_released: true,
    })
}
