//! Time in the models: real time goes in steps, which are also what a grantor's
//! clock counts. A holder's clock runs exactly, or as slowly as the drift allows.

use cluster_core::lease::{BootMs, LeaseTerms};

pub const STEP_MS: u64 = 5;

/// A slow clock counts 4 ms in 5, which is within 25 %. It holds a lease of 9 ms
/// for 11.25 ms: past the grantor's second step, not past its third.
pub const TERMS: LeaseTerms = LeaseTerms {
    ttl_ms: 9,
    renew_every_ms: 5,
    drift_percent: 25,
    epoch_grace_ms: 0,
};

pub const DRIFT_IGNORED: LeaseTerms = LeaseTerms {
    drift_percent: 0,
    ..TERMS
};

pub fn boot_ms(real_ms: u64, is_slow: bool) -> BootMs {
    match is_slow {
        true => real_ms / STEP_MS * 4,
        false => real_ms,
    }
}
