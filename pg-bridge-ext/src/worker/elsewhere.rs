//! Whether a source that the map gives another start of this server is followed
//! there right now: then this server is a copy of the followed one. If nobody says so,
//! it may as well be the followed server itself, whose consumer has not come back:
//! an outage, in which scans stay within their limits.

use super::service::Service;
use super::status;
use super::view::{self, ServerIdentity};
use cluster_client::ClusterClient;
use cluster_core::ids::SourceId;
use cluster_core::map::PartitionMap;
use proto::v1::GetStatusResponse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// What a consumer said before this server had run for so long may be of before its
/// start.
const TOLD_AFTER: Duration = Duration::from_secs(20);
/// A consumer that has been silent for longer streams from nothing, for all that is
/// known.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

/// Looks for as long as it is polled. What was found stands while nobody answers.
pub async fn watch(service: Arc<Service>, client: ClusterClient) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    loop {
        every.tick().await;
        let (map, server) = (client.map(), service.server());
        if !has_doubtful(&map, server) {
            continue;
        }
        if let Ok(Ok(status)) = timeout(LOOK_TIMEOUT, status::fetch(&client)).await {
            let up_for = Duration::from_millis(view::boot_ms().saturating_sub(server.started_ms));
            service.followed_elsewhere(&map, followed_elsewhere(&status, server, up_for));
        }
    }
}

fn has_doubtful(map: &PartitionMap, server: ServerIdentity) -> bool {
    map.sources.values().any(|source| {
        let slot = source.slot.as_ref();
        slot.is_some_and(|slot| slot.system_identifier == server.system_identifier)
            && source.server_start != Some(server.start)
    })
}

fn followed_elsewhere(
    status: &GetStatusResponse,
    server: ServerIdentity,
    up_for: Duration,
) -> BTreeSet<SourceId> {
    let heard = status.consumers.iter().filter(|consumer| {
        consumer.renewed_ms_ago.is_some_and(|ms_ago| {
            let ago = Duration::from_millis(ms_ago);
            ago <= TOLD_WITHIN && ago + TOLD_AFTER <= up_for
        })
    });
    let sources = heard.flat_map(|consumer| &consumer.sources);
    let elsewhere = sources.filter(|source| {
        source
            .streams_from_server_start
            .is_some_and(|start| start != server.start.0)
    });
    elsewhere.map(|source| SourceId(source.source_id)).collect()
}
