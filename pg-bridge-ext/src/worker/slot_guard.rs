//! The primary's disk outranks the index, also when there is no cluster to say so: a
//! slot that nobody streams from, and that retains more than its limit, is advanced to
//! the end of the log. What replicas lack then they get by reconcile; no write waits.
//!
//! Before the slot moves, where it stood and where it goes is written down durably, in
//! `ruvector.slot_advances`, for the consumer that returns. The consumer in turn finds
//! by its replicas' positions that they are below the slot; it needs no trace for that.
//!
//! A guard is a process for a moment, in the slot's database, where alone a logical slot
//! can be advanced. It goes in steps, each interruptible and in a transaction of its own,
//! and gives way at once: to a consumer that comes back, which ends whoever holds its
//! slot, and to `DROP DATABASE`, which ends the consumer's sessions and this one.

use super::slot_watch::{self, NAME_PREFIX, PLUGIN};
use crate::settings;
use pgrx::bgworkers::BackgroundWorker;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::{self, Spi};

/// WAL that the first step reads, and each further one while the slot's WAL follows. A
/// transaction that spans more holds it back: then steps double, until they pass its end.
const STEP_BYTES: i64 = 256 << 20;
const STEP_BYTES_MAX: i64 = 1 << 50;
/// Far more than steps are needed: a slot that does not move is left alone.
const STEPS_MAX: usize = 100_000;
/// Traces kept of all slots of a database.
const TRACES_MAX: i64 = 100;

const SESSION: &str = "SET search_path = pg_catalog, pg_temp; \
     SET synchronous_commit = local; \
     SET default_transaction_read_only = off; \
     SET lock_timeout = '5s'; \
     SET statement_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; \
     SET application_name = 'ruvector-consumer'";

const HAS_TABLES: &str = "SELECT to_regclass('ruvector.slots') IS NOT NULL \
     AND to_regclass('ruvector.slot_advances') IS NOT NULL";

const OVER_LIMIT: &str = "
SELECT r.slot_name::text, r.confirmed_flush_lsn::text, pg_current_wal_flush_lsn()::text,
       pg_wal_lsn_diff(pg_current_wal_flush_lsn(), r.restart_lsn)::int8, l.limit_bytes,
       r.confirmed_flush_lsn < pg_current_wal_flush_lsn()
  FROM pg_replication_slots r
 CROSS JOIN LATERAL (SELECT {LIMIT}) l(limit_bytes)
 WHERE r.database = current_database() AND NOT r.temporary AND r.plugin::text = $2
   AND starts_with(r.slot_name::text, $3)
   AND r.active_pid IS NULL AND r.restart_lsn IS NOT NULL AND r.confirmed_flush_lsn IS NOT NULL
   AND l.limit_bytes > 0
   AND pg_wal_lsn_diff(pg_current_wal_flush_lsn(), r.restart_lsn) > l.limit_bytes";
/// What the consumer noted; without it, or without the table, the server's setting.
const NOTED_LIMIT: &str = "coalesce((SELECT s.hold_limit_bytes FROM ruvector.slots s \
     WHERE s.slot_name = r.slot_name), $1::int8)";
const OWN_LIMIT: &str = "$1::int8";

const TRACE: &str = "
INSERT INTO ruvector.slot_advances (slot_name, from_lsn, to_lsn, retained_bytes, limit_bytes)
VALUES ($1::name, $2::pg_lsn, $3::pg_lsn, $4, $5)";
const PRUNE: &str = "
DELETE FROM ruvector.slot_advances
 WHERE id <= (SELECT max(id) FROM ruvector.slot_advances) - $1";

/// One step, and whether it was the last: the slot is where it is to go, and its WAL has
/// followed as far as it does. The server lets WAL go only up to a record of running
/// transactions, which it finds one of in each pass.
const STEP: &str = "
SELECT pg_replication_slot_advance(r.slot_name, least($2::pg_lsn, greatest(
           r.confirmed_flush_lsn, r.restart_lsn) + $3::numeric))::text,
       r.restart_lsn::text, r.confirmed_flush_lsn >= $2::pg_lsn
  FROM pg_replication_slots r WHERE r.slot_name = $1::name";

struct OverLimit {
    slot_name: String,
    confirmed: String,
    target: String,
    retained_bytes: i64,
    limit_bytes: i64,
    /// It is not there already, with its WAL held by a transaction that goes on.
    is_to_move: bool,
}

