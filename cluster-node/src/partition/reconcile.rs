//! What a reconcile is on one replica beyond the backfill that it is made of: a stale
//! replica's attachment, and the sweep. `cluster_core::reconcile` decides.

use super::backfill::Answer;
use super::index_state::{Now, Publish};
use super::job::Sweep;
use super::writer::{Fatal, Writer};
use crate::storage::WriteSet;
use cluster_core::reconcile::{admits_stamp, is_former_swept, is_swept};
use cluster_core::wal_position::WalPosition;

/// Rows that one piece of a sweep looks at, and former versions that it removes:
/// the stream waits for no more.
const SWEEP_MAX: usize = 10_000;

/// The stream carries everything above `from` from here on, and what came before has
/// a hole: what was copied of the table until now does not cover it. The caller holds
/// the commit lock.
pub(super) fn attach(writer: &mut Writer, from: WalPosition) -> Result<(), Fatal> {
    let replica = writer.replica.clone();
    let partition = replica.id.partition;
    let mut meta = writer.meta.clone();
    meta.trusted_from = Some(from);
    meta.backfill_mark = None;
    let mut set = WriteSet::default();
    set.put_meta(partition, &meta);
    set.put_watermark(partition, from);
    // First of all: once the watermark moves, nobody may take it for what it was.
    replica.set_trusted_from(Some(from));
    writer.context.storage.commit(set)?;
    writer.meta = meta;
    writer.swept = None;
    replica.progress.apply_to(from);
    replica.progress.durable_to(from);
    tracing::info!(%partition, %from, rows = replica.rows(), "stale replica attached: it is being reconciled");
    Ok(())
}

/// One piece; the last one notes that the backfill has swept. A crash in between is
/// followed by another backfill, and what it has removed stays removed.
pub(super) fn sweep(writer: &mut Writer, sweep: &mut Sweep) -> Answer {
    let last = writer.meta.last_backfill;
    if sweep.backfill != last || writer.meta.open_backfill.is_none() {
        return Ok(Err(format!(
            "backfill {} is not open; the newest is {last}",
            sweep.backfill
        )));
    }
    if !admits_stamp(sweep.below, writer.meta.trusted_from) {
        // Attached anew since: what was copied before has not seen what it lacks.
        let below = sweep.below;
        return Ok(Err(format!(
            "the replica trusts its rows only from above {below}, where the copy began"
        )));
    }
    if writer.swept == Some(sweep.backfill) {
        return Ok(Ok(None));
    }
    let replica = writer.replica.clone();
    let partition = replica.id.partition;
    let storage = writer.context.storage.clone();
    let _commit = replica.commit_lock.lock();
    let mut set = WriteSet::noting(writer.taking.noted_since);
    let mut publish = Vec::new();
    let mut looked_at = 0;
    let after = sweep.after.take();
    for entry in storage.rows_behind(partition, after.as_ref(), None) {
        let (key, row) = entry?;
        if is_swept(row.position, sweep.below) {
            set.delete_row(partition, &key);
            publish.push(Publish::Set {
                key: key.clone(),
                now: Now::Gone,
                ended: None,
            });
        }
        sweep.after = Some(key);
        looked_at += 1;
        if looked_at == SWEEP_MAX {
            break;
        }
    }
    // The rows are done once nothing lies behind: the key stays, for former versions
    // may take further pieces.
    sweep.after = sweep.after.take().or(after);
    sweep.removed += publish.len() as u64;
    let formers = writer.index.formers().iter();
    let formers = formers
        .map(|(key, ended, _, _)| (key, ended))
        .take_while(|(_, ended)| is_former_swept(*ended, sweep.below));
    let formers: Vec<_> = formers
        .take(SWEEP_MAX)
        .map(|(key, ended)| (key.clone(), ended))
        .collect();
    let is_last = looked_at < SWEEP_MAX && formers.len() < SWEEP_MAX;
    for (key, ended) in formers {
        set.delete_former(partition, &key, ended);
        publish.push(Publish::Forget { key, ended });
    }
    let rows = set.rows();
    if !set.is_empty() {
        storage.commit(set)?;
    }
    writer.note_changed(rows);
    writer.publish(publish)?;
    if is_last {
        writer.swept = Some(sweep.backfill);
        let (removed, below) = (sweep.removed, sweep.below);
        tracing::info!(%partition, removed, %below, "replica swept of what the table has not");
    }
    Ok(Ok(None))
}
