//! Whether a source that the map gives another start of this server is followed
//! there right now: then this server is a copy of the followed one
//! ([`cluster_core::server_copy`]).

use super::service::Service;
use super::status;
use super::view::{self, ServerIdentity};
use cluster_client::ClusterClient;
use cluster_core::ids::{ServerStart, SourceId};
use cluster_core::map::PartitionMap;
use cluster_core::server_copy::{self, Heard};
use proto::v1::GetStatusResponse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
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
            service.followed_elsewhere(&map, followed_elsewhere(&status, server));
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

fn followed_elsewhere(status: &GetStatusResponse, server: ServerIdentity) -> BTreeSet<SourceId> {
    let up_for_ms = view::boot_ms().saturating_sub(server.started_ms);
    let mut elsewhere = BTreeSet::new();
    for consumer in &status.consumers {
        for source in &consumer.sources {
            let heard = Heard {
                silent_ms: consumer.renewed_ms_ago,
                streams_from: source.streams_from_server_start.map(ServerStart),
            };
            if server_copy::is_copy(server.start, up_for_ms, heard) {
                elsewhere.insert(SourceId(source.source_id));
            }
        }
    }
    elsewhere
}
