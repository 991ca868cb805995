//! Coordinators added, removed, and given the lead: wire to [`crate::membership`].
//!
//! A change of the membership has two steps and is not left between them because
//! its caller went away: it runs in a task of its own.

use crate::coordinator::Coordinator;
use crate::membership::{addition, removal, transfer};
use cluster_core::control::CoordinatorMember;
use proto::v1;
use std::sync::Arc;
use tonic::Status;

pub async fn add_coordinator(
    coordinator: &Arc<Coordinator>,
    request: v1::AddCoordinatorRequest,
) -> Result<v1::AddCoordinatorResponse, Status> {
    let new = CoordinatorMember {
        id: request.coordinator_id,
        address: request.address,
    };
    check_id(new.id)?;
    // Also whether that address may be talked to at all.
    let channel = coordinator.network.channel(&new.address);
    channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let coordinator = coordinator.clone();
    detached(async move { addition::add(&coordinator, new).await }).await?;
    Ok(v1::AddCoordinatorResponse {})
}

pub async fn remove_coordinator(
    coordinator: &Arc<Coordinator>,
    request: v1::RemoveCoordinatorRequest,
) -> Result<v1::RemoveCoordinatorResponse, Status> {
    let id = request.coordinator_id;
    check_id(id)?;
    let coordinator = coordinator.clone();
    detached(async move { removal::remove(&coordinator, id).await }).await?;
    Ok(v1::RemoveCoordinatorResponse {})
}

pub async fn transfer_leader(
    coordinator: &Arc<Coordinator>,
    request: v1::TransferLeaderRequest,
) -> Result<v1::TransferLeaderResponse, Status> {
    let to = request.coordinator_id;
    check_id(to)?;
    let coordinator = coordinator.clone();
    let (leader, epoch) =
        detached(async move { transfer::transfer(&coordinator, to).await }).await?;
    Ok(v1::TransferLeaderResponse {
        leader_id: leader,
        epoch: epoch.0,
    })
}

fn check_id(id: u64) -> Result<(), Status> {
    match id {
        0 => Err(Status::invalid_argument("coordinators count from 1")),
        _ => Ok(()),
    }
}

async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(Status::internal(format!("the change ended: {error}"))))
}
