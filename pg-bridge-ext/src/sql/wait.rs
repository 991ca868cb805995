//! `ruvector_wait_for_index(index, timeout_seconds, folded)`: returns once the
//! index answers searches; with `folded`, once its tail is in the graph as well.

use super::status::{self, Local};
use crate::error::{SqlError, SqlState, sql_functions};
use crate::pause::pause;
use crate::scan::{freshness, own_writes};
use crate::worker;
use pgrx::pg_sys;
use pgrx::spi::Spi;
use std::time::{Duration, Instant};

const POLL_EVERY: Duration = Duration::from_millis(100);

sql_functions! {
    pg_finfo_ruvector_wait_for_index for ruvector_wait_for_index(call) {
        let index_oid = pg_sys::Oid::from_u32(call.datum(0).value() as u32);
        let timeout_s = call.int32(1);
        let folded = call.datum(2).value() != 0;
        if timeout_s < 0 {
            SqlError::new(SqlState::INVALID_PARAMETER, "timeout_seconds must not be negative")
                .raise();
        }
        let timeout = Duration::from_secs(u64::from(timeout_s.unsigned_abs()));
        let deadline = Instant::now() + timeout;
        for index_oid in with_storage(index_oid) {
            wait(index_oid, deadline, timeout, folded);
        }
        pg_sys::Datum::from(0usize)
    }
}

/// The index itself; of a partitioned one, the indexes of all its partitions.
pub(super) unsafe fn with_storage(index_oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    if pg_sys::get_rel_relkind(index_oid) as u8 != pg_sys::RELKIND_PARTITIONED_INDEX {
        return vec![index_oid];
    }
    let leaves = "SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree($1) WHERE isleaf";
    Spi::connect(
        |client| match client.select(leaves, None, &[index_oid.into()]) {
            Ok(rows) => rows.filter_map(|row| row.get(1).ok().flatten()).collect(),
            Err(error) => pgrx::error!("the index's partitions cannot be listed: {error}"),
        },
    )
}

unsafe fn wait(index_oid: pg_sys::Oid, deadline: Instant, timeout: Duration, folded: bool) {
    // Reports are seconds old. One that has come this far was made after the
    // collection was ready, so that it counts every row of the initial copy.
    let mut ready_at = None;
    loop {
        let local = status::local(index_oid);
        let name = &local.index_name;
        match local.state {
            "ready" if !folded => return,
            "ready" => {
                let ready_at = *ready_at.get_or_insert_with(|| freshness::flushed_end_of_wal());
                if is_folded(index_oid, &local, ready_at) {
                    return;
                }
            }
            "failed" => SqlError::new(
                SqlState::UNAVAILABLE,
                format!("index \"{name}\" failed: {}", local.reason),
            )
            .raise(),
            "exact" => SqlError::new(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "index \"{name}\" is not kept in the cluster: {}",
                    local.reason
                ),
            )
            .raise(),
            _ if own_writes::is_built(index_oid) => SqlError::new(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!("index \"{name}\" was built in this transaction"),
            )
            .detail("The cluster learns of it when the transaction commits.")
            .hint("Wait for the index in a later transaction.")
            .raise(),
            _ => {}
        }
        if Instant::now() >= deadline {
            timed_out(&local, timeout, folded);
        }
        pause(POLL_EVERY);
    }
}

fn is_folded(index_oid: pg_sys::Oid, local: &Local, ready_at: u64) -> bool {
    // SAFETY: set at backend start.
    let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
    worker::index_status(database, index_oid.to_u32(), local.definition_generation).is_ok_and(
        |status| {
            status.problem.is_empty()
                && status.applied_lsn >= ready_at
                && status.tail_rows == 0
                && status.pending_rows == 0
        },
    )
}

fn timed_out(local: &Local, timeout: Duration, folded: bool) -> ! {
    let wanted = if folded { "ready and folded" } else { "ready" };
    let error = SqlError::new(
        SqlState::LAGGING,
        format!(
            "index \"{}\" is not {wanted} after {} seconds: it is {}",
            local.index_name,
            timeout.as_secs(),
            local.state
        ),
    )
    .hint("The cluster goes on; ruvector_index_status() shows how far it is.");
    if local.reason.is_empty() {
        error.raise()
    } else {
        error.detail(local.reason.as_str()).raise()
    }
}
