//! One search request on this node: each partition answers for itself, and an
//! answer says from which watermark it comes.

use super::cursors::OpenCursor;
use super::pool::PoolError;
use crate::config::LeaseLoss;
use crate::lease::Standing;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::partition::live_index::LiveCursor;
use crate::partition::replica::Replica;
use cluster_core::collection::CollectionState;
use cluster_core::ids::*;
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::row_key::RowKey;
use cluster_core::server::{self, AskedBy, Stranger};
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_core::xid::FullXid;
use futures::future::join_all;
use index_engine::group::ef_of_each;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A request names at most this many partitions.
pub const PARTITIONS_MAX: usize = 1_024;
/// How long a request of a newer map waits for that map, before it is refused.
pub(super) const MAP_WAIT: Duration = Duration::from_millis(200);

#[derive(Clone, Debug)]
pub struct Search {
    pub epoch: LeaseEpoch,
    /// Of the map that the caller asks by.
    pub map_version: MapVersion,
    pub source: SourceId,
    /// Absent of a server that runs release 0.1.0.
    pub asked_by: Option<AskedBy>,
    /// Of the source, as the caller knows it: `min_lsn` is a position there.
    pub incarnation: Incarnation,
    pub collection: CollectionId,
    pub vector: Box<[f32]>,
    /// Of an index of all the collection's rows; each partition looks for its part.
    pub ef: usize,
    pub page_rows: usize,
    /// A position to have applied; `None` takes what is there.
    pub min_lsn: Option<Lsn>,
    pub snapshot_xmin: FullXid,
    pub deadline: Duration,
    pub exact: bool,
    /// Whether a page without a lease, or of a stale replica, flagged, is better
    /// than none.
    pub accepts_stale: bool,
    pub partitions: Vec<PageOf>,
}

#[derive(Clone, Copy, Debug)]
pub struct PageOf {
    pub partition: PartitionId,
    pub generation: Generation,
    /// 0 asks for the first page.
    pub token: u64,
}

