//! Sends a replica's records to a learner elsewhere, in key order and bounded
//! parts, at the pace that the learner asks for.
//!
//! The stream holds no snapshot of the database, which would keep what others
//! delete for as long as a slow copy takes. Each part is read as things stand
//! and says so: nothing above its watermark is in it, everything up to the
//! header's is. The learner's log makes one state of them.

use super::convert;
use super::service::disk;
use crate::lease::Standing;
use crate::node::Node;
use crate::partition::replica::Replica;
use crate::storage::copied::encode_meta;
use crate::storage::{RawRecord, StorageError};
use cluster_core::ids::*;
use cluster_core::learner::CopyKey;
use cluster_core::map::{HashRange, ReplicaState};
use cluster_core::wal_position::WalPosition;
use proto::convert::required;
use proto::v1::{self, checkpoint_part::Kind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Of what the stream carries. A learner refuses others.
pub const FORMAT_VERSION: u32 = 2;
/// The most bytes of records in one part; a single larger record goes alone.
const PART_BYTES_MAX: usize = 1 << 20;
const PART_BYTES_MIN: u64 = 16 << 10;
/// How many parts a slow copy is cut into, at the least.
const PARTS_PER_SECOND: u64 = 8;
/// Parts that may wait for a slow learner.
const PARTS_WAITING_MAX: usize = 2;
/// How long this replica may take to reach what the learner needs.
const POSITION_WAIT: Duration = Duration::from_secs(5);
/// What a learner is told to wait while others are being served.
const BUSY: Duration = Duration::from_secs(1);

type Parts = mpsc::Sender<Result<v1::CheckpointPart, Status>>;

struct Checkpoint {
    node: Arc<Node>,
    replica: Arc<Replica>,
    after: CopyKey,
    range: HashRange,
    bytes_per_second_max: u64,
}

/// Admits a request, waits for its position, and sends behind the answer.
pub async fn send(
    node: Arc<Node>,
    request: v1::FetchCheckpointRequest,
    stop: CancellationToken,
) -> Result<mpsc::Receiver<Result<v1::CheckpointPart, Status>>, Status> {
    let at_least: WalPosition = required(request.at_least, "at_least")?.into();
    let range = request.range.map(HashRange::try_from).transpose()?;
    let range = range.unwrap_or(HashRange::WHOLE);
    let partition = PartitionId(request.partition_id);
    let generation = Generation(request.generation);
    if node.lease.admit(LeaseEpoch(request.epoch)) == Standing::StaleRequest {
        return Err(node.estale("epoch", "the request's epoch is over"));
    }
    let replica = node.replicas.get(partition);
    let replica = replica.filter(|replica| replica.id.generation == generation);
    let replica = replica.ok_or_else(|| {
        let message = format!("{partition} is not held here in generation {generation}");
        node.estale("generation", message)
    })?;
    let checkpoint = Checkpoint {
        node: node.clone(),
        replica,
        after: CopyKey(request.after_key.to_vec().into()),
        range,
        bytes_per_second_max: request.bytes_per_second_max,
    };
    checkpoint.check()?;
    let slot = node.checkpoints.clone().try_acquire_owned();
    let slot = slot.map_err(|_| {
        proto::error::throttled("other copies are being sent: ask again, or a peer", BUSY)
    })?;
    let watermark = checkpoint.reach(at_least).await?;
    let (parts, receiver) = mpsc::channel(PARTS_WAITING_MAX);
    tokio::spawn(async move {
        let _slot = slot;
        let sent = tokio::select! {
            sent = checkpoint.send_all(watermark, &parts) => sent,
            () = stop.cancelled() => Err(Status::unavailable("the node is shutting down")),
            () = parts.closed() => return,
        };
        if let Err(status) = sent {
            // The learner may be gone; it asks again anyway.
            let _ = parts.send(Err(status)).await;
        }
    });
    Ok(receiver)
}

impl Checkpoint {
    /// Whether the replica may still be copied from.
    fn check(&self) -> Result<(), Status> {
        let (node, id) = (&self.node, self.replica.id);
        if !node.lease.is_held() {
            return Err(node.estale("lease", "the node's lease is over"));
        }
        let assigned = node.assigned(id.partition, id.generation);
        let may_serve = matches!(
            assigned,
            Some(ReplicaState::Serving | ReplicaState::Releasing)
        );
        if !may_serve || self.replica.is_learning() || self.replica.distrusts() {
            let message = format!("{} does not serve here", id.partition);
            return Err(node.estale("generation", message));
        }
        match self.replica.problem() {
            Some(problem) => Err(Status::data_loss(problem)),
            None => Ok(()),
        }
    }

    /// Waits until a position is durable. Returns how far the replica is.
    async fn reach(&self, at_least: WalPosition) -> Result<WalPosition, Status> {
        let mut changed = self.replica.source.watch();
        let reached = async {
            loop {
                let durable = self.replica.standing().watermarks.durable;
                if durable >= at_least || changed.changed().await.is_err() {
                    return durable;
                }
            }
        };
        match timeout(POSITION_WAIT, reached).await {
            Ok(durable) if durable >= at_least => Ok(durable),
            _ => {
                let durable = self.replica.standing().watermarks.durable;
                let partition = self.replica.id.partition;
                let message = format!("{partition} is at {durable} here, not at {at_least}");
                Err(proto::error::lagging(message))
            }
        }
    }

    /// The header's watermark was read before any record is.
    async fn send_all(mut self, watermark: WalPosition, parts: &Parts) -> Result<(), Status> {
        let partition = self.replica.id.partition;
        let storage = self.node.storage.clone();
        let meta = blocking(move || storage.meta(partition)).await?;
        let meta =
            meta.ok_or_else(|| Status::data_loss("the partition's description is missing"))?;
        if meta.open_backfill.is_some() {
            let message = format!("a backfill of {partition} is open: copy it later");
            return Err(proto::error::not_ready(message));
        }
        let header = v1::CheckpointHeader {
            format_version: FORMAT_VERSION,
            watermark: Some(watermark.into()),
            rows_estimated: self.replica.rows() + self.replica.pending_rows(),
            meta: encode_meta(partition, &meta).into(),
        };
        if !put(parts, Kind::Header(header)).await {
            return Ok(());
        }
        let started = Instant::now();
        let (mut bytes, mut count) = (0, 0);
        loop {
            let (records, high) = self.next_part().await?;
            // Whoever began to learn anew meanwhile had no rows to read.
            self.check()?;
            if records.is_empty() {
                put(parts, Kind::End(v1::CheckpointEnd { records: count })).await;
                return Ok(());
            }
            count += records.len() as u64;
            bytes += records.iter().map(|r| r.bytes() as u64).sum::<u64>();
            let records = convert::records_to_wire(records, high);
            if !put(parts, Kind::Records(records)).await {
                return Ok(());
            }
            if let Some(pause) = self.pace(bytes) {
                sleep_until(started + pause).await;
            }
        }
    }

    /// When so many bytes are due, counted from the start.
    fn pace(&self, bytes: u64) -> Option<Duration> {
        let rate = self.bytes_per_second_max;
        (rate > 0).then(|| Duration::from_secs_f64(bytes as f64 / rate as f64))
    }

    /// The next records of the range; none at the end.
    async fn next_part(&mut self) -> Result<(Vec<RawRecord>, WalPosition), Status> {
        loop {
            let (mut records, high) = self.read_part().await?;
            let Some(last) = records.last() else {
                return Ok((records, high));
            };
            self.after = last.key.clone();
            if self.range != HashRange::WHOLE {
                let partition = self.replica.id.partition;
                let mut damaged = None;
                records.retain(|record| match record.placement_hash(partition) {
                    Ok(hash) => self.range.contains(hash),
                    Err(corrupt) => {
                        damaged = Some(corrupt);
                        false
                    }
                });
                if let Some(corrupt) = damaged {
                    return Err(disk(corrupt.into()));
                }
            }
            if !records.is_empty() {
                return Ok((records, high));
            }
        }
    }

    /// The next records and a position that none of them lies above. Commits
    /// write first and move the watermark under the lock: with the lock in hand,
    /// the watermark covers whatever the reading has seen.
    async fn read_part(&self) -> Result<(Vec<RawRecord>, WalPosition), Status> {
        let (storage, replica) = (self.node.storage.clone(), self.replica.clone());
        let (partition, after) = (replica.id.partition, self.after.clone());
        // A slow copy moves in small steps: a break costs little.
        let bytes_max = match self.bytes_per_second_max {
            0 => PART_BYTES_MAX,
            rate => (rate / PARTS_PER_SECOND).clamp(PART_BYTES_MIN, PART_BYTES_MAX as u64) as usize,
        };
        blocking(move || {
            let records = storage.records_behind(partition, &after, bytes_max);
            if let Err(StorageError::Corrupt(corrupt)) = &records {
                replica.quarantine(corrupt.to_string());
            }
            let _commit = replica.commit_lock.lock();
            Ok((records?, replica.progress.applied()))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Status> {
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|panic| Status::internal(panic.to_string()))?
        .map_err(disk)
}

/// False: the learner is gone.
async fn put(parts: &Parts, kind: Kind) -> bool {
    parts
        .send(Ok(v1::CheckpointPart { kind: Some(kind) }))
        .await
        .is_ok()
}
