//! A coordinator comes: it copies the log as a learner, is noted as a member, and
//! only then votes.

use super::{
    Change, Membership, alone, change, name_voters, not_changed, peers, set_members, whole,
};
use crate::coordinator::Coordinator;
use crate::raft::PeerNode;
use cluster_core::control::{COORDINATORS_MAX, CoordinatorMember};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::timeout;
use tonic::Status;

/// For the whole log or snapshot to reach the new coordinator.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);

pub async fn add(coordinator: &Coordinator, new: CoordinatorMember) -> Result<(), Status> {
    let _alone = alone(coordinator).await?;
    coordinator.confirm_reign().await?;
    let found = whole(coordinator).await?;
    check_standing(coordinator, &found, &new)?;
    if found.voters.contains(&new.id) {
        return name_voters(coordinator).await;
    }
    let node = match found.nodes.get(&new.id) {
        Some(known) => known.clone(),
        None => PeerNode {
            addr: new.address.clone(),
            disk_uuid: check_pristine(coordinator, &new).await?,
        },
    };

    let mut voters = found.members();
    voters.push(new.clone());
    let named = voters.iter().map(|m| (m.id, m.address.clone()));
    // The new one follows nobody yet; that it catches up is its sign of life.
    let mut living = peers::living(coordinator, named).await;
    living.insert(new.id);
    let ids: BTreeSet<u64> = voters.iter().map(|m| m.id).collect();
    peers::check_majority(&ids, &living)?;

    catch_up(coordinator, new.id, node).await?;
    set_members(coordinator, voters).await?;
    change(coordinator, Change::AddVoterIds(BTreeSet::from([new.id]))).await?;
    tracing::info!(coordinator = new.id, address = new.address, "added");
    Ok(())
}

/// What the cluster knows of this id and this address.
fn check_standing(
    coordinator: &Coordinator,
    found: &Membership,
    new: &CoordinatorMember,
) -> Result<(), Status> {
    let CoordinatorMember { id, address } = new;
    let (has_left, highest) = coordinator
        .state
        .read(|state| (state.has_left(*id), state.highest_coordinator()));
    let free = highest + 1;
    let problem = match found.nodes.get(id).map(|node| &node.addr) {
        Some(known) if known != address => {
            format!(
                "coordinator {id} is at {known}: remove it, and add the one at {address} \
                 with an empty data_dir as coordinator {free}"
            )
        }
        Some(_) if has_left => {
            format!(
                "the removal of coordinator {id} is not complete: repeat \
                 `ctl coordinator remove {id}`"
            )
        }
        Some(_) => return Ok(()),
        None if has_left => {
            format!(
                "coordinator id {id} is not above the highest ever given, {highest}, and none is \
                 given twice: start it with an empty data_dir and a new id, {free} or above"
            )
        }
        None if found.voters.len() >= COORDINATORS_MAX => {
            format!("there are {COORDINATORS_MAX} coordinators already: remove one first")
        }
        None => match found.nodes.iter().find(|(_, node)| node.addr == *address) {
            Some((other, _)) => format!("coordinator {other} is at {address}"),
            None => return Ok(()),
        },
    };
    Err(Status::failed_precondition(problem))
}

/// Whoever answers there must be that coordinator, with nothing on its disk: one
/// that has voted elsewhere would bring its votes along. Answers the disk's uuid.
async fn check_pristine(
    coordinator: &Coordinator,
    new: &CoordinatorMember,
) -> Result<String, Status> {
    let CoordinatorMember { id, address } = new;
    let answer = peers::ask(coordinator, address).await.map_err(|why| {
        Status::failed_precondition(format!(
            "coordinator {id} does not answer at {address} ({why}): start it there first, \
             with `ruvector coordinator --id {id}` and an empty data_dir"
        ))
    })?;
    let problem = if answer.coordinator_id != *id {
        let other = answer.coordinator_id;
        format!("coordinator {other} answers at {address}, not coordinator {id}")
    } else if answer.is_initialised || answer.term > 0 || !answer.coordinators.is_empty() {
        format!(
            "coordinator {id} at {address} has belonged to a cluster: start it with an \
             empty data_dir"
        )
    } else {
        return Ok(answer.disk_uuid);
    };
    Err(Status::failed_precondition(problem))
}

async fn catch_up(coordinator: &Coordinator, id: u64, node: PeerNode) -> Result<(), Status> {
    let learning = coordinator.raft.add_learner(id, node, true);
    match timeout(CATCH_UP_TIMEOUT, learning).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(not_changed(coordinator, error)),
        Err(_elapsed) => Err(Status::failed_precondition(format!(
            "coordinator {id} has not caught up in {} s and does not vote yet: it goes on \
             copying; repeat the command, or give up with `ctl coordinator remove {id}`",
            CATCH_UP_TIMEOUT.as_secs()
        ))),
    }
}