#[derive(Debug)]
pub struct Page {
    pub hits: Vec<(RowKey, f64)>,
    pub bound: f64,
    pub exhausted: bool,
    pub token: u64,
    pub applied: WalPosition,
    pub tail_rows: usize,
    pub distances: usize,
    /// For the position, before the search began.
    pub waited_ms: u64,
    /// Answered without a lease, or by a stale replica.
    pub is_stale: bool,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PageError {
    #[error("{0}")]
    Stale(&'static str),
    #[error("{0}")]
    Lagging(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("the search's cursor is gone")]
    CursorLost,
    #[error("quarantined: {0}")]
    Corrupt(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("{0}")]
    Stale(&'static str),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Stranger(Stranger),
    #[error("{0}")]
    Throttled(PoolError),
}

impl Node {
    /// Answers for every partition named, in that order.
    pub async fn search(
        self: &Arc<Self>,
        search: Search,
    ) -> Result<Vec<(PartitionId, Result<Page, PageError>)>, SearchError> {
        let standing = self.lease.admit(search.epoch);
        match standing {
            Standing::StaleRequest => {
                return Err(SearchError::Stale("the request's epoch is over"));
            }
            Standing::Lapsed if search.min_lsn.is_none() && !self.may_serve_stale(&search) => {
                return Err(SearchError::Stale("the node's lease is over"));
            }
            Standing::Lapsed | Standing::Held => {}
        }
        let limit = self.config.search.deadline_ms_max;
        let deadline = Instant::now() + search.deadline.min(Duration::from_millis(limit));
        let search = Arc::new(search);
        let pages = search.partitions.iter().map(|page_of| async {
            let page = self.page(&search, *page_of, standing, deadline).await;
            (page_of.partition, page)
        });
        let mut answers = Vec::with_capacity(search.partitions.len());
        for (partition, page) in join_all(pages).await {
            match page {
                Err(PagingError::Request(error)) => return Err(error),
                Err(PagingError::Page(error)) => {
                    if let PageError::Stale(reason) = error {
                        self.metrics.refused_estale(reason);
                    }
                    answers.push((partition, Err(error)));
                }
                Ok(page) => answers.push((partition, Ok(page))),
            }
        }
        // What was computed while the lease ran out counts only with a position.
        let is_leased = standing == Standing::Held && self.lease.is_held();
        if search.min_lsn.is_none() && !is_leased {
            if !self.may_serve_stale(&search) {
                return Err(SearchError::Stale("the node's lease ran out"));
            }
            for page in answers
                .iter_mut()
                .filter_map(|(_, page)| page.as_mut().ok())
            {
                page.is_stale = true;
            }
        }
        let pages = answers.iter().filter_map(|(_, page)| page.as_ref().ok());
        let stale = pages.filter(|page| page.is_stale).count();
        self.metrics.stale_pages.inc_by(stale as u64);
        Ok(answers)
    }

    fn may_serve_stale(&self, search: &Search) -> bool {
        search.accepts_stale && self.config.lease_loss == LeaseLoss::ServeStale
    }

    async fn page(
        &self,
        search: &Arc<Search>,
        of: PageOf,
        standing: Standing,
        deadline: Instant,
    ) -> Result<Page, PagingError> {
        let served = self.served_soon(search, of, deadline).await?;
        let asked_at = Instant::now();
        if let Some(lsn) = search.min_lsn {
            self.reach(&served.replica, served.is_stale, lsn, standing, deadline)
                .await?;
        }
        let waited_ms = asked_at.elapsed().as_millis() as u64;
        let Served {
            replica,
            is_stale,
            partitions,
        } = served;
        let open = match of.token {
            0 => None,
            token => {
                let kept = self
                    .queries
                    .cursors
                    .take(token, of.partition, of.generation);
                Some(kept.ok_or(PageError::CursorLost)?)
            }
        };
        let (of_search, at) = (search.clone(), replica.clone());
        let metrics = self.metrics.clone();
        let compute = move || compute(&of_search, &at, partitions, open, &metrics);
        let computed = timeout_at(deadline, self.queries.pool.run(search.source, compute)).await;
        let (mut page, open) = match computed {
            Ok(Ok(page)) => page?,
            Ok(Err(full @ (PoolError::Full | PoolError::SourceFull))) => {
                return Err(PagingError::Request(SearchError::Throttled(full)));
            }
            Ok(Err(PoolError::Panicked)) => {
                let message = "the search panicked; see the node's log".to_owned();
                return Err(PageError::Unavailable(message).into());
            }
            Err(_) => {
                let message = "no thread was free before the deadline".to_owned();
                return Err(PageError::Unavailable(message).into());
            }
        };
        if let Some(problem) = replica.problem() {
            return Err(PageError::Corrupt(problem).into());
        }
        // What was computed while the replica left, was given away or began to
        // learn anew is no answer.
        let now = self.served(search, of)?;
        if !Arc::ptr_eq(&now.replica, &replica) {
            return Err(PageError::Stale("the partition has left this node").into());
        }
        page.waited_ms = waited_ms;
        // A position that is reached is the whole of what was asked for.
        page.is_stale = search.min_lsn.is_none() && (is_stale || now.is_stale);
        if !page.exhausted {
            page.token = self.queries.cursors.keep(open);
        }
        Ok(page)
    }

    /// As [`Self::served`]; a caller that knows a newer map than this node is not
    /// refused before that map has had a moment to arrive.
    async fn served_soon(
        &self,
        search: &Search,
        of: PageOf,
        deadline: Instant,
    ) -> Result<Served, PagingError> {
        let asked_by = (search.epoch, search.map_version);
        // By this node's map what is stale by now still serves.
        let is_broken_since = |map: &PartitionMap| {
            let source = map.sources.get(&search.source);
            source.is_some_and(|source| source.incarnation < search.incarnation)
        };
        if is_broken_since(&self.map()) {
            let mut maps = self.watch_map();
            let arrives = maps.wait_for(|map| !is_broken_since(map));
            let until = deadline.min(Instant::now() + MAP_WAIT);
            if !matches!(timeout_at(until, arrives).await, Ok(Ok(_))) {
                let reason = "the source's history broke, and the map of it is on its way";
                return Err(PageError::Stale(reason).into());
            }
        }
        let refused = match self.served(search, of) {
            Err(PagingError::Page(PageError::Stale(reason))) => PageError::Stale(reason),
            answered => return answered,
        };
        let mut maps = self.watch_map();
        let arrives = maps.wait_for(|map| map.stamp() >= asked_by);
        let until = deadline.min(Instant::now() + MAP_WAIT);
        match timeout_at(until, arrives).await {
            Ok(Ok(_)) => {}
            _ => return Err(refused.into()),
        }
        self.served(search, of)
    }

    /// The replica, if the map says that it serves and the caller means this
    /// assignment of it. A stale one serves whom that suffices.
    fn served(&self, search: &Search, of: PageOf) -> Result<Served, PagingError> {
        if !self.lease.lets_answer_by(&self.map()) {
            return Err(PageError::Stale("the lease came back under a newer map").into());
        }
        let known = (search.epoch, search.map_version);
        self.admit_server(search.source, search.asked_by, known)?;
        if let Some(problem) = self.replicas.unreadable().remove(&of.partition) {
            return Err(PageError::Corrupt(problem).into());
        }
        let replica = self
            .replicas
            .get(of.partition)
            .ok_or(PageError::Stale("the partition is not served here"))?;
        if replica.id.generation != of.generation {
            return Err(PageError::Stale("the assignment's generation differs").into());
        }
        if replica.id.collection != search.collection || replica.id.source != search.source {
            let message = format!("{} is of another collection", of.partition);
            return Err(PagingError::Request(SearchError::Invalid(message)));
        }
        if replica.id.dimensions != search.vector.len() {
            let (want, got) = (replica.id.dimensions, search.vector.len());
            let message = format!("expected {want} dimensions, not {got}");
            return Err(PagingError::Request(SearchError::Invalid(message)));
        }
        let is_stale = match self.assigned(of.partition, of.generation) {
            Some(ReplicaState::Serving) => false,
            // It is fed again, and its watermark says nothing of what it holds.
            Some(ReplicaState::Stale) if search.min_lsn.is_some() && replica.distrusts() => {
                let message = format!(
                    "{} is being reconciled with its table, and has old data until then",
                    of.partition
                );
                return Err(PageError::Lagging(message).into());
            }
            Some(ReplicaState::Stale) if search.accepts_stale || search.min_lsn.is_some() => true,
            Some(ReplicaState::Stale) => {
                return Err(
                    PageError::Stale("the replica is stale: the slot has passed it").into(),
                );
            }
            _ => return Err(PageError::Stale("the map does not let this replica serve").into()),
        };
        if replica.is_learning() {
            return Err(PageError::Stale("the replica has not caught up").into());
        }
        let map = self.map();
        let Some(partition) = map.partitions.get(&of.partition) else {
            return Err(PageError::Stale("the partition is not in force yet").into());
        };
        let partitions = usize::try_from(partition.range.fit_into_whole()).unwrap_or(usize::MAX);
        // Whatever became of its data: a replica of a complete collection that
        // was told of nothing yet must not answer that there is nothing.
        let is_complete = map
            .collections
            .get(&search.collection)
            .is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }));
        if is_complete && replica.progress.applied() == WalPosition::ZERO {
            return Err(PageError::Stale("the replica has not been filled").into());
        }
        match replica.problem() {
            Some(problem) => Err(PageError::Corrupt(problem).into()),
            None => Ok(Served {
                replica,
                is_stale,
                partitions,
            }),
        }
    }

