//! The one-time initialisation: an explicit act with an explicit list of
//! members, never a conclusion from an empty disk.

use crate::coordinator::Coordinator;
use crate::membership::peers;
use crate::raft::PeerNode;
use cluster_core::control::{Command, CoordinatorMember, Response};
use futures::future::try_join_all;
use openraft::error::{InitializeError, RaftError};
use proto::v1;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::Status;

/// How often the initialising call looks whether a leader reigns.
const REIGN_POLL: Duration = Duration::from_millis(20);

pub async fn initialise(
    coordinator: &Coordinator,
    request: v1::InitialiseRequest,
) -> Result<v1::InitialiseResponse, Status> {
    let existing = coordinator
        .state
        .read(|state| state.map().cluster_id.clone());
    if !existing.is_empty() {
        return Ok(v1::InitialiseResponse {
            cluster_id: existing,
        });
    }
    let members = agreed_members(coordinator, request.members)?;
    form(coordinator, &members).await?;
    wait_for_reign(coordinator).await?;

    let cluster_id = match request.cluster_id {
        given if given.is_empty() => format!("{:032x}", rand::random::<u128>()),
        given => given,
    };
    match coordinator
        .propose(Command::Initialise {
            cluster_id,
            members,
        })
        .await?
    {
        Response::Initialised { cluster_id } => Ok(v1::InitialiseResponse { cluster_id }),
        other => Err(Status::internal(format!(
            "Initialise was answered with {other:?}"
        ))),
    }
}

/// The members as configured. A request that names others is refused: two lists
/// would make two clusters.
fn agreed_members(
    coordinator: &Coordinator,
    named: Vec<v1::initialise_request::Member>,
) -> Result<Vec<CoordinatorMember>, Status> {
    let configured = coordinator.config.members();
    let mut named: Vec<_> = named
        .into_iter()
        .map(|m| CoordinatorMember {
            id: m.coordinator_id,
            address: m.address,
        })
        .collect();
    named.sort_by_key(|member| member.id);
    if !named.is_empty() && named != configured {
        return Err(Status::invalid_argument(format!(
            "the members {named:?} are not those of coordinator {}'s configuration, {configured:?}",
            coordinator.config.id
        )));
    }
    Ok(configured)
}

/// Writes the membership as the first entry of the log, once.
async fn form(coordinator: &Coordinator, members: &[CoordinatorMember]) -> Result<(), Status> {
    let formed = coordinator.raft.is_initialized().await;
    if formed.map_err(|fatal| Status::unavailable(fatal.to_string()))? {
        return Ok(());
    }
    let asking = members.iter().map(|member| named(coordinator, member));
    let nodes: BTreeMap<u64, PeerNode> = try_join_all(asking).await?.into_iter().collect();
    match coordinator.raft.initialize(nodes).await {
        Ok(()) => Ok(()),
        // Another call was first, here or at a peer.
        Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(Status::failed_precondition(error.to_string())),
    }
}

/// A member with the disk that votes for it: all are there when a cluster begins.
async fn named(
    coordinator: &Coordinator,
    member: &CoordinatorMember,
) -> Result<(u64, PeerNode), Status> {
    let CoordinatorMember { id, address } = member;
    let disk_uuid = if *id == coordinator.config.id {
        coordinator.disk_uuid.clone()
    } else {
        let answer = peers::ask(coordinator, address).await.map_err(|why| {
            Status::unavailable(format!(
                "coordinator {id} does not answer at {address} ({why}): start it; all take part \
                 when a cluster is initialised"
            ))
        })?;
        if answer.coordinator_id != *id {
            let other = answer.coordinator_id;
            return Err(Status::failed_precondition(format!(
                "coordinator {other} answers at {address}, not coordinator {id}"
            )));
        }
        if answer.is_initialised {
            let cluster = answer.map.map(|map| map.cluster_id).unwrap_or_default();
            return Err(Status::failed_precondition(format!(
                "coordinator {id} at {address} belongs to cluster {cluster}, and a second one is \
                 not made beside it: bring back the disks of its coordinators, or give this one \
                 a new id and `ctl coordinator add` it"
            )));
        }
        answer.disk_uuid
    };
    let node = PeerNode {
        addr: address.clone(),
        disk_uuid,
    };
    Ok((*id, node))
}

async fn wait_for_reign(coordinator: &Coordinator) -> Result<(), Status> {
    let deadline = Instant::now() + coordinator.config.propose_timeout();
    loop {
        let leads_elsewhere = coordinator
            .leader_id()
            .is_some_and(|leader| leader != coordinator.config.id);
        if coordinator.leases.reigning().is_some() {
            return Ok(());
        }
        if leads_elsewhere || Instant::now() >= deadline {
            return Err(coordinator.not_leader());
        }
        sleep(REIGN_POLL).await;
    }
}