#[unsafe(no_mangle)]
#[pgrx::pg_guard]
pub unsafe extern "C-unwind" fn ruvector_slot_guard_main(database_oid: pg_sys::Datum) {
    // As a session's: whatever is under way ends with an error.
    pg_sys::pqsignal(pg_sys::SIGTERM as i32, Some(terminate));
    pg_sys::BackgroundWorkerUnblockSignals();
    slot_watch::connect(pg_sys::Oid::from_u32(database_oid.value() as u32));
    BackgroundWorker::transaction(|| checked(Spi::run(SESSION)));
    let (has_tables, over) = BackgroundWorker::transaction(|| {
        let has_tables = checked(Spi::get_one::<bool>(HAS_TABLES)) == Some(true);
        (has_tables, checked(over_limit(has_tables)))
    });
    for slot in over {
        pgrx::warning!(
            "replication slot \"{}\" retains {} MB of WAL, more than its limit of {} MB, and nobody \
             streams from it: it is advanced from {} to {}, so that the disk does not fill up. \
             Indexes of this database that the cluster keeps are stale until they are reconciled",
            slot.slot_name,
            slot.retained_bytes >> 20,
            slot.limit_bytes >> 20,
            slot.confirmed,
            slot.target
        );
        if has_tables && slot.is_to_move {
            BackgroundWorker::transaction(|| checked(write_trace(&slot)));
        }
        advance(&slot);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn terminate(signal: i32) {
    pg_sys::die(signal);
}

fn checked<T>(result: Result<T, spi::Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => pgrx::error!("the slot guard failed: {error}"),
    }
}

fn over_limit(has_tables: bool) -> Result<Vec<OverLimit>, spi::Error> {
    let limit = i64::try_from(settings::slot_hold_limit_bytes()).unwrap_or(i64::MAX);
    let noted = if has_tables { NOTED_LIMIT } else { OWN_LIMIT };
    let query = OVER_LIMIT.replace("{LIMIT}", noted);
    let args: [DatumWithOid; 3] = [limit.into(), PLUGIN.into(), NAME_PREFIX.into()];
    Spi::connect(|client| {
        let mut over = Vec::new();
        for row in client.select(&query, None, &args)? {
            over.push(OverLimit {
                slot_name: row.get(1)?.unwrap_or_default(),
                confirmed: row.get(2)?.unwrap_or_default(),
                target: row.get(3)?.unwrap_or_default(),
                retained_bytes: row.get(4)?.unwrap_or(0),
                limit_bytes: row.get(5)?.unwrap_or(0),
                is_to_move: row.get(6)?.unwrap_or(true),
            });
        }
        Ok(over)
    })
}

fn write_trace(slot: &OverLimit) -> Result<(), spi::Error> {
    let args: [DatumWithOid; 5] = [
        slot.slot_name.as_str().into(),
        slot.confirmed.as_str().into(),
        slot.target.as_str().into(),
        slot.retained_bytes.into(),
        slot.limit_bytes.into(),
    ];
    Spi::run_with_args(TRACE, &args)?;
    Spi::run_with_args(PRUNE, &[TRACES_MAX.into()])
}

/// # Safety
/// Outside a transaction.
unsafe fn advance(slot: &OverLimit) {
    let mut stood = None;
    let mut step_bytes = STEP_BYTES;
    for _ in 0..STEPS_MAX {
        pgrx::check_for_interrupts!();
        let step = BackgroundWorker::transaction(|| checked(step(slot, step_bytes)));
        let Some((restart, is_there)) = step else {
            // Dropped meanwhile.
            return;
        };
        if stood.as_ref() == Some(&restart) {
            // It is where it was to go, and this pass freed nothing that the last had not.
            if is_there {
                return;
            }
            step_bytes = (2 * step_bytes).min(STEP_BYTES_MAX);
        }
        stood = Some(restart);
    }
}

/// Where the slot's WAL began before the step, and whether the slot had arrived.
fn step(slot: &OverLimit, step_bytes: i64) -> Result<Option<(String, bool)>, spi::Error> {
    let args: [DatumWithOid; 3] = [
        slot.slot_name.as_str().into(),
        slot.target.as_str().into(),
        step_bytes.into(),
    ];
    Spi::connect_mut(|client| {
        let mut rows = client.update(STEP, None, &args)?;
        let Some(row) = rows.next() else {
            return Ok(None);
        };
        let restart: Option<String> = row.get(2)?;
        Ok(restart.zip(row.get(3)?))
    })
}
