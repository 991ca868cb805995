//! Between the wire and the node's own types, beyond `proto::convert`.

use crate::config::SearchConfig;
use crate::partition::learning::LearnerProgress;
use crate::partition::replica::Replica;
use crate::query::digest::Digest;
use crate::query::search::{PARTITIONS_MAX, Page, PageError, PageOf, Search};
use crate::storage::RawRecord;
use cluster_core::change::{BackfillRow, Batch, Change, VectorColumn};
use cluster_core::ids::*;
use cluster_core::learner::CopyKey;
use cluster_core::wal_position::{Lsn, WalPosition};
use proto::convert::{BadMessage, required, vector_from_bytes};
use proto::v1;
use std::time::Duration;

pub fn search(wire: v1::SearchRequest, limits: &SearchConfig) -> Result<Search, BadMessage> {
    let min_lsn = match wire.consistency() {
        v1::Consistency::Eventual => None,
        v1::Consistency::Position => Some(Lsn(wire.min_lsn)),
        v1::Consistency::Unspecified => return Err(BadMessage::Unknown("consistency")),
    };
    if wire.partitions.is_empty() {
        return Err(BadMessage::Missing("partitions"));
    }
    if wire.partitions.len() > PARTITIONS_MAX {
        let count = wire.partitions.len().to_string();
        return Err(BadMessage::OutOfRange("count of partitions", count));
    }
    let page_of = |cursor: &v1::PartitionCursor| PageOf {
        partition: PartitionId(cursor.partition_id),
        generation: Generation(cursor.generation),
        token: cursor.resume_token,
    };
    Ok(Search {
        epoch: LeaseEpoch(wire.epoch),
        map_version: MapVersion(wire.map_version),
        source: SourceId(wire.source_id),
        asked_by: wire.asked_by.map(Into::into),
        incarnation: Incarnation(wire.incarnation),
        collection: CollectionId(wire.collection_id),
        vector: vector_from_bytes(&wire.query)?,
        ef: (wire.ef_search as usize).clamp(1, index_engine::params::EF_MAX),
        page_rows: (wire.page_rows as usize).clamp(1, limits.page_rows_max.max(1)),
        min_lsn,
        snapshot_xmin: wire.snapshot_xmin,
        deadline: Duration::from_millis(match wire.deadline_ms {
            0 => limits.deadline_ms_max,
            ms => ms,
        }),
        exact: wire.exact,
        accepts_stale: wire.accepts_stale,
        partitions: wire.partitions.iter().map(page_of).collect(),
    })
}

pub fn digest(wire: v1::DigestRequest) -> Result<Digest, BadMessage> {
    Ok(Digest {
        epoch: LeaseEpoch(wire.epoch),
        map_version: MapVersion(wire.map_version),
        source: SourceId(wire.source_id),
        asked_by: wire.asked_by.map(Into::into),
        collection: CollectionId(wire.collection_id),
        partition: PartitionId(wire.partition_id),
        generation: Generation(wire.generation),
        min_lsn: (wire.min_lsn > 0).then_some(Lsn(wire.min_lsn)),
        deadline: Duration::from_millis(wire.deadline_ms),
        wanted: required(wire.of, "what to digest")?.try_into()?,
    })
}

pub fn page(partition: PartitionId, page: Result<Page, PageError>) -> v1::PartitionPage {
    let partition_id = partition.0;
    match page {
        Ok(page) => v1::PartitionPage {
            partition_id,
            hits: page
                .hits
                .into_iter()
                .map(|(key, distance)| v1::Hit {
                    key: key.as_bytes().to_vec().into(),
                    distance,
                })
                .collect(),
            bound: page.bound,
            exhausted: page.exhausted,
            resume_token: page.token,
            applied: Some(page.applied.into()),
            tail_rows: page.tail_rows as u64,
            distances: page.distances as u64,
            error: None,
            is_stale: page.is_stale,
            waited_ms: page.waited_ms,
        },
        Err(error) => v1::PartitionPage {
            partition_id,
            error: Some(page_error(&error)),
            ..Default::default()
        },
    }
}

