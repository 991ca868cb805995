//! How many exact scans stand in for the cluster at one time, in the whole
//! server: an outage must not become a storm of scans.

use crate::settings::{self, EXACT_SCANS_MAX};
use crate::worker;
use pgrx::lwlock::PgLwLock;
use pgrx::pg_guard;
use pgrx::pg_sys;
use std::cell::Cell;

/// Process ids; 0 is free. Reset with shared memory after a crash.
type Holders = [i32; EXACT_SCANS_MAX as usize];

// SAFETY: initialised by `register` before any use.
static HOLDERS: PgLwLock<Holders> = unsafe { PgLwLock::new(c"ruvector_exact_scans") };

thread_local! {
    static HOLDS: Cell<bool> = const { Cell::new(false) };
}

/// From `_PG_init`, while shared libraries are preloaded.
pub fn register() {
    pgrx::pg_shmem_init!(HOLDERS = [0; EXACT_SCANS_MAX as usize]);
}

/// Takes a place; false when all are taken.
pub fn acquire() -> bool {
    if HOLDS.get() || !worker::is_preloaded() {
        return true;
    }
    // SAFETY: set at backend start.
    let own = unsafe { pg_sys::MyProcPid };
    let mut holders = HOLDERS.exclusive();
    let taken = holders.iter().filter(|&&holder| holder != 0).count();
    if taken >= settings::exact_scans_max() as usize {
        return false;
    }
    match holders.iter_mut().find(|holder| **holder == 0) {
        Some(place) => {
            *place = own;
            HOLDS.set(true);
            true
        }
        None => false,
    }
}

/// Gives the place back, if there is one: at the end of the scan, and whenever a
/// transaction or subtransaction ends, which an error makes it do.
pub fn release() {
    if HOLDS.replace(false) {
        // SAFETY: set at backend start.
        let own = unsafe { pg_sys::MyProcPid };
        for holder in HOLDERS
            .exclusive()
            .iter_mut()
            .filter(|holder| **holder == own)
        {
            *holder = 0;
        }
    }
}
