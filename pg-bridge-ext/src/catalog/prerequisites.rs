//! What a server needs before the cluster can follow it.

use crate::worker;
use pgrx::pg_sys;

pub fn wal_is_logical() -> bool {
    // SAFETY: a plain setting, fixed at server start.
    unsafe { pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_LOGICAL as i32 }
}

/// Why no index of this server can be kept in the cluster.
pub fn problem() -> Option<&'static str> {
    if !worker::is_preloaded() {
        Some("ruvector is not in shared_preload_libraries")
    } else if !wal_is_logical() {
        Some("wal_level is not logical")
    } else {
        None
    }
}
