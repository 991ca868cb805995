//! A replica as everybody but its writer sees it.

use super::folding_wait::{FoldingWait, FullTail};
use super::job::{InHand, Job, OnHole, StreamGaps};
use super::learning::{LearnerProgress, Learning};
use super::live_index::LiveIndex;
use super::progress::{Progress, Watermarks};
use crate::source::Source;
use arc_swap::ArcSwap;
use cluster_core::change::Batch;
use cluster_core::ids::*;
use cluster_core::learner::{CopyWanted, Phase};
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
    /// Set while it copies and catches up: it answers nothing.
    learning: Mutex<Option<Learning>>,
    /// What stands below is not to be trusted, until a backfill has gone over it.
    trusted_from: Mutex<Option<WalPosition>>,
    /// Held from reading the watermark to writing it, by writer and housekeeping.
    pub commit_lock: Mutex<()>,
    pub(super) live: ArcSwap<LiveIndex>,
    pub(super) pending: Mutex<BTreeSet<RowKey>>,
    pub(super) rows: AtomicU64,
    pub(super) formers: AtomicU64,
    /// Versions whose end waits for cursors to be closed.
    pub(super) retiring: AtomicUsize,
    /// Since the last checkpoint began.
    pub(super) changed_rows: AtomicU64,
    pub(super) is_stopping: AtomicBool,
    /// Rows that recovery put into the tail: they do not push back.
    pub(super) recovered_rows: AtomicUsize,
    folding_wait: FoldingWait,
    /// Jobs of apply streams that are queued or being done.
    outstanding: AtomicUsize,
    /// Changes in their batches.
    waiting_changes: AtomicUsize,
    problem: RwLock<Option<String>>,
    jobs: mpsc::Sender<Job>,
}

/// What may be told of how far a replica has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub watermarks: Watermarks,
    pub is_learning: bool,
}

