//! What the writer of a learning replica does: logs the stream, takes a peer's
//! records, applies the log over them in bounded steps, and becomes a replica
//! like others with one atomic write. `cluster_core::learner` decides.
//!
//! Between two steps the index holds exactly the rows of the disk, so that a
//! restart at any point finds what it left. The replica answers nothing of it.

use super::index_state::{Now, Publish};
use super::job::{CopyStep, Gap, Job, OnHole, StreamGaps};
use super::learning::Learning;
use super::reconcile;
use super::stage::Stage;
use super::writer::{Fatal, Writer};
use crate::storage::{CopiedRecord, StoredLog, WriteSet};
use cluster_core::apply::{Admission, StoredVector};
use cluster_core::learner::{Attached, CopyKey, CopyRun, Learner, Phase};
use cluster_core::memory::MemoryPressure;
use cluster_core::wal_position::WalPosition;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Answer = Result<Result<(), String>, Fatal>;

/// The consumer sends everything above `from` from here on. A replica that may
/// not begin anew, for a slot may count on it, answers a hole with GAP.
pub(super) fn attach(
    writer: &mut Writer,
    from: WalPosition,
    gaps: &Arc<StreamGaps>,
    on_hole: OnHole,
) -> Result<(), Fatal> {
    let replica = writer.replica.clone();
    let partition = replica.id.partition;
    if replica.is_quarantined() {
        gaps.refuse_attach(Gap {
            partition,
            watermark: WalPosition::ZERO,
            previous: from,
        });
        return Ok(());
    }
    let _commit = replica.commit_lock.lock();
    let applied = replica.progress.applied();
    let (mut learner, note) = match replica.learning() {
        Some(learning) => (learning.learner, learning.note),
        None if from <= applied => {
            gaps.attach(partition);
            return Ok(());
        }
        None if on_hole == OnHole::Refuse => {
            gaps.refuse_attach(Gap {
                partition,
                watermark: applied,
                previous: from,
            });
            return Ok(());
        }
        None if on_hole == OnHole::Distrust => {
            reconcile::attach(writer, from)?;
            gaps.attach(partition);
            return Ok(());
        }
        None => (Learner::default(), None),
    };
    if learner.attach(from) == Attached::BeginsAnew {
        begin_anew(writer, learner, note)?;
        tracing::info!(%partition, %from, "learner attached: logging, and copying from a peer");
    } else {
        tracing::info!(%partition, %from, logged = %learner.log_end(), "learner attached again: it goes on");
    }
    gaps.attach(partition);
    Ok(())
}

/// Throws everything away, durably, and starts as `learner` says. The caller
/// holds the commit lock.
fn begin_anew(writer: &mut Writer, learner: Learner, note: Option<String>) -> Result<(), Fatal> {
    let replica = writer.replica.clone();
    let partition = replica.id.partition;
    // Nothing is answered or promised while the rows go.
    replica.set_learning(Some(Learning::default()));
    let learning = Learning::new(learner, note);
    let meta = writer.meta.emptied();
    let mut set = WriteSet::default();
    set.drop_partition(partition);
    set.put_meta(partition, &meta);
    set.put_watermark(partition, WalPosition::ZERO);
    set.put_learner(partition, &learning.record());
    set.put_log_end(partition, learning.learner.log_end());
    writer.context.storage.commit(set)?;
    writer.meta = meta;
    writer.replayed = WalPosition::ZERO;
    writer.publish(vec![Publish::Reset(Vec::new())])?;
    replica.set_learning(Some(learning));
    Ok(())
}

/// Logs the batches that wait, with one commit. False: it does not learn.
pub(super) fn log(writer: &mut Writer, group: &[Job]) -> Result<bool, Fatal> {
    let replica = writer.replica.clone();
    let partition = replica.id.partition;
    let _commit = replica.commit_lock.lock();
    let Some(mut learning) = replica.learning() else {
        return Ok(false);
    };
    let (mut set, mut added) = (WriteSet::default(), StoredLog::default());
    let bytes_max = writer.context.config.learner_log_bytes_max;
    let mut overflow = None;
    for job in group {
        match job {
            Job::Apply { batch, gaps, .. } if !gaps.has(partition) => {
                let learner = &mut learning.learner;
                let end = learner.log_end();
                let mut admission = learner.admit(batch.previous, batch.to);
                if admission == Admission::Apply {
                    let above = batch.changes.partition_point(|c| c.position <= end);
                    let changes = &batch.changes[above..];
                    if !changes.is_empty() {
                        added.entries += 1;
                        added.bytes += set.append_log(partition, batch.to, changes);
                    }
                    learner.log_to(batch.to);
                    let bytes = learning.log.bytes + added.bytes;
                    if bytes > bytes_max {
                        learner.give_up();
                        overflow = Some(bytes);
                        admission = Admission::Gap;
                    }
                }
                if admission == Admission::Gap {
                    writer.context.metrics.apply_gaps.inc();
                    gaps.add(Gap {
                        partition,
                        watermark: learner.log_end(),
                        previous: batch.previous,
                    });
                }
            }
            Job::NothingElse { to, gaps, .. }
                if !gaps.has(partition) && gaps.is_attached(partition) =>
            {
                learning.learner.log_to(*to);
            }
            _ => {}
        }
    }
    if let Some(bytes) = overflow {
        let note = format!(
            "the learner began anew: its log reached {bytes} bytes before the copy was whole, \
             over learner_log_bytes_max = {bytes_max}; copy faster, or allow a longer log"
        );
        tracing::warn!(%partition, "{note}");
        begin_anew(writer, learning.learner, Some(note))?;
        return Ok(true);
    }
    if added.entries > 0 {
        let end = learning.learner.log_end();
        set.put_log_end(partition, end);
        writer.context.storage.commit(set)?;
        learning.learner.durable_to(end);
        learning.log.entries += added.entries;
        learning.log.bytes += added.bytes;
    }
    replica.set_learning(Some(learning));
    Ok(true)
}

