//! One apply stream: what a consumer sends for one source, in order.
//!
//! Two tasks: one takes messages and hands batches to the partitions' writers,
//! one tells the consumer how far they have come. So a writer that pushes back
//! never delays an acknowledgment.
//!
//! A stream is good while its token is the highest seen, no later stream of the
//! source was opened, and the node holds its lease.

use super::convert;
use crate::node::Node;
use crate::partition::job::{Gap, OnHole, StreamGaps};
use crate::partition::replica::{Replica, ReplicaId};
use crate::source::{Retention, Source};
use cluster_core::change::Batch;
use cluster_core::ids::*;
use cluster_core::map::ReplicaState;
use cluster_core::wal_position::WalPosition;
use prost::Message;
use proto::convert::required;
use proto::v1::{self, apply_request, apply_response};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// Answers that may wait for a slow consumer.
pub const RESPONSES_MAX: usize = 64;
/// How long a partition of a newer map may take to arrive here.
const ASSIGNMENT_WAIT: Duration = Duration::from_secs(3);
/// The same for a learner, which the consumer attaches again if it is too short.
const ATTACH_WAIT: Duration = Duration::from_millis(500);
/// How long the consumer's map may take to arrive here.
const MAP_WAIT: Duration = Duration::from_secs(2);
/// While searches wait, the consumer is reminded this often.
const WANTED_EVERY: Duration = Duration::from_millis(50);

pub type Responses = mpsc::Sender<Result<v1::ApplyResponse, Status>>;

struct Stream {
    node: Arc<Node>,
    source: Arc<Source>,
    incarnation: Incarnation,
    token: ConsumerEpoch,
    number: u64,
    gaps: Arc<StreamGaps>,
}

fn response(kind: apply_response::Kind) -> Result<v1::ApplyResponse, Status> {
    Ok(v1::ApplyResponse { kind: Some(kind) })
}

/// Serves a stream to its end.
pub async fn run(
    node: Arc<Node>,
    mut requests: Streaming<v1::ApplyRequest>,
    responses: Responses,
    stop: CancellationToken,
) {
    let served = async {
        let stream = Arc::new(open(&node, &mut requests).await?);
        let told = tokio::spawn(tell(stream.clone(), responses.clone()));
        let taken = take(&stream, &mut requests).await;
        told.abort();
        taken
    };
    let result = tokio::select! {
        result = served => result,
        () = stop.cancelled() => Err(Status::unavailable("the node is shutting down")),
        () = responses.closed() => return,
    };
    if let Err(status) = result {
        tracing::info!(code = ?status.code(), message = status.message(), "apply stream refused");
        // The consumer may be gone; it opens a new stream anyway.
        let _ = responses.send(Err(status)).await;
    }
}

/// The first message: takes the token, then says where every replica stands.
async fn open(
    node: &Arc<Node>,
    requests: &mut Streaming<v1::ApplyRequest>,
) -> Result<Stream, Status> {
    let first = requests.message().await?.and_then(|request| request.kind);
    let Some(apply_request::Kind::Open(open)) = first else {
        return Err(Status::invalid_argument("the first message must be Open"));
    };
    if !node.lease.is_held() {
        return Err(node.estale("lease", "the node's lease is over"));
    }
    let id = SourceId(open.source_id);
    let incarnation = Incarnation(open.incarnation);
    // By an older map than the consumer's, "nothing else" would move replicas that
    // it has taken away, and that are not fed any more.
    let routed_by = (LeaseEpoch(open.epoch), MapVersion(open.map_version));
    let mut maps = node.watch_map();
    let arrives = maps.wait_for(|map| map.stamp() >= routed_by);
    let arrived = timeout(MAP_WAIT, arrives)
        .await
        .is_ok_and(|map| map.is_ok());
    if !arrived {
        return Err(node.estale("map", "the consumer's map is newer than this node's"));
    }
    let map = node.map();
    let known = map.sources.get(&id).map(|source| source.incarnation);
    if known != Some(incarnation) {
        let message = format!("{id} is not known here in incarnation {incarnation}");
        return Err(node.estale("incarnation", message));
    }
    let token = ConsumerEpoch(open.consumer_epoch);
    let source = super::service::install(node, id, token).await?;
    let number = source.next_stream();
    // Wakes the stream before this one, so that it ends.
    source.notify();
    Ok(Stream {
        node: node.clone(),
        source,
        incarnation,
        token,
        number,
        gaps: Arc::default(),
    })
}

