//! How coordinators reach each other: the gRPC service `Raft`, whose payloads
//! are openraft's own types as JSON.
//!
//! Each request names the coordinator and the disk that it is meant for. An address
//! that another process has taken over does not vote in the name of its former
//! owner, nor does a coordinator whose disk was emptied: it has forgotten for whom
//! it voted, and would vote a second time (openraft #2002).

use super::{PeerNode, Raft, TypeConfig};
use cluster_client::transport::{Transport, TransportError};
use openraft::AnyError;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use parking_lot::Mutex;
use proto::v1::raft_client::RaftClient;
use proto::v1::{CampaignRequest, CampaignResponse, RaftRequest, RaftResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

const TARGET_HEADER: &str = "ruvector-coordinator-id";
const DISK_HEADER: &str = "ruvector-coordinator-disk";
/// Pause before an unreachable peer is tried again.
const BACKOFF: Duration = Duration::from_millis(250);

/// Opens peers; channels are shared, for every ReadIndex round asks for clients.
#[derive(Clone)]
pub struct Network {
    transport: Transport,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Network {
    pub fn new(transport: Transport) -> Self {
        Self {
            transport,
            channels: Arc::default(),
        }
    }

    pub fn channel(&self, address: &str) -> Result<Channel, TransportError> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = self.transport.channel(address)?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Asks a follower to stand for election.
    pub async fn campaign(
        &self,
        target: u64,
        address: &str,
        request: CampaignRequest,
    ) -> Result<(), Status> {
        let channel = self.channel(address);
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(request);
        request.metadata_mut().insert(TARGET_HEADER, target.into());
        RaftClient::new(channel).campaign(request).await?;
        Ok(())
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> Peer {
        Peer {
            target,
            disk: node.disk_uuid.parse().ok(),
            channel: self.channel(&node.addr),
        }
    }
}

pub struct Peer {
    target: u64,
    /// `None`: the membership does not say.
    disk: Option<AsciiMetadataValue>,
    channel: Result<Channel, TransportError>,
}

#[derive(Clone, Copy)]
enum Verb {
    Append,
    Vote,
    Snapshot,
}

type CallError<E> = RPCError<u64, PeerNode, RaftError<u64, E>>;

impl Peer {
    async fn call<Q, A, E>(&self, verb: Verb, question: &Q) -> Result<A, CallError<E>>
    where
        Q: Serialize,
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let channel = self
            .channel
            .clone()
            .map_err(|e| unreachable_peer(AnyError::new(&e)))?;
        let payload =
            serde_json::to_vec(question).map_err(|e| unreachable_peer(AnyError::new(&e)))?;
        let mut request = Request::new(RaftRequest {
            payload: payload.into(),
        });
        request
            .metadata_mut()
            .insert(TARGET_HEADER, self.target.into());
        if let Some(disk) = self.disk.clone().filter(|disk| !disk.is_empty()) {
            request.metadata_mut().insert(DISK_HEADER, disk);
        }

        let mut client = RaftClient::new(channel)
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(proto::MESSAGE_BYTES_MAX);
        let answer = match verb {
            Verb::Append => client.append_entries(request).await,
            Verb::Vote => client.vote(request).await,
            Verb::Snapshot => client.install_snapshot(request).await,
        };
        let answer = answer
            .map_err(|status| unreachable_peer(AnyError::error(status.to_string())))?
            .into_inner();
        let outcome: Result<A, RaftError<u64, E>> = serde_json::from_slice(&answer.payload)
            .map_err(|e| unreachable_peer(AnyError::new(&e)))?;
        outcome.map_err(|error| RemoteError::new(self.target, error).into())
    }
}

/// Whatever went wrong on the way: openraft pauses and tries again.
fn unreachable_peer<E: std::error::Error>(error: AnyError) -> CallError<E> {
    RPCError::Unreachable(Unreachable::new(&error))
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, PeerNode, RaftError<u64>>> {
        self.call(Verb::Append, &rpc).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<u64>,
        RPCError<u64, PeerNode, RaftError<u64, InstallSnapshotError>>,
    > {
        self.call(Verb::Snapshot, &rpc).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, PeerNode, RaftError<u64>>> {
        self.call(Verb::Vote, &rpc).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

/// The serving side.
pub struct RaftService {
    id: u64,
    disk_uuid: String,
    /// It has said that its disk is not the one that is asked for.
    has_complained: AtomicBool,
    raft: Raft,
}

impl RaftService {
    pub fn new(id: u64, disk_uuid: String, raft: Raft) -> Self {
        Self {
            id,
            disk_uuid,
            has_complained: AtomicBool::new(false),
            raft,
        }
    }

    fn open<Q: DeserializeOwned>(&self, request: Request<RaftRequest>) -> Result<Q, Status> {
        self.check_target(&request)?;
        serde_json::from_slice(&request.into_inner().payload)
            .map_err(|error| Status::invalid_argument(format!("Raft request: {error}")))
    }

    fn check_target<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let header = |name| request.metadata().get(name)?.to_str().ok();
        let (id, disk) = (header(TARGET_HEADER), header(DISK_HEADER));
        if id != Some(self.id.to_string().as_str()) {
            let message = format!("meant for coordinator {id:?}, this is {}", self.id);
            return Err(Status::failed_precondition(message));
        }
        if disk.is_some_and(|disk| disk != self.disk_uuid) {
            let id = self.id;
            let message = format!(
                "the disk of coordinator {id} is not the one that has voted under this id: bring \
                 that back, or `ctl coordinator remove {id}` and start this one with an empty \
                 data_dir and an id that was never given"
            );
            if !self.has_complained.swap(true, Ordering::Relaxed) {
                tracing::error!(problem = message, "this coordinator takes no part");
            }
            return Err(Status::failed_precondition(message));
        }
        Ok(())
    }
}

fn answer<T: Serialize>(outcome: &T) -> Result<Response<RaftResponse>, Status> {
    let payload = serde_json::to_vec(outcome)
        .map_err(|error| Status::internal(format!("Raft response: {error}")))?;
    Ok(Response::new(RaftResponse {
        payload: payload.into(),
    }))
}

#[tonic::async_trait]
impl proto::v1::raft_server::Raft for RaftService {
    async fn append_entries(
        &self,
        request: Request<RaftRequest>,
    ) -> Result<Response<RaftResponse>, Status> {
        answer(&self.raft.append_entries(self.open(request)?).await)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftResponse>, Status> {
        answer(&self.raft.vote(self.open(request)?).await)
    }

    async fn install_snapshot(
        &self,
        request: Request<RaftRequest>,
    ) -> Result<Response<RaftResponse>, Status> {
        answer(&self.raft.install_snapshot(self.open(request)?).await)
    }

    /// Only at the word of the leader that this coordinator follows: a request
    /// that was long on its way topples no later one.
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        self.check_target(&request)?;
        let CampaignRequest { term, leader_id } = request.into_inner();
        let (own_term, own_leader) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.current_term, metrics.current_leader)
        };
        if (own_term, own_leader) != (term, Some(leader_id)) {
            let message = format!(
                "it follows {own_leader:?} in term {own_term}, not {leader_id} in term {term}"
            );
            return Err(Status::failed_precondition(message));
        }
        let standing = self.raft.trigger().elect().await;
        standing.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
        Ok(Response::new(CampaignResponse {}))
    }
}
