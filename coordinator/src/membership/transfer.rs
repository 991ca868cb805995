//! The lead goes to another coordinator, without the wait for an election timeout.
//!
//! The leader takes no further changes, waits until the other has its whole log,
//! and has it stand for election: a log as long as any gets every vote that
//! no longer counts on the present leader, the leader's own first. Leases are
//! renewed until then; the next leader's epoch takes all holders for renewed.

use super::Membership;
use crate::coordinator::Coordinator;
use cluster_core::ids::LeaseEpoch;
use proto::v1::CampaignRequest;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;

/// For all of it. A change that waits for the transfer is told to ask again.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(20);

/// Answers who leads then, and its epoch.
pub async fn transfer(coordinator: &Coordinator, to: u64) -> Result<(u64, LeaseEpoch), Status> {
    let (reign, epoch) = coordinator.confirm_reign().await?;
    if to == coordinator.config.id {
        return Ok((to, epoch));
    }
    let found = Membership::of(coordinator).await?;
    if !found.voters.contains(&to) {
        let ids: Vec<_> = found.voters.iter().map(u64::to_string).collect();
        return Err(Status::not_found(format!(
            "coordinator {to} does not vote; those who do are {}",
            ids.join(", ")
        )));
    }
    let give_up = Instant::now() + TRANSFER_TIMEOUT;
    let _paused = coordinator.pause_changes();
    wait_for_log(coordinator, to, give_up).await?;
    let request = CampaignRequest {
        term: reign.term,
        leader_id: reign.leader,
    };
    let asked = coordinator.network.campaign(to, found.address(to), request);
    match timeout_at(give_up, asked).await {
        Ok(Ok(())) => {}
        Ok(Err(status)) => return Err(not_taken(coordinator, to, status.message())),
        Err(_elapsed) => return Err(not_taken(coordinator, to, "it does not answer")),
    }
    while Instant::now() < give_up {
        let (now, epoch) = coordinator
            .state
            .read(|state| (state.reign(), state.map().epoch));
        if let Some(next) = now.filter(|now| now.is_elected_after(&reign)) {
            return Ok((next.leader, epoch));
        }
        sleep(POLL).await;
    }
    Err(not_taken(coordinator, to, "the election was not decided"))
}

/// Other voters, those with the most of the log first.
pub fn by_progress(coordinator: &Coordinator, among: &BTreeSet<u64>) -> Vec<u64> {
    let metrics = coordinator.raft.metrics();
    let metrics = metrics.borrow();
    let matched = |id: u64| {
        let replication = metrics.replication.as_ref();
        replication.and_then(|peers| *peers.get(&id)?)
    };
    let others = among.iter().copied();
    let mut others: Vec<u64> = others.filter(|id| *id != coordinator.config.id).collect();
    others.sort_by_key(|id| std::cmp::Reverse(matched(*id)));
    others
}

async fn wait_for_log(coordinator: &Coordinator, to: u64, give_up: Instant) -> Result<(), Status> {
    let mut metrics = coordinator.raft.metrics();
    let has_all = metrics.wait_for(|raft| {
        let replication = raft.replication.as_ref();
        let matched = replication.and_then(|peers| *peers.get(&to)?);
        matched.map(|log| log.index) >= raft.last_log_index
    });
    match timeout_at(give_up, has_all).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(_closed)) => Err(Status::unavailable("the coordinator is stopping")),
        Err(_elapsed) => Err(not_taken(coordinator, to, "it does not catch up")),
    }
}

fn not_taken(coordinator: &Coordinator, to: u64, why: &str) -> Status {
    let leads = match coordinator.leader_id() {
        Some(leader) => format!("coordinator {leader} leads"),
        None => "no coordinator leads yet".to_owned(),
    };
    Status::failed_precondition(format!(
        "coordinator {to} has not taken the lead ({why}); {leads}"
    ))
}
