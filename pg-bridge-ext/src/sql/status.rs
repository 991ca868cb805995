//! `ruvector_index_status(index)`: one row that says what the cluster knows of
//! an index, and why its scans are exact if they are.

use crate::access_method;
use crate::access_method::definition::Definition;
use crate::access_method::metapage::Metapage;
use crate::catalog::{collections, prerequisites};
use crate::error::{Call, SqlError, SqlState, sql_functions};
use crate::scan::counters;
use crate::scan::state::{NO_LONGER_REGISTERED, NOT_REGISTERED};
use crate::worker::{self, IndexStatus, ViewState};
use pgrx::{IntoDatum, pg_sys};
use std::ffi::c_int;

const NOT_BUILT: &str =
    "the index is not built: CREATE INDEX CONCURRENTLY is at work, or was cut off";

/// What can be said without the network.
pub struct Local {
    pub index_name: String,
    pub table_name: String,
    pub definition_generation: u64,
    pub state: &'static str,
    pub reason: String,
    /// As the map says; 0 for none.
    pub partitions: u32,
}

sql_functions! {
    pg_finfo_ruvector_index_status for ruvector_index_status(call) {
        let index_oid = pg_sys::Oid::from_u32(call.datum(0).value() as u32);
        let mut local = local(index_oid);
        let remote = if prerequisites::missing().is_none() && local.definition_generation != 0 {
            remote(index_oid, &mut local)
        } else {
            None
        };
        row(call, index_oid, &local, remote.as_ref())
    }
}

fn remote(index_oid: pg_sys::Oid, local: &mut Local) -> Option<IndexStatus> {
    // SAFETY: set at backend start.
    let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
    match worker::index_status(database, index_oid.to_u32(), local.definition_generation) {
        Ok(status) => {
            for reason in [&status.problem, &status.waits] {
                if local.reason.is_empty() {
                    local.reason.clone_from(reason);
                }
            }
            Some(status)
        }
        Err(failure) => {
            if local.reason.is_empty() {
                local.reason = crate::scan::failure::failure_text(&failure);
            }
            None
        }
    }
}

/// Reads the index, the metapage and shared memory.
///
/// # Safety
/// In a transaction.
pub unsafe fn local(index_oid: pg_sys::Oid) -> Local {
    let index = pg_sys::relation_open(index_oid, pg_sys::AccessShareLock as c_int);
    let method = pg_sys::get_am_oid(access_method::NAME.as_ptr(), true);
    let form = (*index).rd_rel;
    let name = pg_sys::name_data_to_str(&(*form).relname).to_owned();
    if (*form).relam != method || (*form).relkind != pg_sys::RELKIND_INDEX as std::ffi::c_char {
        let error = SqlError::new(
            SqlState::WRONG_OBJECT_TYPE,
            format!("\"{name}\" is not a ruhnsw index"),
        );
        if (*form).relkind == pg_sys::RELKIND_PARTITIONED_INDEX as std::ffi::c_char {
            error
                .detail("A partitioned index has no rows of its own.")
                .hint("ruvector_index_status() shows the index of each partition.")
                .raise();
        }
        error.raise();
    }
    let table = pg_sys::table_open(
        (*(*index).rd_index).indrelid,
        pg_sys::AccessShareLock as c_int,
    );
    let definition = Definition::of(table, index);
    let metapage = Metapage::read(index);
    pg_sys::table_close(table, pg_sys::AccessShareLock as c_int);
    pg_sys::relation_close(index, pg_sys::AccessShareLock as c_int);
    let (state, reason, partitions) = judge(&definition, &metapage);
    Local {
        index_name: definition.index_name,
        table_name: definition.table_name,
        definition_generation: metapage.definition_generation,
        state,
        reason,
        partitions,
    }
}

