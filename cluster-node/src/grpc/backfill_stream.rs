//! Backfill requests, beside the apply stream. Requests go to the writers in
//! order; each is answered once durable, in the order of the requests.

use super::convert;
use super::service::install;
use crate::node::Node;
use crate::partition::job::{Job, Sweep};
use cluster_core::backfill::BackfillMark;
use cluster_core::change::BackfillRow;
use cluster_core::ids::*;
use cluster_core::reconcile::SeenPublished;
use proto::convert::required;
use proto::v1::{self, backfill_request};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Requests of one stream that wait for their writers.
pub const OUTSTANDING_MAX: usize = 16;
/// How long the assignment of a new collection may take to arrive here.
const ASSIGNMENT_WAIT: Duration = Duration::from_secs(5);
/// The number that answers a close.
const CLOSED: u64 = u64::MAX;
/// That answers a sweep.
const SWEPT: u64 = u64::MAX - 1;

pub type Responses = mpsc::Sender<Result<v1::BackfillResponse, Status>>;

/// A request on its way through a writer.
struct Outstanding {
    answer: v1::BackfillResponse,
    result: oneshot::Receiver<Answered>,
}

type Answered = Result<Option<BackfillMark>, String>;

pub async fn run(
    node: Arc<Node>,
    mut requests: Streaming<v1::BackfillRequest>,
    responses: Responses,
    stop: CancellationToken,
) {
    let (queue, queued) = mpsc::channel(OUTSTANDING_MAX);
    let answering = tokio::spawn(answer(queued, responses.clone()));
    let take = async {
        while let Some(request) = requests.message().await? {
            let outstanding = dispatch(&node, request).await?;
            if queue.send(outstanding).await.is_err() {
                break;
            }
        }
        Ok::<_, Status>(())
    };
    let taken = tokio::select! {
        taken = take => taken,
        () = stop.cancelled() => Err(Status::unavailable("the node is shutting down")),
        () = responses.closed() => return,
    };
    drop(queue);
    // What was accepted is answered before the stream ends.
    let _ = answering.await;
    if let Err(status) = taken {
        let _ = responses.send(Err(status)).await;
    }
}

async fn answer(mut queued: mpsc::Receiver<Outstanding>, responses: Responses) {
    while let Some(Outstanding { mut answer, result }) = queued.recv().await {
        answer.refused = match result.await {
            Ok(Ok(mark)) => {
                answer.mark = mark.as_ref().map(Into::into);
                String::new()
            }
            Ok(Err(refused)) => refused,
            Err(_) => "the replica has stopped".to_owned(),
        };
        if responses.send(Ok(answer)).await.is_err() {
            return;
        }
    }
}

fn published(told: v1::BackfillPublished) -> Result<SeenPublished, Status> {
    Ok(SeenPublished {
        membership: told.membership,
        seen_at: required(told.seen_at, "seen_at")?.into(),
        is_noted: told.is_noted,
    })
}

async fn dispatch(node: &Arc<Node>, request: v1::BackfillRequest) -> Result<Outstanding, Status> {
    if !node.lease.is_held() {
        return Err(node.estale("lease", "the node's lease is over"));
    }
    let (reply, result) = oneshot::channel();
    match required(request.kind, "kind")? {
        backfill_request::Kind::Open(open) => {
            let source = SourceId(open.source_id);
            install(node, source, ConsumerEpoch(open.consumer_epoch)).await?;
            let backfill = BackfillId(open.backfill_id);
            let since = Some(open.reconcile_since).filter(|since| *since != 0);
            let job = Job::OpenBackfill {
                backfill,
                since: since.map(BackfillId),
                published: open.published.map(published).transpose()?,
                reply,
            };
            let partition = PartitionId(open.partition_id);
            Ok(send(node, partition, backfill, 0, job, result).await)
        }
        backfill_request::Kind::Chunk(chunk) => {
            let partition = PartitionId(chunk.partition_id);
            let backfill = BackfillId(chunk.backfill_id);
            let stamp = required(chunk.stamp, "stamp")?.into();
            let rows = chunk.rows.into_iter().map(BackfillRow::try_from);
            let rows = rows.collect::<Result<Vec<_>, _>>()?;
            if let Some(replica) = node.replicas.get(partition) {
                convert::check_rows(partition, &rows, replica.id.dimensions)
                    .map_err(Status::invalid_argument)?;
            }
            let number = chunk.chunk;
            let mark = chunk.mark.map(BackfillMark::try_from).transpose()?;
            let job = Job::Chunk {
                backfill,
                chunk: number,
                stamp,
                rows,
                mark,
                reply,
            };
            Ok(send(node, partition, backfill, number, job, result).await)
        }
        backfill_request::Kind::Sweep(sweep) => {
            let backfill = BackfillId(sweep.backfill_id);
            let job = Job::Sweep(Sweep {
                backfill,
                below: required(sweep.below, "below")?.into(),
                after: None,
                removed: 0,
                reply,
            });
            let partition = PartitionId(sweep.partition_id);
            Ok(send(node, partition, backfill, SWEPT, job, result).await)
        }
        backfill_request::Kind::Close(close) => {
            let backfill = BackfillId(close.backfill_id);
            let job = Job::CloseBackfill { backfill, reply };
            let partition = PartitionId(close.partition_id);
            Ok(send(node, partition, backfill, CLOSED, job, result).await)
        }
    }
}

async fn send(
    node: &Node,
    partition: PartitionId,
    backfill: BackfillId,
    chunk: u64,
    job: Job,
    result: oneshot::Receiver<Answered>,
) -> Outstanding {
    let answer = v1::BackfillResponse {
        partition_id: partition.0,
        backfill_id: backfill.0,
        chunk,
        refused: String::new(),
        mark: None,
    };
    let replica = node.replicas.wait_for(partition, ASSIGNMENT_WAIT).await;
    let sent = match replica {
        Some(replica) => replica.send(job).await.is_ok(),
        None => false,
    };
    if sent {
        return Outstanding { answer, result };
    }
    let (refuse, result) = oneshot::channel();
    // The receiver is right here.
    let _ = refuse.send(Err(format!("{partition} is not held here")));
    Outstanding { answer, result }
}
