//! What node streams, router and status writer share about one run of a source.

use crate::replication::stream::{Feedback, StreamError};
use crate::transaction::TransactionError;
use cluster_core::confirm::{ConfirmTracker, ReplicaKey};
use cluster_core::ids::{CollectionId, ConsumerEpoch, Incarnation, PartitionId, SourceId};
use cluster_core::invariants::check_confirmation;
use cluster_core::map::{PartitionMap, Replica, ReplicaState};
use cluster_core::wal_position::{Lsn, WalPosition};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, mpsc, watch};
use tokio_postgres::error::SqlState;

/// Who follows what, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Following {
    pub source: SourceId,
    pub token: ConsumerEpoch,
    pub incarnation: Incarnation,
    /// Where the stream starts: what the slot had confirmed.
    pub start: Lsn,
    /// How far the server's WAL was on disk when nobody fed a replica any more.
    pub flushed: Lsn,
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
    /// What stands at this position of the stream cannot be read, and may hold rows:
    /// the source stays there. As a problem it is named until the stream is past it.
    #[error("{problem}")]
    Undecodable { at: Lsn, problem: String },
    /// There is no room here for the transaction that commits at this position: read
    /// again only after a longer pause, for all of it has to come anew. A problem, too.
    #[error("{problem}")]
    NoRoom { at: Lsn, problem: String },
}

impl RunEnd {
    pub fn restart(label: &'static str, detail: impl std::fmt::Display) -> Self {
        RunEnd::Restart {
            label,
            detail: detail.to_string(),
        }
    }
}

impl From<TransactionError> for RunEnd {
    fn from(error: TransactionError) -> Self {
        let problem = error.to_string();
        match error {
            TransactionError::Decode(decode) => {
                let at = decode.at();
                RunEnd::Undecodable { at, problem }
            }
            TransactionError::Protocol { at, .. } => RunEnd::Undecodable { at, problem },
            TransactionError::TooLarge { at, .. } | TransactionError::NoRoom { at, .. } => {
                RunEnd::NoRoom { at, problem }
            }
            TransactionError::Spill(_) => RunEnd::restart("spill", problem),
        }
    }
}

/// Of the stream itself, beside its messages.
impl From<StreamError> for RunEnd {
    fn from(error: StreamError) -> Self {
        let problem = error.to_string();
        match error {
            StreamError::Undecodable { after, .. } => RunEnd::Undecodable { at: after, problem },
            StreamError::Ended(error) => RunEnd::restart("stream", format!("{error:#}")),
        }
    }
}

/// Whatever is not a named problem is worth another try.
impl From<anyhow::Error> for RunEnd {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<RunEnd>() {
            Ok(end) => end,
            Err(error) if is_for_an_operator(&error) => RunEnd::Problem(format!(
                "{error:#}: 'ruvector ctl source check' says which right is missing"
            )),
            Err(error) => RunEnd::restart("error", format!("{error:#}")),
        }
    }
}

/// A right or a password that is missing does not come by trying again soon.
fn is_for_an_operator(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    let refused = causes.find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>()?.code());
    let for_an_operator = [
        &SqlState::INSUFFICIENT_PRIVILEGE,
        &SqlState::INVALID_PASSWORD,
        &SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        // A publication of our name that is somebody else's.
        &SqlState::DUPLICATE_OBJECT,
    ];
    refused.is_some_and(|state| for_an_operator.contains(&state))
}

/// Learners that the coordinators were asked to promote, under one token: one of
/// them may serve at any moment, so every run counts them until the map has shown
/// what became of it.
pub type Promotions = Arc<Mutex<BTreeSet<ReplicaKey>>>;

/// Ends beyond the first few are of no interest.
const ENDS_QUEUED: usize = 16;

pub struct Progress {
    pub following: Following,
    pub feedback: Arc<Feedback>,
    tracker: Mutex<ConfirmTracker>,
    /// Counts reports, so that waiters look again.
    changed: watch::Sender<u64>,
    ends: mpsc::Sender<RunEnd>,
    promotions: Promotions,
    /// A replica changed in a way that the coordinators must hear of.
    pub replicas_changed: Notify,
    /// The end of the transaction that is being routed: nodes may have parts of it.
    routing: AtomicU64,
}

