//! Fetching a newer map: from any coordinator, and from nodes when none answers.
//!
//! Whoever needs a newer map waits for the same fetch: one runs at a time in a
//! process, and it always asks for *anything newer than what is held*, so that a
//! caller who wants more than there is holds up nobody. Askers that stay silent
//! are not waited for: the next is asked as well.

use crate::client::ClusterClient;
use crate::error::ClientError;
use crate::retry;
use cluster_core::ids::MapStamp;
use cluster_core::map::PartitionMap;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use proto::v1::GetMapRequest;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Status};

/// Spread over which processes that learn of a new map at once fetch it.
const JITTER_MAX: Duration = Duration::from_millis(20);

/// A coordinator or node that is silent for so long is not waited for alone.
const STAGGER: Duration = Duration::from_millis(100);

/// Nodes asked in one round, of however many there are.
const NODES_PER_ROUND_MAX: usize = 5;

/// Rounds of asking in this process: one at a time.
#[derive(Default)]
pub struct FetchRounds {
    turn: tokio::sync::Mutex<()>,
    ended: AtomicU64,
}

/// Who may know a newer map.
enum Asked {
    /// As configured or as the map says. A configured one may be a node.
    Coordinator(String),
    Node(String),
}

impl ClusterClient {
    /// A map at least as new as `at_least`, within `call_timeout`.
    pub async fn refresh_map(&self, at_least: MapStamp) -> Result<Arc<PartitionMap>, ClientError> {
        let mut last = "no answer".to_owned();
        let mut maps = self.watch_map();
        let fetching = async {
            for round in 0.. {
                let jitter_max = if round == 0 {
                    JITTER_MAX
                } else {
                    Duration::ZERO
                };
                if let Err(problem) = self.fetch_round(jitter_max).await {
                    last = problem;
                }
                tokio::time::sleep(retry::backoff(round)).await;
            }
        };
        // Whoever brings the map, this fetch, another or the watch, ends the wait.
        let arrived = maps.wait_for(|map| map.stamp() >= at_least);
        let arrived = async { arrived.await.is_ok() };
        let waiting = async {
            tokio::select! {
                biased;
                arrived = arrived => arrived,
                () = fetching => false,
            }
        };
        if let Ok(true) = timeout(self.config().call_timeout, waiting).await {
            return Ok(self.map());
        }
        let (epoch, version) = at_least;
        Err(ClientError::MapTooOld {
            epoch,
            version,
            last,
        })
    }

    /// Asks around once; the newest map known then, if there is any.
    pub async fn seek_map(&self) -> Option<Arc<PartitionMap>> {
        // That nobody has a newer one is no failure here.
        drop(self.fetch_round(Duration::ZERO).await);
        let map = self.map();
        (map.epoch.0 > 0).then_some(map)
    }

    /// One round; when one is running, its end.
    pub(crate) async fn fetch_round(&self, jitter_max: Duration) -> Result<(), String> {
        let rounds = self.fetch_rounds();
        let ended_before = rounds.ended.load(Ordering::Acquire);
        let _turn = rounds.turn.lock().await;
        if rounds.ended.load(Ordering::Acquire) != ended_before {
            return Err("another fetch brought no newer map".to_owned());
        }
        if !jitter_max.is_zero() {
            tokio::time::sleep(rand::random_range(Duration::ZERO..jitter_max)).await;
        }
        self.metrics().map_fetches.add(1);
        let outcome = self.fetch_newer().await;
        if outcome.is_err() {
            self.metrics().map_fetches_in_vain.add(1);
        }
        rounds.ended.fetch_add(1, Ordering::Release);
        outcome
    }

    /// Asks one after the other, the next at a failure or a silence, until a map
    /// newer than the one held at the start has come.
    async fn fetch_newer(&self) -> Result<(), String> {
        let held = self.map();
        let newer_than = held.stamp();
        let mut to_ask = self.whom_to_ask(&held);
        let mut under_way: FuturesUnordered<BoxFuture<'_, Result<(), String>>> =
            FuturesUnordered::new();
        let mut last = "nobody to ask".to_owned();
        loop {
            if let Some(asked) = to_ask.pop_front() {
                under_way.push(Box::pin(self.ask(asked, newer_than)));
            } else if under_way.is_empty() {
                return Err(last);
            }
            let silence = Instant::now() + STAGGER;
            tokio::select! {
                biased;
                Some(answer) = under_way.next() => match answer {
                    Ok(()) => {
                        let map = self.map();
                        if map.stamp() > newer_than {
                            return Ok(());
                        }
                        last = "its map is not newer".to_owned();
                    }
                    Err(problem) => last = problem,
                },
                () = sleep_until(silence), if !to_ask.is_empty() => {}
            }
        }
    }