/// Takes messages until the consumer ends the stream.
async fn take(stream: &Stream, requests: &mut Streaming<v1::ApplyRequest>) -> Result<(), Status> {
    while let Some(request) = requests.message().await? {
        stream.check()?;
        match request.kind {
            Some(apply_request::Kind::Batch(batch)) => stream.batch(batch).await?,
            Some(apply_request::Kind::NothingElse(rest)) => stream.nothing_else(rest).await?,
            Some(apply_request::Kind::Attach(attach)) => stream.attach(attach).await?,
            Some(apply_request::Kind::Open(_)) => {
                return Err(Status::invalid_argument("the stream is open already"));
            }
            None => return Err(Status::invalid_argument("a message of no known kind")),
        }
    }
    Ok(())
}

impl Stream {
    fn check(&self) -> Result<(), Status> {
        let node = &self.node;
        if self.token < self.source.token() {
            return Err(node.estale("consumer", "another consumer has taken over"));
        }
        if !self.source.is_current_stream(self.number) {
            return Err(node.estale(
                "stream",
                "a later stream has been opened, or a partition moved",
            ));
        }
        if !node.lease.is_held() {
            return Err(node.estale("lease", "the node's lease is over"));
        }
        Ok(())
    }

    fn check_position(&self, to: WalPosition) -> Result<(), Status> {
        if to.incarnation == self.incarnation {
            return Ok(());
        }
        let message = format!("position {to} is not of incarnation {}", self.incarnation);
        Err(Status::invalid_argument(message))
    }

    async fn batch(&self, wire: v1::ApplyBatch) -> Result<(), Status> {
        let memory = self.node.apply_memory(wire.encoded_len()).await;
        let batch = Batch::try_from(wire)?;
        self.check_position(batch.to)?;
        let partition = batch.partition;
        let held = self
            .held(partition, batch.generation, ASSIGNMENT_WAIT)
            .await;
        if held.is_none() && self.gaps.has(partition) {
            // A learner that is not here yet was answered when it was attached.
            return Ok(());
        }
        let replica = held.ok_or_else(|| {
            let message = format!("{partition} is not held in generation {}", batch.generation);
            self.node.estale("generation", message)
        })?;
        self.check_source(&replica)?;
        convert::check_batch(&batch, replica.id.dimensions).map_err(Status::invalid_argument)?;
        replica
            .apply(batch, self.gaps.clone(), Some(memory))
            .await
            .map_err(|stopped| self.node.estale("generation", stopped.to_string()))
    }

    /// The replica of an assignment, which may arrive here later than where the
    /// consumer saw it.
    async fn held(
        &self,
        partition: PartitionId,
        generation: Generation,
        wait: Duration,
    ) -> Option<Arc<Replica>> {
        let wait = match self.gaps.has(partition) {
            true => Duration::ZERO,
            false => wait,
        };
        let replicas = &self.node.replicas;
        replicas
            .wait_for_generation(partition, generation, wait)
            .await
    }

    /// A learner that is not here is answered with a gap: the consumer attaches it
    /// again later, and no other partition of the stream suffers.
    async fn attach(&self, wire: v1::AttachLearner) -> Result<(), Status> {
        let partition = PartitionId(wire.partition_id);
        let generation = Generation(wire.generation);
        let from: WalPosition = required(wire.from, "from")?.into();
        if from.incarnation > self.incarnation {
            return self.check_position(from);
        }
        let Some(replica) = self.held(partition, generation, ATTACH_WAIT).await else {
            self.gaps.refuse_attach(Gap {
                partition,
                watermark: WalPosition::ZERO,
                previous: from,
            });
            self.source.notify();
            return Ok(());
        };
        self.check_source(&replica)?;
        // A slot may count on any other, and on what it holds.
        let on_hole = match self.node.assigned(partition, generation) {
            Some(ReplicaState::Learner) => OnHole::BeginAnew,
            Some(ReplicaState::Stale) if self.is_reconciled(&replica) => OnHole::Distrust,
            _ => OnHole::Refuse,
        };
        replica
            .attach(from, self.gaps.clone(), on_hole)
            .await
            .map_err(|stopped| self.node.estale("generation", stopped.to_string()))
    }

