//! One Backfill stream per node. A request is done when the node has answered
//! that it is durable. A node is given up when it has been silent for too long,
//! not when it is slow.

use anyhow::{Context, anyhow};
use cluster_client::ClusterClient;
use cluster_core::backfill::BackfillMark;
use cluster_core::ids::{BackfillId, NodeId, PartitionId};
use parking_lot::Mutex;
use proto::v1;
use proto::v1::backfill_request::Kind;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

const TRANSPORT_QUEUE: usize = 16;
/// What answers bear in place of a chunk's number.
const CHUNK_OF_OPEN: u64 = 0;
const CHUNK_OF_CLOSE: u64 = u64::MAX;
const CHUNK_OF_SWEEP: u64 = u64::MAX - 1;

/// The node did what was asked (an open answers the replica's mark), or refused.
pub type Answered = Result<Option<BackfillMark>, String>;
type Waiting = Arc<Mutex<HashMap<(PartitionId, u64), oneshot::Sender<Answered>>>>;

struct Link {
    requests: mpsc::Sender<v1::BackfillRequest>,
    waiting: Waiting,
    pulse: Pulse,
    reader: AbortHandle,
}

/// When a node last answered anything. One whose tails are full answers slowly,
/// and is waited for as long as it answers at all.
/// A sweep looks at every row of a replica and answers once, at its end. That the node
/// lives meanwhile the connection says.
const SWEEP_TIME_MAX: Duration = Duration::from_secs(4 * 3_600);

#[derive(Clone)]
struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn beat(&self) {
        *self.0.lock() = Instant::now();
    }

    /// `None`: the node has answered nothing for so long.
    async fn wait<T>(&self, what: impl Future<Output = T>, silence_max: Duration) -> Option<T> {
        let began = Instant::now();
        let mut what = pin!(what);
        loop {
            let until = began.max(*self.0.lock()) + silence_max;
            match tokio::time::timeout_at(until, &mut what).await {
                Ok(done) => return Some(done),
                Err(_) if began.max(*self.0.lock()) + silence_max <= Instant::now() => return None,
                Err(_) => {}
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The streams of one backfill.
pub struct Links {
    by_node: BTreeMap<NodeId, Link>,
    silence_max: Duration,
}

impl Links {
    pub async fn open(
        client: &ClusterClient,
        nodes: impl IntoIterator<Item = NodeId>,
        backfill: BackfillId,
        silence_max: Duration,
    ) -> anyhow::Result<Self> {
        let mut by_node = BTreeMap::new();
        for node in nodes {
            let opening = open_link(client, node, backfill);
            let link = tokio::time::timeout(silence_max, opening)
                .await
                .with_context(|| format!("{node} does not answer"))?
                .with_context(|| format!("opening a backfill on {node}"))?;
            by_node.insert(node, link);
        }
        Ok(Self {
            by_node,
            silence_max,
        })
    }

    /// Sends a request; the answer is waited for apart, so that requests leave
    /// in the order in which they are sent: a partition's chunks must.
    pub async fn send(
        &self,
        node: NodeId,
        kind: Kind,
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<Answered>> + Send + 'static> {
        let (partition, chunk) = match &kind {
            Kind::Open(open) => (open.partition_id, CHUNK_OF_OPEN),
            Kind::Chunk(chunk) => (chunk.partition_id, chunk.chunk),
            Kind::Sweep(sweep) => (sweep.partition_id, CHUNK_OF_SWEEP),
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
        let pulse = link.pulse.clone();
        let silence_max = match &request.kind {
            Some(Kind::Sweep(_)) => self.silence_max.max(SWEEP_TIME_MAX),
            _ => self.silence_max,
        };
        let sending = link.requests.send(request);
        pulse
            .wait(sending, silence_max)
            .await
            .with_context(|| format!("{node} takes no more of a backfill"))?
            .map_err(|_| anyhow!("{node} ended the stream"))?;
        Ok(async move {
            pulse
                .wait(answer, silence_max)
                .await
                .with_context(|| format!("{node} does not answer a backfill"))?
                .map_err(|_| anyhow!("{node} ended the backfill's stream"))
        })
    }

    pub async fn call(&self, node: NodeId, kind: Kind) -> anyhow::Result<Answered> {
        self.send(node, kind).await?.await
    }
}

/// A refusal as a failure.
pub fn accepted(node: NodeId, answer: Answered) -> anyhow::Result<Option<BackfillMark>> {
    answer.map_err(|refusal| anyhow!("{node} refused: {refusal}"))
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
    let pulse = Pulse::new();
    let beats = pulse.clone();
    let reader = tokio::spawn(async move {
        loop {
            match answers.message().await {
                Ok(Some(answer)) if answer.backfill_id == backfill.0 => {
                    beats.beat();
                    let key = (PartitionId(answer.partition_id), answer.chunk);
                    if let Some(done) = answered.lock().remove(&key) {
                        let _ = done.send(read(answer));
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
        pulse,
        reader: reader.abort_handle(),
    })
}

/// A mark that cannot be read is none: the ranges begin again.
fn read(answer: v1::BackfillResponse) -> Answered {
    match answer.refused.is_empty() {
        true => Ok(answer.mark.and_then(|mark| mark.try_into().ok())),
        false => Err(answer.refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn p11_a_node_that_answers_slowly_is_waited_for_and_a_silent_one_is_not() {
        let silence_max = Duration::from_secs(2);
        let pulse = Pulse::new();
        let beats = pulse.clone();
        let beating = tokio::spawn(async move {
            for _ in 0..30 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                beats.beat();
            }
        });
        let slow = tokio::time::sleep(Duration::from_secs(3));
        assert_eq!(pulse.wait(slow, silence_max).await, Some(()));
        assert!(beating.await.is_ok());
        let never = std::future::pending::<()>();
        let silence_max = Duration::from_millis(50);
        assert_eq!(pulse.wait(never, silence_max).await, None);
    }
}
