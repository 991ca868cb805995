//! One attempt at filling a collection.
//!
//! The order is what makes it right. The table is published before the slot
//! exists: a transaction that began unpublished has ended when the slot is
//! consistent, so the snapshot has it. The backfill is open on every replica,
//! durably, before the snapshot exists: none forgets a removal that the
//! snapshot could bring back. The stamp is the slot's consistent point. All
//! chunks are durable, and all that was streamed meanwhile is, before the first
//! partition closes: from then on no value is missing anywhere.

use super::Shared;
use super::copy::{CopyReader, Row};
use super::links::{Links, accepted};
use super::reread::{self, RereadError};
use super::table::{self, Table, TableError};
use crate::feed::progress::RunEnd;
use crate::replication::connection::Connection;
use crate::replication::slot::{self, Lifetime};
use crate::source::preflight::begin_at_snapshot;
use crate::source::{coordination, sql};
use crate::vector;
use anyhow::{Context, anyhow};
use cluster_core::change::BackfillRow;
use cluster_core::collection::{BackfillSnapshot, CollectionSpec};
use cluster_core::ids::{BackfillId, CollectionId, NodeId, PartitionId};
use cluster_core::map::{HashRange, ReplicaState};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use futures::StreamExt;
use proto::v1;
use proto::v1::backfill_request::Kind;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// Keys read again per question.
const PENDING_PAGE: u32 = 1_000;
const PENDING_POLL: Duration = Duration::from_millis(200);
const ROW_OVERHEAD_BYTES: usize = 32;

#[derive(Debug)]
pub enum Outcome {
    /// The collection cannot be kept.
    Failed(String),
    Retry(anyhow::Error),
}

impl From<anyhow::Error> for Outcome {
    fn from(error: anyhow::Error) -> Self {
        Outcome::Retry(error)
    }
}

impl From<RunEnd> for Outcome {
    fn from(end: RunEnd) -> Self {
        Outcome::Retry(end.into())
    }
}

impl From<TableError> for Outcome {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Unusable(reason) => Outcome::Failed(reason),
            gone @ TableError::Gone(_) => Outcome::Retry(gone.into()),
            TableError::Retry(error) => Outcome::Retry(error),
        }
    }
}

impl From<RereadError> for Outcome {
    fn from(error: RereadError) -> Self {
        match error {
            RereadError::Unusable(reason) => Outcome::Failed(reason),
            RereadError::Retry(error) => Outcome::Retry(error),
        }
    }
}

/// One partition being filled.
struct Target {
    id: PartitionId,
    range: HashRange,
    replicas: Vec<NodeId>,
    /// Chunks are numbered from 1.
    chunks: u64,
    rows: Vec<v1::BackfillRow>,
    bytes: usize,
}

pub struct Attempt<'a> {
    shared: &'a Shared,
    id: CollectionId,
    spec: CollectionSpec,
    backfill: BackfillId,
    links: Links,
    targets: Vec<Target>,
    in_flight: Arc<Semaphore>,
    sending: JoinSet<anyhow::Result<()>>,
    closed: BTreeSet<(PartitionId, NodeId)>,
    rows_copied: u64,
}

/// A snapshot that a slot exported, and where it stands in the stream.
struct Snapshot {
    client: Client,
    stamp: WalPosition,
}

impl<'a> Attempt<'a> {
    pub async fn run(shared: &'a Shared, id: CollectionId) -> Result<(), Outcome> {
        let context = &shared.context;
        let backfill = coordination::begin_backfill(context, id).await?;
        let map = coordination::wait_for_map(context, |map| {
            map.collections
                .get(&id)
                .is_none_or(|c| c.last_backfill >= backfill)
        })
        .await?;
        let Some(collection) = map.collections.get(&id) else {
            return Ok(());
        };
        let spec = collection.spec.clone();
        let table = table::publish(shared, &spec).await?;
        let targets: Vec<Target> = map
            .partitions_of(id)
            .into_iter()
            .map(|p| Target {
                id: p.id,
                range: p.range,
                replicas: p.in_state(ReplicaState::Serving).map(|r| r.node).collect(),
                chunks: 0,
                rows: Vec::new(),
                bytes: 0,
            })
            .collect();
        let nodes: BTreeSet<NodeId> = targets.iter().flat_map(|t| t.replicas.clone()).collect();
        let answer_timeout = Duration::from_millis(context.config.node_stall_ms);
        let links = Links::open(&context.client, nodes, backfill, answer_timeout).await?;
        let in_flight = context
            .config
            .backfill_in_flight_bytes
            .clamp(1, u32::MAX as usize);
        let mut attempt = Attempt {
            shared,
            id,
            spec,
            backfill,
            links,
            targets,
            in_flight: Arc::new(Semaphore::new(in_flight)),
            sending: JoinSet::new(),
            closed: BTreeSet::new(),
            rows_copied: 0,
        };
        attempt.tell_standing(table.rows_estimated);
        attempt.open_everywhere().await?;
        let snapshot = attempt.take_snapshot().await?;
        let seen = read_snapshot(&snapshot.client).await?;
        attempt.copy(&table, &snapshot).await?;
        drop(snapshot);
        attempt.settle().await?;
        attempt.close_everywhere(&table).await?;
        coordination::finish_backfill(context, id, backfill, &seen).await?;
        Ok(())
    }

