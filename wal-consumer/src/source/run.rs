//! One run of a source: from the slot's confirmed position on, transaction by
//! transaction, until something ends it. The one task that decides order; node
//! streams, status updates and backfills run beside it.

use super::commit::Tables;
use super::preflight::{self, Prepared};
use super::replica_changes::ReplicaChanges;
use super::slot_watch::SlotWatch;
use super::xmin::XidReading;
use super::{Reported, SourceContext, coordination, heartbeat, publication, sql};
use crate::backfill::{Backfills, Barrier};
use crate::feed::node::NodeFeed;
use crate::feed::progress::{Progress, RunEnd};
use crate::feed::router::{self, Router};

use crate::replication::connection::Connection;
use crate::replication::slot;
use crate::replication::stream::{Received, StreamLimits, StreamTimes, WalEvent, WalStream};
use crate::tasks::Tasks;
use crate::transaction::Assembler;
use cluster_core::collection::Collection;
use cluster_core::ids::CollectionId;
use cluster_core::map::PartitionMap;
use cluster_core::wal_position::Lsn;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const BARRIERS_QUEUED: usize = 16;
/// Events taken between two looks at what else there is to do.
const EVENTS_AT_ONCE: usize = 256;

pub struct Run {
    pub(super) context: SourceContext,
    pub(super) sql: Client,
    pub(super) progress: Arc<Progress>,
    pub(super) router: Router,
    pub(super) tables: Tables,
    pub(super) xids: watch::Receiver<XidReading>,
    pub(super) backfills: Backfills,
    pub(super) assembler: Assembler,
    /// Ends with the run.
    cancel: CancellationToken,
    tasks: Tasks,
    /// Everything up to here has been received and routed.
    complete: Lsn,
    told: Told,
}

/// What the nodes were last told, and when.
struct Told {
    end: Lsn,
    at: Instant,
    oldest_xmin: Option<u64>,
    confirmed: Lsn,
}

pub async fn run(context: &SourceContext, reported: &mut Option<Reported>) -> RunEnd {
    let preparing = preflight::prepare(context);
    let prepared = match context.cancel.run_until_cancelled(preparing).await {
        None => return RunEnd::Cancelled,
        Some(Err(end)) => return end,
        Some(Ok(prepared)) => prepared,
    };
    let cancel = context.cancel.child_token();
    let tasks = Tasks::default();
    let ending = stream(context, prepared, reported, &cancel, &tasks);
    let end = match context.cancel.run_until_cancelled(ending).await {
        None => RunEnd::Cancelled,
        Some(Err(end)) => end,
    };
    cancel.cancel();
    tasks.wait().await;
    end
}

async fn stream(
    context: &SourceContext,
    prepared: Prepared,
    reported: &mut Option<Reported>,
    cancel: &CancellationToken,
    tasks: &Tasks,
) -> Result<Infallible, RunEnd> {
    let Prepared {
        postgres,
        sql,
        slot_name,
        publication,
        following,
        server_start,
        system,
    } = prepared;
    let first = XidReading::take(&sql).await?;
    let (xid_sender, xids) = watch::channel(first);
    let (progress, mut ended) = Progress::new(following, context.promotions.clone());
    let (barriers, mut barrier_requests) = mpsc::channel(BARRIERS_QUEUED);
    let backfills = Backfills::new(
        context.clone(),
        postgres.clone(),
        slot_name.clone(),
        publication.clone(),
        progress.clone(),
        barriers,
        (cancel.clone(), tasks.clone()),
    );
    let reading = sql::connect(&postgres).await?;
    let polling = poll_server(
        context.clone(),
        reading,
        slot_name.clone(),
        xid_sender,
        progress.clone(),
    );
    spawn_until(cancel, tasks, polling);
    let beating = heartbeat::keep(context.clone(), postgres.clone(), progress.clone());
    spawn_until(cancel, tasks, beating);

    let mut run = Run {
        context: context.clone(),
        sql,
        progress: progress.clone(),
        router: Router::new(context.config.clone(), progress.clone()),
        tables: Tables::default(),
        xids,
        backfills,
        assembler: Assembler::new(
            context.config.transaction_memory_bytes,
            &context.config.data_dir,
        )
        .spill_at_most(context.config.transaction_spill_bytes_max),
        cancel: cancel.clone(),
        tasks: tasks.clone(),
        complete: following.start,
        told: Told {
            end: Lsn(0),
            at: Instant::now(),
            oldest_xmin: None,
            confirmed: Lsn(0),
        },
    };
    run.add_known_collections();
    let feeds = run.router.watch_feeds();
    let changes = ReplicaChanges::new(context.clone(), progress.clone(), feeds);
    spawn_until(cancel, tasks, changes.run());
    run.backfills.unpublish_unused();

    let mut connection = Connection::connect(&postgres, "-c wal_sender_timeout=60s").await?;
    // Behind one address there may be another server by now.
    if slot::identify_system(&mut connection).await? != system {
        let detail = "the server that is to be streamed from is not the one that was looked at";
        return Err(RunEnd::restart("another_server", detail));
    }
    let halves = slot::start(connection, &slot_name, &publication, following.start).await?;
    let times = StreamTimes {
        status_every: Duration::from_millis(context.config.status_every_ms.max(1)),
        wanted_every: Duration::from_millis(context.config.wanted_every_ms.max(1)),
    };
    let limits = StreamLimits {
        buffer_bytes: context.config.receive_buffer_bytes,
        bytes_per_second_max: context.config.stream_bytes_per_second_max,
    };
    let feedback = progress.feedback.clone();
    let mut wal = WalStream::spawn(halves, feedback, times, limits, cancel);
    context.standing.update(|s| s.streams_from = server_start);
    tracing::info!(source = %context.source, start = %following.start, token = following.token.0, "following");
    let had_problem = context
        .client
        .map()
        .sources
        .get(&context.source)
        .is_some_and(|s| !s.problem.is_empty());
    let is_behind = reported
        .as_ref()
        .is_some_and(|r| r.is_before(following.start));
    if is_behind || had_problem && reported.is_none() {
        coordination::report(context, None, None, "").await?;
        *reported = None;
    }
    let end = run
        .work(&mut wal, &mut ended, &mut barrier_requests, reported)
        .await;
    // The replication connection goes before anything else.
    wal.close().await;
    end
}

