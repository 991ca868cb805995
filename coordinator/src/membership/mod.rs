//! Who votes and who leads, changed at an operator's word while the cluster runs.
//!
//! Raft's membership is the truth; the members in the replicated state and in
//! the map follow it ([`settle`]). One change runs at a time, in steps that may
//! each be repeated: one that was cut off is finished by the next leader, or by
//! the operator who asks again.
//!
//! Never: lets an id vote before the replicated state has noted that it was
//! given; begins a change that the coordinators left could not commit.

pub mod addition;
pub mod disks;
pub mod peers;
pub mod removal;
pub mod transfer;

use crate::coordinator::Coordinator;
use crate::raft::PeerNode;
use cluster_core::control::{Command, CoordinatorMember, Response};
use openraft::ChangeMembers;
use openraft::error::{ClientWriteError, RaftError};
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::MutexGuard;
use tokio::time::timeout;
use tonic::Status;

type Change = ChangeMembers<u64, PeerNode>;

/// Raft's membership as it is in force here, committed or not.
struct Membership {
    /// Of both halves, while a change is between its two steps.
    voters: BTreeSet<u64>,
    nodes: BTreeMap<u64, PeerNode>,
    is_between_steps: bool,
}

impl Membership {
    async fn of(coordinator: &Coordinator) -> Result<Self, Status> {
        let effective = coordinator.raft.with_raft_state(|raft| {
            let membership = raft.membership_state.effective().membership();
            let nodes = membership.nodes();
            Self {
                voters: membership.voter_ids().collect(),
                nodes: nodes.map(|(id, node)| (*id, node.clone())).collect(),
                is_between_steps: membership.get_joint_config().len() > 1,
            }
        });
        effective
            .await
            .map_err(|fatal| Status::unavailable(fatal.to_string()))
    }

    fn address(&self, id: u64) -> &str {
        self.nodes.get(&id).map_or("", |node| &node.addr)
    }

    fn members(&self) -> Vec<CoordinatorMember> {
        let member = |id: &u64| CoordinatorMember {
            id: *id,
            address: self.address(*id).to_owned(),
        };
        self.voters.iter().map(member).collect()
    }
}

/// Finishes what a leader before left half done: the second step of a change,
/// and the members that state and map name. A duty of the reigning leader.
pub async fn settle(coordinator: &Coordinator) -> Result<(), Status> {
    // Whoever holds it settles by itself.
    let Ok(_changing) = coordinator.changing_members.try_lock() else {
        return Ok(());
    };
    if !coordinator.state.read(|state| state.is_initialised()) {
        return Ok(());
    }
    let found = whole(coordinator).await?;
    disks::name_disks(coordinator, &found).await?;
    name_voters(coordinator).await
}

/// The membership once no change is between its two steps any more.
async fn whole(coordinator: &Coordinator) -> Result<Membership, Status> {
    let found = Membership::of(coordinator).await?;
    if !found.is_between_steps {
        return Ok(found);
    }
    // Nobody more, nobody less than the second half.
    change(coordinator, Change::AddVoterIds(BTreeSet::new())).await?;
    Membership::of(coordinator).await
}

/// Has state and map name Raft's voters.
async fn name_voters(coordinator: &Coordinator) -> Result<(), Status> {
    let members = Membership::of(coordinator).await?.members();
    if coordinator.state.read(|state| state.members() == members) {
        return Ok(());
    }
    set_members(coordinator, members).await
}

async fn set_members(
    coordinator: &Coordinator,
    members: Vec<CoordinatorMember>,
) -> Result<(), Status> {
    match coordinator.propose(Command::SetMembers { members }).await? {
        Response::Done => Ok(()),
        other => Err(Status::internal(format!(
            "SetMembers was answered with {other:?}"
        ))),
    }
}

/// Both steps of a change of Raft's membership. Who is no voter any more stays
/// as a learner.
async fn change(coordinator: &Coordinator, change: Change) -> Result<(), Status> {
    let patience = coordinator.config.propose_timeout() * 2;
    let changing = coordinator.raft.change_membership(change, true);
    match timeout(patience, changing).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(not_changed(coordinator, error)),
        Err(_elapsed) => Err(Status::unavailable(
            "no quorum within the time: the outcome is unknown; the call may be repeated",
        )),
    }
}

fn not_changed(
    coordinator: &Coordinator,
    error: RaftError<u64, ClientWriteError<u64, PeerNode>>,
) -> Status {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            coordinator.forward(&forward)
        }
        // Such as an earlier change that is not committed yet.
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            Status::unavailable(error.to_string())
        }
        RaftError::Fatal(error) => Status::unavailable(error.to_string()),
    }
}

/// The right to change the membership, for one at a time.
async fn alone(coordinator: &Coordinator) -> Result<MutexGuard<'_, ()>, Status> {
    let patience = coordinator.config.propose_timeout();
    timeout(patience, coordinator.changing_members.lock())
        .await
        .map_err(|_elapsed| {
            Status::unavailable("another change of the coordinators is running; try again")
        })
}
