//! How much memory the process has, and what it takes on at that:
//! `cluster_core::memory` judges, this module measures.
//!
//! What counts is the anonymous memory that the kernel holds for the process, for
//! that is what it kills for; pages of mapped files it takes back by itself.

use cluster_core::memory::{MemoryGuard, MemoryPressure};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Of the machine's memory, where no limit is set.
const DEFAULT_NUMERATOR: u64 = 4;
const DEFAULT_DENOMINATOR: u64 = 5;
/// Where control groups are, and the file of a group's limit: version 2, then version 1.
const GROUPS: [(&str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
];

/// Anonymous bytes in use; `None` where the system does not tell.
type Measure = Box<dyn Fn() -> Option<u64> + Send + Sync>;

pub struct Memory {
    guard: Mutex<MemoryGuard>,
    used_bytes: AtomicU64,
    measure: Measure,
}

/// Why bulk work is refused, or the stream waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node's memory is {pressure}: it uses {used_mib} of {limit_mib} MiB (memory_limit_bytes); \
     move partitions to other nodes, or give it more",
    pressure = .pressure.name(),
    used_mib = .used_bytes >> 20,
    limit_mib = .limit_bytes >> 20
)]
pub struct OutOfMemory {
    pub pressure: MemoryPressure,
    pub used_bytes: u64,
    pub limit_bytes: u64,
}

impl Memory {
    /// Of this process; `limit_bytes` 0 asks the system for one.
    pub fn of_process(limit_bytes: u64) -> Self {
        let limit_bytes = match limit_bytes {
            0 => system_bytes().map_or(u64::MAX, |all| {
                all / DEFAULT_DENOMINATOR * DEFAULT_NUMERATOR
            }),
            set => set,
        };
        Self::measured_by(limit_bytes, Box::new(anonymous_bytes))
    }

    pub(crate) fn measured_by(limit_bytes: u64, measure: Measure) -> Self {
        let memory = Self {
            guard: Mutex::new(MemoryGuard::new(limit_bytes)),
            used_bytes: AtomicU64::new(0),
            measure,
        };
        memory.look();
        memory
    }

    #[cfg(test)]
    pub fn limit_to(&self, bytes: u64) {
        *self.guard.lock() = MemoryGuard::new(bytes);
        self.look();
    }

    /// Measures anew. What cannot be measured is not held against the node.
    pub fn look(&self) -> MemoryPressure {
        let used = (self.measure)().unwrap_or(0);
        self.used_bytes.store(used, Ordering::Relaxed);
        self.guard.lock().judge(used)
    }

    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub fn limit_bytes(&self) -> u64 {
        self.guard.lock().limit_bytes()
    }

    pub fn pressure(&self) -> MemoryPressure {
        self.guard.lock().pressure()
    }

    /// Whether what needs memory at `from` this pressure must not begin.
    pub fn refuses_at(&self, from: MemoryPressure) -> Option<OutOfMemory> {
        let guard = *self.guard.lock();
        (guard.pressure() >= from).then(|| OutOfMemory {
            pressure: guard.pressure(),
            used_bytes: self.used_bytes(),
            limit_bytes: guard.limit_bytes(),
        })
    }
}

/// Of this process, from `/proc/self/status`.
fn anonymous_bytes() -> Option<u64> {
    kib_of(
        &std::fs::read_to_string("/proc/self/status").ok()?,
        "RssAnon:",
    )
}

/// What the machine has, or its control group allows.
fn system_bytes() -> Option<u64> {
    let machine = kib_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    let limits = limit_files(&groups).into_iter().filter_map(limit);
    Some(limits.fold(machine, u64::min))
}

/// The limits of the process's groups and of all above them, the least of which counts.
/// A container sees its own group as the root, by whatever name.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, file) = match controllers {
            "" => GROUPS[0],
            names if names.split(',').any(|name| name == "memory") => GROUPS[1],
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(
            group
                .ancestors()
                .map(|of| Path::new(root).join(of).join(file)),
        );
    }
    files
}

/// Of a line such as `RssAnon:     1234 kB`.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_system_tells_what_is_used_and_what_there_is() {
        let text = "Name:\tx\nRssAnon:\t    1234 kB\nRssFile:\t 5 kB\n";
        assert_eq!(kib_of(text, "RssAnon:"), Some(1234 * 1024));
        assert_eq!(kib_of(text, "RssShmem:"), None);
        assert_eq!(kib_of("RssAnon: many kB", "RssAnon:"), None);
        let (used, all) = (anonymous_bytes().unwrap(), system_bytes().unwrap());
        assert!(used > 0 && used < all, "{used} of {all}");
        let memory = Memory::of_process(0);
        assert_eq!(memory.limit_bytes(), all / 5 * 4);
        assert_eq!(memory.refuses_at(MemoryPressure::Tight), None);
    }

    #[test]
    fn a_limit_of_the_processs_group_or_of_one_above_counts() {
        let files = |groups: &str| -> Vec<String> {
            let files = limit_files(groups).into_iter();
            files.map(|file| file.display().to_string()).collect()
        };
        assert_eq!(
            files("0::/system.slice/ruvector.service\n"),
            [
                "/sys/fs/cgroup/system.slice/ruvector.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(
            files("5:cpu,memory:/docker/1\n3:pids:/x\nmangled\n"),
            [
                "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/docker/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ]
        );
        assert_eq!(files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
    }

    #[test]
    fn p10_a_refusal_says_what_is_used_and_what_to_do() {
        let memory = Memory::measured_by(100 << 20, Box::new(|| Some(96 << 20)));
        let refused = memory.refuses_at(MemoryPressure::Tight).unwrap();
        assert_eq!(refused.pressure, MemoryPressure::Full);
        let said = refused.to_string();
        assert!(
            said.contains("memory is full: it uses 96 of 100 MiB"),
            "{said}"
        );
        assert!(said.contains("memory_limit_bytes"), "{said}");
    }
}