    /// Coordinators first: they know first.
    fn whom_to_ask(&self, map: &PartitionMap) -> VecDeque<Asked> {
        let coordinators = shuffled(self.coordinator_addresses()).into_iter();
        let nodes = map.nodes.values().map(|node| node.address.clone());
        let nodes = shuffled(nodes.collect()).into_iter();
        let nodes = nodes.take(NODES_PER_ROUND_MAX).map(Asked::Node);
        coordinators.map(Asked::Coordinator).chain(nodes).collect()
    }

    async fn ask(&self, asked: Asked, newer_than: MapStamp) -> Result<(), String> {
        let until = Instant::now() + self.config().attempt_timeout;
        let (address, outcome) = match asked {
            Asked::Coordinator(address) => {
                let outcome = self
                    .take_map_of_coordinator(&address, newer_than, until)
                    .await;
                match outcome {
                    // Not a coordinator: somebody configured a node.
                    Err(status) if status.code() == Code::Unimplemented => {
                        let outcome = self.take_map_of_node(&address, newer_than, until).await;
                        (address, outcome)
                    }
                    outcome => (address, outcome),
                }
            }
            Asked::Node(address) => {
                let outcome = self.take_map_of_node(&address, newer_than, until).await;
                (address, outcome)
            }
        };
        outcome.map_err(|status| format!("{address}: {}", retry::describe(&status)))
    }

    async fn take_map_of_coordinator(
        &self,
        address: &str,
        newer_than: MapStamp,
        until: Instant,
    ) -> Result<(), Status> {
        let mut coordinator = self.coordinator(address).map_err(unreachable)?;
        let answer = timeout_at(until, coordinator.get_map(newer(newer_than))).await;
        let answer = answer.unwrap_or_else(|_| Err(silent()));
        self.note_contact(&answer);
        self.offer_wire_map(answer?.get_ref())?;
        Ok(())
    }

    async fn take_map_of_node(
        &self,
        address: &str,
        newer_than: MapStamp,
        until: Instant,
    ) -> Result<(), Status> {
        let mut node = self.node_at(address).map_err(unreachable)?;
        let answer = timeout_at(until, node.get_map(newer(newer_than))).await;
        let answer = answer.unwrap_or_else(|_| Err(silent()));
        self.note_contact(&answer);
        if self.offer_wire_map(answer?.get_ref())? {
            self.metrics().maps_from_nodes.add(1);
        }
        Ok(())
    }

    /// Takes whatever map a node at a configured address has.
    pub(crate) async fn take_map_of_node_at(
        &self,
        address: &str,
        give_up: Instant,
    ) -> Result<(), Status> {
        let until = give_up.min(Instant::now() + self.config().attempt_timeout);
        let any = MapStamp::default();
        self.take_map_of_node(address, any, until).await
    }

    /// A server that knows nothing newer has spoken, too.
    fn note_contact<T>(&self, answer: &Result<T, Status>) {
        let has_spoken = match answer {
            Ok(_) => true,
            Err(status) => proto::error::reason(status).as_deref() == Some(proto::error::NOT_READY),
        };
        if has_spoken {
            self.contact().heard();
        }
    }

    /// Whether it was taken.
    pub(crate) fn offer_wire_map(&self, map: &proto::v1::PartitionMap) -> Result<bool, Status> {
        let map = PartitionMap::try_from(map.clone()).map_err(|problem| {
            Status::data_loss(format!("sent a map that does not decode: {problem}"))
        })?;
        Ok(self.offer_map(map))
    }
}

fn newer((epoch, version): MapStamp) -> GetMapRequest {
    GetMapRequest {
        epoch: epoch.0,
        version: version.next().0,
    }
}

fn silent() -> Status {
    Status::deadline_exceeded("did not answer in time")
}

fn unreachable(problem: ClientError) -> Status {
    Status::unavailable(problem.to_string())
}

pub(crate) fn shuffled<T>(mut all: Vec<T>) -> Vec<T> {
    if !all.is_empty() {
        let start = rand::random_range(0..all.len());
        all.rotate_left(start);
    }
    all
}
