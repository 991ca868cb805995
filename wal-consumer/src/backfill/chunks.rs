//! The rows of a backfill on their way to the replicas: gathered by partition,
//! sent in numbered chunks, each durable once answered. What is in flight is
//! bounded; whoever sends waits for room, and for the source's pace.

use super::Shared;
use super::links::{Links, accepted};
use anyhow::{Context, bail};
use cluster_core::backfill::BackfillMark;
use cluster_core::change::BackfillRow;
use cluster_core::collection::CollectionSpec;
use cluster_core::ids::{BackfillId, CollectionId, NodeId, PartitionId};
use cluster_core::map::{HashRange, Partition, PartitionMap, Replica, ReplicaState};
use cluster_core::reconcile::SeenPublished;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use proto::v1;
use proto::v1::backfill_request::Kind;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const ROW_OVERHEAD_BYTES: usize = 32;
/// What a replica that has pending rows refuses a close with.
const PENDING: &str = "PENDING";
/// Pending keys that one replica names per question.
const PENDING_PAGE: u32 = 1_000;

/// One partition being filled.
struct Target {
    id: PartitionId,
    range: HashRange,
    replicas: Vec<NodeId>,
    /// Chunks are numbered from 1.
    chunks: u64,
    /// Gathered under one snapshot.
    rows: Vec<v1::BackfillRow>,
    stamp: WalPosition,
    bytes: usize,
}

/// A stale replica is filled only in a reconcile, for otherwise it is not fed.
pub(super) fn filled(partition: &Partition, reconciles: bool) -> impl Iterator<Item = &Replica> {
    let is_filled = move |r: &&Replica| match r.state {
        ReplicaState::Serving => true,
        ReplicaState::Stale => reconciles,
        _ => false,
    };
    partition.replicas.iter().filter(is_filled)
}

pub struct Chunks<'a> {
    shared: &'a Shared,
    backfill: BackfillId,
    links: Links,
    targets: Vec<Target>,
    in_flight: Arc<Semaphore>,
    sending: JoinSet<anyhow::Result<()>>,
    closed: BTreeSet<(PartitionId, NodeId)>,
    /// The highest stamp of what was sent.
    pub stamp_high: WalPosition,
}

impl<'a> Chunks<'a> {
    /// To the replicas that serve by this map, and to those that are reconciled.
    pub async fn connect(
        shared: &'a Shared,
        map: &PartitionMap,
        (collection, backfill): (CollectionId, BackfillId),
    ) -> anyhow::Result<Self> {
        let record = map.collections.get(&collection);
        let reconciles = record.is_some_and(|c| c.reconcile.is_some());
        let targets: Vec<Target> = map
            .partitions_of(collection)
            .into_iter()
            .map(|p| Target {
                id: p.id,
                range: p.range,
                replicas: filled(p, reconciles).map(|r| r.node).collect(),
                chunks: 0,
                rows: Vec::new(),
                stamp: WalPosition::ZERO,
                bytes: 0,
            })
            .collect();
        let nodes: BTreeSet<NodeId> = targets.iter().flat_map(|t| t.replicas.clone()).collect();
        let config = &shared.context.config;
        let silence_max = Duration::from_millis(config.node_stall_ms);
        let links = Links::open(&shared.context.client, nodes, backfill, silence_max).await?;
        let in_flight = config.backfill_in_flight_bytes.clamp(1, u32::MAX as usize);
        Ok(Self {
            shared,
            backfill,
            links,
            targets,
            in_flight: Arc::new(Semaphore::new(in_flight)),
            sending: JoinSet::new(),
            closed: BTreeSet::new(),
            stamp_high: WalPosition::ZERO,
        })
    }

    pub fn partitions(&self) -> Vec<PartitionId> {
        self.targets.iter().map(|t| t.id).collect()
    }

    /// Opens the backfill durably on every replica, and answers their marks.
    pub async fn open_everywhere(
        &self,
        spec: &CollectionSpec,
        since: Option<BackfillId>,
        published: SeenPublished,
    ) -> anyhow::Result<Vec<Option<BackfillMark>>> {
        let mut marks = Vec::new();
        for target in &self.targets {
            for node in &target.replicas {
                let open = v1::BackfillOpen {
                    consumer_epoch: self.shared.context.token.0,
                    source_id: spec.source.0,
                    partition_id: target.id.0,
                    backfill_id: self.backfill.0,
                    reconcile_since: since.map_or(0, |since| since.0),
                    published: Some(v1::BackfillPublished {
                        membership: published.membership,
                        seen_at: Some(published.seen_at.into()),
                        is_noted: published.is_noted,
                    }),
                };
                let answer = self.links.call(*node, Kind::Open(open)).await?;
                marks.push(accepted(*node, answer)?);
            }
        }
        Ok(marks)
    }

    pub async fn push(&mut self, row: BackfillRow, stamp: WalPosition) -> anyhow::Result<()> {
        let hash = row.key.placement_hash();
        let index = self.targets.partition_point(|t| t.range.hi < hash);
        let target = self
            .targets
            .get_mut(index)
            .context("the partitions do not tile")?;
        // Under a later stamp, rows would undo what was streamed in between.
        assert!(
            target.rows.is_empty() || target.stamp == stamp,
            "rows of {} are gathered with those of {stamp}",
            target.stamp
        );
        target.stamp = stamp;
        target.bytes += ROW_OVERHEAD_BYTES + row.key.as_bytes().len() + row.vector.len() * 4;
        target.rows.push((&row).into());
        let config = &self.shared.context.config;
        if target.rows.len() >= config.backfill_chunk_rows
            || target.bytes >= config.backfill_chunk_bytes
        {
            self.send(index, stamp, None).await?;
        }
        Ok(())
    }

