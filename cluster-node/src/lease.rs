//! The node's right to answer, counted from the moment a renewal was sent.

use crate::clock::boot_ms;
use crate::node::Node;
use cluster_client::ClusterClient;
use cluster_core::ids::{LeaseEpoch, MapStamp, MapVersion};
pub use cluster_core::lease::Standing;
use cluster_core::lease::{BootMs, HeldLease};
use cluster_core::map::PartitionMap;
use parking_lot::Mutex;
use proto::v1;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Before the coordinators have said how often.
const RENEW_EVERY: Duration = Duration::from_secs(3);
const RETRY_EVERY: Duration = Duration::from_millis(300);
/// Renewals that requests of a newer epoch ask for are at least this far apart.
const URGENT_EVERY: Duration = Duration::from_millis(50);

pub struct Lease {
    held: Mutex<HeldLease>,
    /// The newest map that a renewal spoke of.
    map_floor: Mutex<MapStamp>,
    urgent: Notify,
    epoch_grace_ms: u64,
}

impl Lease {
    pub fn new(epoch_grace_ms: u64) -> Self {
        Self {
            held: Mutex::default(),
            map_floor: Mutex::new((LeaseEpoch(0), MapVersion(0))),
            urgent: Notify::new(),
            epoch_grace_ms,
        }
    }

    pub fn epoch(&self) -> LeaseEpoch {
        self.held.lock().epoch()
    }

    pub fn is_held(&self) -> bool {
        self.held.lock().is_held(boot_ms())
    }

    /// An older map than this may still assign what has long moved, or lack
    /// what came since: nothing is deleted on its word.
    pub fn map_floor(&self) -> MapStamp {
        *self.map_floor.lock()
    }

    /// `map` is the map that the leader had when it granted. The floor rises
    /// first, so that nobody finds the lease held above a floor of before.
    pub fn granted(&self, map: MapStamp, sent_at: BootMs, ttl_ms: u64) {
        {
            let mut floor = self.map_floor.lock();
            *floor = map.max(*floor);
        }
        let mut held = self.held.lock();
        held.granted_under(map, sent_at, ttl_ms, boot_ms());
    }

    /// See [`HeldLease::lets_answer_by`].
    pub fn lets_answer_by(&self, map: &PartitionMap) -> bool {
        self.held.lock().lets_answer_by(map.stamp())
    }

    /// Judges a request. One that bears a newer epoch makes the node renew at
    /// once, and is served under the lease as it is: an election costs no query.
    pub fn admit(&self, request: LeaseEpoch) -> Standing {
        let held = *self.held.lock();
        let admission = held.admit(request, boot_ms(), self.epoch_grace_ms);
        if admission.renews_at_once {
            self.urgent.notify_one();
        }
        admission.standing
    }
}

/// Renews until `shutdown`.
pub async fn keep(node: Arc<Node>, shutdown: CancellationToken) {
    loop {
        let pause = tokio::select! {
            pause = renew(&node) => pause,
            () = shutdown.cancelled() => return,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = async {
                tokio::time::sleep(URGENT_EVERY).await;
                tokio::select! {
                    () = node.lease.urgent.notified() => {}
                    () = epoch_after(&node) => {}
                }
            } => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Ends once the map is of a newer epoch than the lease: a new leader takes every
/// holder for just renewed, and knows nothing of it until it renews.
async fn epoch_after(node: &Node) {
    let held = node.lease.epoch();
    let mut map = node.watch_map();
    if map.wait_for(|map| map.epoch > held).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// One renewal; says how long to wait before the next.
async fn renew(node: &Node) -> Duration {
    let (Some(client), Some(identity)) = (&node.client, node.identity()) else {
        return RENEW_EVERY;
    };
    let Some((node_id, _)) = identity.member else {
        return RENEW_EVERY;
    };
    let request = v1::RenewNodeLeaseRequest {
        node_id: node_id.0,
        disk_uuid: identity.disk_uuid,
        report: Some(node.report()),
    };
    // Each attempt counts from its own sending: an answer to a later attempt must
    // not be counted from an earlier one, nor the other way round.
    let sent_at = Arc::new(Mutex::new(boot_ms()));
    let result = client
        .leader(|mut coordinator| {
            let request = request.clone();
            let sent_at = sent_at.clone();
            async move {
                *sent_at.lock() = boot_ms();
                coordinator.renew_node_lease(request).await
            }
        })
        .await;
    match result {
        Ok(grant) => {
            let sent_at = *sent_at.lock();
            let map = (LeaseEpoch(grant.epoch), MapVersion(grant.map_version));
            node.lease.granted(map, sent_at, grant.ttl_ms);
            catch_up(node, client, map);
            match grant.renew_every_ms {
                0 => RENEW_EVERY,
                ms => Duration::from_millis(ms),
            }
        }
        Err(error) => {
            tracing::warn!(%error, "the lease was not renewed");
            RETRY_EVERY
        }
    }
}

/// The leader knows a newer map: a stream of maps from a coordinator that is cut
/// off from the others stays open and brings nothing.
fn catch_up(node: &Node, client: &ClusterClient, map: MapStamp) {
    let known = node.map();
    if known.stamp() >= map {
        return;
    }
    let client = client.clone();
    tokio::spawn(async move {
        if let Err(problem) = client.refresh_map(map).await {
            tracing::warn!(%problem, "the leader's map could not be fetched");
        }
    });
}