    fn tell_standing(&self, rows_estimated: u64) {
        let progress = (self.backfill.0, rows_estimated, self.rows_copied);
        self.shared.context.standing.update(|s| {
            s.backfills.insert(self.id, progress);
        });
    }

    async fn open_everywhere(&self) -> anyhow::Result<()> {
        for target in &self.targets {
            for node in &target.replicas {
                let open = v1::BackfillOpen {
                    consumer_epoch: self.shared.context.token.0,
                    source_id: self.spec.source.0,
                    partition_id: target.id.0,
                    backfill_id: self.backfill.0,
                };
                self.links.must(*node, Kind::Open(open)).await?;
            }
        }
        Ok(())
    }

    /// The slot goes as soon as a transaction holds its snapshot: neither WAL
    /// nor catalog rows are kept for the copy's sake.
    async fn take_snapshot(&self) -> anyhow::Result<Snapshot> {
        let lock_timeout = self.shared.context.config.slot_lock_timeout_ms;
        let options = format!("-c lock_timeout={lock_timeout}");
        let mut connection = Connection::connect(&self.shared.postgres, &options).await?;
        let name = format!("{}_b{}", self.shared.slot_name, self.id.0);
        let created = slot::create(&mut connection, &name, Lifetime::Temporary).await?;
        let client = sql::connect(&self.shared.postgres).await?;
        begin_at_snapshot(&client, &created.snapshot).await?;
        let stamp = self
            .shared
            .progress
            .following
            .end_of(created.consistent_point);
        Ok(Snapshot { client, stamp })
    }

    async fn copy(&mut self, table: &Table, snapshot: &Snapshot) -> Result<(), Outcome> {
        let columns: Vec<String> = table.keys.iter().map(table::KeyColumn::selected).collect();
        let copy = format!(
            "COPY (SELECT {}, {vector} FROM ONLY {} WHERE {vector} IS NOT NULL) TO STDOUT (FORMAT binary)",
            columns.join(", "),
            table.name,
            vector = table.vector
        );
        let stream = snapshot
            .client
            .copy_out(&copy)
            .await
            .context("starting COPY")?;
        let mut stream = pin!(stream);
        let mut reader = CopyReader::default();
        while let Some(bytes) = stream.next().await {
            reader.push(&bytes.context("COPY")?);
            while let Some(row) = reader.next_row()? {
                let row = self.read_row(row, table.keys.len())?;
                self.rows_copied += 1;
                self.push_row(row, snapshot.stamp).await?;
            }
            self.tell_standing(table.rows_estimated);
        }
        if !reader.has_ended() {
            return Err(anyhow!("COPY ended before its end").into());
        }
        for index in 0..self.targets.len() {
            self.send_chunk(index, snapshot.stamp).await?;
        }
        self.finish_sending().await?;
        self.tell_standing(table.rows_estimated);
        Ok(())
    }

    fn read_row(&self, row: Row, keys: usize) -> Result<BackfillRow, Outcome> {
        let bad = || anyhow!("a COPY row of another shape");
        let values: Option<Vec<_>> = row.into_iter().collect();
        let values = values.filter(|v| v.len() == keys + 1).ok_or_else(bad)?;
        let (vector, key) = values.split_last().ok_or_else(bad)?;
        let key = RowKey::from_columns(key.iter().map(|c| &c[..]))
            .map_err(|e| Outcome::Failed(e.to_string()))?;
        let vector = vector::decode(vector, self.spec.dimensions)
            .map_err(|e| Outcome::Failed(e.to_string()))?;
        Ok(BackfillRow { key, vector })
    }

    async fn push_row(&mut self, row: BackfillRow, stamp: WalPosition) -> anyhow::Result<()> {
        let hash = row.key.placement_hash();
        let index = self.targets.partition_point(|t| t.range.hi < hash);
        let target = self
            .targets
            .get_mut(index)
            .context("the partitions do not tile")?;
        target.bytes += ROW_OVERHEAD_BYTES + row.key.as_bytes().len() + row.vector.len() * 4;
        target.rows.push((&row).into());
        let config = &self.shared.context.config;
        if target.rows.len() >= config.backfill_chunk_rows
            || target.bytes >= config.backfill_chunk_bytes
        {
            self.send_chunk(index, stamp).await?;
        }
        Ok(())
    }

