//! What a process takes of the machine's memory.

use crate::cluster::Cluster;
use anyhow::{Context, Result};

impl Cluster {
    /// The most that a process ever held of physical memory, as the kernel counts it.
    pub fn peak_memory_bytes(&self, process: &str) -> Result<u64> {
        let file = format!("/proc/{}/status", self.pid(process)?);
        let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib = kib.with_context(|| format!("{file} has no VmHWM"))?;
        Ok(kib.trim().parse::<u64>()? << 10)
    }
}
