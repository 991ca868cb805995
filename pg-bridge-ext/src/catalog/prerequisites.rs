//! What a server needs before the cluster can follow it.

use crate::worker;
use pgrx::pg_sys;

/// A reason why no index of this server can be kept in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    pub reason: &'static str,
    pub remedy: &'static str,
}

pub fn missing() -> Option<Missing> {
    // SAFETY: a plain setting, fixed at server start.
    let logical = unsafe { pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_LOGICAL as i32 };
    match (logical, worker::is_preloaded()) {
        (true, true) => None,
        (false, true) => Some(Missing {
            reason: "wal_level is not logical",
            remedy: "Set wal_level = logical and restart the server.",
        }),
        (true, false) => Some(Missing {
            reason: "ruvector is not in shared_preload_libraries",
            remedy: "Set shared_preload_libraries = 'ruvector' and restart the server.",
        }),
        (false, false) => Some(Missing {
            reason: "wal_level is not logical and ruvector is not in shared_preload_libraries",
            remedy: "Set wal_level = logical and shared_preload_libraries = 'ruvector', and restart the server.",
        }),
    }
}
