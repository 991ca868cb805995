//! One coordinator: Raft, the applied state, the leases, and how changes are
//! proposed and reigns confirmed.

use crate::config::Config;
use crate::grpc::refusal::refused;
use crate::leases::{Leases, ReignOver};
use crate::metrics::Metrics;
use crate::raft::network::Network;
use crate::raft::state_machine::StateMachine;
use crate::raft::{PeerNode, Raft};
use cluster_core::control::{Command, Reign, Response};
use cluster_core::ids::LeaseEpoch;
use openraft::error::{CheckIsLeaderError, ClientWriteError, ForwardToLeader, RaftError};
use proto::error::{not_leader, not_ready};
use std::time::Instant;
use tokio::sync::{Notify, RwLock};
use tokio::time::timeout;
use tonic::Status;

pub struct Coordinator {
    pub config: Config,
    pub raft: Raft,
    pub state: StateMachine,
    /// Votes in this coordinator's name.
    pub disk_uuid: String,
    pub leases: Leases,
    pub metrics: Metrics,
    /// Tells this run of the process from its earlier ones.
    pub start: u64,
    /// Wakes the leader's duties.
    pub duties: Notify,
    /// Held while a collection is placed, so that two placements at once do
    /// not each take the other's nodes for empty.
    pub placing: tokio::sync::Mutex<()>,
    /// Held while what operators asked to move is replaced, so that tidying does
    /// not undo what was asked a moment ago.
    pub asking: tokio::sync::Mutex<()>,
    /// To the other coordinators.
    pub network: Network,
    /// Held while coordinators come or go: one change at a time.
    pub changing_members: tokio::sync::Mutex<()>,
    /// When the others were last asked for their disks, which 0.1.0 did not note.
    pub disks_asked_at: parking_lot::Mutex<Option<Instant>>,
    /// Read by each proposal and each ReadIndex round, written while the lead
    /// goes to another: whose log must be as long as this one, and whose voters
    /// must hear nothing more from here.
    pub leading: RwLock<()>,
}

impl Coordinator {
    /// Commits a command and answers the state machine's response. Only while
    /// this coordinator reigns: its first command has raised the epoch.
    pub async fn propose(&self, command: Command) -> Result<Response, Status> {
        let (reign, _) = self.reigning()?;
        let Ok(_leading) = self.leading.try_read() else {
            return Err(not_leader(None));
        };
        let begun_at = Instant::now();
        let response = self.write(command).await?;
        // The commit was a quorum's word, if no other reign came in between.
        if self.state.read(|state| state.reign()) == Some(reign) {
            let _over = self.leases.confirmed(reign, begun_at);
        }
        Ok(response)
    }

    /// As `propose`, without a reign: for the command that begins one.
    pub async fn write(&self, command: Command) -> Result<Response, Status> {
        let written = timeout(
            self.config.propose_timeout(),
            self.raft.client_write(command),
        )
        .await;
        match written {
            Ok(Ok(done)) => match done.data {
                Response::Refused(refusal) => Err(self.state.read(|s| refused(&refusal, s.map()))),
                response => Ok(response),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(self.forward(&forward))
            }
            Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
            Err(_elapsed) => Err(Status::unavailable(
                "no quorum within the time: the outcome is unknown; the call may be repeated",
            )),
        }
    }

    /// This coordinator's reign, or where the leader is.
    pub fn reigning(&self) -> Result<(Reign, LeaseEpoch), Status> {
        self.leases.reigning().ok_or_else(|| self.not_leader())
    }

    /// A ReadIndex round that starts now: this coordinator still led a quorum
    /// after the call had arrived. Clocks take no part in it.
    pub async fn confirm_reign(&self) -> Result<(Reign, LeaseEpoch), Status> {
        let (reign, epoch) = self.reigning()?;
        let Ok(_leading) = self.leading.try_read() else {
            return Err(not_leader(None));
        };
        let begun_at = Instant::now();
        let read = self.raft.ensure_linearizable();
        match timeout(self.config.read_index_timeout(), read).await {
            Ok(Ok(_)) => {}
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                return Err(self.forward(&forward));
            }
            Ok(Err(error)) => return Err(not_ready(format!("cannot confirm to lead: {error}"))),
            Err(_elapsed) => return Err(not_ready("cannot confirm to lead: no quorum answers")),
        }
        // The state applied by now holds every epoch committed before the call.
        let applied = self.state.read(|state| state.reign());
        if applied != Some(reign) {
            return Err(not_leader(None));
        }
        match self.leases.confirmed(reign, begun_at) {
            Ok(()) => Ok((reign, epoch)),
            Err(ReignOver) => Err(not_leader(None)),
        }
    }

    pub fn leader_id(&self) -> Option<u64> {
        self.raft.metrics().borrow().current_leader
    }

    pub fn not_leader(&self) -> Status {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics
            .current_leader
            .filter(|leader| *leader != self.config.id);
        let node = leader.and_then(|id| metrics.membership_config.membership().get_node(&id));
        not_leader(node.map(|node| node.addr.as_str()))
    }

    pub fn forward(&self, forward: &ForwardToLeader<u64, PeerNode>) -> Status {
        not_leader(forward.leader_node.as_ref().map(|node| node.addr.as_str()))
    }

    pub fn wake_duties(&self) {
        self.duties.notify_one();
    }
}
