//! How far the cluster must have come before it answers.

use super::session_token;
use crate::settings::{self, ReadConsistency};
use crate::worker;
use cluster_core::wal_position::Lsn;
use pgrx::pg_sys;
use std::cell::Cell;

thread_local! {
    static LAST_COMMIT: Cell<u64> = const { Cell::new(0) };
}

/// The WAL position that an answer must include; 0 for any. The cluster only ever
/// sees flushed WAL, and only whole records: when this returns, the record that
/// the position stands in or behind is on disk. `is_stale`: of some partition no replica
/// has everything.
///
/// # Safety
/// In a backend, not in recovery.
pub unsafe fn min_lsn(is_stale: bool) -> u64 {
    let target = match settings::read_consistency() {
        ReadConsistency::Eventual => return 0,
        ReadConsistency::Bounded => return bounded(),
        // A parallel worker does not know what its leader committed.
        ReadConsistency::Session if pg_sys::ParallelWorkerNumber >= 0 => {
            end_of_wal().max(session_token::position())
        }
        // A session that has written nothing takes no old rows for present ones either.
        ReadConsistency::Session if is_stale => end_of_wal(),
        ReadConsistency::Session => last_commit().max(session_token::position()),
        ReadConsistency::Strong => end_of_wal(),
    };
    if target > 0 {
        pg_sys::XLogFlush(target);
    }
    target
}

/// # Safety
/// In a backend, not in recovery.
pub unsafe fn flushed_end_of_wal() -> u64 {
    let end = end_of_wal();
    pg_sys::XLogFlush(end);
    end
}

/// What was on disk `max_lag_ms` ago, by the worker's samples; what is there now,
/// if it has taken none since.
unsafe fn bounded() -> u64 {
    let bound = worker::boot_micros().before(settings::max_lag_ms());
    let sampled = worker::samples().and_then(|samples| samples.position_at(bound));
    let target = sampled.map_or_else(|| flushed().0, |lsn| lsn.0);
    // Background flushes end with a page, mostly inside a record, whose rest may
    // stay in memory for as long as nobody commits.
    if target.is_multiple_of(u64::from(pg_sys::XLOG_BLCKSZ)) {
        flushed_end_of_wal();
    }
    target
}

/// How far the log is on disk.
///
/// # Safety
/// On the main thread of a process of the server, not in recovery.
pub unsafe fn flushed() -> Lsn {
    Lsn(pg_sys::GetFlushRecPtr(std::ptr::null_mut()))
}

unsafe fn last_commit() -> u64 {
    let last = LAST_COMMIT.get().max(pg_sys::XactLastCommitEnd);
    LAST_COMMIT.set(last);
    last
}

/// The end of the last inserted record.
///
/// The *end* pointer: just behind a full
/// page, the insert pointer stands after the next page's header, which is not
/// written yet and cannot be flushed.
pub unsafe fn end_of_wal() -> u64 {
    pg_sys::GetXLogInsertEndRecPtr()
}
