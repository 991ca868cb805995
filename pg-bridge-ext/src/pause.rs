//! Waiting for something that nobody wakes this backend for.

use pgrx::pg_sys;
use std::ffi::{c_int, c_long};
use std::time::Duration;

/// Sleeps, for less if the latch is set; raises what interrupts.
///
/// # Safety
/// On a backend's main thread.
pub unsafe fn pause(length: Duration) {
    if !length.is_zero() {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as c_int,
            (length.as_millis() as c_long).max(1),
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}