/// One step of a copy. What a copy of an earlier beginning brings is refused.
pub(super) fn copy(writer: &mut Writer, run: CopyRun, step: CopyStep) -> Answer {
    let replica = writer.replica.clone();
    let _commit = replica.commit_lock.lock();
    let learning = replica.learning();
    let Some(learning) = learning.filter(|learning| learning.learner.run() == run) else {
        return Ok(Err(format!("{run} was superseded")));
    };
    match step {
        CopyStep::Begin {
            watermark,
            meta,
            rows_total,
        } => begin(writer, learning, watermark, &meta, rows_total),
        CopyStep::Records {
            records,
            first,
            last,
            high,
            bytes,
        } => take_records(writer, learning, records, (first, last), high, bytes),
        CopyStep::End => end(writer, learning),
        CopyStep::OnceMore => {
            let mut learning = learning;
            learning.learner.copy_once_more();
            (learning.rows_copied, learning.bytes_copied) = (0, 0);
            remember(writer, learning)
        }
    }
}

/// Keeps what is said of the copy, durably.
fn remember(writer: &mut Writer, learning: Learning) -> Answer {
    let mut set = WriteSet::default();
    set.put_learner(writer.replica.id.partition, &learning.record());
    writer.context.storage.commit(set)?;
    writer.replica.set_learning(Some(learning));
    Ok(Ok(()))
}

fn begin(
    writer: &mut Writer,
    mut learning: Learning,
    watermark: WalPosition,
    peer: &crate::storage::PartitionMeta,
    rows_total: u64,
) -> Answer {
    let own = &writer.meta;
    let describe = |m: &crate::storage::PartitionMeta| {
        (
            m.source,
            m.collection,
            m.metric,
            m.dimensions,
            m.m,
            m.ef_construction,
        )
    };
    if describe(own) != describe(peer) {
        return Ok(Err("the peer's replica is of another collection".to_owned()));
    }
    if peer.open_backfill.is_some() {
        return Ok(Err(
            "the peer's backfill is open: it cannot be copied now".to_owned()
        ));
    }
    if let Err(refused) = learning.learner.take_header(watermark) {
        return Ok(Err(refused.to_string()));
    }
    learning.rows_total = rows_total;
    learning.copying_since.get_or_insert_with(Instant::now);
    let mut meta = own.clone();
    meta.truncated = meta.truncated.max(peer.truncated);
    meta.stamp_high = meta.stamp_high.max(peer.stamp_high);
    meta.last_backfill = meta.last_backfill.max(peer.last_backfill);
    let partition = writer.replica.id.partition;
    let mut set = WriteSet::default();
    set.put_meta(partition, &meta);
    set.put_learner(partition, &learning.record());
    writer.context.storage.commit_lazily(set)?;
    writer.meta = meta;
    writer.replica.set_learning(Some(learning));
    Ok(Ok(()))
}

/// A crash may undo the last parts, with what is said of them: writes come back
/// in their order or not at all. The copy's end is synced.
fn take_records(
    writer: &mut Writer,
    mut learning: Learning,
    records: Vec<CopiedRecord>,
    (first, last): (CopyKey, CopyKey),
    high: WalPosition,
    bytes: u64,
) -> Answer {
    if let Err(refused) = learning.learner.take_records(&first, last, high) {
        return Ok(Err(refused.to_string()));
    }
    let is_row = |record: &&CopiedRecord| matches!(record, CopiedRecord::Row(..));
    let rows = records.iter().filter(is_row).count() as u64;
    learning.rows_copied += rows;
    learning.bytes_copied += bytes;
    let partition = writer.replica.id.partition;
    let mut set = WriteSet::default();
    for record in &records {
        set.put_copied(partition, record);
    }
    set.put_learner(partition, &learning.record());
    writer.context.storage.commit_lazily(set)?;
    writer.publish(records.into_iter().filter_map(shown).collect())?;
    writer.context.metrics.copy_rows.inc_by(rows);
    writer.context.metrics.copy_bytes.inc_by(bytes);
    writer.replica.set_learning(Some(learning));
    Ok(Ok(()))
}