fn spawn_until(
    cancel: &CancellationToken,
    tasks: &Tasks,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let cancel = cancel.clone();
    tasks.spawn(async move {
        cancel.run_until_cancelled(work).await;
    });
}

impl Run {
    async fn work(
        &mut self,
        wal: &mut WalStream,
        ended: &mut mpsc::Receiver<RunEnd>,
        barriers: &mut mpsc::Receiver<Barrier>,
        reported: &mut Option<Reported>,
    ) -> Result<Infallible, RunEnd> {
        let mut map_watch = self.context.client.watch_map();
        // It may have changed since the collections were read from it.
        self.follow_map()?;
        let every = Duration::from_millis(self.context.config.nothing_else_every_ms);
        let mut refresh = tokio::time::interval(Duration::from_millis(
            self.context.config.oldest_xmin_every_ms.max(1),
        ));
        loop {
            let due = tokio::time::Instant::from_std(self.told.at + every);
            let owes = self.complete > self.told.end;
            let WalStream {
                events,
                ended: wal_ended,
                ..
            } = wal;
            let step = async {
                tokio::select! {
                    Some(received) = events.recv() => self.take_waiting(received, events, every).await?,
                    () = tokio::time::sleep_until(due), if owes => {}
                    _ = refresh.tick() => self.refresh().await,
                    _ = map_watch.changed() => {
                        self.follow_map()?;
                        self.attach_learners().await;
                    }
                    Some(barrier) = barriers.recv() => {
                        self.tell().await;
                        barrier.pass(self.progress.following.end_of(self.complete));
                    }
                }
                if self.complete > self.told.end && self.told.at.elapsed() >= every {
                    self.tell().await;
                }
                if reported
                    .as_ref()
                    .is_some_and(|r| r.is_before(self.complete))
                {
                    coordination::report(&self.context, None, None, "").await?;
                    *reported = None;
                }
                Ok::<(), RunEnd>(())
            };
            // Whatever a step waits for, the run can be ended.
            tokio::select! {
                biased;
                Some(end) = ended.recv() => return Err(end),
                Some(error) = wal_ended.recv() => {
                    return Err(error.into());
                }
                done = step => done?,
            }
        }
    }

