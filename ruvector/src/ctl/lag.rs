//! `ctl lag`: how far each source is followed, and what its WAL costs.

use super::progress::{backfill_text, waits_for};
use super::table::{Align, Table, bytes};
use super::{Ctl, Observed, Report, words};
use crate::failure::Failure;
use cluster_core::ids::CollectionId;
use cluster_core::map::{Partition, Source};
use cluster_core::wal_position::Lsn;
use proto::v1::SourceProgress;
use serde::Serialize;

#[derive(Serialize)]
#[serde(transparent)]
pub struct Lag(Vec<SourceLag>);

#[derive(Serialize)]
struct SourceLag {
    source_id: u64,
    name: String,
    /// Absent while no consumer reports.
    progress: Option<Progress>,
    problem: String,
    is_paused: bool,
    /// Partitions that the slot has passed on all their replicas.
    stale_partitions: usize,
    /// Replicas whose changes wait, and for what, in sentences.
    waits: Vec<String>,
    #[serde(skip)]
    remark: Option<String>,
}

#[derive(Serialize)]
struct Progress {
    server_flush_lsn: String,
    received_lsn: String,
    applied_lsn: String,
    confirmed_lsn: String,
    /// From the server's flushed position to what all replicas have applied.
    behind_bytes: u64,
    retained_wal_bytes: u64,
    /// In force for the source; absent: the slot waits for ever.
    slot_hold_limit_bytes: Option<u64>,
    /// Absent: nothing limits what the server keeps for the slot.
    safe_wal_bytes: Option<u64>,
    wal_status: String,
    slot_warnings: Vec<String>,
    backfills: Vec<Backfill>,
}

#[derive(Serialize)]
struct Backfill {
    collection_id: u64,
    index: String,
    rows_copied: u64,
    rows_estimated: u64,
    blocks_copied: u64,
    blocks_total: u64,
    snapshots: u64,
    /// For what its next snapshot waits; absent: for nothing.
    waits_for: Option<String>,
    #[serde(skip)]
    text: String,
}

pub async fn lag(ctl: &Ctl) -> Result<Lag, Failure> {
    let seen = ctl.leader_status().await?;
    Ok(Lag(seen
        .map
        .sources
        .values()
        .map(|source| SourceLag::of(&seen, source))
        .collect()))
}

impl SourceLag {
    fn of(seen: &Observed, source: &Source) -> Self {
        let map = &seen.map;
        let of_source = |p: &&Partition| {
            let collection = map.collections.get(&p.collection);
            collection.is_some_and(|c| c.spec.source == source.id)
        };
        let stale = map.partitions.values().filter(of_source);
        let stale: Vec<&Partition> = stale.filter(|p| p.needs_reconcile()).collect();
        Self {
            source_id: source.id.0,
            name: source.name.clone(),
            progress: seen
                .source_progress(source.id.0)
                .map(|progress| Progress::of(seen, progress)),
            problem: source.problem.clone(),
            is_paused: source.is_paused,
            stale_partitions: stale.len(),
            waits: seen.waits(|id| id == source.id),
            remark: words::needs_reconcile(stale),
        }
    }
}

impl Progress {
    fn of(seen: &Observed, progress: &SourceProgress) -> Self {
        let lsn = |number: u64| Lsn(number).to_string();
        let backfills = progress.backfills.iter().map(|backfill| {
            let collection = seen
                .map
                .collections
                .get(&CollectionId(backfill.collection_id));
            Backfill {
                collection_id: backfill.collection_id,
                index: collection
                    .map(|c| c.spec.index_name.clone())
                    .unwrap_or_default(),
                rows_copied: backfill.rows_copied,
                rows_estimated: backfill.rows_estimated,
                blocks_copied: backfill.blocks_copied,
                blocks_total: backfill.blocks_total,
                snapshots: backfill.snapshots,
                waits_for: waits_for(backfill),
                text: backfill_text(backfill),
            }
        });
        Self {
            server_flush_lsn: lsn(progress.server_flush_lsn),
            received_lsn: lsn(progress.received_lsn),
            applied_lsn: lsn(progress.applied_lsn),
            confirmed_lsn: lsn(progress.confirmed_lsn),
            behind_bytes: progress
                .server_flush_lsn
                .saturating_sub(progress.applied_lsn),
            retained_wal_bytes: progress.retained_wal_bytes,
            slot_hold_limit_bytes: Some(progress.slot_hold_limit_bytes).filter(|limit| *limit > 0),
            safe_wal_bytes: progress.safe_wal_bytes,
            wal_status: progress.wal_status.clone(),
            slot_warnings: progress.slot_warnings.clone(),
            backfills: backfills.collect(),
        }
    }
}

impl Report for Lag {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            ("source", Align::Left),
            ("server", Align::Left),
            ("received", Align::Left),
            ("applied", Align::Left),
            ("confirmed", Align::Left),
            ("behind", Align::Right),
            ("retained wal", Align::Right),
            ("limit", Align::Right),
            ("safe wal", Align::Right),
            ("wal status", Align::Left),
        ]);
        let mut notes = String::new();
        for source in &self.0 {
            if source.is_paused {
                let name = &source.name;
                notes += &format!(
                    "\n! {name}: paused, while its slot keeps WAL: ruvector ctl source resume {name}\n"
                );
            }
            if let Some(remark) = &source.remark {
                notes += &format!("\n! {}: {remark}\n", source.name);
            }
            for wait in &source.waits {
                notes += &format!("\n! {}: {wait}\n", source.name);
            }
            let Some(progress) = &source.progress else {
                table.row(
                    [
                        source.name.as_str(),
                        "-",
                        "-",
                        "-",
                        "-",
                        "?",
                        "?",
                        "?",
                        "?",
                        "not followed",
                    ]
                    .map(str::to_owned),
                );
                notes += &format!("\n! {}: no consumer reports on it\n", source.name);
                if !source.problem.is_empty() {
                    notes += &format!("\n! {}: {}\n", source.name, source.problem);
                }
                continue;
            };
            table.row([
                source.name.clone(),
                progress.server_flush_lsn.clone(),
                progress.received_lsn.clone(),
                progress.applied_lsn.clone(),
                progress.confirmed_lsn.clone(),
                bytes(progress.behind_bytes),
                bytes(progress.retained_wal_bytes),
                progress
                    .slot_hold_limit_bytes
                    .map_or("none".to_owned(), bytes),
                progress.safe_wal_bytes.map_or("any".to_owned(), bytes),
                progress.wal_status.clone(),
            ]);
            for warning in &progress.slot_warnings {
                notes += &format!("\n! {}: {warning}\n", source.name);
            }
            for backfill in &progress.backfills {
                notes += &format!(
                    "\n{}: backfill of {}: {}\n",
                    source.name, backfill.index, backfill.text
                );
            }
            if !source.problem.is_empty() {
                notes += &format!("\n! {}: {}\n", source.name, source.problem);
            }
        }
        table.render("no sources: ruvector ctl source add DSN") + &notes
    }
}
