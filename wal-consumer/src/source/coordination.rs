//! What a source's consumer asks of the coordinators: idempotent, fenced by the
//! token, repeated until done. A refusal is final for the present run.

use super::SourceContext;
use super::postgres::Postgres;
use crate::feed::progress::RunEnd;
use crate::feed::router::is_fed;
use crate::retry::Backoff;
use cluster_client::ClientError;
use cluster_core::collection::{BackfillSnapshot, CollectionSpec};
use cluster_core::confirm::ReplicaKey;
use cluster_core::control;
use cluster_core::ids::{BackfillId, CollectionId, Incarnation, ServerStart};
use cluster_core::map::{PartitionMap, ReplicaState, Slot};
use proto::v1;
use proto::v1::coordinator_client::CoordinatorClient;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// How long one fetch of a map that must show a change is given.
const MAP_POLL: Duration = Duration::from_millis(50);

/// Calls the leader until it answers; only a refusal is an error.
async fn ask<T, F, Fut>(context: &SourceContext, what: &str, call: F) -> Result<T, Status>
where
    F: Fn(CoordinatorClient<Channel>) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let mut backoff = Backoff::new(&context.config);
    let asking = async {
        loop {
            match context.client.leader(&call).await {
                Ok(answer) => return Ok(answer),
                Err(ClientError::Refused(status)) => return Err(status),
                Err(problem) => {
                    tracing::warn!(source = %context.source, %problem, "waiting for the coordinators to {what}");
                    backoff.pause().await;
                }
            }
        }
    };
    let cancelled = || Err(Status::cancelled("the lease ended"));
    context
        .cancel
        .run_until_cancelled(asking)
        .await
        .unwrap_or_else(cancelled)
}

fn refused(what: &str, status: &Status) -> RunEnd {
    match status.code() {
        Code::Cancelled => RunEnd::Cancelled,
        _ => RunEnd::restart("refused", format!("{what}: {}", status.message())),
    }
}

async fn credentials(context: &SourceContext) -> Result<String, RunEnd> {
    let request = v1::GetSourceCredentialsRequest {
        source_id: context.source.0,
    };
    ask(context, "give the connection string", |mut c| async move {
        c.get_source_credentials(request).await
    })
    .await
    .map(|answer| answer.dsn)
    .map_err(|status| refused("reading the connection string", &status))
}

/// The source's server, as it is reached from here.
pub async fn server(context: &SourceContext) -> Result<Postgres, RunEnd> {
    let dsn = credentials(context).await?;
    let config = dsn
        .parse()
        .map_err(|e| RunEnd::Problem(format!("the connection string is not one: {e}")))?;
    let map = context.client.map();
    let name = map.sources.get(&context.source).map(|s| s.name.as_str());
    let folder = context.config.credentials_dir.as_deref();
    Ok(Postgres::with_credentials(
        config,
        folder,
        name.unwrap_or_default(),
    ))
}

pub async fn report(
    context: &SourceContext,
    slot: Option<&Slot>,
    server_start: Option<ServerStart>,
    problem: &str,
) -> Result<(), RunEnd> {
    let request = v1::ReportSourceRequest {
        source_id: context.source.0,
        consumer_epoch: context.token.0,
        slot: slot.map(Into::into),
        server_start: server_start.map(|start| start.0),
        problem: problem.to_owned(),
        memberships: HashMap::new(),
    };
    send_report(context, request).await
}

/// Under which memberships in the publication complete collections are taken to be.
pub async fn note_memberships(
    context: &SourceContext,
    memberships: BTreeMap<CollectionId, u32>,
) -> Result<(), RunEnd> {
    let memberships = memberships.into_iter();
    let request = v1::ReportSourceRequest {
        source_id: context.source.0,
        consumer_epoch: context.token.0,
        memberships: memberships.map(|(id, oid)| (id.0, oid)).collect(),
        ..Default::default()
    };
    send_report(context, request).await
}

async fn send_report(
    context: &SourceContext,
    request: v1::ReportSourceRequest,
) -> Result<(), RunEnd> {
    ask(context, "take a report", |mut c| {
        let request = request.clone();
        async move { c.report_source(request).await }
    })
    .await
    .map(|_| ())
    .map_err(|status| refused("reporting the source", &status))
}