    /// What a stale replica is attached for has begun.
    fn is_reconciled(&self, replica: &Replica) -> bool {
        let map = self.node.map();
        let collection = map.collections.get(&replica.id.collection);
        collection.is_some_and(|c| c.reconciles_since().is_some())
    }

    fn check_source(&self, replica: &Replica) -> Result<(), Status> {
        if replica.id.source == self.source.id {
            return Ok(());
        }
        let message = format!("{} is not of {}", replica.id.partition, self.source.id);
        Err(Status::invalid_argument(message))
    }

    async fn nothing_else(&self, wire: v1::NothingElse) -> Result<(), Status> {
        let to: WalPosition = required(wire.to, "to")?.into();
        self.check_position(to)?;
        let confirmed = wire.confirmed.map_or(WalPosition::ZERO, WalPosition::from);
        self.source.set_retention(Retention {
            oldest_xmin: wire.oldest_xmin,
            confirmed,
        });
        let except: BTreeSet<u64> = wire.except_partition_ids.into_iter().collect();
        for replica in self.node.replicas.of_source(self.source.id) {
            let ReplicaId {
                partition,
                generation,
                ..
            } = replica.id;
            // What is not fed has not been told everything up to `to`.
            let needs_attach = match self.node.assigned(partition, generation) {
                Some(ReplicaState::Serving | ReplicaState::Releasing) => false,
                Some(ReplicaState::Learner | ReplicaState::Stale) => true,
                Some(ReplicaState::Demoted) | None => continue,
            };
            if !except.contains(&partition.0) {
                // One that stopped has left the node; the stream ends by itself.
                let _ = replica.nothing_else(to, &self.gaps, needs_attach).await;
            }
        }
        self.source.notify();
        Ok(())
    }
}

/// What the consumer was told of a replica last.
type Told = BTreeMap<PartitionId, v1::PartitionWatermark>;

/// Tells watermarks, gaps and wishes as they change.
async fn tell(stream: Arc<Stream>, responses: Responses) {
    let mut changed = stream.source.watch();
    let mut told = Told::new();
    let opened = apply_response::Kind::Opened(v1::ApplyOpened {
        partitions: news(&stream, &mut told),
    });
    if responses.send(response(opened)).await.is_err() {
        return;
    }
    let mut wanted_told = (WalPosition::ZERO, Instant::now());
    loop {
        if let Err(status) = stream.check() {
            // `run` ends too: the response stream closes behind the error.
            let _ = responses.send(Err(status)).await;
            return;
        }
        let mut kinds = Vec::new();
        let partitions = news(&stream, &mut told);
        if !partitions.is_empty() {
            kinds.push(apply_response::Kind::Watermarks(v1::Watermarks {
                partitions,
            }));
        }
        kinds.extend(stream.gaps.take_untold().into_iter().map(|gap| {
            apply_response::Kind::Gap(v1::ApplyGap {
                partition_id: gap.partition.0,
                watermark: Some(gap.watermark.into()),
                previous: Some(gap.previous.into()),
            })
        }));
        let wanted = stream.source.wanted();
        if let Some(wanted) = wanted
            && (wanted > wanted_told.0 || wanted_told.1.elapsed() >= WANTED_EVERY)
        {
            wanted_told = (wanted, Instant::now());
            kinds.push(apply_response::Kind::Wanted(wanted.into()));
        }
        for kind in kinds {
            if responses.send(response(kind)).await.is_err() {
                return;
            }
        }
        // A stream whose node has lost its lease must end, news or not.
        let pause = match wanted {
            Some(_) => WANTED_EVERY,
            None => Duration::from_millis(500),
        };
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
            () = responses.closed() => return,
        }
    }
}

/// The replicas that moved since they were told of last.
fn news(stream: &Stream, told: &mut Told) -> Vec<v1::PartitionWatermark> {
    let replicas = stream.node.replicas.of_source(stream.source.id);
    let moved = |replica: &Arc<Replica>| {
        let watermark = convert::watermark(replica);
        let before = told.insert(replica.id.partition, watermark);
        (before != Some(watermark)).then_some(watermark)
    };
    replicas.iter().filter_map(moved).collect()
}