fn page_error(error: &PageError) -> v1::PartitionError {
    use v1::partition_error::Kind;
    let kind = match error {
        PageError::Stale(_) => Kind::Estale,
        PageError::Lagging(_) => Kind::Lagging,
        PageError::Unavailable(_) => Kind::Unavailable,
        PageError::CursorLost => Kind::CursorLost,
        PageError::Corrupt(_) => Kind::Corrupt,
    };
    v1::PartitionError {
        kind: kind.into(),
        message: error.to_string(),
    }
}

pub fn watermark(replica: &Replica) -> v1::PartitionWatermark {
    let standing = replica.standing();
    v1::PartitionWatermark {
        partition_id: replica.id.partition.0,
        generation: replica.id.generation.0,
        applied: Some(standing.watermarks.applied.into()),
        durable: Some(standing.watermarks.durable.into()),
        is_learning: standing.is_learning,
    }
}

impl From<LearnerProgress> for v1::LearnerProgress {
    fn from(progress: LearnerProgress) -> Self {
        Self {
            rows_copied: progress.rows_copied,
            rows_total: progress.rows_total,
            bytes_copied: progress.bytes_copied,
            copying_ms: progress.copying_ms,
            log_bytes: progress.log_bytes,
            is_copied: progress.is_copied,
            is_stuck: false,
        }
    }
}

/// The checksum of a part of a copy, over keys and values in order.
pub fn records_checksum(records: &[v1::CheckpointRecord]) -> u32 {
    records.iter().fold(0, |sum, record| {
        let sum = crc32c::crc32c_append(sum, &record.key);
        crc32c::crc32c_append(sum, &record.value)
    })
}

pub fn records_to_wire(records: Vec<RawRecord>, high: WalPosition) -> v1::CheckpointRecords {
    let records: Vec<_> = records
        .into_iter()
        .map(|raw| v1::CheckpointRecord {
            key: raw.key.0.into_vec().into(),
            value: raw.record.into_vec().into(),
        })
        .collect();
    v1::CheckpointRecords {
        checksum: records_checksum(&records),
        records,
        watermark: Some(high.into()),
    }
}

/// Checks a part whole before any record of it is believed.
pub fn records_from_wire(
    wire: v1::CheckpointRecords,
) -> Result<(Vec<RawRecord>, WalPosition), BadMessage> {
    let high = required(wire.watermark, "watermark of records")?.into();
    let sum = records_checksum(&wire.records);
    if sum != wire.checksum {
        let sums = format!("{sum:08x}, sent as {:08x}", wire.checksum);
        return Err(BadMessage::OutOfRange("checksum of records", sums));
    }
    let records = wire.records.iter().map(|record| RawRecord {
        key: CopyKey(record.key.to_vec().into()),
        record: record.value.to_vec().into(),
    });
    Ok((records.collect(), high))
}

/// Every vector of a batch must be one that the partition can hold.
pub fn check_batch(batch: &Batch, dimensions: usize) -> Result<(), String> {
    let vectors = batch
        .changes
        .iter()
        .filter_map(|change| match &change.change {
            Change::Upsert {
                vector: VectorColumn::Value(vector),
                ..
            } => Some(vector.len()),
            _ => None,
        });
    check_dimensions(batch.partition, vectors, dimensions)
}

pub fn check_rows(
    partition: PartitionId,
    rows: &[BackfillRow],
    dimensions: usize,
) -> Result<(), String> {
    check_dimensions(
        partition,
        rows.iter().map(|row| row.vector.len()),
        dimensions,
    )
}

fn check_dimensions(
    partition: PartitionId,
    mut vectors: impl Iterator<Item = usize>,
    dimensions: usize,
) -> Result<(), String> {
    match vectors.find(|len| *len != dimensions) {
        Some(len) => Err(format!(
            "{partition} expected {dimensions} dimensions, not {len}"
        )),
        None => Ok(()),
    }
}