    /// Refuses who is not the server that the source's consumer streams from (P9).
    pub(super) fn admit_server(
        &self,
        source: SourceId,
        asked_by: Option<AskedBy>,
        known: MapStamp,
    ) -> Result<(), PagingError> {
        let map = self.map();
        let source = map.sources.get(&source);
        let source = source.ok_or(PageError::Stale("the map lacks the source"))?;
        match server::admit(source, asked_by, known, map.stamp()) {
            Ok(()) => Ok(()),
            Err(Stranger::Outdated) => {
                Err(PageError::Stale("the server has started anew, or is another one").into())
            }
            Err(stranger) => Err(PagingError::Request(SearchError::Stranger(stranger))),
        }
    }

    /// Waits until the replica has applied the position, and answers where that stands.
    /// Without a lease, or by a stale replica, nothing is applied, so that only what is
    /// reached already is answered.
    pub(super) async fn reach(
        &self,
        replica: &Replica,
        is_stale: bool,
        lsn: Lsn,
        standing: Standing,
        deadline: Instant,
    ) -> Result<WalPosition, PagingError> {
        let map = self.map();
        let source = map.sources.get(&replica.id.source);
        let source = source.ok_or(PageError::Stale("the map lacks the source"))?;
        let target = WalPosition::end_of(source.incarnation, lsn);
        let mut applied = replica.progress.watch_applied();
        if *applied.borrow() >= target {
            return Ok(target);
        }
        if is_stale {
            let message = format!(
                "{} is stale at {} and does not get to {target} before it is reconciled with its \
                 table",
                replica.id.partition,
                replica.progress.applied()
            );
            return Err(PageError::Lagging(message).into());
        }
        if standing != Standing::Held {
            return Err(PageError::Stale("the node's lease is over").into());
        }
        let _waiting = replica.source.wait_guard(target);
        match timeout_at(deadline, applied.wait_for(|at| *at >= target)).await {
            Ok(Ok(_)) => Ok(target),
            _ => {
                let at = replica.progress.applied().commit_end;
                let message = format!(
                    "{} has applied the log up to {at}, {} bytes before {lsn}",
                    replica.id.partition,
                    lsn.0.saturating_sub(at.0)
                );
                Err(PageError::Lagging(message).into())
            }
        }
    }
}

