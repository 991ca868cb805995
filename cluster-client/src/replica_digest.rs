//! Asks one replica for a piece of what it holds. Unlike a search it has no other
//! replica to turn to: it asks again until the deadline, by the newest map.

use crate::client::ClusterClient;
use crate::retry;
use crate::search::failure_of;
use cluster_core::ids::*;
use cluster_core::scan::{Failure, FailureKind};
use cluster_core::server::AskedBy;
use cluster_core::verify::{Piece, Wanted};
use cluster_core::wal_position::Lsn;
use proto::v1;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// The node is given this much less, so that its own answer arrives in time.
const ANSWER_MARGIN: Duration = Duration::from_millis(50);
/// How long a node may be silent: what restarts comes back later.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a node may refuse: a lease comes back sooner, or its replicas go.
const REFUSAL_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct ReplicaDigest {
    pub source: SourceId,
    pub collection: CollectionId,
    pub asked_by: AskedBy,
    pub node: NodeId,
    pub partition: PartitionId,
    pub generation: Generation,
    /// `None`: as it stands, of a replica that nobody feeds.
    pub min_lsn: Option<Lsn>,
    pub wanted: Wanted,
}

impl ClusterClient {
    pub async fn replica_digest(
        &self,
        ask: &ReplicaDigest,
        deadline: Instant,
    ) -> Result<Piece, Failure> {
        let started = Instant::now();
        for round in 0.. {
            self.check_held(ask)?;
            let failure = match self.try_digest(ask, deadline).await {
                Ok(piece) => return Ok(piece),
                Err(failure) => failure,
            };
            let patience = match failure.kind {
                FailureKind::Unavailable => SILENCE_MAX,
                FailureKind::Estale => REFUSAL_MAX,
                FailureKind::Throttled => Duration::MAX,
                _ => return Err(failure),
            };
            let pause = retry::backoff(round);
            if started.elapsed() > patience || Instant::now() + pause >= deadline {
                return Err(failure);
            }
            sleep(pause).await;
        }
        unreachable!("rounds end with a piece or a failure")
    }

    /// A replica that the map has no longer is not waited for.
    fn check_held(&self, ask: &ReplicaDigest) -> Result<(), Failure> {
        let map = self.map();
        let partition = map.partitions.get(&ask.partition);
        let replica = partition.and_then(|partition| partition.replica_on(ask.node));
        match replica.is_some_and(|replica| replica.generation == ask.generation) {
            true => Ok(()),
            false => {
                let message = format!("{} has left {}", ask.partition, ask.node);
                Err(Failure::new(FailureKind::Invalid, message))
            }
        }
    }

    async fn try_digest(&self, ask: &ReplicaDigest, deadline: Instant) -> Result<Piece, Failure> {
        let unavailable = |text: String| {
            let text = format!("{}: {text}", ask.node);
            Failure::new(FailureKind::Unavailable, text)
        };
        let (epoch, version) = self.map().stamp();
        let left = deadline.saturating_duration_since(Instant::now());
        let left_ms = left.saturating_sub(ANSWER_MARGIN).as_millis();
        let request = v1::DigestRequest {
            epoch: epoch.0,
            map_version: version.0,
            source_id: ask.source.0,
            collection_id: ask.collection.0,
            asked_by: Some(ask.asked_by.into()),
            partition_id: ask.partition.0,
            generation: ask.generation.0,
            min_lsn: ask.min_lsn.map_or(0, |lsn| lsn.0),
            deadline_ms: u64::try_from(left_ms).unwrap_or(u64::MAX).max(1),
            of: Some((&ask.wanted).into()),
        };
        let mut node = self
            .node(ask.node)
            .map_err(|problem| unavailable(problem.to_string()))?;
        let status = match timeout_at(deadline, node.digest(request)).await {
            Err(_) => return Err(unavailable("no answer in time".to_owned())),
            Ok(Ok(response)) => {
                let piece = Piece::try_from(response.into_inner());
                return piece.map_err(|bad| unavailable(bad.to_string()));
            }
            Ok(Err(status)) => status,
        };
        if let Some(known) = proto::error::estale_hint(&status) {
            // One that cannot be had is asked for again in the next round.
            drop(timeout_at(deadline, self.refresh_map(known)).await);
        }
        Err(failure_of(ask.node, &status))
    }
}