    /// Takes an event and those that wait behind it, until it is time to tell the
    /// nodes: looking at everything else for each row would cost more than the row.
    async fn take_waiting(
        &mut self,
        first: Received,
        events: &mut mpsc::Receiver<Received>,
        every: Duration,
    ) -> Result<(), RunEnd> {
        self.take(first).await?;
        for _ in 1..EVENTS_AT_ONCE {
            let owes = self.complete > self.told.end;
            if owes && self.told.at.elapsed() >= every {
                break;
            }
            match events.try_recv() {
                Ok(received) => self.take(received).await?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    async fn take(&mut self, received: Received) -> Result<(), RunEnd> {
        match received.event {
            WalEvent::Data { at, payload } => {
                if !self.assembler.is_within_transaction() && heartbeat::is_message(&payload) {
                    self.pass_message(at, &payload);
                }
                let transaction = match self.prepare(at, &payload).await? {
                    true => None,
                    false => self.assembler.take(at, payload)?,
                };
                if let Some(transaction) = transaction {
                    let end = transaction.end_lsn;
                    self.progress.routes(end);
                    self.commit(transaction).await?;
                    self.complete = self.complete.max(end);
                }
                self.context
                    .standing
                    .update(|s| s.received = s.received.max(at));
            }
            WalEvent::Keepalive { wal_end } => {
                if !self.assembler.is_within_transaction() {
                    self.complete = self.complete.max(wal_end);
                    self.context
                        .standing
                        .update(|s| s.received = s.received.max(wal_end));
                }
            }
        }
        Ok(())
    }

    /// Between two transactions a message says what a keepalive does: what had been
    /// committed before it was written has been sent.
    fn pass_message(&mut self, at: Lsn, payload: &[u8]) {
        self.complete = self.complete.max(at);
        if heartbeat::is_ours(payload) {
            let (source, metrics) = (self.context.source, &self.context.metrics);
            metrics.heartbeat(source, "received");
        }
    }

    /// Sends what is buffered, then "nothing else".
    async fn tell(&mut self) {
        let end = self.complete;
        self.router.flush(end).await;
        let oldest_xmin = self.xids.borrow().oldest_xmin;
        self.router.nothing_else(end, oldest_xmin);
        let confirmed = self.progress.confirmed();
        self.told = Told {
            end,
            at: Instant::now(),
            oldest_xmin,
            confirmed,
        };
    }

    /// Learners are attached where everything before has been sent.
    async fn attach_learners(&mut self) {
        if self.router.can_attach() {
            self.tell().await;
        }
    }

    /// An idle source's nodes still learn what they may forget.
    async fn refresh(&mut self) {
        self.attach_learners().await;
        let oldest_xmin = self.xids.borrow().oldest_xmin;
        let confirmed = self.progress.confirmed();
        let is_news = (oldest_xmin, confirmed) != (self.told.oldest_xmin, self.told.confirmed);
        if is_news && self.complete == self.told.end {
            self.router.nothing_else(self.complete, oldest_xmin);
            self.told.oldest_xmin = oldest_xmin;
            self.told.confirmed = confirmed;
        }
        let (source, metrics) = (self.context.source, &self.context.metrics);
        metrics.learners(source, self.router.learners(), self.router.counted());
    }

    fn add_known_collections(&mut self) {
        let map = self.context.client.map();
        self.progress.settle_promotions(&map);
        for id in map.collections.keys() {
            if router::is_fed(&map, self.context.source, *id) {
                self.add_collection(&map, *id);
            }
        }
    }

    pub(super) fn add_collection(&mut self, map: &PartitionMap, id: CollectionId) {
        if self.router.collections().contains_key(&id) {
            return;
        }
        self.router.add_collection(map, id);
        self.run_new_feeds();
        if map
            .collections
            .get(&id)
            .is_some_and(Collection::wants_backfill)
        {
            self.backfills.start(id);
        }
    }

    fn run_new_feeds(&mut self) {
        for feed in self.router.take_new_feeds() {
            let client = self.context.client.clone();
            let config = self.context.config.clone();
            self.tasks
                .spawn(NodeFeed::run(feed, client, config, self.cancel.clone()));
        }
    }

    pub(super) fn remove_collection(&mut self, id: CollectionId) {
        self.router.remove_collection(id);
        self.tables.forget_collection(id);
        self.backfills.stop(id);
        self.backfills.unpublish_unused();
    }

    fn follow_map(&mut self) -> Result<(), RunEnd> {
        let map = self.context.client.map();
        let source = self.context.source;
        if !map.sources.contains_key(&source) {
            return Err(RunEnd::Cancelled);
        }
        let gone: Vec<CollectionId> = self
            .router
            .collections()
            .keys()
            .filter(|id| !router::is_fed(&map, source, **id))
            .copied()
            .collect();
        for id in gone {
            self.remove_collection(id);
        }
        self.router
            .follow_map(&map, source)
            .map_err(|id| RunEnd::restart("map_changed", format!("{id} lies elsewhere now")))?;
        self.run_new_feeds();
        for id in self.router.collections().keys() {
            let collection = map.collections.get(id);
            if collection.is_some_and(|c| c.reconcile.is_some()) {
                self.backfills.start_if_idle(*id);
            }
        }
        Ok(())
    }
}

/// Lag is told while a long transaction is routed too, and then most of all.
fn show_positions(context: &SourceContext, progress: &Progress) {
    let lowest = progress.lowest_durable();
    let confirmed = progress.confirmed();
    let reached = progress.feedback.reached().max(confirmed);
    let applied = lowest.map_or(reached, |p| p.commit_end);
    context.standing.update(|s| {
        s.applied = applied;
        s.confirmed = confirmed;
    });
    context.metrics.positions(context.source, &context.standing);
}

/// Reads what only the server knows, every second.
async fn poll_server(
    context: SourceContext,
    client: Client,
    slot_name: String,
    xids: watch::Sender<XidReading>,
    progress: Arc<Progress>,
) {
    let every = Duration::from_millis(context.config.oldest_xmin_every_ms.max(1));
    let mut slot = SlotWatch::new(context.clone(), slot_name);
    loop {
        let polling = async {
            xids.send_replace(XidReading::take(&client).await?);
            slot.look(&client).await?;
            show_positions(&context, &progress);
            publication::check(&context, &client).await
        };
        let polled = tokio::time::timeout(
            Duration::from_millis(context.config.call_timeout_ms),
            polling,
        );
        match polled.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let end = error.downcast::<RunEnd>();
                let restart = |error| RunEnd::restart("sql", format!("{error:#}"));
                return progress.end(end.unwrap_or_else(restart));
            }
            Err(_) => return progress.end(RunEnd::restart("sql", "Postgres does not answer")),
        }
        tokio::time::sleep(every).await;
    }
}