/// A replica that may answer.
struct Served {
    replica: Arc<Replica>,
    /// It answers what it has, and gets no further.
    is_stale: bool,
    /// How many partitions as large as this one make up the collection.
    partitions: usize,
}

/// What spoils one page, or the whole request.
#[derive(Debug)]
pub enum PagingError {
    Page(PageError),
    Request(SearchError),
}

impl From<PageError> for PagingError {
    fn from(error: PageError) -> Self {
        Self::Page(error)
    }
}

/// Runs on a computing thread.
fn compute(
    search: &Search,
    replica: &Replica,
    partitions: usize,
    open: Option<OpenCursor>,
    metrics: &Metrics,
) -> Result<(Page, OpenCursor), PageError> {
    let mut open = match open {
        Some(open) => open,
        None => {
            // The watermark first: the index is never behind it.
            let applied = replica.progress.applied();
            let cursor = first(search, replica, partitions)?;
            OpenCursor {
                partition: replica.id.partition,
                generation: replica.id.generation,
                cursor,
                applied,
            }
        }
    };
    let page = open.cursor.next_page(search.page_rows);
    metrics.searches_restarted.inc_by(page.restarted.into());
    let hits = page.hits.iter().map(|(id, distance)| {
        let key = open.cursor.key(*id);
        key.map(|key| (key, *distance))
            .ok_or_else(|| PageError::Unavailable(format!("vector {} has no key", id.0)))
    });
    let page = Page {
        hits: hits.collect::<Result<_, _>>()?,
        bound: page.bound,
        exhausted: page.exhausted,
        token: 0,
        applied: open.applied,
        tail_rows: page.tail_rows,
        distances: page.distances,
        waited_ms: 0,
        is_stale: false,
    };
    Ok((page, open))
}

fn first(search: &Search, replica: &Replica, partitions: usize) -> Result<LiveCursor, PageError> {
    replica
        .live()
        .cursor(
            &search.vector,
            ef_of_each(search.ef, partitions),
            search.snapshot_xmin,
            search.exact,
        )
        .map_err(|error| PageError::Unavailable(error.to_string()))
}
