//! The client itself: channels, the leader, the map.

use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::map_cache::MapCache;
use crate::metrics::ClientMetrics;
use crate::retry;
use cluster_core::ids::{LeaseEpoch, MapVersion, NodeId};
use cluster_core::map::PartitionMap;
use parking_lot::Mutex;
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::node_client::NodeClient;
use proto::v1::{GetMapRequest, WatchMapRequest};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Spread over which processes that learn of a new map at once fetch it.
const REFRESH_JITTER_MAX: Duration = Duration::from_millis(20);

/// How long a node that did not answer is asked last by new scans.
const NODE_PENALTY: Duration = Duration::from_secs(3);

/// Cheap to clone; clones share channels, map and counters.
#[derive(Clone)]
pub struct ClusterClient {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClientConfig,
    maps: MapCache,
    metrics: ClientMetrics,
    /// By address. Channels connect by themselves; at most one per member of
    /// the map and configured coordinator.
    channels: Mutex<HashMap<String, Channel>>,
    leader: Mutex<Option<String>>,
    /// Held while a map is fetched, so that a process asks once.
    refreshing: tokio::sync::Mutex<()>,
    is_watching: AtomicBool,
    /// Nodes whose last search brought no answer.
    failed_nodes: Mutex<HashMap<NodeId, Instant>>,
}

