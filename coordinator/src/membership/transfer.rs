//! The lead goes to another coordinator, without the wait for an election timeout.
//!
//! The leader takes no further changes, waits until the other has its whole log,
//! and has it stand for election. With a log as long as any it gets every vote that
//! no longer counts on the present leader. The leader gives its own at once, with
//! which two of three are enough. Where that is no majority the leader first falls
//! silent for a leader lease, after which the others are free to vote, and not
//! yet so impatient as to stand themselves. For that time no lease is renewed
//! either; holders' leases are several times as long.
//!
//! A leader refuses its own vote as well, for one leader lease after its election.
//! A campaign would then only depose it and leave the outcome to chance, so
//! that time is waited out first.

use super::{Membership, alone};
use crate::coordinator::Coordinator;
use cluster_core::ids::LeaseEpoch;
use proto::v1::CampaignRequest;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tonic::Status;

/// For the other to have nearly the whole log, while everything goes on.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(4);
/// For the rest, in which nothing is changed and no lease renewed: with the time
/// between two renewals it stays well within a lease.
const PAUSE_MAX: Duration = Duration::from_secs(4);
/// So much is made good within the pause.
const NEARLY_ENTRIES: u64 = 64;
const POLL: Duration = Duration::from_millis(20);
/// Of so many voters the leader and its successor are a majority.
const MAJORITY_OF_TWO: usize = 3;

/// No heartbeats until this is dropped.
struct Silent<'a>(&'a Coordinator);

impl<'a> Silent<'a> {
    async fn for_a_lease(coordinator: &'a Coordinator) -> Self {
        let silent = Self(coordinator);
        coordinator.raft.runtime_config().heartbeat(false);
        sleep(leader_lease(coordinator) + POLL).await;
        silent
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        self.0.raft.runtime_config().heartbeat(true);
    }
}

/// How long a voter counts on a leader that it has heard of.
fn leader_lease(coordinator: &Coordinator) -> Duration {
    Duration::from_millis(coordinator.config.raft.election_timeout_max_ms)
}

/// At an operator's word.
pub async fn transfer(coordinator: &Coordinator, to: u64) -> Result<(u64, LeaseEpoch), Status> {
    let _alone = alone(coordinator).await?;
    pass_on(coordinator, to).await
}

/// Answers who leads then, and its epoch; whoever calls has the membership to
/// itself.
pub async fn pass_on(coordinator: &Coordinator, to: u64) -> Result<(u64, LeaseEpoch), Status> {
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
    wait_for_own_vote(coordinator).await?;
    let nearly = Instant::now() + CATCH_UP_TIMEOUT;
    wait_for_log(coordinator, to, NEARLY_ENTRIES, nearly).await?;
    let give_up = Instant::now() + PAUSE_MAX;
    let Ok(_paused) = timeout_at(give_up, coordinator.leading.write()).await else {
        return Err(not_taken(coordinator, to, "changes do not come to an end"));
    };
    wait_for_log(coordinator, to, 0, give_up).await?;
    let _silent = match found.voters.len() {
        ..=MAJORITY_OF_TWO => None,
        _ => Some(Silent::for_a_lease(coordinator).await),
    };
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
            return match next.leader == coordinator.config.id {
                true => Err(not_taken(coordinator, to, "it lost the election")),
                false => Ok((next.leader, epoch)),
            };
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

async fn wait_for_own_vote(coordinator: &Coordinator) -> Result<(), Status> {
    let voted_at = coordinator
        .raft
        .with_raft_state(|raft| raft.vote_last_modified());
    let voted_at = voted_at.await;
    let voted_at = voted_at.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
    if let Some(voted_at) = voted_at {
        sleep_until(voted_at + leader_lease(coordinator) + POLL).await;
    }
    Ok(())
}

/// Until it lacks at most so many of the last entries.
async fn wait_for_log(
    coordinator: &Coordinator,
    to: u64,
    lacks: u64,
    give_up: Instant,
) -> Result<(), Status> {
    let mut metrics = coordinator.raft.metrics();
    let has_it = metrics.wait_for(|raft| {
        let replication = raft.replication.as_ref();
        let matched = replication.and_then(|peers| *peers.get(&to)?);
        matched.map(|log| log.index + lacks) >= raft.last_log_index
    });
    match timeout_at(give_up, has_it).await {
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
