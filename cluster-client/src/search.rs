//! One search request to one node, and what its answer means.

use crate::client::ClusterClient;
use crate::retry;
use crate::scan::{Consistency, ScanSpec};
use bytes::Bytes;
use cluster_core::ids::{LeaseEpoch, MapVersion, NodeId, PartitionId};
use cluster_core::map::PartitionMap;
use cluster_core::scan::{Ask, Event, Failure, FailureKind, Hit, PartitionPage, StaleReason};
use proto::v1;
use proto::v1::partition_error::Kind;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tonic::{Code, Status};

/// The node is given this much less than the attempt, so that its own answer
/// (lagging, and how far) arrives before the attempt is given up.
const ANSWER_MARGIN_MS: u64 = 20;

/// The part of a search that all its requests share.
pub struct SearchTemplate {
    source_id: u64,
    incarnation: u64,
    collection_id: u64,
    asked_by: v1::AskedBy,
    query: Bytes,
    ef_search: u32,
    consistency: v1::Consistency,
    min_lsn: u64,
    snapshot_xmin: u64,
    exact: bool,
}

impl SearchTemplate {
    /// By the map that the scan begins with: its position is one of that history.
    pub fn new(spec: &ScanSpec, map: &PartitionMap) -> Self {
        let source = map.sources.get(&spec.source);
        Self {
            source_id: spec.source.0,
            incarnation: source.map_or(0, |source| source.incarnation.0),
            collection_id: spec.collection.0,
            asked_by: spec.asked_by.into(),
            query: proto::convert::vector_to_bytes(&spec.query),
            ef_search: spec.ef_search,
            consistency: match spec.consistency {
                Consistency::Eventual => v1::Consistency::Eventual,
                Consistency::Position => v1::Consistency::Position,
            },
            min_lsn: spec.min_lsn,
            snapshot_xmin: spec.snapshot_xmin,
            exact: spec.exact,
        }
    }

    fn request(&self, ask: &Ask) -> v1::SearchRequest {
        let cursors = ask.partitions.iter().map(|partition| v1::PartitionCursor {
            partition_id: partition.partition.0,
            generation: partition.generation.0,
            resume_token: partition.resume_token,
        });
        v1::SearchRequest {
            epoch: ask.known.0.0,
            map_version: ask.known.1.0,
            source_id: self.source_id,
            incarnation: self.incarnation,
            collection_id: self.collection_id,
            query: self.query.clone(),
            ef_search: self.ef_search,
            page_rows: u32::try_from(ask.page_rows).unwrap_or(u32::MAX),
            consistency: self.consistency.into(),
            min_lsn: self.min_lsn,
            snapshot_xmin: self.snapshot_xmin,
            deadline_ms: ask.timeout_ms.saturating_sub(ANSWER_MARGIN_MS).max(1),
            exact: self.exact,
            partitions: cursors.collect(),
            accepts_stale: ask.accepts_stale,
            asked_by: Some(self.asked_by),
        }
    }
}

/// Sends a request and answers the one event that it ends in.
pub async fn send(client: ClusterClient, template: Arc<SearchTemplate>, ask: Ask) -> Event<Bytes> {
    let attempt = ask.attempt;
    let limit = Duration::from_millis(ask.timeout_ms.max(1));
    let answer = match client.node(ask.node) {
        Ok(mut node) => match timeout(limit, node.search(template.request(&ask))).await {
            Ok(answer) => answer,
            Err(_) => {
                let message = format!("no answer within {} ms", ask.timeout_ms);
                Err(Status::deadline_exceeded(message))
            }
        },
        Err(problem) => Err(Status::unavailable(problem.to_string())),
    };
    match answer {
        Ok(response) => {
            client.node_answered(ask.node);
            answered(&client, &template, &ask, response.into_inner())
        }
        Err(status) => {
            let failure = failure_of(ask.node, &status);
            if failure.kind == FailureKind::Unavailable {
                client.node_failed(ask.node);
            }
            let known = proto::error::estale_hint(&status);
            if failure.kind == FailureKind::Estale {
                let reason = StaleReason::of_request(ask.known, known);
                client.metrics().failed_estale.of(reason).add(1);
            } else {
                client.metrics().failed(failure.kind);
            }
            Event::Failed {
                attempt,
                failure,
                known,
            }
        }
    }
}

