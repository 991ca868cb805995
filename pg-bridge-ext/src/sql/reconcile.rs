//! `ruvector_reconcile(index)`: has the cluster compare an index with its table and
//! mend what differs. It answers once the coordinators have taken that; progress shows
//! in `ruvector_index_status()`.

use super::status;
use crate::catalog::prerequisites;
use crate::error::{SqlError, SqlState, sql_functions};
use crate::scan::failure::failure_text;
use crate::worker::{self, ScanFailure};
use pgrx::pg_sys;

sql_functions! {
    pg_finfo_ruvector_reconcile for ruvector_reconcile(call) {
        let index_oid = pg_sys::Oid::from_u32(call.datum(0).value() as u32);
        let local = status::local(index_oid);
        check_owner(index_oid, &local.index_name);
        if let Some(missing) = prerequisites::missing() {
            SqlError::new(SqlState::NOT_IN_PREREQUISITE_STATE, missing.reason)
                .hint(missing.remedy)
                .raise();
        }
        if local.definition_generation == 0 {
            let message = format!("index \"{}\" is not in the cluster", local.index_name);
            SqlError::new(SqlState::NOT_IN_PREREQUISITE_STATE, message)
                .detail(local.reason)
                .raise();
        }
        let database = pg_sys::MyDatabaseId.to_u32();
        let generation = local.definition_generation;
        if let Err(failure) = worker::request_reconcile(database, index_oid.to_u32(), generation) {
            raise(&local.index_name, &failure);
        }
        pg_sys::Datum::from(0usize)
    }
}

/// It costs the primary a scan of the table: no stranger may ask for that.
unsafe fn check_owner(index_oid: pg_sys::Oid, name: &str) {
    if !pg_sys::pg_class_ownercheck(index_oid, pg_sys::GetUserId()) {
        let message = format!("must be owner of index {name}");
        SqlError::new(SqlState::NOT_AUTHORISED, message).raise();
    }
}

fn raise(name: &str, failure: &ScanFailure) -> ! {
    let state = match failure {
        ScanFailure::Invalid(_) => SqlState::NOT_IN_PREREQUISITE_STATE,
        _ => SqlState::UNAVAILABLE,
    };
    SqlError::new(state, format!("index \"{name}\" cannot be reconciled now"))
        .detail(failure_text(failure))
        .hint("ruvector_index_status() shows what the cluster knows of the index.")
        .raise()
}
