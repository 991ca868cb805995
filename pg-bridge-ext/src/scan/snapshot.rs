//! Whether the cluster can answer for a snapshot.

use cluster_core::collection::BackfillSnapshot;
use cluster_core::xid::widen;
use pgrx::pg_sys;

/// Whether the snapshot is one that rows are visible by in the ordinary way.
///
/// # Safety
/// The pointer is a snapshot.
pub unsafe fn is_mvcc(snapshot: pg_sys::Snapshot) -> bool {
    !snapshot.is_null() && (*snapshot).snapshot_type == pg_sys::SnapshotType::SNAPSHOT_MVCC
}

/// The snapshot's xmin in 64 bits, if everything that it sees is in the
/// collection or its former versions.
///
/// # Safety
/// The pointer is an MVCC snapshot of this server.
pub unsafe fn covered(snapshot: pg_sys::Snapshot, backfill: &BackfillSnapshot) -> Option<u64> {
    // One of recovery lists what runs elsewhere, and may outlive a promotion.
    if (*snapshot).takenDuringRecovery {
        return None;
    }
    let next = pg_sys::ReadNextFullTransactionId().value;
    let wide = |xid: pg_sys::TransactionId| widen(xid.into_inner(), next);
    // Top-level transactions only: the backfill's snapshot lists no others, and
    // a subtransaction's fate is its parent's.
    let count = (*snapshot).xcnt as usize;
    let running: &[pg_sys::TransactionId] = if count == 0 {
        &[]
    } else {
        std::slice::from_raw_parts((*snapshot).xip, count)
    };
    backfill
        .covers(wide((*snapshot).xmax), running.iter().map(|&xid| wide(xid)))
        .then(|| wide((*snapshot).xmin))
}
