//! Time by the wall clock and of the processor, and resident memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// A moment. Processor time is that of the whole process: what other processes take on
/// a shared machine is not in it.
#[derive(Clone, Copy)]
pub struct Clock {
    wall: Instant,
    cpu: Duration,
}

#[derive(Clone, Copy)]
pub struct Elapsed {
    pub wall_s: f64,
    pub cpu_s: f64,
}

impl Clock {
    pub fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            wall: Instant::now(),
            cpu: Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec.unsigned_abs() as u32),
        }
    }

    pub fn elapsed(self) -> Elapsed {
        let now = Self::now();
        Elapsed {
            wall_s: (now.wall - self.wall).as_secs_f64(),
            cpu_s: (now.cpu - self.cpu).as_secs_f64(),
        }
    }
}

/// Resident bytes that are this process's alone (anonymous memory).
pub fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("no RssAnon in /proc/self/status")?.parse()?;
    Ok(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_takes_wall_time_alone_and_work_takes_both() {
        // In a process of its own: the clock is of all threads, and other tests are at work.
        let alone = "CLOCK_TEST_ALONE";
        if std::env::var_os(alone).is_none() {
            let name = "clock::tests::sleep_takes_wall_time_alone_and_work_takes_both";
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let status = child.args(["--exact", name]).env(alone, "1").status();
            assert!(status.unwrap().success());
            return;
        }
        let began = Clock::now();
        std::thread::sleep(Duration::from_millis(20));
        let slept = began.elapsed();
        assert!(slept.wall_s >= 0.02);
        assert!(slept.cpu_s < 0.01, "{} s of work", slept.cpu_s);
        let began = Clock::now();
        let mut sum = 0u64;
        while began.elapsed().cpu_s < 0.01 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        // One thread; the two clocks tick apart.
        assert!(began.elapsed().wall_s > 0.009);
    }

    #[test]
    fn memory_that_is_touched_becomes_resident() {
        let before = resident_bytes().unwrap();
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = resident_bytes().unwrap();
        assert!(after >= before + (48 << 20), "{before} to {after}");
        drop(touched);
    }
}
