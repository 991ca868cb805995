//! CREATE INDEX, and everything else that builds: REINDEX, VACUUM FULL, CLUSTER,
//! TRUNCATE, rewriting ALTER TABLE. Nothing is read from the table; the cluster
//! copies it beside the WAL. What is written is the metapage and, under the
//! extension owner's identity, the row that tells the cluster.

use super::definition::Definition;
use super::metapage::{INVALID_SUBTRANSACTION, Metapage};
use crate::catalog::collections::{self, Registered};
use crate::catalog::{hooks, prerequisites};
use crate::error::{SqlError, SqlState, guard};
use crate::scan::own_writes;
use crate::worker;
use pgrx::pg_sys;

pub unsafe extern "C-unwind" fn ambuild(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
) -> *mut pg_sys::IndexBuildResult {
    guard(|| {
        // A rebuild is part of what the user wants to do with the table, and never
        // fails it: it says what is wrong, and scans are exact.
        if is_created_here(index) && !hooks::in_alter_table() {
            check(index, info);
        }
        let definition = Definition::of(table, index);
        own_writes::scan_exactly((*index).rd_id);
        let generation = register(&definition);
        Metapage::new(generation, &definition).create(index, pg_sys::ForkNumber::MAIN_FORKNUM);
        let result = pg_sys::palloc0(std::mem::size_of::<pg_sys::IndexBuildResult>())
            .cast::<pg_sys::IndexBuildResult>();
        // Nothing was counted: -1 leaves the table's statistics as they are.
        (*result).heap_tuples = -1.0;
        (*result).index_tuples = 0.0;
        result
    })
}

/// The init fork of an index on an unlogged table.
pub unsafe extern "C-unwind" fn ambuildempty(index: pg_sys::Relation) {
    guard(|| {
        let table_oid = (*(*index).rd_index).indrelid;
        let table = pg_sys::table_open(table_oid, pg_sys::NoLock as i32);
        let definition = Definition::of(table, index);
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        Metapage::new(0, &definition).create(index, pg_sys::ForkNumber::INIT_FORKNUM);
    })
}

unsafe fn check(index: pg_sys::Relation, info: *mut pg_sys::IndexInfo) {
    if (*info).ii_IndexAttrNumbers[0] == 0 {
        SqlError::new(
            SqlState::NOT_SUPPORTED,
            "ruhnsw indexes on expressions are not supported",
        )
        .hint("Store the expression in a column, and index that.")
        .raise();
    }
    if !(*info).ii_Predicate.is_null() {
        SqlError::new(
            SqlState::NOT_SUPPORTED,
            "partial ruhnsw indexes are not supported",
        )
        .hint("Index the whole column; a WHERE clause of the query still applies.")
        .raise();
    }
    let typmod = (*(*(*index).rd_att).attrs.as_ptr()).atttypmod;
    if typmod < 1 {
        SqlError::new(
            SqlState::INVALID_PARAMETER,
            "column does not have dimensions",
        )
        .raise();
    }
    let (m, ef_construction) = (
        super::options::m(index),
        super::options::ef_construction(index),
    );
    if ef_construction < 2 * m {
        SqlError::new(
            SqlState::INVALID_PARAMETER,
            "ef_construction must be greater than or equal to 2 * m",
        )
        .raise();
    }
}

/// Writes the row for the cluster and answers the generation, 0 for none.
unsafe fn register(definition: &Definition) -> u64 {
    if pg_sys::IsBinaryUpgrade {
        return 0;
    }
    let key = match &definition.key {
        Ok(key) => key,
        Err(reason) => {
            // A temporary table is nobody else's business, and writing for it
            // would be the only write of a transaction that may do no other.
            let is_temporary = pg_sys::get_rel_persistence(definition.table_oid)
                == pg_sys::RELPERSISTENCE_TEMP as std::ffi::c_char;
            let was_known = !is_temporary && collections::remove(definition.index_oid);
            let index = pg_sys::index_open(definition.index_oid, pg_sys::NoLock as i32);
            let is_new = is_created_here(index);
            pg_sys::index_close(index, pg_sys::NoLock as i32);
            if is_new || was_known {
                warn_exact(definition, reason)
                    .hint("Until the cause is removed the index is not used.")
                    .warn();
            }
            return 0;
        }
    };
    match collections::register(definition, key) {
        Registered::Unchanged(generation) => generation,
        Registered::New(generation) => {
            warn_if_unreachable(definition);
            generation
        }
    }
}

/// Whether CREATE INDEX is running, as opposed to a rebuild of an index whose
/// owner has been told before.
unsafe fn is_created_here(index: pg_sys::Relation) -> bool {
    (*index).rd_createSubid != INVALID_SUBTRANSACTION
}

fn warn_exact(definition: &Definition, reason: &str) -> SqlError {
    SqlError::new(
        SqlState::WARNING,
        format!(
            "index \"{}\" cannot be kept in the cluster: {reason}",
            definition.index_name
        ),
    )
    .detail("Searches scan the table exactly.")
}

unsafe fn warn_if_unreachable(definition: &Definition) {
    if let Some(missing) = prerequisites::missing() {
        warn_exact(definition, missing.reason)
            .hint(missing.remedy)
            .warn();
    } else if let Some(silence) = worker::coordinators_silence() {
        SqlError::new(
            SqlState::WARNING,
            format!(
                "no coordinator of the cluster can be reached, so index \"{}\" is not being built yet",
                definition.index_name
            ),
        )
        .detail(silence)
        .hint("The cluster copies the table once it is there. See ruvector.coordinators.")
        .warn();
    }
}