fn answered(
    client: &ClusterClient,
    template: &SearchTemplate,
    ask: &Ask,
    response: v1::SearchResponse,
) -> Event<Bytes> {
    let known = (LeaseEpoch(response.epoch), MapVersion(response.map_version));
    let pages = response.pages.into_iter().map(|page| {
        let id = PartitionId(page.partition_id);
        let page = partition_page(ask.node, page);
        match &page {
            Err(failure) if failure.kind == FailureKind::Estale => {
                let reason = StaleReason::of_partition(ask.known, known);
                client.metrics().failed_estale.of(reason).add(1);
            }
            Err(failure) => client.metrics().failed(failure.kind),
            Ok(_) => {}
        }
        // A node that has not heard that the replica is stale does not say so.
        let is_asked_as_stale = template.consistency == v1::Consistency::Eventual
            && (ask.partitions.iter()).any(|asked| asked.partition == id && asked.is_left_behind);
        let page = page.map(|page| PartitionPage {
            is_stale: page.is_stale || is_asked_as_stale,
            ..page
        });
        (id, page)
    });
    Event::Answered {
        attempt: ask.attempt,
        pages: pages.collect(),
        known,
    }
}

fn partition_page(node: NodeId, page: v1::PartitionPage) -> Result<PartitionPage<Bytes>, Failure> {
    if let Some(error) = page.error {
        let kind = match error.kind() {
            Kind::Estale => FailureKind::Estale,
            Kind::Lagging => FailureKind::Lagging,
            Kind::CursorLost => FailureKind::CursorLost,
            Kind::Corrupt => FailureKind::Corrupt,
            Kind::Unavailable | Kind::Unspecified => FailureKind::Unavailable,
        };
        return Err(Failure::new(kind, format!("{node}: {}", error.message)));
    }
    Ok(PartitionPage {
        hits: page
            .hits
            .into_iter()
            .map(|h| Hit {
                key: h.key,
                distance: h.distance,
            })
            .collect(),
        bound: page.bound,
        exhausted: page.exhausted,
        resume_token: page.resume_token,
        tail_rows: page.tail_rows,
        distances: page.distances,
        waited_ms: page.waited_ms,
        is_stale: page.is_stale,
    })
}

pub(crate) fn failure_of(node: NodeId, status: &Status) -> Failure {
    let reason = proto::error::reason(status);
    let kind = match (status.code(), reason.as_deref()) {
        (_, Some(proto::error::ESTALE)) => FailureKind::Estale,
        (_, Some(proto::error::LAGGING)) => FailureKind::Lagging,
        (_, Some("INTEGRITY")) => FailureKind::Gated,
        // A message that does not fit, or one that the transport made up.
        _ if retry::is_worth_repeating(status) => FailureKind::Unavailable,
        (Code::ResourceExhausted, _) => FailureKind::Throttled,
        (Code::InvalidArgument | Code::OutOfRange, _) => FailureKind::Invalid,
        (Code::Unauthenticated | Code::PermissionDenied, _) => FailureKind::NotAuthorised,
        (Code::DataLoss, _) => FailureKind::Corrupt,
        _ => FailureKind::Unavailable,
    };
    Failure::new(kind, format!("{node}: {}", retry::describe(status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_becomes_what_the_scan_does_next() {
        let kind = |status: Status| failure_of(NodeId(1), &status).kind;
        let estale = proto::error::estale("moved", LeaseEpoch(1), MapVersion(2));
        assert_eq!(kind(estale), FailureKind::Estale);
        assert_eq!(kind(proto::error::lagging("at 0/1")), FailureKind::Lagging);
        let throttled = proto::error::throttled("full", Duration::from_secs(1));
        assert_eq!(kind(throttled), FailureKind::Throttled);
        assert_eq!(kind(Status::invalid_argument("dims")), FailureKind::Invalid);
        assert_eq!(kind(Status::data_loss("crc")), FailureKind::Corrupt);
        let stranger = proto::error::stranger("a clone");
        assert_eq!(kind(stranger), FailureKind::NotAuthorised);
        assert_eq!(kind(Status::unavailable("down")), FailureKind::Unavailable);
        assert_eq!(kind(Status::internal("?")), FailureKind::Unavailable);
    }

    #[test]
    fn a_partitions_error_is_never_taken_for_an_empty_page() {
        let error = v1::PartitionError {
            kind: 99,
            message: "from a newer node".to_owned(),
        };
        let page = v1::PartitionPage {
            error: Some(error),
            exhausted: true,
            ..Default::default()
        };
        let failure = partition_page(NodeId(1), page).err().map(|f| f.kind);
        assert_eq!(failure, Some(FailureKind::Unavailable));
    }
}
