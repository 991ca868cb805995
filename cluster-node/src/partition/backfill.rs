//! Backfill on one replica: opened durably before its snapshot exists, merged
//! chunk by chunk, closed when no column is pending. A newer backfill voids an
//! older one; what a repeated request asks for has already been done.
//!
//! The mark of what was copied outlives the backfill that wrote it, and a newer
//! one is told: rows and stream are what they were, whoever copied them.
//!
//! The inner error of each function says why a request is refused.

use super::stage::Stage;
use super::writer::{Fatal, Writer};
use crate::storage::{OpenBackfill, WriteSet};
use cluster_core::backfill::BackfillMark;
use cluster_core::change::BackfillRow;
use cluster_core::ids::BackfillId;
use cluster_core::reconcile::{SeenPublished, admits_chunk, mark_that_holds, trust_at_opening};
use cluster_core::wal_position::WalPosition;

pub(super) type Answer = Result<Result<Option<BackfillMark>, String>, Fatal>;

/// What a chunk brings. Ends it a range, then with a mark.
pub(super) struct Rows {
    pub rows: Vec<BackfillRow>,
    pub stamp: WalPosition,
    pub mark: Option<BackfillMark>,
}

fn refuse(why: String) -> Answer {
    Ok(Err(why))
}

/// `since`: the first backfill of the reconcile that it belongs to.
pub(super) fn open(
    writer: &mut Writer,
    backfill: BackfillId,
    since: Option<BackfillId>,
    published: Option<SeenPublished>,
) -> Answer {
    let last = writer.meta.last_backfill;
    if backfill < last {
        return refuse(format!("backfill {backfill} is older than {last}"));
    }
    if backfill == last {
        return match writer.meta.open_backfill {
            Some(_) => Ok(Ok(writer.meta.backfill_mark)),
            None => refuse(format!("backfill {backfill} is closed")),
        };
    }
    let mut meta = writer.meta.clone();
    meta.last_backfill = backfill;
    meta.open_backfill = Some(OpenBackfill { last_chunk: 0 });
    let applied = writer.replica.progress.applied();
    let (mark, from) = trust_at_opening(meta.backfill_mark, meta.trusted_from, published, applied);
    meta.backfill_mark = mark_that_holds(mark, last, since);
    meta.trusted_from = from;
    let mut set = WriteSet::default();
    set.put_meta(writer.replica.id.partition, &meta);
    writer.replica.set_trusted_from(meta.trusted_from);
    writer.context.storage.commit(set)?;
    writer.meta = meta;
    Ok(Ok(writer.meta.backfill_mark))
}

pub(super) fn chunk(
    writer: &mut Writer,
    backfill: BackfillId,
    chunk: u64,
    Rows { rows, stamp, mark }: Rows,
) -> Answer {
    let last = writer.meta.last_backfill;
    let open = match writer.meta.open_backfill {
        Some(open) if backfill == last => open,
        _ => {
            return refuse(format!(
                "backfill {backfill} is not open; the newest is {last}"
            ));
        }
    };
    if chunk <= open.last_chunk {
        return Ok(Ok(None));
    }
    if chunk != open.last_chunk + 1 {
        let last_chunk = open.last_chunk;
        return refuse(format!("chunk {chunk} does not follow {last_chunk}"));
    }
    if !admits_chunk(stamp, mark.as_ref(), writer.meta.trusted_from) {
        return refuse(format!(
            "the copy up to {stamp} began before what the replica trusts its rows from"
        ));
    }
    let mut meta = writer.meta.clone();
    meta.open_backfill = Some(OpenBackfill { last_chunk: chunk });
    meta.stamp_high = meta.stamp_high.max(stamp);
    meta.backfill_mark = mark.or(meta.backfill_mark);
    let merged = rows.len() as u64;
    let replica = writer.replica.clone();
    let storage = writer.context.storage.clone();
    let _commit = replica.commit_lock.lock();
    let mut stage = Stage::new(&storage, replica.id.partition, &writer.meta);
    stage.chunk(rows, stamp, meta)?;
    writer.commit(stage.finish(writer.taking.noted_since))?;
    writer.context.metrics.backfill_rows.inc_by(merged);
    Ok(Ok(None))
}

pub(super) fn close(writer: &mut Writer, backfill: BackfillId) -> Answer {
    let last = writer.meta.last_backfill;
    if backfill != last {
        return refuse(format!("backfill {backfill} is not the newest, {last}"));
    }
    if writer.meta.open_backfill.is_none() {
        return Ok(Ok(None));
    }
    let pending = writer.replica.pending_rows();
    if pending > 0 {
        return refuse(format!("PENDING {pending}"));
    }
    if writer.meta.trusted_from.is_some() && writer.swept != Some(backfill) {
        return refuse("the replica has not been swept".to_owned());
    }
    let mut meta = writer.meta.clone();
    meta.open_backfill = None;
    meta.trusted_from = None;
    let mut set = WriteSet::default();
    set.put_meta(writer.replica.id.partition, &meta);
    set.clear_tombstones(writer.replica.id.partition);
    writer.context.storage.commit(set)?;
    writer.meta = meta;
    writer.replica.set_trusted_from(None);
    Ok(Ok(None))
}