    /// Forgets what is gathered: it is read again.
    pub fn discard(&mut self) {
        for target in &mut self.targets {
            target.rows.clear();
            target.bytes = 0;
        }
    }

    /// Sends what is gathered. With a mark, every replica gets it behind its rows.
    pub async fn flush(
        &mut self,
        stamp: WalPosition,
        mark: Option<BackfillMark>,
    ) -> anyhow::Result<()> {
        for index in 0..self.targets.len() {
            self.send(index, stamp, mark).await?;
        }
        Ok(())
    }

    /// Waits for room, not for the answer.
    async fn send(
        &mut self,
        index: usize,
        stamp: WalPosition,
        mark: Option<BackfillMark>,
    ) -> anyhow::Result<()> {
        while let Some(done) = self.sending.try_join_next() {
            done??;
        }
        self.stamp_high = self.stamp_high.max(stamp);
        let target = &mut self.targets[index];
        let rows = std::mem::take(&mut target.rows);
        let bytes = std::mem::take(&mut target.bytes);
        if rows.is_empty() && mark.is_none() {
            return Ok(());
        }
        target.chunks += 1;
        let chunk = v1::BackfillChunk {
            partition_id: target.id.0,
            backfill_id: self.backfill.0,
            chunk: target.chunks,
            stamp: Some(stamp.into()),
            rows,
            mark: mark.as_ref().map(Into::into),
        };
        self.shared.pace.take(bytes).await;
        let limit = self.shared.context.config.backfill_in_flight_bytes.max(1);
        let share = u32::try_from(bytes.clamp(1, limit)).unwrap_or(u32::MAX);
        let share = self.in_flight.clone().acquire_many_owned(share).await?;
        let share = Arc::new(share);
        for node in &target.replicas {
            if self.closed.contains(&(target.id, *node)) {
                continue;
            }
            let answer = self.links.send(*node, Kind::Chunk(chunk.clone())).await?;
            let (node, share) = (*node, share.clone());
            self.sending.spawn(async move {
                let answer = answer.await;
                drop(share);
                accepted(node, answer?).map(drop)
            });
        }
        Ok(())
    }

    /// Until everything sent is durable.
    pub async fn finish_sending(&mut self) -> anyhow::Result<()> {
        while let Some(done) = self.sending.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Some of the keys whose column is pending on a replica that is not closed.
    pub async fn list_pending(&self) -> anyhow::Result<BTreeSet<RowKey>> {
        let mut pending = BTreeSet::new();
        for (partition, node) in self.open_replicas() {
            let request = v1::ListPendingRequest {
                partition_id: partition.0,
                limit: PENDING_PAGE,
            };
            let mut client = self.shared.context.client.node(node)?;
            let asking = client.list_pending(request);
            let call_timeout = Duration::from_millis(self.shared.context.config.call_timeout_ms);
            let answer = tokio::time::timeout(call_timeout, asking)
                .await
                .with_context(|| format!("{node} does not name its pending rows"))??;
            for key in answer.into_inner().keys {
                pending.insert(RowKey::from_bytes(key.to_vec())?);
            }
        }
        Ok(pending)
    }

    /// Removes from every replica what stands below, several at a time.
    pub async fn sweep_everywhere(&self, below: WalPosition) -> anyhow::Result<()> {
        let sweeps = self.open_replicas().into_iter().map(|(partition, node)| {
            let sweep = v1::BackfillSweep {
                partition_id: partition.0,
                backfill_id: self.backfill.0,
                below: Some(below.into()),
            };
            async move {
                let answer = self.links.call(node, Kind::Sweep(sweep)).await?;
                accepted(node, answer).map(drop)
            }
        });
        futures::future::try_join_all(sweeps).await.map(drop)
    }

    /// Closes the replicas that have no pending column; whether all are closed.
    pub async fn close_everywhere(&mut self) -> anyhow::Result<bool> {
        let mut is_closed = true;
        for (partition, node) in self.open_replicas() {
            let close = v1::BackfillClose {
                partition_id: partition.0,
                backfill_id: self.backfill.0,
            };
            match self.links.call(node, Kind::Close(close)).await? {
                Ok(_) => {
                    self.closed.insert((partition, node));
                }
                Err(refusal) if refusal.contains(PENDING) => {
                    tracing::debug!(%node, %partition, refusal, "backfill not closed yet");
                    is_closed = false;
                }
                // As of one that was attached anew since it was swept.
                Err(refusal) => bail!("{node} does not close {partition}: {refusal}"),
            }
        }
        Ok(is_closed)
    }

    fn open_replicas(&self) -> Vec<(PartitionId, NodeId)> {
        let all = self.targets.iter();
        let all = all.flat_map(|t| t.replicas.iter().map(move |node| (t.id, *node)));
        all.filter(|replica| !self.closed.contains(replica))
            .collect()
    }
}
