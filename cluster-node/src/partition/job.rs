//! What a partition's writer is asked to do, in the order of its queue.

use super::checkpoint::take::Taken;
use crate::storage::{CopiedRecord, PartitionMeta};
use cluster_core::backfill::BackfillMark;
use cluster_core::change::{BackfillRow, Batch};
use cluster_core::ids::{BackfillId, PartitionId};
use cluster_core::learner::{CopyKey, CopyRun};
use cluster_core::reconcile::SeenPublished;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// A batch that cannot be applied: something before it is missing (P4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub partition: PartitionId,
    pub watermark: WalPosition,
    pub previous: WalPosition,
}

/// The gaps of one apply stream. What follows a gap on the same stream is
/// ignored for that partition, "nothing else" included: it would skip rows. Only
/// an attachment ends that, for it says from where the stream carries on.
#[derive(Default)]
pub struct StreamGaps {
    marks: Mutex<Marks>,
}

#[derive(Default)]
struct Marks {
    seen: BTreeMap<PartitionId, Gap>,
    untold: Vec<Gap>,
    /// Learners that this stream feeds.
    attached: BTreeSet<PartitionId>,
}

impl StreamGaps {
    pub fn add(&self, gap: Gap) {
        let mut marks = self.marks.lock();
        marks.attached.remove(&gap.partition);
        if marks.seen.insert(gap.partition, gap).is_none() {
            marks.untold.push(gap);
        }
    }

    /// As [`Self::add`], for an attachment: it is told again each time, for each
    /// time the consumer asks.
    pub fn refuse_attach(&self, gap: Gap) {
        let mut marks = self.marks.lock();
        marks.attached.remove(&gap.partition);
        marks.seen.insert(gap.partition, gap);
        marks
            .untold
            .retain(|other| other.partition != gap.partition);
        marks.untold.push(gap);
    }

    pub fn has(&self, partition: PartitionId) -> bool {
        self.marks.lock().seen.contains_key(&partition)
    }

    /// The gaps that the consumer has not been told of.
    pub fn take_untold(&self) -> Vec<Gap> {
        std::mem::take(&mut self.marks.lock().untold)
    }

    pub fn attach(&self, partition: PartitionId) {
        let mut marks = self.marks.lock();
        marks.seen.remove(&partition);
        marks.attached.insert(partition);
    }

    pub fn is_attached(&self, partition: PartitionId) -> bool {
        self.marks.lock().attached.contains(&partition)
    }

    #[cfg(test)]
    pub fn all(&self) -> Vec<Gap> {
        self.marks.lock().seen.values().copied().collect()
    }
}

/// What a copy from a peer brings.
pub enum CopyStep {
    /// The peer's header.
    Begin {
        watermark: WalPosition,
        meta: PartitionMeta,
        rows_total: u64,
    },
    Records {
        records: Vec<CopiedRecord>,
        first: CopyKey,
        last: CopyKey,
        /// Nothing above this is in the records.
        high: WalPosition,
        bytes: u64,
    },
    /// The peer says that nothing follows.
    End,
    /// Records are missing: begin the copy again.
    OnceMore,
}

/// `Err` says why a backfill request was refused. The mark is an open's answer.
pub type BackfillReply = oneshot::Sender<Result<Option<BackfillMark>, String>>;
/// `Err` says why a step of a copy was refused.
pub type CopyReply = oneshot::Sender<Result<(), String>>;

/// What an attachment does where the stream has a hole below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHole {
    /// A slot may count on the replica, and on what it holds: GAP.
    Refuse,
    /// The map says that it learns: no slot counts on it.
    BeginAnew,
    /// The map says that it is stale and its collection is reconciled: it keeps its
    /// rows, and trusts none.
    Distrust,
}

/// A sweep that is under way.
pub struct Sweep {
    pub backfill: BackfillId,
    /// Rows that stand below go.
    pub below: WalPosition,
    /// The last key that was looked at.
    pub after: Option<RowKey>,
    pub removed: u64,
    pub reply: BackfillReply,
}

pub enum Job {
    Apply {
        batch: Batch,
        gaps: Arc<StreamGaps>,
        /// The batch's share of the memory that waiting batches may take.
        memory: Option<OwnedSemaphorePermit>,
    },
    NothingElse {
        to: WalPosition,
        gaps: Arc<StreamGaps>,
        /// It counts only if the stream has attached the replica.
        needs_attach: bool,
    },
    Attach {
        from: WalPosition,
        gaps: Arc<StreamGaps>,
        on_hole: OnHole,
    },
    Copy {
        run: CopyRun,
        step: CopyStep,
        reply: CopyReply,
    },
    OpenBackfill {
        backfill: BackfillId,
        /// The first backfill of the reconcile that it belongs to.
        since: Option<BackfillId>,
        published: Option<SeenPublished>,
        reply: BackfillReply,
    },
    Chunk {
        backfill: BackfillId,
        chunk: u64,
        stamp: WalPosition,
        rows: Vec<BackfillRow>,
        /// The chunk is the last of a range.
        mark: Option<BackfillMark>,
        reply: BackfillReply,
    },
    /// Removes what the reconcile's snapshots have not seen, a bounded piece at a time.
    Sweep(Sweep),
    CloseBackfill {
        backfill: BackfillId,
        reply: BackfillReply,
    },
    /// Which of these keys have a known vector on disk that no search finds, in the
    /// given order. Others may have changed since they were read.
    Find {
        keys: Vec<RowKey>,
        reply: oneshot::Sender<Vec<RowKey>>,
    },
    /// Remove former versions that nobody needs.
    Prune,
    /// Take a checkpoint, if one is due.
    Checkpoint,
    /// One is written, or is not.
    CheckpointTaken(Taken),
    /// End the writer; what is queued behind is not done.
    Stop { done: oneshot::Sender<()> },
}

impl Job {
    /// Of a stream's batch.
    pub fn changes(&self) -> usize {
        match self {
            Job::Apply { batch, .. } => batch.changes.len(),
            _ => 0,
        }
    }
}

/// Jobs of apply streams that a writer has taken from its queue and not done.
#[derive(Default)]
pub struct InHand {
    pub jobs: usize,
    pub changes: usize,
}

impl InHand {
    pub fn take(&mut self, job: &Job) {
        self.jobs += 1;
        self.changes += job.changes();
    }
}
