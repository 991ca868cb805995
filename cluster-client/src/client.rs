//! The client itself: channels, the leader, the map that is held. How maps are
//! fetched and followed is told in `map_fetch` and `map_watch`.

use crate::config::ClientConfig;
use crate::error::ClientError;
use crate::map_cache::MapCache;
use crate::map_fetch::FetchRounds;
use crate::map_watch::Contact;
use crate::metrics::ClientMetrics;
use crate::retry;
use cluster_core::ids::NodeId;
use cluster_core::map::PartitionMap;
use parking_lot::Mutex;
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::node_client::NodeClient;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

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
    fetch_rounds: FetchRounds,
    contact: Contact,
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
                fetch_rounds: FetchRounds::default(),
                contact: Contact::default(),
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

    /// Whether the map is being followed: a coordinator's stream is open or, while
    /// none is, some coordinator or node has answered lately.
    pub fn is_in_contact(&self) -> bool {
        self.inner.contact.is_kept()
    }

    /// Whether a coordinator's map stream is open right now.
    pub fn is_streaming_map(&self) -> bool {
        self.inner.contact.is_streaming()
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
        self.node_at(&node.address)
    }

    /// The client of one coordinator, leader or not.
    pub fn coordinator(&self, address: &str) -> Result<CoordinatorClient<Channel>, ClientError> {
        Ok(CoordinatorClient::new(self.channel(address)?)
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(proto::MESSAGE_BYTES_MAX))
    }

    /// Calls the leader: follows NOT_LEADER hints, tries the coordinators in
    /// turn, and repeats what the network or an election swallowed until
    /// `call_timeout`. The call must be idempotent, as all of them are. A node
    /// among the configured addresses says in its map who the coordinators are.
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
                            if let Some(hint) = retry::not_leader_hint(&status) {
                                next = hint.filter(|hint| *hint != address);
                            } else if !retry::is_worth_repeating(&status)
                                && !self.is_node_at(&address, &status, give_up).await
                            {
                                return Err(ClientError::Refused(status));
                            }
                            self.metrics().leader_retries.add(1);
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

    /// Whether a status says that the address is a node's; its map is taken then.
    async fn is_node_at(&self, address: &str, status: &Status, give_up: Instant) -> bool {
        status.code() == Code::Unimplemented
            && !self.map().coordinators.iter().any(|c| c == address)
            && self.take_map_of_node_at(address, give_up).await.is_ok()
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

    /// Those configured, and those that the map names.
    pub fn coordinator_addresses(&self) -> Vec<String> {
        let mut addresses = self.inner.config.coordinators.clone();
        for address in &self.map().coordinators {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    /// The client of a node that no map has named.
    pub fn node_at(&self, address: &str) -> Result<NodeClient<Channel>, ClientError> {
        Ok(NodeClient::new(self.channel(address)?)
            .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(proto::MESSAGE_BYTES_MAX))
    }

    pub(crate) fn fetch_rounds(&self) -> &FetchRounds {
        &self.inner.fetch_rounds
    }

    pub(crate) fn contact(&self) -> &Contact {
        &self.inner.contact
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

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
