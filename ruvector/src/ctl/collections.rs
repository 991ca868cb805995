//! `ctl collections`: what is searchable, and what is not yet and why.

use super::progress::{backfill_text, waits_for};
use super::table::{Align, Table, count};
use super::{Ctl, Observed, Report};
use crate::failure::Failure;
use cluster_core::collection::{Collection, CollectionState};
use serde::Serialize;

#[derive(Serialize)]
#[serde(transparent)]
pub struct Collections(Vec<CollectionLine>);

#[derive(Serialize)]
struct CollectionLine {
    id: u64,
    source: String,
    table: String,
    column: String,
    index: String,
    index_oid: u32,
    metric: String,
    dimensions: u32,
    state: &'static str,
    /// Unknown while a partition has not been reported.
    rows: Option<u64>,
    /// Not yet in the graph, scanned exactly.
    tail_rows: Option<u64>,
    former_versions: Option<u64>,
    memory_bytes: Option<u64>,
    partitions: usize,
    replicas: usize,
    rows_copied: Option<u64>,
    rows_estimated: Option<u64>,
    /// Of the table's heap; ranges end at a block.
    blocks_copied: Option<u64>,
    blocks_total: Option<u64>,
    backfill_snapshots: Option<u64>,
    /// For what its backfill's next snapshot waits; absent: for nothing.
    waits_for: Option<String>,
    reason: String,
    #[serde(skip)]
    backfill: Option<String>,
}

pub async fn collections(ctl: &Ctl) -> Result<Collections, Failure> {
    let seen = ctl.leader_status().await?;
    Ok(Collections(
        seen.map
            .collections
            .values()
            .map(|c| CollectionLine::of(&seen, c))
            .collect(),
    ))
}

impl CollectionLine {
    fn of(seen: &Observed, collection: &Collection) -> Self {
        let spec = &collection.spec;
        let partitions = seen.map.partitions_of(collection.id);
        let reports: Option<Vec<_>> = partitions
            .iter()
            .map(|p| seen.partition_report(p))
            .collect();
        let sum = |part: fn(&proto::v1::PartitionReport) -> u64| {
            reports
                .as_ref()
                .map(|reports| reports.iter().map(|report| part(report)).sum())
        };
        let source = seen.map.sources.get(&spec.source);
        let backfill = match collection.wants_backfill() {
            true => seen.backfill(collection.id),
            false => None,
        };
        Self {
            id: collection.id.0,
            source: source.map_or_else(|| spec.source.to_string(), |source| source.name.clone()),
            table: format!("{}.{}", spec.schema_name, spec.table_name),
            column: spec.column_name.clone(),
            index: spec.index_name.clone(),
            index_oid: spec.index_oid,
            metric: spec.metric.to_string(),
            dimensions: spec.dimensions,
            state: collection.state.name(),
            rows: sum(|report| report.rows),
            tail_rows: sum(|report| report.tail_rows),
            former_versions: sum(|report| report.former_versions),
            memory_bytes: sum(|report| report.memory_bytes),
            partitions: partitions.len(),
            replicas: partitions
                .iter()
                .map(|partition| partition.replicas.len())
                .min()
                .unwrap_or(0),
            rows_copied: backfill.map(|backfill| backfill.rows_copied),
            rows_estimated: backfill.map(|backfill| backfill.rows_estimated),
            blocks_copied: backfill.map(|backfill| backfill.blocks_copied),
            blocks_total: backfill.map(|backfill| backfill.blocks_total),
            backfill_snapshots: backfill.map(|backfill| backfill.snapshots),
            waits_for: backfill.and_then(waits_for),
            backfill: backfill.map(backfill_text),
            reason: match &collection.state {
                CollectionState::Failed { reason } => reason.clone(),
                _ if collection.reconcile.is_some() => {
                    let reconcile = collection.reconcile.as_ref();
                    reconcile.map(|r| r.reason.clone()).unwrap_or_default()
                }
                _ => source
                    .map(|source| source.problem.clone())
                    .unwrap_or_default(),
            },
        }
    }

    fn remark(&self) -> String {
        match &self.backfill {
            Some(backfill) if self.reason.is_empty() => backfill.clone(),
            Some(backfill) => format!("{backfill}: {}", self.reason),
            None => self.reason.clone(),
        }
    }
}

impl Report for Collections {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            ("id", Align::Right),
            ("source", Align::Left),
            ("table.column", Align::Left),
            ("metric", Align::Left),
            ("dims", Align::Right),
            ("state", Align::Left),
            ("rows", Align::Right),
            ("tail", Align::Right),
            ("parts", Align::Right),
            ("reason", Align::Left),
        ]);
        let known = |number: Option<u64>| number.map_or("?".to_owned(), count);
        for line in &self.0 {
            table.row([
                line.id.to_string(),
                line.source.clone(),
                format!(
                    "{}.{}",
                    line.table.trim_start_matches("public."),
                    line.column
                ),
                line.metric.clone(),
                line.dimensions.to_string(),
                line.state.to_owned(),
                known(line.rows),
                known(line.tail_rows),
                format!("{}×{}", line.partitions, line.replicas),
                line.remark(),
            ]);
        }
        table.render("no collections: CREATE INDEX … USING ruhnsw makes one")
    }
}
