//! What node streams, router and status writer share about one run of a source.

use crate::replication::stream::Feedback;
use cluster_core::confirm::{ConfirmTracker, ReplicaKey};
use cluster_core::ids::{CollectionId, ConsumerEpoch, Incarnation, NodeId, PartitionId, SourceId};
use cluster_core::invariants::check_confirmation;
use cluster_core::wal_position::{Lsn, WalPosition};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Who follows what, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Following {
    pub source: SourceId,
    pub token: ConsumerEpoch,
    pub incarnation: Incarnation,
    /// Where the stream starts: what the slot had confirmed.
    pub start: Lsn,
}

impl Following {
    pub fn end_of(&self, lsn: Lsn) -> WalPosition {
        WalPosition::end_of(self.incarnation, lsn)
    }
}

/// Why a run of a source ends. All but `Cancelled` are followed by another run.
#[derive(Debug, thiserror::Error)]
pub enum RunEnd {
    #[error("cancelled")]
    Cancelled,
    /// Begins again at the confirmed position. The label is for metrics.
    #[error("{detail}")]
    Restart { label: &'static str, detail: String },
    /// One collection cannot be fed from the slot any more: it fails, and the
    /// source begins again without it.
    #[error("{collection}: {reason}")]
    Lost {
        collection: CollectionId,
        reason: String,
    },
    /// Somebody must act; reported to the coordinators.
    #[error("{0}")]
    Problem(String),
}

impl RunEnd {
    pub fn restart(label: &'static str, detail: impl std::fmt::Display) -> Self {
        RunEnd::Restart {
            label,
            detail: detail.to_string(),
        }
    }
}

/// Whatever is not a named problem is worth another try.
impl From<anyhow::Error> for RunEnd {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<RunEnd>() {
            Ok(end) => end,
            Err(error) => RunEnd::restart("error", format!("{error:#}")),
        }
    }
}

/// Ends beyond the first few are of no interest.
const ENDS_QUEUED: usize = 16;

pub struct Progress {
    pub following: Following,
    pub feedback: Arc<Feedback>,
    tracker: Mutex<ConfirmTracker>,
    /// Counts reports, so that waiters look again.
    changed: watch::Sender<u64>,
    ends: mpsc::Sender<RunEnd>,
}

impl Progress {
    pub fn new(following: Following) -> (Arc<Self>, mpsc::Receiver<RunEnd>) {
        let (ends, ended) = mpsc::channel(ENDS_QUEUED);
        let progress = Self {
            following,
            feedback: Arc::new(Feedback::new(following.start)),
            tracker: Mutex::new(ConfirmTracker::new(following.incarnation, following.start)),
            changed: watch::Sender::new(0),
            ends,
        };
        (Arc::new(progress), ended)
    }

    pub fn end(&self, end: RunEnd) {
        let _ = self.ends.try_send(end);
    }

    pub fn require(&self, replica: ReplicaKey) {
        self.tracker.lock().require(replica);
    }

    pub fn retain(&self, is_required: impl Fn(&ReplicaKey) -> bool) {
        self.advance(|tracker| tracker.retain(is_required));
    }

    /// Nodes have been told about everything up to `end`.
    pub fn sent(&self, end: Lsn) {
        self.advance(|tracker| tracker.sent(end));
        self.feedback.reach(end);
    }

    pub fn durable(&self, replica: ReplicaKey, position: WalPosition) {
        self.advance(|tracker| tracker.durable(replica, position));
    }

    /// A node reported something: wake who waits for it.
    pub fn wake(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn confirmed(&self) -> Lsn {
        self.feedback.confirmed()
    }

    pub fn lowest_durable(&self) -> Option<WalPosition> {
        self.tracker.lock().lowest_durable()
    }

    /// Waits until every replica of the partitions has made `position` durable.
    pub async fn wait_durable(&self, position: WalPosition, partitions: &[PartitionId]) {
        let mut changed = self.watch();
        loop {
            let is_durable = self
                .tracker
                .lock()
                .is_durable(position, |replica| partitions.contains(&replica.partition));
            if is_durable || changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn advance(&self, change: impl FnOnce(&mut ConfirmTracker)) {
        let mut tracker = self.tracker.lock();
        change(&mut tracker);
        let confirmed = tracker.confirmed();
        // A replica that is required later holds nothing back that was confirmed
        // before: only what is new is checked.
        if confirmed <= self.feedback.confirmed() {
            return;
        }
        let position = self.following.end_of(confirmed);
        match check_confirmation(position, tracker.required_durable()) {
            Ok(()) => self.feedback.confirm(confirmed),
            Err(violation) => self.end(RunEnd::Problem(violation.to_string())),
        }
    }
}

/// A partition as the router knows it.
#[derive(Clone, Debug)]
pub struct RoutedPartition {
    pub id: PartitionId,
    pub collection: CollectionId,
    pub replicas: Vec<NodeId>,
}
