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

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_core::ids::ServerStart;
    use proto::v1::{ConsumerStatus, SourceProgress};

    fn found(renewed_ms_ago: Option<u64>, start: Option<u64>, up_for_s: u64) -> bool {
        let server = ServerIdentity {
            system_identifier: 1,
            start: ServerStart(7),
            started_ms: 0,
        };
        let source = SourceProgress {
            source_id: 3,
            streams_from_server_start: start,
            ..SourceProgress::default()
        };
        let status = GetStatusResponse {
            consumers: vec![ConsumerStatus {
                renewed_ms_ago,
                sources: vec![source],
                ..ConsumerStatus::default()
            }],
            ..GetStatusResponse::default()
        };
        let found = followed_elsewhere(&status, server, Duration::from_secs(up_for_s));
        found.contains(&SourceId(3))
    }

    #[test]
    fn p11_only_who_is_heard_to_be_followed_elsewhere_now_is_a_copy() {
        assert!(found(Some(1_000), Some(8), 25));
        assert!(!found(Some(1_000), Some(7), 25), "followed here");
        assert!(!found(Some(1_000), None, 25), "streams from nobody");
        assert!(!found(None, Some(8), 25), "of another leader's time");
        assert!(!found(Some(11_000), Some(8), 60), "silent since");
        assert!(!found(Some(9_000), Some(8), 25), "may be of before the start");
    }
}
