//! The one writer of a partition: takes jobs in order, writes, then publishes,
//! then moves the watermark. It runs on its own thread, apart from the async
//! runtime, for it computes and waits for the disk.
//!
//! A failed write, a corrupt record or a broken assumption quarantines the
//! partition. The writer then only answers; nothing is retried blindly.

use super::backfill::{self, Rows};
use super::checkpoint::files::Checkpoints;
use super::checkpoint::take::{self, Taking};
use super::folding_wait::{FullTail, TailLimit};
use super::index_state::{IndexState, Now, Publish, PublishError};
use super::job::{Gap, InHand, Job, Sweep};
use super::learn::{self, Replayed};
use super::reconcile;
use super::replica::Replica;
use super::stage::{Stage, Staged};
use crate::config::ApplyConfig;
use crate::memory::{Memory, OutOfMemory};
use crate::metrics::Metrics;
use crate::storage::{PartitionMeta, Storage, StorageError, WriteSet};
use cluster_core::apply::{Admission, StoredVector, admit};
use cluster_core::change::{Change, VectorColumn};
use cluster_core::ids::BackfillId;
use cluster_core::memory::MemoryPressure;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::oneshot;

/// Former versions removed by one job.
const PRUNE_MAX: usize = 10_000;
/// Of keys and vectors in the batches that one commit takes together, so that a
/// transaction of any size is written in pieces. One batch is never cut.
const COMMIT_BYTES_MAX: usize = 32 << 20;
const TAIL_POLL: Duration = Duration::from_millis(2);

/// What every writer of the node shares.
#[derive(Clone)]
pub struct WriterContext {
    pub storage: Arc<Storage>,
    pub metrics: Arc<Metrics>,
    pub memory: Arc<Memory>,
    pub config: ApplyConfig,
    pub checkpoints: Arc<Checkpoints>,
}

pub struct Writer {
    pub(super) replica: Arc<Replica>,
    pub(super) context: WriterContext,
    pub(super) meta: PartitionMeta,
    pub(super) index: IndexState,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) taking: Taking,
    /// A learner has applied its log up to here.
    pub(super) replayed: WalPosition,
    /// The backfill that has swept the replica to its end.
    pub(super) swept: Option<BackfillId>,
    pub(super) sweeping: Option<Sweeping>,
    pub(super) in_hand: InHand,
}

/// A sweep between two of its pieces.
pub(super) struct Sweeping {
    sweep: Sweep,
    /// One job of the queue has come in between, if there was any.
    queue_had_its_turn: bool,
}

