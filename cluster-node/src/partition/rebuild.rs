//! Replaces an index in which removed vectors have piled up by one without them,
//! beside the writer. What the writer publishes meanwhile is kept and played on
//! the new index before it takes over. Open cursors keep the old one.

use super::index_state::{IndexState, Publish, PublishError};
use super::replica::Replica;
use crate::partition::job::Job;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use index_engine::VectorId;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Fewer removed vectors than this are not worth a rebuild.
const REMOVED_ROWS_MIN: usize = 10_000;
/// A rebuild that the stream outruns by more is given up.
const JOURNAL_STEPS_MAX: usize = 100_000;
const FOLD_ROWS: usize = 1_024;

/// The writer's note of a rebuild under way.
#[derive(Default)]
pub struct Rebuild {
    running: Option<u64>,
    started: u64,
    journal: Vec<Publish>,
}

/// An index as it was when the rebuild began.
pub struct Rebuilt {
    number: u64,
    state: Result<IndexState, PublishError>,
}

struct Versions {
    rows: Vec<(RowKey, VectorId)>,
    formers: Vec<(RowKey, WalPosition, FullXid, VectorId)>,
}

impl Rebuild {
    /// Keeps a step for the new index.
    pub fn record(&mut self, step: &Publish) {
        if self.running.is_none() {
            return;
        }
        if matches!(step, Publish::Reset(_)) || self.journal.len() >= JOURNAL_STEPS_MAX {
            self.running = None;
            self.journal = Vec::new();
        } else {
            self.journal.push(step.clone());
        }
    }

    /// Starts one if it pays and none runs.
    pub fn start_if_due(&mut self, index: &IndexState, replica: &Arc<Replica>) {
        let removed = index.live().index().removed_len();
        let is_due = removed > REMOVED_ROWS_MIN.max(index.live().index().total_len() / 2);
        if self.running.is_some() || !is_due {
            return;
        }
        self.start(index, replica);
    }

    pub(super) fn start(&mut self, index: &IndexState, replica: &Arc<Replica>) {
        self.started += 1;
        let number = self.started;
        self.running = Some(number);
        let old = index.live().clone();
        let params = index.params().clone();
        let versions = Versions {
            rows: index.ids().map(|(key, id)| (key.clone(), id)).collect(),
            formers: index
                .formers()
                .iter()
                .map(|(key, ended, xid, id)| (key.clone(), ended, xid, id))
                .collect(),
        };
        tracing::info!(partition = %replica.id.partition, rows = versions.rows.len(), "rebuilding the index");
        let replica = replica.clone();
        let build = move || {
            let state = IndexState::new(params)
                .map_err(PublishError::from)
                .and_then(|mut state| {
                    for (key, id) in versions.rows {
                        state.copy_row(key, &old, id)?;
                    }
                    for (key, ended, xid, id) in versions.formers {
                        state.copy_former(key, (ended, xid), &old, id)?;
                    }
                    let mut folded = usize::MAX;
                    while folded > 0 && !replica.is_stopping.load(Ordering::SeqCst) {
                        folded = state.live().index().fold(FOLD_ROWS);
                    }
                    Ok(state)
                });
            let job = Job::Rebuilt(Box::new(Rebuilt { number, state }));
            // The writer may be gone; then nobody wants the index.
            let _ = replica.jobs().blocking_send(job);
        };
        let spawned = std::thread::Builder::new()
            .name("rebuild".to_owned())
            .spawn(build);
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a rebuild; trying again later");
            self.running = None;
        }
    }

    /// The rebuilt index brought up to date, unless it was given up meanwhile.
    pub fn finish(&mut self, rebuilt: Rebuilt) -> Result<Option<IndexState>, PublishError> {
        if self.running != Some(rebuilt.number) {
            return Ok(None);
        }
        self.running = None;
        let journal = std::mem::take(&mut self.journal);
        let mut state = rebuilt.state?;
        for step in journal {
            state.publish(step)?;
        }
        Ok(Some(state))
    }
}
