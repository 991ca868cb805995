//! A coordinator goes: it loses its vote, hears of it if it still runs, and is
//! forgotten. Its id is not.

use super::{Change, Membership, alone, change, name_voters, peers, transfer, whole};
use crate::coordinator::Coordinator;
use proto::error::not_leader;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::Status;

/// For one that still runs to hear that it has left. Then it ends its watchers'
/// streams and stands for no election.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

pub async fn remove(coordinator: &Coordinator, id: u64) -> Result<(), Status> {
    let _alone = alone(coordinator).await?;
    coordinator.confirm_reign().await?;
    let found = whole(coordinator).await?;
    if !found.nodes.contains_key(&id) {
        return gone(coordinator, &found, id).await;
    }
    if found.voters.contains(&id) {
        let others: BTreeSet<u64> = found.voters.iter().copied().filter(|v| *v != id).collect();
        if others.is_empty() {
            return Err(Status::failed_precondition(format!(
                "coordinator {id} is the last one: without it there is no cluster; \
                 add another first"
            )));
        }
        let named = found.members().into_iter().map(|m| (m.id, m.address));
        let living = peers::living(coordinator, named).await;
        peers::check_majority(&others, &living)?;
        if id == coordinator.config.id {
            return Err(resign(coordinator, &found, &living).await?);
        }
        change(coordinator, Change::RemoveVoters(BTreeSet::from([id]))).await?;
    }
    name_voters(coordinator).await?;
    bid_farewell(coordinator, id).await;
    change(coordinator, Change::RemoveNodes(BTreeSet::from([id]))).await?;
    tracing::info!(coordinator = id, "removed");
    Ok(())
}

/// Removed before, or never there.
async fn gone(coordinator: &Coordinator, found: &Membership, id: u64) -> Result<(), Status> {
    name_voters(coordinator).await?;
    if coordinator.state.read(|state| state.has_left(id)) {
        return Ok(());
    }
    let ids: Vec<_> = found.nodes.keys().map(u64::to_string).collect();
    Err(Status::not_found(format!(
        "there is no coordinator {id}; there are {}",
        ids.join(", ")
    )))
}

/// A leader does not remove itself: it gives up the lead, and sends the caller
/// to its successor.
async fn resign(
    coordinator: &Coordinator,
    found: &Membership,
    living: &BTreeSet<u64>,
) -> Result<Status, Status> {
    let mut last = Status::failed_precondition("no other coordinator answers");
    for successor in transfer::by_progress(coordinator, living) {
        match transfer::pass_on(coordinator, successor).await {
            Ok((leader, _epoch)) => return Ok(not_leader(Some(found.address(leader)))),
            Err(status) => last = status,
        }
        coordinator.reigning()?;
    }
    Err(last)
}

/// While it still gets the log, as a learner.
async fn bid_farewell(coordinator: &Coordinator, id: u64) {
    let mut metrics = coordinator.raft.metrics();
    let last = metrics.borrow().last_log_index;
    let has_it = metrics.wait_for(|raft| {
        let replication = raft.replication.as_ref();
        let matched = replication.and_then(|peers| *peers.get(&id)?);
        matched.map(|log| log.index) >= last
    });
    if matches!(timeout(FAREWELL_TIMEOUT, has_it).await, Ok(Ok(_))) {
        // The next heartbeats say that it is committed.
        sleep(Duration::from_millis(coordinator.config.raft.heartbeat_ms) * 2).await;
    }
}