impl ClusterClient {
    pub fn new(config: ClientConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                maps: MapCache::default(),
                metrics: ClientMetrics::default(),
                channels: Mutex::default(),
                leader: Mutex::default(),
                refreshing: tokio::sync::Mutex::default(),
                is_watching: AtomicBool::new(false),
                failed_nodes: Mutex::default(),
            }),
        }
    }

    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    pub fn metrics(&self) -> &ClientMetrics {
        &self.inner.metrics
    }

    /// The newest map taken; empty (epoch 0, version 0) before the first.
    pub fn map(&self) -> Arc<PartitionMap> {
        self.inner.maps.get()
    }

    pub fn watch_map(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.inner.maps.watch()
    }

    /// Whether a coordinator's map stream is open right now.
    pub fn is_watch_connected(&self) -> bool {
        self.inner.is_watching.load(Ordering::Relaxed)
    }

    /// Hands in a map that came by another way; taken only if it is newer.
    pub fn offer_map(&self, map: PartitionMap) -> bool {
        let is_taken = self.inner.maps.offer(map);
        if is_taken {
            self.forget_departed_channels();
        }
        is_taken
    }

    /// A node's client, over a channel that is kept.
    pub fn node(&self, id: NodeId) -> Result<NodeClient<Channel>, ClientError> {
        let map = self.map();
        let node = map.nodes.get(&id).ok_or(ClientError::UnknownNode(id))?;
        Ok(NodeClient::new(self.channel(&node.address)?)
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(proto::MESSAGE_BYTES_MAX))
    }

    /// The client of one coordinator, leader or not.
    pub fn coordinator(&self, address: &str) -> Result<CoordinatorClient<Channel>, ClientError> {
        Ok(CoordinatorClient::new(self.channel(address)?)
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(proto::MESSAGE_BYTES_MAX))
    }

    /// Calls the leader: follows NOT_LEADER hints, tries the coordinators in
    /// turn, and repeats what the network or an election swallowed until
    /// `call_timeout`. The call must be idempotent, as all of them are.
    pub async fn leader<T, F, Fut>(&self, call: F) -> Result<T, ClientError>
    where
        F: Fn(CoordinatorClient<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let give_up = Instant::now() + self.inner.config.call_timeout;
        let mut last = "none is configured".to_owned();
        for round in 0.. {
            for address in self.leader_candidates() {
                // A fresh hint beats the order; one hop per candidate bounds it.
                let mut next = Some(address);
                for _hop in 0..2 {
                    let Some(address) = next.take() else { break };
                    match self.try_coordinator(&address, &call, give_up).await {
                        Ok(answer) => {
                            *self.inner.leader.lock() = Some(address);
                            return Ok(answer);
                        }
                        Err(status) => {
                            last = format!("{address}: {}", retry::describe(&status));
                            match retry::not_leader_hint(&status) {
                                Some(hint) => next = hint.filter(|hint| *hint != address),
                                None if retry::is_worth_repeating(&status) => {}
                                None => return Err(ClientError::Refused(status)),
                            }
                            *self.inner.leader.lock() = next.clone();
                        }
                    }
                }
                if Instant::now() >= give_up {
                    break;
                }
            }
            let pause = retry::backoff(round);
            if Instant::now() + pause >= give_up {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Err(ClientError::Unavailable {
            tried: self.leader_candidates().join(", "),
            last,
        })
    }

    /// A map at least as new as `at_least`, from any coordinator or, when none
    /// answers, any node. One fetch per process at a time.
    pub async fn refresh_map(
        &self,
        at_least: (LeaseEpoch, MapVersion),
    ) -> Result<Arc<PartitionMap>, ClientError> {
        let give_up = Instant::now() + self.inner.config.call_timeout;
        let mut last = "no answer".to_owned();
        let Ok(_fetching) = timeout_at(give_up, self.inner.refreshing.lock()).await else {
            return Err(map_too_old(
                at_least,
                "another fetch did not end".to_owned(),
            ));
        };
        for round in 0.. {
            if self.inner.maps.is_at_least(at_least) {
                return Ok(self.map());
            }
            if round == 0 {
                tokio::time::sleep(rand::random_range(Duration::ZERO..REFRESH_JITTER_MAX)).await;
            }
            last = self
                .fetch_map(at_least, give_up)
                .await
                .err()
                .unwrap_or(last);
            if self.inner.maps.is_at_least(at_least) {
                return Ok(self.map());
            }
            let pause = retry::backoff(round);
            if Instant::now() + pause >= give_up {
                break;
            }
            tokio::time::sleep(pause).await;
        }
        Err(map_too_old(at_least, last))
    }

    /// Keeps the map fresh from any coordinator's WatchMap until `shutdown`.
    pub fn spawn_map_watch(&self, shutdown: CancellationToken) -> JoinHandle<()> {
        let client = self.clone();
        tokio::spawn(async move {
            let watch = async {
                for round in 0u32.. {
                    for address in shuffled(client.coordinator_addresses()) {
                        if let Err(problem) = client.follow_map(&address).await {
                            tracing::debug!(coordinator = address, problem, "map stream ended");
                        }
                        client.inner.is_watching.store(false, Ordering::Relaxed);
                    }
                    tokio::time::sleep(retry::backoff(round.min(4))).await;
                }
            };
            shutdown.run_until_cancelled(watch).await;
            client.inner.is_watching.store(false, Ordering::Relaxed);
        })
    }

    pub(crate) fn node_failed(&self, node: NodeId) {
        self.inner.failed_nodes.lock().insert(node, Instant::now());
    }

    pub(crate) fn node_answered(&self, node: NodeId) {
        self.inner.failed_nodes.lock().remove(&node);
    }

    /// Nodes that new scans had better ask last.
    pub(crate) fn recently_failed_nodes(&self) -> Vec<NodeId> {
        let mut failed = self.inner.failed_nodes.lock();
        failed.retain(|_, at| at.elapsed() < NODE_PENALTY);
        failed.keys().copied().collect()
    }

    async fn follow_map(&self, address: &str) -> Result<(), String> {
        let mut coordinator = self.coordinator(address).map_err(|e| e.to_string())?;
        let opening = coordinator.watch_map(WatchMapRequest {});
        let mut maps = timeout(self.inner.config.coordinator_attempt_timeout, opening)
            .await
            .map_err(|_| "did not answer in time".to_owned())?
            .map_err(|status| retry::describe(&status))?
            .into_inner();
        while let Some(map) = maps.message().await.map_err(|s| retry::describe(&s))? {
            self.inner.is_watching.store(true, Ordering::Relaxed);
            self.offer_wire_map(&map)?;
        }
        Ok(())
    }

    async fn fetch_map(
        &self,
        at_least: (LeaseEpoch, MapVersion),
        give_up: Instant,
    ) -> Result<(), String> {
        let request = GetMapRequest {
            epoch: at_least.0.0,
            version: at_least.1.0,
        };
        let attempt_timeout = self.inner.config.attempt_timeout;
        let mut last = Err("nobody to ask".to_owned());
        for address in shuffled(self.coordinator_addresses()) {
            let Ok(mut coordinator) = self.coordinator(&address) else {
                continue;
            };
            let attempt = (Instant::now() + attempt_timeout).min(give_up);
            last = self.take_map(attempt, coordinator.get_map(request)).await;
            if self.inner.maps.is_at_least(at_least) {
                return Ok(());
            }
        }
        for id in shuffled(self.map().nodes.keys().copied().collect()) {
            let Ok(mut node) = self.node(id) else {
                continue;
            };
            let attempt = (Instant::now() + attempt_timeout).min(give_up);
            last = self.take_map(attempt, node.get_map(request)).await;
            if self.inner.maps.is_at_least(at_least) {
                return Ok(());
            }
        }
        last
    }

    async fn take_map(
        &self,
        attempt: Instant,
        call: impl Future<Output = Result<Response<proto::v1::PartitionMap>, Status>>,
    ) -> Result<(), String> {
        let answer = timeout_at(attempt, call)
            .await
            .map_err(|_| "did not answer in time")?;
        let map = answer.map_err(|status| retry::describe(&status))?;
        self.offer_wire_map(map.get_ref())
    }

    fn offer_wire_map(&self, map: &proto::v1::PartitionMap) -> Result<(), String> {
        let map = PartitionMap::try_from(map.clone())
            .map_err(|problem| format!("sent a map that does not decode: {problem}"))?;
        self.offer_map(map);
        Ok(())
    }

    async fn try_coordinator<T, F, Fut>(
        &self,
        address: &str,
        call: &F,
        give_up: Instant,
    ) -> Result<T, Status>
    where
        F: Fn(CoordinatorClient<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let client = self
            .coordinator(address)
            .map_err(|problem| Status::new(Code::Unavailable, problem.to_string()))?;
        let attempt = Instant::now() + self.inner.config.coordinator_attempt_timeout;
        match timeout_at(attempt.min(give_up), call(client)).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("did not answer in time")),
        }
    }

    /// Last known leader first, then everyone.
    fn leader_candidates(&self) -> Vec<String> {
        let leader = self.inner.leader.lock().clone();
        let mut candidates: Vec<String> = leader.into_iter().collect();
        for address in self.coordinator_addresses() {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        candidates
    }

    fn coordinator_addresses(&self) -> Vec<String> {
        let mut addresses = self.inner.config.coordinators.clone();
        for address in &self.map().coordinators {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    fn channel(&self, address: &str) -> Result<Channel, ClientError> {
        let mut channels = self.inner.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = self.inner.config.transport.channel(address)?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    fn forget_departed_channels(&self) {
        let map = self.map();
        let coordinators = self.coordinator_addresses();
        self.inner.channels.lock().retain(|address, _| {
            coordinators.contains(address) || map.nodes.values().any(|n| n.address == *address)
        });
    }
}

fn map_too_old((epoch, version): (LeaseEpoch, MapVersion), last: String) -> ClientError {
    ClientError::MapTooOld {
        epoch,
        version,
        last,
    }
}

fn shuffled<T>(mut all: Vec<T>) -> Vec<T> {
    if !all.is_empty() {
        let start = rand::random_range(0..all.len());
        all.rotate_left(start);
    }
    all
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
