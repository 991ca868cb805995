//! Each process counts time on a clock of its own, which runs faster or slower
//! than the world's within the bound that leases allow for.
//!
//! The grantor waits TTL + 10 %, so that holder and grantor may each be off by
//! almost 5 %. A process's clock goes on while the process is paused or down, as
//! CLOCK_BOOTTIME does.

use crate::random::Rng;
use cluster_core::lease::BootMs;

/// Milliseconds of the world, which no process sees.
pub type WorldMs = u64;

const DRIFT_PER_MILLE_MAX: u64 = 45;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset: BootMs,
    /// Local milliseconds per thousand of the world's.
    rate: u64,
}

impl Clock {
    pub fn new(rng: &mut Rng) -> Self {
        Self {
            offset: rng.below(1_000_000),
            rate: rng.between(1000 - DRIFT_PER_MILLE_MAX, 1000 + DRIFT_PER_MILLE_MAX),
        }
    }

    pub fn read(self, now: WorldMs) -> BootMs {
        self.offset + now * self.rate / 1000
    }

    /// How long the world waits until this clock has moved by `local_ms`.
    pub fn world_ms(self, local_ms: u64) -> WorldMs {
        (local_ms * 1000).div_ceil(self.rate)
    }
}
