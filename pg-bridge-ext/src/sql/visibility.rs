//! What `ruvector_visibility_stats` and `ruvector_replication_status` are views of.

use super::records::{Rows, bigint};
use crate::error::{SqlError, SqlState, sql_functions};
use crate::scan::failure::failure_text;
use crate::scan::{freshness, session_token};
use crate::worker::{self, CollectionProgress, CollectionStanding, SourceProgress};
use cluster_core::freshness::samples::BootMicros;
use cluster_core::wal_position::Lsn;
use pgrx::{IntoDatum, pg_sys};

/// The role pg_read_all_stats (pg_authid.dat).
const READ_ALL_STATS: pg_sys::Oid = pg_sys::Oid::from_u32(3375);

sql_functions! {
    /// The token for what has been committed.
    pg_finfo_ruvector_session_token for ruvector_session_token(call) {
        if pg_sys::RecoveryInProgress() {
            SqlError::new(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                "a standby has no session token",
            )
            .detail("Nothing is committed here.")
            .hint("Take the token from the primary, after the commit.")
            .raise();
        }
        let text = session_token::of_now().to_string().into_datum();
        text.unwrap_or_else(|| call.null())
    }

    /// Rows of counter, label and value; none where the library is not preloaded.
    pg_finfo_ruvector_visibility_counters for ruvector_visibility_counters(call) {
        let mut rows = Rows::of(call);
        for (counter, label, value) in worker::visibility_stats().map_or_else(Vec::new, |s| s.list()) {
            rows.put([
                counter.to_owned().into_datum(),
                label.to_owned().into_datum(),
                Some(bigint(value)),
            ]);
        }
        pg_sys::Datum::from(0usize)
    }

    /// A row for each collection of the source that follows this database and whose
    /// table the role may read, or one without a collection; none where nothing
    /// follows it.
    pg_finfo_ruvector_replication_progress for ruvector_replication_progress(call) {
        let mut rows = Rows::of(call);
        if worker::is_preloaded() {
            replication_progress(&mut rows);
        }
        pg_sys::Datum::from(0usize)
    }
}

unsafe fn replication_progress(rows: &mut Rows) {
    let progress = match worker::source_progress(pg_sys::MyDatabaseId.to_u32()) {
        Ok(progress) => progress,
        Err(failure) => SqlError::new(
            SqlState::UNAVAILABLE,
            "the ruvector worker does not answer for the cluster",
        )
        .detail(failure_text(&failure))
        .hint("The server's log says why; pg_replication_slots shows the slot meanwhile.")
        .raise(),
    };
    let Some(progress) = progress else { return };
    let now = worker::boot_micros();
    if progress.collections.is_empty() {
        rows.put(row(&progress, None, now));
    }
    for collection in &progress.collections {
        if may_see(collection.index_oid.into()) {
            rows.put(row(&progress, Some(collection), now));
        }
    }
}

/// Whether the role may read the index's table, or all statistics.
unsafe fn may_see(index: pg_sys::Oid) -> bool {
    let role = pg_sys::GetUserId();
    if pg_sys::has_privs_of_role(role, READ_ALL_STATS) {
        return true;
    }
    let table = pg_sys::IndexGetRelation(index, true);
    table != pg_sys::InvalidOid
        && pg_sys::pg_class_aclcheck(table, role, pg_sys::ACL_SELECT)
            == pg_sys::AclResult::ACLCHECK_OK
}

fn row(
    source: &SourceProgress,
    collection: Option<&CollectionProgress>,
    now: BootMicros,
) -> [Option<pg_sys::Datum>; 15] {
    let text = |value: &str| value.to_owned().into_datum();
    let reported = source.reported;
    let positions = collection.and_then(|collection| collection.positions);
    // How far the database is behind, where it has no collection.
    let (applied, ms_ago) = match (collection, positions, reported) {
        (_, Some(positions), _) => (Some(positions.applied_lsn), Some(positions.ms_ago)),
        (None, _, Some(reported)) => (Some(reported.applied_lsn), Some(reported.ms_ago)),
        _ => (None, None),
    };
    let lag = applied
        .zip(ms_ago)
        .and_then(|(applied, ms_ago)| lag(Lsn(applied), now.before(ms_ago)));
    let state = match collection.map(|collection| collection.standing) {
        _ if !source.problem.is_empty() => "not followed",
        Some(CollectionStanding::Building) => "building",
        Some(CollectionStanding::Ready) => "ready",
        Some(CollectionStanding::Stale) => "stale",
        Some(CollectionStanding::Failed) => "failed",
        None => "following",
    };
    let own = collection.map_or("", |collection| &*collection.reason);
    let reason = [&*source.problem, own, &*source.silence]
        .into_iter()
        .find(|reason| !reason.is_empty());
    [
        Some(bigint(source.source)),
        text(&source.name),
        collection.map(|collection| pg_sys::Datum::from(collection.index_oid)),
        text(state),
        reason.and_then(text),
        text(&source.slot_name),
        reported.map(|reported| bigint(reported.received_lsn)),
        reported.map(|reported| bigint(reported.confirmed_lsn)),
        reported.map(|reported| bigint(reported.applied_lsn)),
        positions.map(|positions| bigint(positions.applied_lsn)),
        positions.map(|positions| bigint(positions.durable_lsn)),
        lag.map(|(bytes, _)| bigint(bytes)),
        lag.map(|(_, ms)| bigint(ms)),
        reported.map(|reported| bigint(reported.ms_ago)),
        positions.map(|positions| bigint(positions.ms_ago)),
    ]
}

/// Bytes and milliseconds from what was applied to the end of the log, both as
/// they were when the report was made.
fn lag(applied: Lsn, reported_at: BootMicros) -> Option<(u64, u64)> {
    let samples = worker::samples()?;
    // SAFETY: on the backend's main thread.
    let end = match samples.position_at(reported_at) {
        Some(end) => end,
        None if unsafe { pg_sys::RecoveryInProgress() } => return None,
        None => unsafe { freshness::flushed() },
    };
    let bytes = end.0.saturating_sub(applied.0);
    Some((bytes, samples.lag_ms(applied, reported_at)))
}
