//! The cluster as its own processes see it: status, map, moves and single calls
//! to a node over gRPC, past SQL and without a client's retries, so that a test
//! hears what one process answers at one moment.

use crate::direct_search::Answer;
use crate::map_log::MapLog;
use anyhow::{Context, Result, bail, ensure};
use cluster_core::control::{PlannedMove, RebalanceMode};
use cluster_core::ids::{LeaseEpoch, MapVersion};
use cluster_core::map::PartitionMap;
use futures::future::join_all;
use proto::v1;
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::node_client::NodeClient;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// One call; what is stopped does not answer.
const CALL_MAX: Duration = Duration::from_secs(5);
/// A status costs its coordinator nothing.
const STATUS_MAX: Duration = Duration::from_millis(500);
const CONNECT_MAX: Duration = Duration::from_secs(1);
const POLL_EVERY: Duration = Duration::from_millis(10);

pub struct Wire {
    runtime: Runtime,
    coordinators: Vec<String>,
    channels: Mutex<HashMap<String, Channel>>,
}

/// What the reigning leader knows.
pub struct Leader {
    pub address: String,
    pub status: v1::GetStatusResponse,
    pub map: PartitionMap,
}

impl Leader {
    /// The name of its process: `make up` numbers coordinators by their ids.
    pub fn process(&self) -> String {
        format!("coordinator-{}", self.status.coordinator_id)
    }

    pub fn epoch(&self) -> LeaseEpoch {
        self.map.epoch
    }

    /// Whether every node, and every consumer that follows a source, has renewed
    /// its lease in this leader's reign.
    pub fn has_renewed_all(&self) -> bool {
        let has_node = |id: u64| {
            let mut nodes = self.status.nodes.iter();
            nodes.any(|node| node.node_id == id && node.renewed_ms_ago.is_some())
        };
        let has_consumer = |id: u64| {
            let mut consumers = self.status.consumers.iter();
            consumers.any(|c| c.consumer_id == id && c.renewed_ms_ago.is_some())
        };
        let mut following = self.map.sources.values().map(|source| source.consumer);
        self.map.nodes.keys().all(|id| has_node(id.0))
            && following.all(|consumer| consumer.is_some_and(|id| has_consumer(id.0)))
    }

    pub fn has_no_move(&self) -> bool {
        self.status.moves.is_empty() && self.status.planned.is_empty()
    }
}

