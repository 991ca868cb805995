//! A replica as everybody but its writer sees it.

use super::job::{Job, StreamGaps};
use super::live_index::LiveIndex;
use super::progress::Progress;
use crate::source::Source;
use arc_swap::ArcSwap;
use cluster_core::change::Batch;
use cluster_core::ids::*;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// What never changes while a replica lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaId {
    pub partition: PartitionId,
    pub generation: Generation,
    pub collection: CollectionId,
    pub source: SourceId,
    pub dimensions: usize,
}

pub struct Replica {
    pub id: ReplicaId,
    pub source: Arc<Source>,
    pub progress: Progress,
    /// Held from reading the watermark to writing it, by writer and housekeeping.
    pub commit_lock: Mutex<()>,
    pub(super) live: ArcSwap<LiveIndex>,
    pub(super) pending: Mutex<BTreeSet<RowKey>>,
    pub(super) rows: AtomicU64,
    pub(super) formers: AtomicU64,
    pub(super) is_stopping: AtomicBool,
    /// Rows that recovery put into the tail: they do not push back.
    pub(super) recovered_rows: AtomicUsize,
    /// Jobs of apply streams that are queued or being done.
    outstanding: AtomicUsize,
    problem: RwLock<Option<String>>,
    jobs: mpsc::Sender<Job>,
}

/// The writer is gone: the replica was given away, or its thread ended.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the replica has stopped")]
pub struct Stopped;

impl Replica {
    pub(super) fn new(
        id: ReplicaId,
        source: Arc<Source>,
        watermark: WalPosition,
        live: Arc<LiveIndex>,
        jobs: mpsc::Sender<Job>,
    ) -> Self {
        Self {
            id,
            source,
            progress: Progress::new(watermark),
            commit_lock: Mutex::new(()),
            live: ArcSwap::new(live),
            pending: Mutex::default(),
            rows: AtomicU64::new(0),
            formers: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            recovered_rows: AtomicUsize::new(0),
            outstanding: AtomicUsize::new(0),
            problem: RwLock::new(None),
            jobs,
        }
    }

    pub fn live(&self) -> Arc<LiveIndex> {
        self.live.load_full()
    }

    /// Why the replica is quarantined.
    pub fn problem(&self) -> Option<String> {
        self.problem.read().clone()
    }

    pub fn is_quarantined(&self) -> bool {
        self.problem.read().is_some()
    }

    /// Stops the replica for good; the first reason stays. Its watermark stands
    /// still from now on, and searches get the reason.
    pub fn quarantine(&self, reason: String) {
        let mut problem = self.problem.write();
        if problem.is_none() {
            tracing::error!(partition = %self.id.partition, reason, "partition is quarantined");
            *problem = Some(reason);
        }
    }

    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    pub fn former_versions(&self) -> u64 {
        self.formers.load(Ordering::Relaxed)
    }

    pub fn pending_rows(&self) -> u64 {
        self.pending.lock().len() as u64
    }

    pub fn pending_keys(&self, limit: usize) -> Vec<RowKey> {
        self.pending.lock().iter().take(limit).cloned().collect()
    }

    /// Queues a batch behind what was queued before.
    pub async fn apply(
        &self,
        batch: Batch,
        gaps: Arc<StreamGaps>,
        memory: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Stopped> {
        let job = Job::Apply {
            batch,
            gaps,
            memory,
        };
        self.queue_counted(job).await
    }

    /// Moves the watermark at once when nothing is queued, else in turn.
    pub async fn nothing_else(
        &self,
        to: WalPosition,
        gaps: &Arc<StreamGaps>,
    ) -> Result<(), Stopped> {
        if self.is_quarantined() || gaps.has(self.id.partition) {
            return Ok(());
        }
        if self.outstanding.load(Ordering::SeqCst) == 0 {
            self.progress.apply_to(to);
            return Ok(());
        }
        let gaps = gaps.clone();
        self.queue_counted(Job::NothingElse { to, gaps }).await
    }

    async fn queue_counted(&self, job: Job) -> Result<(), Stopped> {
        // Room first: a caller that gives up while waiting must not be counted.
        let room = self.jobs.reserve().await.map_err(|_| Stopped)?;
        self.outstanding.fetch_add(1, Ordering::SeqCst);
        room.send(job);
        Ok(())
    }

    pub(super) fn jobs(&self) -> &mpsc::Sender<Job> {
        &self.jobs
    }

    pub(super) fn done(&self, jobs: usize) {
        self.outstanding.fetch_sub(jobs, Ordering::SeqCst);
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.outstanding.load(Ordering::SeqCst) == 0
    }

    /// Queues what is not part of an apply stream.
    pub async fn send(&self, job: Job) -> Result<(), Stopped> {
        self.jobs.send(job).await.map_err(|_| Stopped)
    }

    /// Asks for pruning, if the queue has room.
    pub fn prune(&self) {
        if self.former_versions() > 0 {
            // A full queue is no loss: the next round asks again.
            let _ = self.jobs.try_send(Job::Prune);
        }
    }

    /// Ends the writer and waits until it has.
    pub async fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        let (done, ended) = oneshot::channel();
        if self.send(Job::Stop { done }).await.is_ok() {
            // An error means that the writer is gone already.
            let _ = ended.await;
        }
    }
}