/// A position that others were not told of, for the disk lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undurable {
    Watermark(WalPosition),
    /// The end of a learner's log.
    Log(WalPosition),
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
            learning: Mutex::new(None),
            trusted_from: Mutex::new(None),
            commit_lock: Mutex::new(()),
            live: ArcSwap::new(live),
            pending: Mutex::default(),
            rows: AtomicU64::new(0),
            formers: AtomicU64::new(0),
            retiring: AtomicUsize::new(0),
            changed_rows: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            recovered_rows: AtomicUsize::new(0),
            folding_wait: FoldingWait::default(),
            outstanding: AtomicUsize::new(0),
            waiting_changes: AtomicUsize::new(0),
            problem: RwLock::new(None),
            jobs,
        }
    }

    /// A learner has applied nothing, whatever it held before it began anew.
    pub fn standing(&self) -> Standing {
        let learning = self.learning.lock();
        match &*learning {
            Some(learning) => Standing {
                watermarks: Watermarks {
                    applied: WalPosition::ZERO,
                    durable: learning.learner.durable(),
                },
                is_learning: true,
            },
            None => Standing {
                watermarks: self.progress.watermarks(),
                is_learning: false,
            },
        }
    }

    pub fn is_learning(&self) -> bool {
        self.learning.lock().is_some()
    }

    /// What it holds is not what its watermark says: it is being filled or reconciled, and
    /// nobody is told or copies its rows.
    pub fn distrusts(&self) -> bool {
        self.trusted_from().is_some()
    }

    /// What stands below may be of before a gap.
    pub fn trusted_from(&self) -> Option<WalPosition> {
        *self.trusted_from.lock()
    }

    /// Before the watermark moves, and after the last row is right.
    pub(super) fn set_trusted_from(&self, from: Option<WalPosition>) {
        *self.trusted_from.lock() = from;
    }

    pub fn learner_progress(&self) -> Option<LearnerProgress> {
        self.learning.lock().as_ref().map(Learning::progress)
    }

    /// What is to be copied from a peer now.
    pub fn copy_wanted(&self) -> Option<CopyWanted> {
        self.learning.lock().as_ref()?.learner.wants()
    }

    pub(super) fn learner_phase(&self) -> Option<Phase> {
        Some(self.learning.lock().as_ref()?.learner.phase())
    }

    pub(super) fn learning(&self) -> Option<Learning> {
        self.learning.lock().clone()
    }

    /// The caller holds the commit lock, or nobody else knows the replica yet.
    pub(super) fn set_learning(&self, learning: Option<Learning>) {
        *self.learning.lock() = learning;
    }

    /// The learner has caught up: everything up to `at` is here, on disk.
    pub(super) fn go_live(&self, at: WalPosition) {
        let mut learning = self.learning.lock();
        self.progress.apply_to(at);
        self.progress.durable_to(at);
        *learning = None;
    }

    /// What moved without rows and is not on disk.
    pub fn undurable(&self) -> Option<Undurable> {
        let learning = self.learning.lock();
        if let Some(Learning { learner, .. }) = &*learning {
            let end = learner.log_end();
            return (end > learner.durable()).then_some(Undurable::Log(end));
        }
        let watermarks = self.progress.watermarks();
        let has_moved = watermarks.applied > watermarks.durable;
        has_moved.then_some(Undurable::Watermark(watermarks.applied))
    }

    /// What [`Self::undurable`] said is on disk. The caller has held the commit
    /// lock since.
    pub fn durable_to(&self, position: WalPosition) {
        match &mut *self.learning.lock() {
            Some(learning) => learning.learner.durable_to(position),
            None => self.progress.durable_to(position),
        }
    }

    /// Why the replica needs somebody's eye: quarantined, or began anew.
    pub fn reported_problem(&self) -> Option<String> {
        let note = || self.learning.lock().as_ref()?.note.clone();
        self.problem().or_else(note)
    }

    /// Changes wait for the tail to be folded. Told once, until they do no more.
    pub(super) fn begin_folding_wait(&self, full: FullTail) {
        if self.folding_wait.begin(full.limit) {
            let (partition, collection) = (self.id.partition, self.id.collection);
            tracing::warn!(%partition, %collection, %full, "changes wait");
        }
    }

    /// Why changes wait, if they do. Of a quarantined replica none does.
    pub fn folding_wait(&self) -> Option<FullTail> {
        let told = self.folding_wait.told(self.live().index().tail_len());
        told.filter(|_| !self.is_quarantined())
    }

    /// What waits next is told anew, once the tail is well below its limit.
    pub(super) fn end_folding_wait_if_relieved(&self) {
        let tail = self.live().index().tail_len();
        if let Some(after) = self.folding_wait.end_if_relieved(tail) {
            let (partition, waited_ms) = (self.id.partition, after.as_millis() as u64);
            tracing::info!(%partition, waited_ms, "the tail is folded: changes wait no longer");
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

    /// Moves the watermark at once when nothing is queued, else in turn. The
    /// writer of a learner must know, for it may be what it waits for.
    pub async fn nothing_else(
        &self,
        to: WalPosition,
        gaps: &Arc<StreamGaps>,
        needs_attach: bool,
    ) -> Result<(), Stopped> {
        let partition = self.id.partition;
        if self.is_quarantined() {
            return Ok(());
        }
        if self.outstanding.load(Ordering::SeqCst) == 0 && !self.is_learning() {
            if !gaps.has(partition) && (!needs_attach || gaps.is_attached(partition)) {
                self.progress.apply_to(to);
            }
            return Ok(());
        }
        let gaps = gaps.clone();
        self.queue_counted(Job::NothingElse {
            to,
            gaps,
            needs_attach,
        })
        .await
    }

    /// Queues an attachment: the stream carries everything above `from`.
    pub async fn attach(
        &self,
        from: WalPosition,
        gaps: Arc<StreamGaps>,
        on_hole: OnHole,
    ) -> Result<(), Stopped> {
        self.queue_counted(Job::Attach {
            from,
            gaps,
            on_hole,
        })
        .await
    }

    async fn queue_counted(&self, job: Job) -> Result<(), Stopped> {
        // Room first: a caller that gives up while waiting must not be counted.
        let room = self.jobs.reserve().await.map_err(|_| Stopped)?;
        self.outstanding.fetch_add(1, Ordering::SeqCst);
        self.waiting_changes
            .fetch_add(job.changes(), Ordering::Relaxed);
        room.send(job);
        Ok(())
    }

    pub(super) fn jobs(&self) -> &mpsc::Sender<Job> {
        &self.jobs
    }

    pub(super) fn done(&self, done: InHand) {
        self.waiting_changes
            .fetch_sub(done.changes, Ordering::Relaxed);
        self.outstanding.fetch_sub(done.jobs, Ordering::SeqCst);
    }

    /// Changes that streams have brought and that are not applied.
    pub(super) fn waiting_changes(&self) -> usize {
        self.waiting_changes.load(Ordering::Relaxed)
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
        let is_retiring = self.retiring.load(Ordering::Relaxed) > 0;
        if self.former_versions() > 0 || is_retiring {
            // A full queue is no loss: the next round asks again.
            let _ = self.jobs.try_send(Job::Prune);
        }
    }

    /// Asks for a checkpoint, which the writer takes if it is due.
    pub fn checkpoint(&self) {
        if self.changed_rows.load(Ordering::Relaxed) > 0 {
            // A full queue is no loss: the next round asks again.
            let _ = self.jobs.try_send(Job::Checkpoint);
        }
    }

    /// It leaves the node: whoever waits for it must not.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
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