/// The incarnation `expected` ends, and the next one begins with this slot.
pub async fn break_history(
    context: &SourceContext,
    expected: Incarnation,
    slot: &Slot,
    slot_name: &str,
    server_start: Option<ServerStart>,
    reason: &str,
) -> Result<(), RunEnd> {
    let request = v1::BreakHistoryRequest {
        source_id: context.source.0,
        consumer_epoch: context.token.0,
        expected_incarnation: expected.0,
        slot: Some(slot.into()),
        slot_name: slot_name.to_owned(),
        server_start: server_start.map(|start| start.0),
        reason: reason.to_owned(),
    };
    ask(context, "record a break", |mut c| {
        let request = request.clone();
        async move { c.break_history(request).await }
    })
    .await
    .map(|_| ())
    .map_err(|status| refused("recording a break", &status))
}

/// Waits until the map says so.
pub async fn follow_timeline(
    context: &SourceContext,
    (from, to): (u32, u32),
) -> Result<(), RunEnd> {
    let request = v1::FollowTimelineRequest {
        source_id: context.source.0,
        consumer_epoch: context.token.0,
        from_timeline: from,
        to_timeline: to,
    };
    ask(context, "follow a timeline", |mut c| async move {
        c.follow_timeline(request).await
    })
    .await
    .map_err(|status| refused("following a timeline", &status))?;
    let is_followed = |map: &PartitionMap| {
        let slot = map
            .sources
            .get(&context.source)
            .and_then(|s| s.slot.as_ref());
        slot.is_none_or(|slot| slot.timeline == to)
    };
    wait_for_map(context, is_followed).await.map(drop)
}

/// `None`: the definition is one that the cluster cannot keep.
pub async fn create_collection(
    context: &SourceContext,
    spec: &CollectionSpec,
) -> Result<Option<CollectionId>, RunEnd> {
    let request = v1::CreateCollectionRequest {
        consumer_epoch: context.token.0,
        spec: Some(spec.into()),
    };
    let answer = ask(context, "create a collection", |mut c| {
        let request = request.clone();
        async move { c.create_collection(request).await }
    })
    .await;
    match answer {
        Ok(answer) => Ok(Some(CollectionId(answer.collection_id))),
        Err(status) if status.code() == Code::InvalidArgument => {
            tracing::error!(source = %context.source, index = spec.index_name, reason = status.message(), "index cannot be kept in the cluster");
            Ok(None)
        }
        Err(status) => Err(refused("creating a collection", &status)),
    }
}

pub async fn drop_collection(
    context: &SourceContext,
    index_oid: u32,
    definition_generation: u64,
) -> Result<(), RunEnd> {
    let request = v1::DropCollectionRequest {
        consumer_epoch: context.token.0,
        source_id: context.source.0,
        index_oid,
        definition_generation,
    };
    ask(context, "drop a collection", |mut c| async move {
        c.drop_collection(request).await
    })
    .await
    .map(|_| ())
    .map_err(|status| refused("dropping a collection", &status))
}

pub async fn begin_backfill(
    context: &SourceContext,
    collection: CollectionId,
) -> Result<BackfillId, RunEnd> {
    let request = v1::BeginBackfillRequest {
        consumer_epoch: context.token.0,
        collection_id: collection.0,
    };
    ask(context, "begin a backfill", |mut c| async move {
        c.begin_backfill(request).await
    })
    .await
    .map(|answer| BackfillId(answer.backfill_id))
    .map_err(|status| refused("beginning a backfill", &status))
}

pub async fn finish_backfill(
    context: &SourceContext,
    collection: CollectionId,
    backfill: BackfillId,
    snapshot: &BackfillSnapshot,
) -> Result<(), RunEnd> {
    let request = v1::FinishBackfillRequest {
        consumer_epoch: context.token.0,
        collection_id: collection.0,
        backfill_id: backfill.0,
        snapshot: Some(snapshot.into()),
    };
    ask(context, "finish a backfill", |mut c| {
        let request = request.clone();
        async move { c.finish_backfill(request).await }
    })
    .await
    .map(|_| ())
    .map_err(|status| refused("finishing a backfill", &status))
}