/// How a copied record enters the index.
fn shown(record: CopiedRecord) -> Option<Publish> {
    match record {
        CopiedRecord::Row(key, row) => Some(Publish::Set {
            key,
            now: match row.vector {
                StoredVector::Value(vector) => Now::Value(vector),
                StoredVector::Pending => Now::Pending,
            },
            ended: None,
        }),
        CopiedRecord::Former(key, former) => Some(Publish::Former {
            key,
            ended: former.ended,
            ended_xid: former.ended_xid,
            vector: former.vector,
        }),
        CopiedRecord::Tombstone(..) => None,
    }
}

fn end(writer: &mut Writer, mut learning: Learning) -> Answer {
    if let Err(refused) = learning.learner.take_end() {
        return Ok(Err(refused.to_string()));
    }
    let partition = writer.replica.id.partition;
    let (rows, log_bytes) = (learning.rows_copied, learning.log.bytes);
    let high = learning.learner.copied().high;
    tracing::info!(%partition, rows, log_bytes, %high, "learner has copied its peer: applying the log");
    remember(writer, learning)
}

/// What a call of [`replay`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replayed {
    /// There may be more to do at once.
    Some,
    /// Nothing, until more arrives.
    Nothing,
    /// The tail is full: folding comes first.
    Waits,
}

pub(super) fn is_replaying(writer: &Writer) -> bool {
    let phase = writer.replica.learner_phase();
    phase == Some(Phase::Replaying) && !writer.replica.is_quarantined()
}

/// Whether a learner that has caught up had better fold first: a search scans the
/// whole tail, and it would be asked at once. Rows that come faster than they are
/// folded must not keep it from serving for ever.
fn must_fold(writer: &Writer, learning: &mut Learning) -> bool {
    let config = &writer.context.config;
    let tail = writer.replica.live().index().tail_len();
    let since = *learning.caught_up_since.get_or_insert_with(Instant::now);
    tail > config.learner_tail_rows_max
        && since.elapsed() < Duration::from_millis(config.learner_fold_ms_max)
}

/// Applies a bounded piece of the log over the copy; behind the last piece the
/// replica is live.
pub(super) fn replay(writer: &mut Writer) -> Result<Replayed, Fatal> {
    if writer.must_wait_for_folding() || writer.out_of_memory(MemoryPressure::Full).is_some() {
        return Ok(Replayed::Waits);
    }
    let replica = writer.replica.clone();
    let partition = replica.id.partition;
    let storage = writer.context.storage.clone();
    // More than one commit of the stream logs, so that replay catches up with it.
    let changes_max = writer.context.config.commit_changes_max.saturating_mul(2);
    let _commit = replica.commit_lock.lock();
    let Some(mut learning) = replica.learning() else {
        return Ok(Replayed::Nothing);
    };
    let entries = match learning.log.entries {
        0 => Vec::new(),
        _ => storage.log_behind(partition, writer.replayed, changes_max)?,
    };
    let is_applied = entries.len() as u64 == learning.log.entries;
    let last = entries.last().map(|entry| entry.to);
    let mut live_at = learning.learner.goes_live(is_applied);
    if live_at.is_some() && must_fold(writer, &mut learning) {
        live_at = None;
        if last.is_none() {
            replica.set_learning(Some(learning));
            return Ok(Replayed::Waits);
        }
    }
    if last.is_none() && live_at.is_none() {
        assert!(is_applied, "{:?} of a log are missing", learning.log);
        return Ok(Replayed::Nothing);
    }
    let mut stage = Stage::new(&storage, partition, &writer.meta);
    let (mut rows, batches) = (0, entries.len() as u64);
    for entry in entries {
        learning.log.entries -= 1;
        learning.log.bytes = learning.log.bytes.saturating_sub(entry.bytes);
        for change in entry.changes {
            stage.change(change)?;
            rows += 1;
        }
    }
    let mut staged = stage.finish(writer.taking.noted_since);
    if let Some(last) = last {
        staged.set.delete_log_through(partition, last);
    }
    if let Some(live_at) = live_at {
        staged.set.put_watermark(partition, live_at);
        staged.set.end_learning(partition);
    }
    writer.commit(staged)?;
    writer.replayed = last.unwrap_or(writer.replayed);
    writer.context.metrics.apply_batches.inc_by(batches);
    writer.context.metrics.apply_rows.inc_by(rows);
    match live_at {
        Some(at) => {
            replica.go_live(at);
            tracing::info!(%partition, rows = replica.rows(), watermark = %at, "learner is live");
        }
        None => replica.set_learning(Some(learning)),
    }
    Ok(Replayed::Some)
}