    /// Waits for room, not for the answer.
    async fn send_chunk(&mut self, index: usize, stamp: WalPosition) -> anyhow::Result<()> {
        while let Some(done) = self.sending.try_join_next() {
            done??;
        }
        let target = &mut self.targets[index];
        let rows = std::mem::take(&mut target.rows);
        let bytes = std::mem::take(&mut target.bytes);
        if rows.is_empty() {
            return Ok(());
        }
        target.chunks += 1;
        let chunk = v1::BackfillChunk {
            partition_id: target.id.0,
            backfill_id: self.backfill.0,
            chunk: target.chunks,
            stamp: Some(stamp.into()),
            rows,
        };
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
                accepted(node, answer?)
            });
        }
        Ok(())
    }

    async fn finish_sending(&mut self) -> anyhow::Result<()> {
        while let Some(done) = self.sending.join_next().await {
            done??;
        }
        Ok(())
    }

    /// Until everything streamed so far is durable on the collection's replicas.
    async fn settle(&self) -> Result<(), RunEnd> {
        let at = self.shared.barrier().await?;
        let partitions: Vec<PartitionId> = self.targets.iter().map(|t| t.id).collect();
        self.shared.progress.wait_durable(at, &partitions).await;
        Ok(())
    }

    async fn close_everywhere(&mut self, table: &Table) -> Result<(), Outcome> {
        loop {
            self.reread_pending(table).await?;
            let mut is_closed = true;
            for index in 0..self.targets.len() {
                let (id, replicas) = (self.targets[index].id, self.targets[index].replicas.clone());
                for node in replicas {
                    if self.closed.contains(&(id, node)) {
                        continue;
                    }
                    let close = v1::BackfillClose {
                        partition_id: id.0,
                        backfill_id: self.backfill.0,
                    };
                    match self.links.call(node, Kind::Close(close)).await? {
                        None => {
                            self.closed.insert((id, node));
                        }
                        Some(refusal) => {
                            tracing::debug!(%node, partition = %id, refusal, "backfill not closed yet");
                            is_closed = false;
                        }
                    }
                }
            }
            if is_closed {
                return Ok(());
            }
            tokio::time::sleep(PENDING_POLL).await;
            self.settle().await?;
        }
    }

    /// Rows whose value neither the stream nor the snapshot told: read again
    /// under a further slot's snapshot. One that is gone by then, or NULL, is
    /// settled by the stream itself.
    async fn reread_pending(&mut self, table: &Table) -> Result<(), Outcome> {
        let mut pending: BTreeSet<(usize, RowKey)> = BTreeSet::new();
        for (index, target) in self.targets.iter().enumerate() {
            for node in &target.replicas {
                if self.closed.contains(&(target.id, *node)) {
                    continue;
                }
                let request = v1::ListPendingRequest {
                    partition_id: target.id.0,
                    limit: PENDING_PAGE,
                };
                let mut client = self
                    .shared
                    .context
                    .client
                    .node(*node)
                    .map_err(anyhow::Error::new)?;
                let answer = client
                    .list_pending(request)
                    .await
                    .map_err(anyhow::Error::new)?;
                for key in answer.into_inner().keys {
                    let key = RowKey::from_bytes(key.to_vec()).map_err(anyhow::Error::new)?;
                    pending.insert((index, key));
                }
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        let snapshot = self.take_snapshot().await?;
        let keys: Vec<RowKey> = pending.into_iter().map(|(_, key)| key).collect();
        tracing::info!(collection = %self.id, rows = keys.len(), "reading pending rows again");
        let rows = reread::rows(&snapshot.client, table, self.spec.dimensions, &keys).await?;
        for row in rows {
            self.push_row(row, snapshot.stamp).await?;
        }
        for index in 0..self.targets.len() {
            self.send_chunk(index, snapshot.stamp).await?;
        }
        self.finish_sending().await?;
        Ok(())
    }
}

/// `pg_current_snapshot()` prints `xmin:xmax:running,…`.
async fn read_snapshot(client: &Client) -> anyhow::Result<BackfillSnapshot> {
    let row = client
        .query_one("SELECT pg_current_snapshot()::text", &[])
        .await?;
    parse_snapshot(row.try_get(0)?)
}

fn parse_snapshot(text: &str) -> anyhow::Result<BackfillSnapshot> {
    let mut parts = text.split(':').skip(1);
    let xmax = parts.next().context("a snapshot without xmax")?.parse()?;
    let running = parts
        .next()
        .context("a snapshot without its running transactions")?;
    let running = running.split(',').filter(|xid| !xid.is_empty());
    let mut running = running.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    running.sort_unstable();
    Ok(BackfillSnapshot { xmax, running })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_snapshots_text_is_read() {
        let snapshot = parse_snapshot("10:20:10,14,15").unwrap();
        assert_eq!((snapshot.xmax, snapshot.running), (20, vec![10, 14, 15]));
        assert_eq!(parse_snapshot("10:10:").unwrap().running, Vec::<u64>::new());
        assert!(parse_snapshot("10").is_err());
    }
}