/// The state, and why scans are exact; no reason when they are not.
unsafe fn judge(definition: &Definition, metapage: &Metapage) -> (&'static str, String, u32) {
    let exact = |reason: &str| ("exact", reason.to_owned(), 0);
    if let Err(reason) = &definition.key {
        return exact(reason);
    }
    if let Some(missing) = prerequisites::missing() {
        return exact(missing.reason);
    }
    if pg_sys::RecoveryInProgress() {
        return exact("the server is a standby");
    }
    if !metapage.is_built() {
        return exact(NOT_BUILT);
    }
    if metapage.definition_generation == 0 {
        return exact(NOT_REGISTERED);
    }
    if !metapage.stands_for(definition) {
        return exact("the table's key or column changed; REINDEX the index");
    }
    if !collections::is_registered(definition.index_oid, metapage.definition_generation) {
        return exact(NO_LONGER_REGISTERED);
    }
    let view = worker::index_view(
        pg_sys::MyDatabaseId.to_u32(),
        definition.index_oid.to_u32(),
        metapage.definition_generation,
    );
    let state = match view.state {
        ViewState::Unknown if view.is_of_other_server => "exact",
        ViewState::Unknown | ViewState::Unidentified => "waiting",
        ViewState::Building => "building",
        ViewState::Ready => "ready",
        ViewState::Failed => "failed",
        ViewState::Disconnected => "disconnected",
    };
    let reason = match view.state {
        ViewState::Unknown | ViewState::Building => worker::silence().unwrap_or(view.reason),
        _ => view.reason,
    };
    let reason = if reason.is_empty() && view.state == ViewState::Unknown {
        "the cluster does not have the collection yet".to_owned()
    } else {
        reason
    };
    (state, reason, view.partitions)
}

unsafe fn row(
    call: Call,
    index_oid: pg_sys::Oid,
    local: &Local,
    remote: Option<&IndexStatus>,
) -> pg_sys::Datum {
    let text = |value: &str| value.to_owned().into_datum();
    let number = |value: Option<u64>| {
        value.map(|value| pg_sys::Datum::from(i64::try_from(value).unwrap_or(i64::MAX)))
    };
    let count = |value: Option<u32>| value.map(|value| pg_sys::Datum::from(value as i32));
    let reason = Some(local.reason.as_str()).filter(|reason| !reason.is_empty());
    let fallback = counters::last_fallback(index_oid.to_u32());
    let columns: [Option<pg_sys::Datum>; 17] = [
        text(&local.index_name),
        text(&local.table_name),
        text(local.state),
        reason.and_then(text),
        count(Some(
            remote.map_or(local.partitions, |status| status.partitions),
        )),
        count(remote.map(|status| status.replicas)),
        number(remote.map(|status| status.rows)),
        number(remote.map(|status| status.tail_rows)),
        number(remote.map(|status| status.pending_rows)),
        number(remote.map(|status| status.applied_lsn)),
        number(remote.map(|status| status.durable_lsn)),
        number(remote.map(|status| status.backfill_rows_copied)),
        number(remote.map(|status| status.backfill_rows_estimated)),
        number(remote.map(|status| status.backfill_blocks_copied)),
        number(remote.map(|status| status.backfill_blocks_total)),
        number(remote.map(|status| status.backfill_snapshots)),
        fallback.as_deref().and_then(text),
    ];
    let mut description: pg_sys::TupleDesc = std::ptr::null_mut();
    let kind = pg_sys::get_call_result_type(call.0, std::ptr::null_mut(), &mut description);
    if kind != pg_sys::TypeFuncClass::TYPEFUNC_COMPOSITE {
        pgrx::error!("ruvector_index_status must be declared to return a record");
    }
    if (*description).natts as usize != columns.len() {
        pgrx::error!(
            "ruvector_index_status must be declared with {} columns",
            columns.len()
        );
    }
    let mut nulls = columns.map(|column| column.is_none());
    let mut values = columns.map(|column| column.unwrap_or(pg_sys::Datum::from(0usize)));
    let description = pg_sys::BlessTupleDesc(description);
    let tuple = pg_sys::heap_form_tuple(description, values.as_mut_ptr(), nulls.as_mut_ptr());
    pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data)
}
