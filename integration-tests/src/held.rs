//! Processes that are stopped for a while, so that what needs them waits.
//!
//! A step of the protocol that lasts milliseconds lasts as long as whoever takes the
//! next one is stopped; a test that sleeps and hopes would hit it now and then.

use crate::cluster::Cluster;
use anyhow::Result;
use std::collections::BTreeSet;

pub struct Held<'a> {
    cluster: &'a Cluster,
    stopped: BTreeSet<String>,
}

impl<'a> Held<'a> {
    pub fn nobody(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            stopped: BTreeSet::new(),
        }
    }

    pub fn stop(&mut self, process: &str) -> Result<()> {
        self.cluster.signal(process, "STOP")?;
        self.stopped.insert(process.to_owned());
        Ok(())
    }

    pub fn go_on(&mut self, process: &str) -> Result<()> {
        match self.stopped.remove(process) {
            true => self.cluster.signal(process, "CONT"),
            false => Ok(()),
        }
    }

    pub fn all_go_on(&mut self) -> Result<()> {
        while let Some(process) = self.stopped.pop_first() {
            self.cluster.signal(&process, "CONT")?;
        }
        Ok(())
    }

    /// SIGKILL ends a stopped process too.
    pub fn kill(&mut self, process: &str) -> Result<()> {
        self.stopped.remove(process);
        self.cluster.kill(process)
    }
}

impl Drop for Held<'_> {
    /// A test that failed takes its cluster down, and a stopped process does not end.
    fn drop(&mut self) {
        let _ = self.all_go_on();
    }
}
