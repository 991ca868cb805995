//! CLOCK_BOOTTIME: leases must keep ageing while the machine sleeps.

use cluster_core::lease::BootMs;
use rustix::time::{ClockId, clock_gettime};

pub fn boot_ms() -> BootMs {
    let now = clock_gettime(ClockId::Boottime);
    // The kernel's boot clock never reports a negative time.
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}