/// The collection is void; the source goes on. One that is gone needs nothing.
pub async fn fail_collection(
    context: &SourceContext,
    collection: CollectionId,
    reason: &str,
) -> Result<(), RunEnd> {
    let request = v1::FailCollectionRequest {
        consumer_epoch: context.token.0,
        collection_id: collection.0,
        reason: reason.to_owned(),
    };
    tracing::error!(source = %context.source, %collection, reason, "collection cannot be kept");
    let answer = ask(context, "fail a collection", |mut c| {
        let request = request.clone();
        async move { c.fail_collection(request).await }
    })
    .await;
    match answer {
        Err(status) if status.code() != Code::NotFound => {
            Err(refused("failing a collection", &status))
        }
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaChange {
    Promote,
    Demote,
    MarkStale,
}

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Done,
    /// For good, as far as the map is what it is.
    Refused(String),
    /// It may have been done, or may be yet.
    Unknown(String),
}

/// Asks once: who asks looks again whether it still wants that.
pub async fn change_replica(
    context: &SourceContext,
    replica: ReplicaKey,
    change: ReplicaChange,
) -> Asked {
    let reason = match change {
        ReplicaChange::MarkStale => passed(replica),
        ReplicaChange::Promote | ReplicaChange::Demote => String::new(),
    };
    ask_for_change(context, replica, change, &reason).await
}

/// Why a replica that the slot has passed is stale.
pub fn passed(replica: ReplicaKey) -> String {
    control::passed(replica.partition, replica.node)
}

/// Replicas that lack rows which the stream does not tell again are stale before anything
/// is streamed.
pub async fn mark_stale(
    context: &SourceContext,
    replicas: &[ReplicaKey],
    reason: impl Fn(ReplicaKey) -> String,
) -> Result<(), RunEnd> {
    for replica in replicas {
        let why = reason(*replica);
        match ask_for_change(context, *replica, ReplicaChange::MarkStale, &why).await {
            Asked::Done => {}
            Asked::Refused(why) | Asked::Unknown(why) => {
                return Err(RunEnd::restart("mark_stale", why));
            }
        }
    }
    let serves = |map: &PartitionMap, of: &ReplicaKey| {
        let replica = map.partitions.get(&of.partition);
        let replica = replica.and_then(|p| p.replica_on(of.node));
        replica.is_some_and(|r| (r.generation, r.state) == (of.generation, ReplicaState::Serving))
    };
    wait_for_map(context, |map| !replicas.iter().any(|of| serves(map, of))).await?;
    Ok(())
}

async fn ask_for_change(
    context: &SourceContext,
    replica: ReplicaKey,
    change: ReplicaChange,
    reason: &str,
) -> Asked {
    let request = v1::ReplicaChangeRequest {
        consumer_epoch: context.token.0,
        partition_id: replica.partition.0,
        node_id: replica.node.0,
        generation: replica.generation.0,
        reason: reason.to_owned(),
    };
    let answer = context
        .client
        .leader(|mut c| {
            let request = request.clone();
            async move {
                match change {
                    ReplicaChange::Promote => c.promote_replica(request).await,
                    ReplicaChange::Demote => c.demote_replica(request).await,
                    ReplicaChange::MarkStale => c.mark_stale(request).await,
                }
            }
        })
        .await;
    match answer {
        Ok(_) => Asked::Done,
        Err(ClientError::Refused(status)) => judge(&status),
        Err(problem) => Asked::Unknown(problem.to_string()),
    }
}

/// A token that is too low says nothing of a request before it.
fn judge(status: &Status) -> Asked {
    let message = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition | Code::NotFound => Asked::Refused(message),
        _ => Asked::Unknown(message),
    }
}

/// Fails a collection and waits until the map says so: who decides what is fed,
/// or whether a table is still needed, looks there.
pub async fn give_up(
    context: &SourceContext,
    collection: CollectionId,
    reason: &str,
) -> Result<(), RunEnd> {
    fail_collection(context, collection, reason).await?;
    wait_for_map(context, |map| !is_fed(map, context.source, collection)).await?;
    Ok(())
}

/// Waits until the map is such, by watching and by asking.
pub async fn wait_for_map(
    context: &SourceContext,
    is_such: impl Fn(&PartitionMap) -> bool,
) -> Result<Arc<PartitionMap>, RunEnd> {
    let mut watch = context.client.watch_map();
    let waiting = async {
        loop {
            let map = context.client.map();
            if is_such(&map) {
                return map;
            }
            let newer = (map.epoch, map.version.next());
            tokio::select! {
                _ = watch.changed() => {}
                _ = context.client.refresh_map(newer) => tokio::time::sleep(MAP_POLL).await,
            }
        }
    };
    context
        .cancel
        .run_until_cancelled(waiting)
        .await
        .ok_or(RunEnd::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_core::ids::{LeaseEpoch, MapVersion};

    #[test]
    fn p2_only_a_refusal_by_the_present_map_says_that_nothing_was_done() {
        let refused = judge(&Status::failed_precondition("too few serve"));
        assert_eq!(refused, Asked::Refused("too few serve".into()));
        let fenced = proto::error::estale("lower token", LeaseEpoch(1), MapVersion(1));
        for status in [fenced, Status::internal("x"), Status::unavailable("x")] {
            assert!(matches!(judge(&status), Asked::Unknown(_)), "{status}");
        }
    }
}
