//! Fills new collections beside the stream, and once more those whose replicas may differ
//! from the table ([`reconcile`]). In reading order: one attempt at a
//! collection ([`attempt`]), its table ([`table`]), the snapshots that it is read
//! under ([`snapshot`]), range by range ([`ranges`]), the rows as COPY sends them
//! ([`copy`]), the way to the nodes ([`chunks`], [`links`]) and its pace
//! ([`pace`]), and rows read again by key ([`reread`]).
//!
//! An attempt that fails is followed by another under a new backfill id, which
//! voids the earlier one and goes on where every replica has what lies before.

mod attempt;
mod chunks;
pub mod copy;
mod links;
pub(crate) mod pace;
mod ranges;
mod reconcile;
pub mod reread;
mod snapshot;
pub mod table;

use crate::feed::progress::{Progress, RunEnd};
use crate::retry::Backoff;
use crate::source::postgres::Postgres;
use crate::source::{SourceContext, coordination};
use crate::tasks::Tasks;
use attempt::{Attempt, Outcome};
use cluster_core::collection::Collection;
use cluster_core::ids::CollectionId;
use cluster_core::wal_position::WalPosition;
use pace::Pace;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// An attempt that lasted this long brought the copy on: the next pause is short.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked whether the stream has come far enough.
const CAUGHT_UP_POLL: Duration = Duration::from_millis(100);

/// Asks the stream where it stands, once it is between two transactions and
/// everything before has been sent.
pub struct Barrier {
    answer: oneshot::Sender<WalPosition>,
}

impl Barrier {
    pub fn pass(self, at: WalPosition) {
        let _ = self.answer.send(at);
    }
}

/// What every backfill of a run shares.
#[derive(Clone)]
pub struct Shared {
    pub context: SourceContext,
    pub postgres: Postgres,
    pub slot_name: String,
    pub publication: String,
    pub progress: Arc<Progress>,
    barriers: mpsc::Sender<Barrier>,
    /// One ALTER PUBLICATION at a time: taking a table out must not cross with
    /// another collection's putting it in.
    pub publication_lock: Arc<Mutex<()>>,
    turns: Arc<Semaphore>,
    pace: Arc<Pace>,
}

impl Shared {
    pub async fn barrier(&self) -> Result<WalPosition, RunEnd> {
        let (answer, position) = oneshot::channel();
        let gone = |_| RunEnd::Cancelled;
        self.barriers
            .send(Barrier { answer })
            .await
            .map_err(|_| RunEnd::Cancelled)?;
        position.await.map_err(gone)
    }
}

pub struct Backfills {
    shared: Shared,
    cancel: CancellationToken,
    tasks: Tasks,
    running: BTreeMap<CollectionId, Running>,
}

struct Running {
    cancel: CancellationToken,
    /// The work is over, whatever came of it.
    has_ended: Arc<AtomicBool>,
}

impl Backfills {
    pub fn new(
        context: SourceContext,
        postgres: Postgres,
        slot_name: String,
        publication: String,
        progress: Arc<Progress>,
        barriers: mpsc::Sender<Barrier>,
        (cancel, tasks): (CancellationToken, Tasks),
    ) -> Self {
        let turns = Arc::new(Semaphore::new(context.config.backfills_max.max(1)));
        let pace = Arc::new(Pace::new(context.config.backfill_bytes_per_second_max));
        let shared = Shared {
            context,
            postgres,
            slot_name,
            publication,
            progress,
            barriers,
            publication_lock: Arc::default(),
            turns,
            pace,
        };
        Self {
            shared,
            cancel,
            tasks,
            running: BTreeMap::new(),
        }
    }

    pub fn start(&mut self, id: CollectionId) {
        let cancel = self.cancel.child_token();
        let has_ended = Arc::new(AtomicBool::new(false));
        let running = Running {
            cancel: cancel.clone(),
            has_ended: has_ended.clone(),
        };
        if let Some(former) = self.running.insert(id, running) {
            former.cancel.cancel();
        }
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(fill(&shared, id)).await;
            shared.context.standing.update(|s| {
                s.backfills.remove(&id);
            });
            has_ended.store(true, Ordering::SeqCst);
        });
    }

    /// The same, unless it is under way.
    pub fn start_if_idle(&mut self, id: CollectionId) {
        let running = self.running.get(&id);
        if running.is_none_or(|r| r.has_ended.load(Ordering::SeqCst)) {
            self.start(id);
        }
    }

    pub fn stop(&mut self, id: CollectionId) {
        if let Some(running) = self.running.remove(&id) {
            running.cancel.cancel();
        }
    }

    /// Takes the tables out of the publication that no collection needs. What a
    /// run does not get done its successor does.
    pub fn unpublish_unused(&self) {
        let shared = self.shared.clone();
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            let mut backoff = Backoff::new(&shared.context.config);
            let trying = async {
                while let Err(problem) = table::unpublish_unused(&shared).await {
                    tracing::warn!(source = %shared.context.source, problem = format!("{problem:#}"), "a table stays in the publication for now");
                    backoff.pause().await;
                }
            };
            cancel.run_until_cancelled(trying).await;
        });
    }
}

/// A reconcile begins once the stream has everything that the server had when the run
/// began. Its stale replicas are attached where the stream stands, and trust what it has
/// told them since: what went by unseen, as while a table was not published, must lie before.
async fn wait_until_caught_up(shared: &Shared) -> Result<(), RunEnd> {
    let following = &shared.progress.following;
    let at = following.end_of(following.flushed);
    while shared.barrier().await? < at {
        tokio::time::sleep(CAUGHT_UP_POLL).await;
    }
    Ok(())
}

/// Until the collection is ready, failed or gone.
async fn fill(shared: &Shared, id: CollectionId) {
    let context = &shared.context;
    let mut backoff = Backoff::new(&context.config);
    loop {
        let map = context.client.map();
        let collection = map.collections.get(&id);
        if !collection.is_some_and(Collection::wants_backfill) {
            return;
        }
        if collection.is_some_and(|c| c.reconcile.is_some())
            && wait_until_caught_up(shared).await.is_err()
        {
            return;
        }
        let (outcome, took) = {
            let Ok(_turn) = shared.turns.acquire().await else {
                return;
            };
            let began = Instant::now();
            (Attempt::run(shared, id).await, began.elapsed())
        };
        if took > SETTLED_AFTER {
            backoff.reset();
        }
        match outcome {
            Ok(()) => {
                tracing::info!(source = %context.source, collection = %id, "backfill finished");
                return;
            }
            Err(Outcome::Failed(reason)) => {
                if coordination::fail_collection(context, id, &reason)
                    .await
                    .is_ok()
                {
                    return;
                }
            }
            Err(Outcome::Retry(problem)) => {
                context.metrics.restarted(context.source, "backfill");
                tracing::warn!(source = %context.source, collection = %id, problem = format!("{problem:#}"), "backfill broke off, and goes on");
            }
        }
        backoff.pause().await;
    }
}
