//! One node's Apply stream: opened, fed from the queue, opened again when it
//! breaks. A node that is gone costs the others nothing: its queue fills to its
//! limit, then the node is given up until it answers again, and the whole
//! source starts over at the confirmed position, which that node still holds.

use super::progress::{Progress, RunEnd};
use super::queue::NodeQueue;
use crate::config::Config;
use crate::retry::Backoff;
use crate::source::preflight::rows_missing;
use cluster_client::ClusterClient;
use cluster_core::collection::CollectionState;
use cluster_core::confirm::ReplicaKey;
use cluster_core::ids::{Generation, NodeId, PartitionId};
use cluster_core::wal_position::WalPosition;
use parking_lot::Mutex;
use proto::v1;
use proto::v1::apply_request::Kind as Request;
use proto::v1::apply_response::Kind as Response;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Messages handed to the transport and not yet taken by it.
const TRANSPORT_QUEUE: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    Up,
    /// Its queue overflowed; when it answers, the source starts over.
    GivenUp,
}

struct State {
    queue: NodeQueue,
    link: Link,
    /// Partitions that must be found at or above the start of the stream.
    complete: BTreeSet<PartitionId>,
    /// When the node last made something durable.
    moved_at: Instant,
}

pub struct NodeFeed {
    pub node: NodeId,
    state: Mutex<State>,
    has_more: Notify,
    bytes_max: usize,
    progress: Arc<Progress>,
}

impl NodeFeed {
    pub fn new(node: NodeId, bytes_max: usize, progress: Arc<Progress>) -> Arc<Self> {
        Arc::new(Self {
            node,
            state: Mutex::new(State {
                queue: NodeQueue::default(),
                link: Link::Down,
                complete: BTreeSet::new(),
                moved_at: Instant::now(),
            }),
            has_more: Notify::new(),
            bytes_max,
            progress,
        })
    }

    /// A complete partition must already hold everything up to where the stream
    /// starts. Another one is about to be backfilled under a later snapshot,
    /// which covers whatever the stream does not.
    pub fn add_partition(&self, id: PartitionId, generation: Generation, is_complete: bool) {
        let mut state = self.state.lock();
        let following = &self.progress.following;
        let from = if is_complete {
            following.end_of(following.start)
        } else {
            WalPosition::ZERO
        };
        if is_complete {
            state.complete.insert(id);
        }
        state.queue.add_partition(id, generation, from);
        self.progress.require(ReplicaKey {
            partition: id,
            node: self.node,
            generation,
        });
    }

    pub fn remove_partition(&self, id: PartitionId) {
        let mut state = self.state.lock();
        state.queue.remove_partition(id);
        state.complete.remove(&id);
    }

    pub fn push_batch(
        &self,
        id: PartitionId,
        to: WalPosition,
        changes: Vec<v1::RowChange>,
        bytes: usize,
    ) {
        let mut state = self.state.lock();
        if state.link != Link::GivenUp {
            state.queue.push_batch(id, to, changes, bytes);
            self.has_more.notify_one();
        }
    }

    pub fn push_nothing_else(
        &self,
        to: WalPosition,
        oldest_xmin: Option<u64>,
        confirmed: WalPosition,
    ) {
        let mut state = self.state.lock();
        if state.link != Link::GivenUp {
            state.queue.push_nothing_else(to, oldest_xmin, confirmed);
            self.has_more.notify_one();
        }
    }

    pub fn applied(&self, id: PartitionId) -> WalPosition {
        self.state
            .lock()
            .queue
            .partition(id)
            .map_or(WalPosition::ZERO, |fed| fed.applied)
    }

    pub fn is_up(&self) -> bool {
        self.state.lock().link == Link::Up
    }

    /// Waits while the queue is full, but only for a node that moves (P10).
    pub async fn wait_for_room(&self, stall: Duration) {
        let mut changed = self.progress.watch();
        loop {
            let give_up_at = {
                let mut state = self.state.lock();
                if state.queue.bytes() < self.bytes_max {
                    return;
                }
                let give_up_at = state.moved_at + stall;
                if state.link == Link::Down || Instant::now() >= give_up_at {
                    tracing::warn!(node = %self.node, bytes = state.queue.bytes(), "node's queue is full and the node does not move: given up until it answers");
                    state.link = Link::GivenUp;
                    state.queue.clear();
                    return;
                }
                give_up_at
            };
            let _ = tokio::time::timeout_at(give_up_at, changed.changed()).await;
        }
    }

