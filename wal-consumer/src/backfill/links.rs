//! One Backfill stream per node. A request is done when the node has answered
//! that it is durable.

use anyhow::{Context, anyhow};
use cluster_client::ClusterClient;
use cluster_core::ids::{BackfillId, NodeId, PartitionId};
use parking_lot::Mutex;
use proto::v1;
use proto::v1::backfill_request::Kind;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;

const TRANSPORT_QUEUE: usize = 16;
/// What answers bear in place of a chunk's number.
const CHUNK_OF_OPEN: u64 = 0;
const CHUNK_OF_CLOSE: u64 = u64::MAX;

/// The node's refusal of a request; empty when done.
pub type Refusal = String;
type Waiting = Arc<Mutex<HashMap<(PartitionId, u64), oneshot::Sender<Refusal>>>>;

struct Link {
    requests: mpsc::Sender<v1::BackfillRequest>,
    waiting: Waiting,
    reader: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The streams of one backfill.
pub struct Links {
    by_node: BTreeMap<NodeId, Link>,
    answer_timeout: Duration,
}

impl Links {
    pub async fn open(
        client: &ClusterClient,
        nodes: impl IntoIterator<Item = NodeId>,
        backfill: BackfillId,
        answer_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let mut by_node = BTreeMap::new();
        for node in nodes {
            let opening = open_link(client, node, backfill);
            let link = tokio::time::timeout(answer_timeout, opening)
                .await
                .with_context(|| format!("{node} does not answer"))?
                .with_context(|| format!("opening a backfill on {node}"))?;
            by_node.insert(node, link);
        }
        Ok(Self {
            by_node,
            answer_timeout,
        })
    }

    /// Sends a request; the answer is waited for apart, so that requests leave
    /// in the order in which they are sent: a partition's chunks must.
    pub async fn send(
        &self,
        node: NodeId,
        kind: Kind,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<Option<Refusal>>> + Send + 'static>
    {
        let (partition, chunk) = match &kind {
            Kind::Open(open) => (open.partition_id, CHUNK_OF_OPEN),
            Kind::Chunk(chunk) => (chunk.partition_id, chunk.chunk),
            Kind::Close(close) => (close.partition_id, CHUNK_OF_CLOSE),
        };
        let link = self
            .by_node
            .get(&node)
            .with_context(|| format!("no stream to {node}"))?;
        let (done, answer) = oneshot::channel();
        link.waiting
            .lock()
            .insert((PartitionId(partition), chunk), done);
        let request = v1::BackfillRequest { kind: Some(kind) };
        link.requests
            .send(request)
            .await
            .map_err(|_| anyhow!("{node} ended the stream"))?;
        let answer_timeout = self.answer_timeout;
        Ok(async move {
            let refusal = tokio::time::timeout(answer_timeout, answer)
                .await
                .with_context(|| format!("{node} does not answer a backfill"))?
                .map_err(|_| anyhow!("{node} ended the backfill's stream"))?;
            Ok(Some(refusal).filter(|refusal| !refusal.is_empty()))
        })
    }

    /// Answers the node's refusal, if it refused.
    pub async fn call(&self, node: NodeId, kind: Kind) -> anyhow::Result<Option<Refusal>> {
        self.send(node, kind).await?.await
    }

    /// As [`Links::call`], where a refusal is a failure.
    pub async fn must(&self, node: NodeId, kind: Kind) -> anyhow::Result<()> {
        accepted(node, self.call(node, kind).await?)
    }
}

/// A refusal as a failure.
pub fn accepted(node: NodeId, answer: Option<Refusal>) -> anyhow::Result<()> {
    match answer {
        None => Ok(()),
        Some(refusal) => Err(anyhow!("{node} refused: {refusal}")),
    }
}

async fn open_link(
    client: &ClusterClient,
    node: NodeId,
    backfill: BackfillId,
) -> anyhow::Result<Link> {
    let (requests, outgoing) = mpsc::channel(TRANSPORT_QUEUE);
    let mut answers = client
        .node(node)?
        .backfill(ReceiverStream::new(outgoing))
        .await?
        .into_inner();
    let waiting = Waiting::default();
    let answered = waiting.clone();
    let reader = tokio::spawn(async move {
        loop {
            match answers.message().await {
                Ok(Some(answer)) if answer.backfill_id == backfill.0 => {
                    let key = (PartitionId(answer.partition_id), answer.chunk);
                    if let Some(done) = answered.lock().remove(&key) {
                        let _ = done.send(answer.refused);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(%node, problem = status.message(), "backfill stream ended");
                    break;
                }
            }
        }
        // Whoever still waits is told by the closed channel.
        answered.lock().clear();
    });
    Ok(Link {
        requests,
        waiting,
        reader: reader.abort_handle(),
    })
}