impl Wire {
    pub fn new(coordinators: Vec<String>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            coordinators,
            channels: Mutex::default(),
        })
    }

    pub fn coordinators(&self) -> &[String] {
        &self.coordinators
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Kept, so that a call may go to a process that is stopped right now.
    fn channel(&self, address: &str) -> Result<Channel> {
        let mut channels = self.channels.lock().expect("no panic while held");
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let _inside = self.runtime.enter();
        let channel = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    fn coordinator(&self, address: &str) -> Result<CoordinatorClient<Channel>> {
        Ok(CoordinatorClient::new(self.channel(address)?)
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX))
    }

    fn node(&self, address: &str) -> Result<NodeClient<Channel>> {
        Ok(NodeClient::new(self.channel(address)?)
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX))
    }

    fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
        let answer = self.block_on(async { timeout(CALL_MAX, call).await })?;
        Ok(answer?.into_inner())
    }

    /// What each coordinator that answers says of itself and of the cluster.
    pub fn statuses(&self) -> Result<Vec<(String, v1::GetStatusResponse)>> {
        let mut asking = Vec::new();
        for address in &self.coordinators {
            let mut coordinator = self.coordinator(address)?;
            asking.push(async move {
                let call = coordinator.get_status(v1::GetStatusRequest {});
                let answer = timeout(STATUS_MAX, call).await.ok()?.ok()?;
                Some((address.clone(), answer.into_inner()))
            });
        }
        let answers = self.block_on(join_all(asking));
        Ok(answers.into_iter().flatten().collect())
    }

    /// The coordinator that says that it leads; of two, the one elected later.
    pub fn leader(&self) -> Result<Leader> {
        let leading = self
            .statuses()?
            .into_iter()
            .filter(|(_, s)| s.leader_id != 0 && s.leader_id == s.coordinator_id)
            .max_by_key(|(_, s)| s.term);
        let (address, mut status) = leading.context("no coordinator says that it leads")?;
        let map = status.map.take().unwrap_or_default().try_into()?;
        Ok(Leader {
            address,
            status,
            map,
        })
    }

    /// Waits until the leader, whoever it is, is as wanted.
    pub fn leader_within(
        &self,
        limit: Duration,
        what: &str,
        is_wanted: impl Fn(&Leader) -> bool,
    ) -> Result<Leader> {
        let deadline = Instant::now() + limit;
        loop {
            match self.leader() {
                Ok(leader) if is_wanted(&leader) => return Ok(leader),
                _ if Instant::now() < deadline => std::thread::sleep(POLL_EVERY),
                Ok(leader) => bail!(
                    "not within {limit:?}: {what}; {} leads in epoch {}, moves {:?}, planned {:?}, map {:#?}",
                    leader.process(),
                    leader.epoch(),
                    leader.status.moves,
                    leader.status.planned,
                    leader.map.partitions
                ),
                Err(error) => {
                    return Err(error.context(format!("not within {limit:?}: {what}")));
                }
            }
        }
    }

    /// Waits until `count` nodes have joined and hold a lease.
    pub fn wait_for_nodes(&self, count: usize) -> Result<Leader> {
        self.leader_within(Duration::from_secs(30), "nodes join", |leader| {
            leader.map.nodes.len() == count && leader.has_renewed_all()
        })
    }

    /// Waits until every coordinator answers and has applied the leader's epoch,
    /// so that another one can be lost.
    pub fn wait_for_coordinators(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let statuses = self.statuses()?;
            let epochs: Vec<u64> = statuses
                .iter()
                .filter_map(|(_, status)| Some(status.map.as_ref()?.epoch))
                .collect();
            let has_leader = statuses.iter().all(|(_, status)| status.leader_id != 0);
            let agree = epochs.iter().all(|epoch| *epoch == epochs[0]);
            if epochs.len() == self.coordinators.len() && agree && has_leader {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the coordinators do not agree: epochs {epochs:?} of {} that answer",
                statuses.len()
            );
            std::thread::sleep(POLL_EVERY);
        }
    }

    /// Waits until every coordinator shows a map at least this new.
    pub fn wait_for_coordinator_maps(&self, at_least: (LeaseEpoch, MapVersion)) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let statuses = self.statuses()?;
            let maps = statuses.iter().filter_map(|(_, s)| s.map.as_ref());
            let is_new = |map: &v1::PartitionMap| {
                (LeaseEpoch(map.epoch), MapVersion(map.version)) >= at_least
            };
            if maps.filter(|map| is_new(map)).count() == self.coordinators.len() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not all know {at_least:?}");
            std::thread::sleep(POLL_EVERY);
        }
    }

    /// The leader's map.
    pub fn map(&self) -> Result<PartitionMap> {
        Ok(self.leader()?.map)
    }

    /// Follows the maps of all coordinators from now on.
    pub fn log_maps(&self) -> Result<MapLog> {
        let mut clients = Vec::new();
        for address in &self.coordinators {
            clients.push(self.coordinator(address)?);
        }
        let _inside = self.runtime.enter();
        Ok(MapLog::follow(clients))
    }

    pub fn set_rebalance(&self, mode: RebalanceMode) -> Result<()> {
        let mode = v1::RebalanceMode::from(mode).into();
        let mut leader = self.coordinator(&self.leader()?.address)?;
        self.call(leader.set_rebalance(v1::SetRebalanceRequest { mode }))?;
        Ok(())
    }

    pub fn apply_moves(&self, moves: &[PlannedMove]) -> Result<()> {
        let moves = moves.iter().map(|planned| (*planned).into()).collect();
        let mut leader = self.coordinator(&self.leader()?.address)?;
        self.call(leader.apply_moves(v1::ApplyMovesRequest { moves }))?;
        Ok(())
    }

    /// The map that a node answers by.
    pub fn node_map(&self, node: &str) -> Result<PartitionMap> {
        let mut client = self.node(node)?;
        let map = self.call(client.get_map(v1::GetMapRequest::default()))?;
        Ok(map.try_into()?)
    }

    /// Waits until a node answers by a map at least this new.
    pub fn wait_for_node_map(&self, node: &str, at_least: (LeaseEpoch, MapVersion)) -> Result<()> {
        let deadline = Instant::now() + CALL_MAX;
        loop {
            let map = self.node_map(node)?;
            if map.stamp() >= at_least {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{node} still answers by version {} of epoch {}",
                map.version,
                map.epoch
            );
            std::thread::sleep(POLL_EVERY);
        }
    }

    pub fn search(&self, node: &str, request: v1::SearchRequest) -> Result<Answer> {
        let sent = self.search_later(node, request)?;
        self.answer(sent)
    }

    /// Sends a search and does not wait: the node may be stopped.
    pub fn search_later(
        &self,
        node: &str,
        request: v1::SearchRequest,
    ) -> Result<JoinHandle<Answer>> {
        let mut client = self.node(node)?;
        Ok(self.runtime.spawn(async move {
            match timeout(CALL_MAX, client.search(request)).await {
                Ok(answer) => Answer::of(answer.map(Response::into_inner)),
                Err(_) => Answer::Other("no answer in time".to_owned()),
            }
        }))
    }

    pub fn answer(&self, sent: JoinHandle<Answer>) -> Result<Answer> {
        Ok(self.block_on(sent)?)
    }

    /// Opens an apply stream; `Err` is the refusal.
    pub fn open_apply(&self, node: &str, open: v1::ApplyOpen) -> Result<Result<(), Status>> {
        let mut client = self.node(node)?;
        let first = v1::ApplyRequest {
            kind: Some(v1::apply_request::Kind::Open(open)),
        };
        let opening = async move {
            // Stays open behind the first message, as a consumer's stream does.
            let requests = tokio_stream::StreamExt::chain(
                tokio_stream::iter([first]),
                tokio_stream::pending(),
            );
            let mut responses = client.apply(requests).await?.into_inner();
            responses.message().await
        };
        // The timer is made within the runtime.
        let opening = async { timeout(CALL_MAX, opening).await };
        Ok(match self.block_on(opening)? {
            Ok(_opened) => Ok(()),
            Err(status) => Err(status),
        })
    }
}