    #[cfg(test)]
    pub fn drain_for_test(&self) -> Vec<Request> {
        let mut state = self.state.lock();
        let mut kinds = Vec::new();
        while let Some(kind) = state.queue.next_to_send().and_then(|m| m.kind) {
            kinds.push(kind);
        }
        kinds
    }

    /// Runs until cancelled.
    pub async fn run(
        self: Arc<Self>,
        client: ClusterClient,
        config: Arc<Config>,
        cancel: CancellationToken,
    ) {
        let mut backoff = Backoff::new(&config);
        loop {
            let attempt = self.follow(&client, &config);
            let Some(Err(problem)) = cancel.run_until_cancelled(attempt).await else {
                return;
            };
            let was_up = {
                let mut state = self.state.lock();
                let was_up = state.link == Link::Up;
                if was_up {
                    state.link = Link::Down;
                }
                was_up
            };
            self.progress.wake();
            if was_up {
                backoff.reset();
            }
            tracing::info!(node = %self.node, source = %self.progress.following.source, problem, "apply stream ended");
            if cancel.run_until_cancelled(backoff.pause()).await.is_none() {
                return;
            }
        }
    }

    async fn follow(
        &self,
        client: &ClusterClient,
        config: &Config,
    ) -> Result<std::convert::Infallible, String> {
        let (send, outgoing) = mpsc::channel(TRANSPORT_QUEUE);
        let map = client.map();
        let open = v1::ApplyOpen {
            source_id: self.progress.following.source.0,
            incarnation: self.progress.following.incarnation.0,
            consumer_epoch: self.progress.following.token.0,
            epoch: map.epoch.0,
            map_version: map.version.0,
        };
        let first = v1::ApplyRequest {
            kind: Some(Request::Open(open)),
        };
        send.send(first).await.map_err(|e| e.to_string())?;
        let call_timeout = Duration::from_millis(config.call_timeout_ms);
        let mut node = client.node(self.node).map_err(|e| e.to_string())?;
        let opening = async {
            let mut incoming = node
                .apply(ReceiverStream::new(outgoing))
                .await?
                .into_inner();
            let first = incoming.message().await?;
            Ok::<_, tonic::Status>((incoming, first))
        };
        let opened = timeout(call_timeout, opening)
            .await
            .map_err(|_| "did not open in time")?;
        let (mut incoming, first) = match opened {
            Ok(opened) => opened,
            Err(status) => return Err(refused(client, &status).await),
        };
        let Some(Response::Opened(opened)) = first.and_then(|m| m.kind) else {
            return Err("did not answer the opening".to_owned());
        };
        self.take_opened(client, opened)?;
        let sending = self.send_all(send);
        let receiving = async {
            loop {
                match incoming.message().await {
                    Ok(Some(message)) => self.take(message)?,
                    Ok(None) => return Err("ended the stream".to_owned()),
                    Err(status) => return Err(refused(client, &status).await),
                }
            }
        };
        tokio::select! {
            problem = sending => problem,
            problem = receiving => problem,
        }
    }

    async fn send_all(
        &self,
        send: mpsc::Sender<v1::ApplyRequest>,
    ) -> Result<std::convert::Infallible, String> {
        loop {
            let next = self.state.lock().queue.next_to_send();
            match next {
                Some(message) => {
                    if send.send(message).await.is_err() {
                        // The receiving half knows why the transport let go.
                        std::future::pending::<()>().await;
                    }
                }
                None => self.has_more.notified().await,
            }
        }
    }

