//! How far the cluster must have come before it answers.

use crate::settings::{self, ReadConsistency};
use pgrx::pg_sys;
use std::cell::Cell;

thread_local! {
    static LAST_COMMIT: Cell<u64> = const { Cell::new(0) };
}

/// The WAL position that an answer must include; 0 for any. It is on disk when
/// this returns: the cluster only ever sees flushed WAL.
///
/// # Safety
/// In a backend, not in recovery.
pub unsafe fn min_lsn() -> u64 {
    let target = match settings::read_consistency() {
        ReadConsistency::Eventual => 0,
        // A parallel worker does not know what its leader committed.
        ReadConsistency::Session if pg_sys::ParallelWorkerNumber >= 0 => end_of_wal(),
        ReadConsistency::Session => last_commit(),
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

unsafe fn last_commit() -> u64 {
    let last = LAST_COMMIT.get().max(pg_sys::XactLastCommitEnd);
    LAST_COMMIT.set(last);
    last
}

/// The end of the last inserted record. The *end* pointer: just behind a full
/// page, the insert pointer stands after the next page's header, which is not
/// written yet and cannot be flushed.
unsafe fn end_of_wal() -> u64 {
    pg_sys::GetXLogInsertEndRecPtr()
}
