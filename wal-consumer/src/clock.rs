//! CLOCK_BOOTTIME: goes on while the machine sleeps, so that a lease does not
//! outlive a suspended laptop or a paused virtual machine.

use cluster_core::lease::BootMs;
use rustix::time::{ClockId, clock_gettime};

pub fn boot_ms() -> BootMs {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}