    fn take_opened(&self, client: &ClusterClient, opened: v1::ApplyOpened) -> Result<(), String> {
        let reports = opened
            .partitions
            .iter()
            .map(Report::from_wire)
            .collect::<Result<Vec<_>, _>>()?;
        let mut state = self.state.lock();
        if state.link == Link::GivenUp {
            self.progress.end(RunEnd::restart(
                "node_back",
                format!("{} answers again", self.node),
            ));
            return Err("is back; the source starts over".to_owned());
        }
        let start = self
            .progress
            .following
            .end_of(self.progress.following.start);
        for id in state.complete.clone() {
            let Some(known) = state.queue.partition(id).copied() else {
                continue;
            };
            let held = |r: &&Report| r.partition == id && r.generation == known.generation;
            let Some(report) = reports.iter().find(held) else {
                tracing::warn!(node = %self.node, partition = %id, "the node does not hold a replica that it should: the slot waits for it");
                state.queue.set_absent(id);
                continue;
            };
            let floor = start.max(known.durable);
            if report.durable < floor {
                self.progress
                    .end(self.behind(client, id, report.durable, floor));
                return Err(format!("{id} stands at {}, below {floor}", report.durable));
            }
        }
        state.queue.rewind();
        state.link = Link::Up;
        state.moved_at = Instant::now();
        drop(state);
        for report in reports {
            self.report(report);
        }
        self.has_more.notify_one();
        Ok(())
    }

    /// A complete replica below the slot cannot be fed from it: its collection is
    /// lost.
    fn behind(
        &self,
        client: &ClusterClient,
        id: PartitionId,
        at: WalPosition,
        floor: WalPosition,
    ) -> RunEnd {
        let map = client.map();
        let collection = map
            .partitions
            .get(&id)
            .and_then(|p| map.collections.get(&p.collection));
        match collection.map(|c| &c.state) {
            Some(CollectionState::Ready { .. }) => RunEnd::Lost {
                collection: map.partitions[&id].collection,
                reason: rows_missing(id, self.node, at, floor),
            },
            _ => RunEnd::restart("map_changed", format!("{id} is no longer complete")),
        }
    }

    fn take(&self, message: v1::ApplyResponse) -> Result<(), String> {
        match message.kind {
            Some(Response::Watermarks(watermarks)) => {
                for wire in &watermarks.partitions {
                    self.report(Report::from_wire(wire)?);
                }
                Ok(())
            }
            Some(Response::Wanted(position)) => {
                let position = WalPosition::from(position);
                if position.incarnation == self.progress.following.incarnation {
                    self.progress.feedback.want(position.commit_end);
                }
                Ok(())
            }
            Some(Response::Gap(gap)) => {
                let id = PartitionId(gap.partition_id);
                let detail = format!(
                    "{} has a gap in {id}: {:?} after {:?}",
                    self.node, gap.previous, gap.watermark
                );
                self.progress.end(RunEnd::restart("gap", &detail));
                Err(detail)
            }
            Some(Response::Opened(_)) => Err("opened twice".to_owned()),
            None => Err("answered something unknown".to_owned()),
        }
    }

    fn report(&self, report: Report) {
        let is_new = {
            let mut state = self.state.lock();
            if state.queue.is_absent(report.partition, report.generation) {
                let detail = format!("{} holds {} again", self.node, report.partition);
                return self.progress.end(RunEnd::restart("replica_back", detail));
            }
            let is_new = state.queue.report(
                report.partition,
                report.generation,
                report.applied,
                report.durable,
            );
            if is_new {
                state.moved_at = Instant::now();
                if state.link == Link::GivenUp {
                    let detail = format!("{} moves again", self.node);
                    self.progress.end(RunEnd::restart("node_back", detail));
                }
            }
            is_new
        };
        if is_new {
            let key = ReplicaKey {
                partition: report.partition,
                node: self.node,
                generation: report.generation,
            };
            self.progress.durable(key, report.durable);
            self.progress.wake();
        }
    }
}

/// Fetches a newer map when that is what the node asks for.
async fn refused(client: &ClusterClient, status: &tonic::Status) -> String {
    if let Some(hint) = proto::error::estale_hint(status)
        && let Err(problem) = client.refresh_map(hint).await
    {
        tracing::debug!(%problem, "no newer map");
    }
    format!("{:?}: {}", status.code(), status.message())
}

struct Report {
    partition: PartitionId,
    generation: Generation,
    applied: WalPosition,
    durable: WalPosition,
}

impl Report {
    fn from_wire(wire: &v1::PartitionWatermark) -> Result<Self, String> {
        let position = |p: Option<v1::WalPosition>| {
            p.map(WalPosition::from)
                .ok_or_else(|| "a watermark without position".to_owned())
        };
        Ok(Self {
            partition: PartitionId(wire.partition_id),
            generation: Generation(wire.generation),
            applied: position(wire.applied)?,
            durable: position(wire.durable)?,
        })
    }
}
