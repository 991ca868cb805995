//! Following the map: a coordinator's WatchMap stream while one can be had, and
//! beside it, while none can, a poll of coordinators and nodes at a bounded rate.
//! A process whose coordinators are all dead goes on with what nodes know.

use crate::client::ClusterClient;
use crate::map_fetch::shuffled;
use crate::retry;
use parking_lot::Mutex;
use proto::v1::WatchMapRequest;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// How often others are asked while no coordinator streams the map.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// An answer keeps contact for so long: a few polls.
const CONTACT_KEPT: Duration = Duration::from_secs(3);

/// When this process last heard of the map.
#[derive(Default)]
pub struct Contact {
    is_streaming: AtomicBool,
    heard_at: Mutex<Option<Instant>>,
}

impl Contact {
    pub fn heard(&self) {
        *self.heard_at.lock() = Some(Instant::now());
    }

    pub fn is_kept(&self) -> bool {
        let heard_lately = || {
            let heard_at = *self.heard_at.lock();
            heard_at.is_some_and(|at| at.elapsed() < CONTACT_KEPT)
        };
        self.is_streaming() || heard_lately()
    }

    pub fn is_streaming(&self) -> bool {
        self.is_streaming.load(Ordering::Relaxed)
    }

    fn set_streaming(&self, is_streaming: bool) {
        self.is_streaming.store(is_streaming, Ordering::Relaxed);
    }
}

impl ClusterClient {
    /// Keeps the map fresh until `shutdown`.
    pub fn spawn_map_watch(&self, shutdown: CancellationToken) -> JoinHandle<()> {
        let client = self.clone();
        tokio::spawn(async move {
            let watch =
                async { tokio::join!(client.follow_coordinators(), client.poll_while_unwatched()) };
            shutdown.run_until_cancelled(watch).await;
            client.contact().set_streaming(false);
        })
    }

    async fn follow_coordinators(&self) {
        for round in 0u32.. {
            for address in shuffled(self.coordinator_addresses()) {
                if let Err(problem) = self.follow_map(&address).await {
                    tracing::debug!(coordinator = address, problem, "map stream ended");
                }
                self.contact().set_streaming(false);
            }
            tokio::time::sleep(retry::backoff(round.min(4))).await;
        }
    }

    async fn follow_map(&self, address: &str) -> Result<(), String> {
        let mut coordinator = self.coordinator(address).map_err(|e| e.to_string())?;
        let opening = coordinator.watch_map(WatchMapRequest {});
        let mut maps = timeout(self.config().coordinator_attempt_timeout, opening)
            .await
            .map_err(|_| "did not answer in time".to_owned())?
            .map_err(|status| retry::describe(&status))?
            .into_inner();
        while let Some(map) = maps.message().await.map_err(|s| retry::describe(&s))? {
            self.contact().set_streaming(true);
            self.offer_wire_map(&map)
                .map_err(|status| retry::describe(&status))?;
        }
        Ok(())
    }

    /// A hung coordinator keeps the stream from opening for seconds; this does not
    /// wait for it.
    async fn poll_while_unwatched(&self) {
        loop {
            tokio::time::sleep(POLL_EVERY).await;
            if self.contact().is_streaming() {
                continue;
            }
            self.metrics().map_polls.add(1);
            if let Err(problem) = self.fetch_round(Duration::ZERO).await {
                tracing::debug!(
                    problem,
                    "no coordinator streams the map; nobody has a newer one"
                );
            }
        }
    }
}
