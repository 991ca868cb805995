//! The Postgres extension: pgvector's type and operators, and the access method
//! `ruhnsw`, whose index lives in the cluster.
//!
//! In reading order: [`settings`], the type ([`types`]), the access method
//! ([`access_method`]), how a scan is answered ([`scan`]), what the cluster is
//! told about indexes ([`catalog`]), the background worker that talks to it
//! ([`worker`]), and what SQL shows of all that ([`sql`]).
//!
//! What a query returns is decided by the heap: the cluster proposes row keys,
//! and every proposed row is fetched under the query's snapshot.

use pgrx::prelude::*;

mod settings;
mod worker;

pgrx::pg_module_magic!();

#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    settings::register();
    // SAFETY: a plain flag of the server, set before any library is loaded.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        worker::init();
    }
}
