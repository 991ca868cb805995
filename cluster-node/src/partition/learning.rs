//! A learning replica as others see it, and how it stands with its log. Its
//! writer alone changes it, each time after the disk has it.

use crate::storage::{LearnerRecord, StoredLog};
use cluster_core::learner::Learner;
use std::time::Instant;

#[derive(Clone, Debug, Default)]
pub struct Learning {
    /// What it decides by.
    pub learner: Learner,
    pub rows_copied: u64,
    pub bytes_copied: u64,
    /// The peer's estimate.
    pub rows_total: u64,
    /// Logged, and not applied yet.
    pub log: StoredLog,
    /// When this process began to copy.
    pub copying_since: Option<Instant>,
    /// When it had applied all of its log first.
    pub caught_up_since: Option<Instant>,
    /// Why it began anew, for whoever looks after the cluster.
    pub note: Option<String>,
}

/// How far it has come, for the node's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnerProgress {
    pub rows_copied: u64,
    pub rows_total: u64,
    pub bytes_copied: u64,
    pub copying_ms: u64,
    pub log_bytes: u64,
    pub is_copied: bool,
}

impl Learning {
    pub fn new(learner: Learner, note: Option<String>) -> Self {
        Self {
            learner,
            note,
            ..Self::default()
        }
    }

    pub fn progress(&self) -> LearnerProgress {
        let copying = self.copying_since.map(|since| since.elapsed());
        LearnerProgress {
            rows_copied: self.rows_copied,
            rows_total: self.rows_total,
            bytes_copied: self.bytes_copied,
            copying_ms: copying.map_or(0, |copying| copying.as_millis() as u64),
            log_bytes: self.log.bytes,
            is_copied: self.learner.copied().is_complete,
        }
    }

    /// What the disk must remember of it.
    pub fn record(&self) -> LearnerRecord {
        LearnerRecord {
            attached_from: self.learner.attached_from(),
            copied: self.learner.copied().clone(),
            rows_copied: self.rows_copied,
            bytes_copied: self.bytes_copied,
        }
    }
}
