//! The Postgres extension: pgvector's type and operators, and the access method
//! `ruhnsw`, whose index lives in the cluster.
//!
//! In reading order: [`settings`], the boundary to Postgres ([`error`], [`pause`]), the type
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
mod pause;
mod scan;
mod settings;
mod sql;
mod types;
mod worker;

pgrx::pg_module_magic!();

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::register();
    hide_backtraces();
    // SAFETY: Postgres calls this once, when it loads the library.
    unsafe {
        access_method::options::register();
        catalog::hooks::install();
        sql::explain::install();
        if pg_sys::process_shared_preload_libraries_in_progress {
            scan::exact_slots::register();
            worker::init();
        }
        // A misspelt setting is an error, not a setting that does nothing.
        pg_sys::MarkGUCPrefixReserved(c"ruvector".as_ptr());
    }
}

/// Whatever the server's environment says, a user's error carries no stack of
/// ours; RUST_LIB_BACKTRACE=1 still asks for one.
fn hide_backtraces() {
    const VARIABLE: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: a backend has one thread, and the worker has not started any.
        unsafe { std::env::set_var(VARIABLE, "0") };
    }
}
