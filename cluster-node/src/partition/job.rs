//! What a partition's writer is asked to do, in the order of its queue.

use super::rebuild::Rebuilt;
use cluster_core::change::{BackfillRow, Batch};
use cluster_core::ids::{BackfillId, PartitionId};
use cluster_core::wal_position::WalPosition;
use parking_lot::Mutex;
use std::collections::BTreeMap;
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
/// ignored for that partition, "nothing else" included: it would skip rows.
#[derive(Default)]
pub struct StreamGaps {
    seen: Mutex<BTreeMap<PartitionId, Gap>>,
}

impl StreamGaps {
    pub fn add(&self, gap: Gap) {
        self.seen.lock().entry(gap.partition).or_insert(gap);
    }

    pub fn has(&self, partition: PartitionId) -> bool {
        self.seen.lock().contains_key(&partition)
    }

    pub fn all(&self) -> Vec<Gap> {
        self.seen.lock().values().copied().collect()
    }
}

/// `Err` says why a backfill request was refused.
pub type BackfillReply = oneshot::Sender<Result<(), String>>;

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
    },
    OpenBackfill {
        backfill: BackfillId,
        reply: BackfillReply,
    },
    Chunk {
        backfill: BackfillId,
        chunk: u64,
        stamp: WalPosition,
        rows: Vec<BackfillRow>,
        reply: BackfillReply,
    },
    CloseBackfill {
        backfill: BackfillId,
        reply: BackfillReply,
    },
    /// Remove former versions that nobody needs.
    Prune,
    /// A rebuilt index is ready to take over.
    Rebuilt(Box<Rebuilt>),
    /// End the writer; what is queued behind is not done.
    Stop { done: oneshot::Sender<()> },
}
