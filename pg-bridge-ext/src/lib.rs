//! The Postgres extension: pgvector's type and operators, and the access method
//! `ruhnsw`, whose index lives in the cluster.
//!
//! In reading order: [`settings`], the boundary to Postgres ([`error`]), the type
//! ([`types`]), the access method ([`access_method`]), how a scan is answered
//! ([`scan`]), what the cluster is told about indexes ([`catalog`]), the
//! background worker that talks to it ([`worker`]), and what SQL shows ([`sql`]).
//!
//! What a query returns is decided by the heap: the cluster proposes row keys,
//! and every proposed row is fetched under the query's snapshot.

// Nearly every line of a bridge to C is unsafe for one reason: it calls a server
// function in the state that the caller vouches for. The `# Safety` of each
// function says which state.
#![allow(unsafe_op_in_unsafe_fn)]

use pgrx::prelude::*;

mod access_method;
mod catalog;
mod error;
mod scan;
mod settings;
mod sql;
mod types;
mod worker;

pgrx::pg_module_magic!();

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::register();
    // SAFETY: Postgres calls this once, when it loads the library.
    unsafe {
        access_method::options::register();
        catalog::hooks::install();
        sql::explain::install();
        if pg_sys::process_shared_preload_libraries_in_progress {
            scan::exact_slots::register();
            worker::init();
        }
    }
}