impl Progress {
    pub fn new(
        following: Following,
        promotions: Promotions,
    ) -> (Arc<Self>, mpsc::Receiver<RunEnd>) {
        let (ends, ended) = mpsc::channel(ENDS_QUEUED);
        let progress = Self {
            following,
            feedback: Arc::new(Feedback::new(following.start)),
            tracker: Mutex::new(ConfirmTracker::new(following.incarnation, following.start)),
            changed: watch::Sender::new(0),
            ends,
            promotions,
            replicas_changed: Notify::new(),
            routing: AtomicU64::new(0),
        };
        (Arc::new(progress), ended)
    }

    pub fn end(&self, end: RunEnd) {
        let _ = self.ends.try_send(end);
    }

    pub fn require(&self, replica: ReplicaKey) {
        self.tracker.lock().require(replica);
    }

    /// Asks to count a learner that has made everything up to `durable` so; see
    /// [`ConfirmTracker::count`].
    pub fn count(&self, replica: ReplicaKey, durable: WalPosition) -> bool {
        let is_counted = self.advance(|tracker| tracker.count(replica, durable));
        if is_counted {
            self.promotions.lock().insert(replica);
            self.replicas_changed.notify_one();
        }
        is_counted
    }

    /// The slot waits no longer for it.
    pub fn release(&self, replica: ReplicaKey) {
        self.advance(|tracker| tracker.retain(|required| *required != replica));
        self.wake();
    }

    pub fn is_being_promoted(&self, replica: ReplicaKey) -> bool {
        self.promotions.lock().contains(&replica)
    }

    /// It is known what became of the promotion.
    pub fn promotion_settled(&self, replica: ReplicaKey) {
        self.promotions.lock().remove(&replica);
    }

    /// Those that the map lists as learners no longer are settled.
    pub fn settle_promotions(&self, map: &PartitionMap) {
        let is_open = |key: &ReplicaKey| {
            let partition = map.held_partition(key.partition);
            let replica = partition.and_then(|p| p.replica_on(key.node));
            replica
                .is_some_and(|r| (r.generation, r.state) == (key.generation, ReplicaState::Learner))
        };
        self.promotions.lock().retain(is_open);
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

    /// What a transaction that ends there holds goes to nodes from now on.
    pub fn routes(&self, end: Lsn) {
        self.routing.fetch_max(end.0, Ordering::AcqRel);
    }

    /// Where the newest transaction of the source that this run has met ends.
    pub fn transaction_end(&self) -> Lsn {
        Lsn(self.routing.load(Ordering::Acquire))
    }

    /// Nobody can have anything beyond of the server that is followed: it ended there when
    /// nobody fed a replica, and this run has sent no more since.
    pub fn highest_possible(&self) -> WalPosition {
        let routed = Lsn(self.routing.load(Ordering::Acquire));
        let reached = self.feedback.reached().max(routed);
        self.following.end_of(reached.max(self.following.flushed))
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

    /// Whether the slot waits for a replica, and it has reached a position.
    pub fn is_fed_up_to(&self, replica: ReplicaKey, position: WalPosition) -> bool {
        let tracker = self.tracker.lock();
        tracker
            .required_at(replica)
            .is_some_and(|at| at >= position)
    }

    /// Waits until every required replica of the partitions has made `position` durable.
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

    fn advance<T>(&self, change: impl FnOnce(&mut ConfirmTracker) -> T) -> T {
        let mut tracker = self.tracker.lock();
        let changed = change(&mut tracker);
        let confirmed = tracker.confirmed();
        // A replica that is required later holds nothing back that was confirmed
        // before: only what is new is checked.
        if confirmed > self.feedback.confirmed() {
            let position = self.following.end_of(confirmed);
            match check_confirmation(position, tracker.required_durable()) {
                Ok(()) => self.feedback.confirm(confirmed),
                Err(violation) => self.end(RunEnd::Problem(violation.to_string())),
            }
        }
        changed
    }
}

/// A partition as the router knows it.
#[derive(Clone, Debug)]
pub struct RoutedPartition {
    pub id: PartitionId,
    pub collection: CollectionId,
    /// Those that are fed, as the map last showed them.
    pub replicas: Vec<Replica>,
}