/// Why a partition must stop.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fatal {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl Writer {
    pub fn run(mut self) {
        let mut next = None;
        while let Some(job) = self.next_job(&mut next) {
            if let Job::Stop { done } = job {
                drop(self);
                // Whoever asked may have gone.
                let _ = done.send(());
                return;
            }
            self.guarded(|writer| writer.step(job, &mut next));
            self.replica.done(std::mem::take(&mut self.in_hand));
            // A busy stream must not keep a learner from catching up.
            if learn::is_replaying(&self) {
                self.guarded(learn::replay);
            }
            self.replica.source.notify();
        }
    }

    /// The next job. A learner that has copied its peer applies its log while
    /// nobody asks for anything.
    fn next_job(&mut self, next: &mut Option<Job>) -> Option<Job> {
        if next.is_some() {
            return next.take();
        }
        if let Some(sweeping) = self.sweeping.take() {
            return Some(self.beside_sweep(sweeping));
        }
        while learn::is_replaying(self) {
            match self.jobs.try_recv() {
                Ok(job) => return Some(job),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            match self.guarded(learn::replay) {
                Some(Replayed::Some) => self.replica.source.notify(),
                Some(Replayed::Waits) => std::thread::sleep(TAIL_POLL),
                Some(Replayed::Nothing) | None => break,
            }
        }
        self.jobs.blocking_recv()
    }

    /// Acts; what is fatal quarantines the replica.
    fn guarded<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Fatal>) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(|| act(self))) {
            Ok(Ok(done)) => return Some(done),
            Ok(Err(fatal)) => self.replica.quarantine(fatal.to_string()),
            Err(panic) => self.replica.quarantine(panic_message(&*panic)),
        }
        None
    }

    fn step(&mut self, job: Job, next: &mut Option<Job>) -> Result<(), Fatal> {
        match job {
            Job::Apply { .. } | Job::NothingElse { .. } => self.apply(job, next),
            Job::OpenBackfill {
                backfill,
                since,
                published,
                reply,
            } => {
                let result = self.refuse_or(|w| backfill::open(w, backfill, since, published));
                answer(reply, result)
            }
            Job::Sweep(mut sweep) => match self.refuse_or(|w| reconcile::sweep(w, &mut sweep)) {
                Ok(Ok(None)) if self.swept != Some(sweep.backfill) => {
                    self.go_on_sweeping(sweep);
                    Ok(())
                }
                result => answer(sweep.reply, result),
            },
            Job::Chunk {
                backfill,
                chunk,
                stamp,
                rows,
                mark,
                reply,
            } => {
                self.wait_for_folding();
                let rows = Rows { rows, stamp, mark };
                let result = match self.refuses_bulk() {
                    Some(refused) => Ok(Err(refused.to_string())),
                    None => self.refuse_or(|w| backfill::chunk(w, backfill, chunk, rows)),
                };
                answer(reply, result)
            }
            Job::CloseBackfill { backfill, reply } => {
                let result = self.refuse_or(|w| backfill::close(w, backfill));
                answer(reply, result)
            }
            Job::Attach {
                from,
                gaps,
                on_hole,
            } => {
                self.in_hand.jobs = 1;
                learn::attach(self, from, &gaps, on_hole)
            }
            Job::Copy { run, step, reply } => {
                let result = match (self.replica.problem(), self.refuses_bulk()) {
                    (Some(problem), _) => Ok(Err(format!("quarantined: {problem}"))),
                    (None, Some(refused)) => Ok(Err(refused.to_string())),
                    (None, None) => learn::copy(self, run, step),
                };
                answer(reply, result)
            }
            Job::Find { keys, reply } => {
                let lost = self.lost(keys)?;
                // Whoever asked may have gone.
                let _ = reply.send(lost);
                Ok(())
            }
            Job::Prune => self.prune(),
            Job::Checkpoint => take::begin_if_due(self),
            Job::CheckpointTaken(taken) => take::finish(self, taken),
            Job::Stop { .. } => unreachable!("the loop ends at Stop"),
        }
    }

    /// The queue and a sweep take turns: neither holds up the other, however much waits.
    fn beside_sweep(&mut self, sweeping: Sweeping) -> Job {
        let sweep = sweeping.sweep;
        if sweeping.queue_had_its_turn {
            return Job::Sweep(sweep);
        }
        match self.jobs.try_recv() {
            Ok(job) => {
                self.sweeping = Some(Sweeping {
                    sweep,
                    queue_had_its_turn: true,
                });
                job
            }
            Err(_) => Job::Sweep(sweep),
        }
    }

    fn go_on_sweeping(&mut self, sweep: Sweep) {
        self.sweeping = Some(Sweeping {
            sweep,
            queue_had_its_turn: false,
        });
    }

    /// A quarantined replica refuses a backfill with its reason, and a learner
    /// takes none: its peer's rows have it.
    fn refuse_or(&mut self, act: impl FnOnce(&mut Self) -> backfill::Answer) -> backfill::Answer {
        match self.replica.problem() {
            Some(problem) => Ok(Err(format!("quarantined: {problem}"))),
            None if self.replica.is_learning() => {
                let partition = self.replica.id.partition;
                Ok(Err(format!("{partition} is still learning here")))
            }
            None => act(self),
        }
    }

    /// Takes the batches that wait and commits them together.
    fn apply(&mut self, first: Job, next: &mut Option<Job>) -> Result<(), Fatal> {
        self.in_hand.take(&first);
        // A log needs no folding; whoever waits here keeps other partitions waiting.
        if !self.replica.is_learning() {
            self.wait_for_folding();
            self.wait_for_memory(vectors_of(&first));
        }
        let group = self.gather(first, next);
        if self.replica.is_quarantined() || learn::log(self, &group)? {
            return Ok(());
        }
        let replica = self.replica.clone();
        let _commit = replica.commit_lock.lock();
        let partition = replica.id.partition;
        let storage = self.context.storage.clone();
        let mut stage = Stage::new(&storage, partition, &self.meta);
        let mut watermark = replica.progress.applied();
        let (mut batches, mut rows) = (0, 0);
        for job in group {
            match job {
                Job::Apply { batch, gaps, .. } if !gaps.has(partition) => {
                    match admit(watermark, batch.previous, batch.to) {
                        Admission::Duplicate => {}
                        Admission::Gap => {
                            self.context.metrics.apply_gaps.inc();
                            gaps.add(Gap {
                                partition,
                                watermark,
                                previous: batch.previous,
                            });
                        }
                        Admission::Apply => {
                            for change in batch.changes {
                                if change.position > watermark {
                                    stage.change(change)?;
                                    rows += 1;
                                }
                            }
                            watermark = batch.to;
                            batches += 1;
                        }
                    }
                }
                Job::NothingElse {
                    to,
                    gaps,
                    needs_attach,
                } if !gaps.has(partition) && (!needs_attach || gaps.is_attached(partition)) => {
                    watermark = watermark.max(to);
                }
                _ => {}
            }
        }
        if batches == 0 {
            replica.progress.apply_to(watermark);
            return Ok(());
        }
        let mut staged = stage.finish(self.taking.noted_since);
        // A stream that was superseded may have moved the watermark meanwhile.
        watermark = watermark.max(replica.progress.applied());
        staged.set.put_watermark(partition, watermark);
        self.commit(staged)?;
        replica.progress.apply_to(watermark);
        replica.progress.durable_to(watermark);
        self.context.metrics.apply_batches.inc_by(batches);
        self.context.metrics.apply_rows.inc_by(rows);
        Ok(())
    }

    fn gather(&mut self, first: Job, next: &mut Option<Job>) -> Vec<Job> {
        let (mut changes, mut bytes) = size(&first);
        let mut group = vec![first];
        // One by one, each as it needs room.
        if self.out_of_memory(MemoryPressure::Full).is_some() {
            return group;
        }
        while changes < self.context.config.commit_changes_max && bytes < COMMIT_BYTES_MAX {
            match self.jobs.try_recv() {
                Ok(job @ (Job::Apply { .. } | Job::NothingElse { .. })) => {
                    let more = size(&job);
                    changes += more.0;
                    bytes += more.1;
                    self.in_hand.take(&job);
                    group.push(job);
                }
                Ok(other) => {
                    *next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        group
    }

    /// Writes durably, then makes visible. The caller holds the commit lock.
    pub(super) fn commit(&mut self, staged: Staged) -> Result<(), Fatal> {
        let rows = staged.set.rows();
        self.context.storage.commit(staged.set)?;
        self.note_changed(rows);
        self.meta = staged.meta;
        self.publish(staged.publish)
    }

    pub(super) fn publish(&mut self, steps: Vec<Publish>) -> Result<(), Fatal> {
        for step in steps {
            self.note_pending(&step);
            let is_reset = matches!(step, Publish::Reset(_));
            self.index.publish(step)?;
            if is_reset {
                self.taking.forget();
                self.show_index();
            }
        }
        self.show_counts();
        Ok(())
    }

    pub(super) fn note_changed(&mut self, rows: u64) {
        self.taking.changed(rows);
        let changed = self.taking.changed_rows();
        self.replica.changed_rows.store(changed, Ordering::Relaxed);
    }

    fn note_pending(&self, step: &Publish) {
        let mut pending = self.replica.pending.lock();
        match step {
            Publish::Reset(rows) => {
                *pending = rows
                    .iter()
                    .filter(|(_, now)| matches!(now, Now::Pending))
                    .map(|(key, _)| key.clone())
                    .collect();
            }
            Publish::Set { key, now, .. } => match now {
                Now::Pending => drop(pending.insert(key.clone())),
                Now::Value(_) | Now::Gone => drop(pending.remove(key)),
            },
            Publish::Former { .. } | Publish::Forget { .. } => {}
        }
    }

    pub(super) fn show_index(&self) {
        self.replica.live.store(self.index.live().clone());
        self.show_counts();
    }

    fn show_counts(&self) {
        let rows = self.index.rows() as u64;
        let formers = self.index.formers().len() as u64;
        self.replica.rows.store(rows, Ordering::Relaxed);
        self.replica.formers.store(formers, Ordering::Relaxed);
        let retiring = self.index.retiring();
        self.replica.retiring.store(retiring, Ordering::Relaxed);
    }

    /// Between two commits disk and index are of one moment: what the index lacks is
    /// read again.
    fn lost(&self, keys: Vec<RowKey>) -> Result<Vec<RowKey>, Fatal> {
        let mut lost = Vec::new();
        for key in keys {
            if self.index.holds(&key) {
                continue;
            }
            let row = (self.context.storage).row(self.replica.id.partition, &key)?;
            if row.is_some_and(|row| matches!(row.vector, StoredVector::Value(_))) {
                lost.push(key);
            }
        }
        Ok(lost)
    }

    fn prune(&mut self) -> Result<(), Fatal> {
        if self.replica.is_quarantined() {
            return Ok(());
        }
        self.index.settle();
        let retention = self.replica.source.retention();
        let unneeded = self.index.formers().unneeded(retention, PRUNE_MAX);
        let mut set = WriteSet::default();
        for (key, ended) in &unneeded {
            set.delete_former(self.replica.id.partition, key, *ended);
        }
        if !set.is_empty() {
            // A crash brings them back, and the next round removes them again.
            self.context.storage.commit_lazily(set)?;
        }
        self.publish(
            unneeded
                .into_iter()
                .map(|(key, ended)| Publish::Forget { key, ended })
                .collect(),
        )
    }

    /// Pushes back while the tail is full, so that exact scans stay bounded, and says so. Of
    /// a quarantined replica nobody folds the tail any more.
    fn wait_for_folding(&self) {
        let waited_ms = self.wait_while(|| self.must_wait_for_folding());
        self.context.metrics.tail_wait_ms.inc_by(waited_ms);
    }

    /// What is committed cannot be refused: it waits, and the slot with it, until there
    /// is room for its vectors. What brings none goes on, and so does what fits into the
    /// slots of removed ones.
    fn wait_for_memory(&self, vectors: usize) {
        let lacks_room = || {
            let index = self.index.live();
            let free = index.index().slots_len() - index.index().total_len();
            let full = self.out_of_memory(MemoryPressure::Full);
            full.filter(|_| vectors > free)
        };
        if let Some(full) = lacks_room() {
            tracing::warn!(partition = %self.replica.id.partition, %full, "the stream waits");
        }
        let waited_ms = self.wait_while(|| lacks_room().is_some());
        self.context.metrics.memory_wait_ms.inc_by(waited_ms);
    }

    fn refuses_bulk(&self) -> Option<OutOfMemory> {
        self.out_of_memory(MemoryPressure::Tight)
    }

    pub(super) fn out_of_memory(&self, from: MemoryPressure) -> Option<OutOfMemory> {
        self.context.memory.refuses_at(from)
    }

    /// Milliseconds that it took.
    fn wait_while(&self, is_so: impl Fn() -> bool) -> u64 {
        let started = Instant::now();
        let is_over =
            || self.replica.is_stopping.load(Ordering::SeqCst) || self.replica.is_quarantined();
        while !is_over() && is_so() {
            std::thread::sleep(TAIL_POLL);
        }
        started.elapsed().as_millis() as u64
    }

    /// Whoever asks waits, if it is so, and others are told.
    pub(super) fn must_wait_for_folding(&self) -> bool {
        let full = self.full_tail();
        if let Some(full) = full {
            self.replica.begin_folding_wait(full);
        }
        full.is_some()
    }

    fn full_tail(&self) -> Option<FullTail> {
        let tail = self.index.live().index().tail_len();
        let recovered = &self.replica.recovered_rows;
        let left = recovered.fetch_min(tail, Ordering::Relaxed).min(tail);
        let limit = TailLimit::of(self.context.config.tail_rows_max, left);
        (tail > limit.rows_max()).then_some(FullTail { rows: tail, limit })
    }
}

/// Changes of a job, and the bytes of their keys and vectors.
fn size(job: &Job) -> (usize, usize) {
    let Job::Apply { batch, .. } = job else {
        return (0, 0);
    };
    let bytes = batch.changes.iter().map(|change| match &change.change {
        Change::Upsert {
            key,
            vector: VectorColumn::Value(vector),
        } => key.as_bytes().len() + vector.len() * 4,
        Change::Upsert { key, .. } | Change::Delete { key } => key.as_bytes().len(),
        Change::Truncate => 0,
    });
    (batch.changes.len(), bytes.sum())
}

/// Vectors that a job brings.
fn vectors_of(job: &Job) -> usize {
    let Job::Apply { batch, .. } = job else {
        return 0;
    };
    let brings = |change: &Change| {
        matches!(
            change,
            Change::Upsert {
                vector: VectorColumn::Value(_),
                ..
            }
        )
    };
    let changes = batch.changes.iter();
    changes.filter(|change| brings(&change.change)).count()
}

/// Passes the refusal or success on; what is fatal goes to both sides.
fn answer<T>(
    reply: oneshot::Sender<Result<T, String>>,
    result: Result<Result<T, String>, Fatal>,
) -> Result<(), Fatal> {
    // Whoever asked may have gone; the work stands.
    match result {
        Ok(answered) => drop(reply.send(answered)),
        Err(fatal) => {
            drop(reply.send(Err(fatal.to_string())));
            return Err(fatal);
        }
    }
    Ok(())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    format!("broken assumption: {}", text.unwrap_or("no message"))
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
