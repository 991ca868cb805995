//! Runs a distributed scan: sends what [`DistributedScan`] commands, and tells it
//! what came of it. Nothing is decided here.
//!
//! Requests under way survive the page that sent them: their answers are taken at
//! the next one. A dropped scan abandons its requests; its cursors die of
//! idleness on their nodes unless [`Scan::close`] was called.

use crate::client::ClusterClient;
use crate::search::{self, SearchTemplate};
use bytes::Bytes;
use cluster_core::ids::{CollectionId, MapStamp, NodeId, SourceId};
use cluster_core::scan::{
    Command, DistributedScan, Event, Failure, FailureKind, Hit, MergedPage, Millis, PageStats,
    ScanLimits,
};
use cluster_core::server::AskedBy;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use proto::v1::CloseCursorsRequest;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// How long closing cursors may take; it is best effort.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// While no coordinator tells of the map, a search that every node refuses as
/// ESTALE is given up after this long: nothing will renew their leases.
const STALE_PATIENCE_MS: Millis = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// Whatever the replicas have applied.
    Eventual,
    /// At least [`ScanSpec::min_lsn`] has been applied.
    Position,
}

#[derive(Clone, Debug)]
pub struct ScanSpec {
    pub source: SourceId,
    /// The server that asks.
    pub asked_by: AskedBy,
    pub collection: CollectionId,
    pub query: Box<[f32]>,
    pub ef_search: u32,
    pub page_rows: u32,
    pub consistency: Consistency,
    /// Commit end, in the source's current incarnation.
    pub min_lsn: u64,
    /// xmin of the query's snapshot; `u64::MAX` sees current versions only.
    pub snapshot_xmin: u64,
    /// For the first page.
    pub deadline: Instant,
    pub exact: bool,
}

/// Rows in ascending order of the index's distance.
#[derive(Clone, Debug)]
pub struct ScanPage {
    /// Row keys, as `cluster_core::row_key` writes them.
    pub rows: Vec<(Bytes, f64)>,
    /// What is still to come is not nearer, as far as the indexes know.
    pub bound: f64,
    pub exhausted: bool,
    pub stats: PageStats,
}

/// Why there is no page; the kind says who acts next (docs/errors.md).
pub type ScanError = Failure;
pub type ScanErrorKind = FailureKind;

pub struct Scan {
    client: ClusterClient,
    template: Arc<SearchTemplate>,
    state: DistributedScan<Bytes>,
    page_rows: usize,
    /// The zero of the state's clock.
    origin: Instant,
    under_way: FuturesUnordered<BoxFuture<'static, Event<Bytes>>>,
}

impl ClusterClient {
    /// Opens a scan and gives its first page.
    pub async fn open_scan(&self, spec: ScanSpec) -> Result<(Scan, ScanPage), ScanError> {
        self.metrics().scans.add(1);
        let deadline = spec.deadline;
        let mut scan = Scan::new(self.clone(), spec);
        match scan.next_page(deadline).await {
            Ok(page) => Ok((scan, page)),
            Err(error) => {
                scan.close();
                Err(error)
            }
        }
    }
}

impl Scan {
    fn new(client: ClusterClient, spec: ScanSpec) -> Self {
        let origin = Instant::now();
        let hedge_after = client.config().hedge_after;
        let limits = ScanLimits {
            // A scan of every row takes as long as it takes.
            attempt_timeout_ms: if spec.exact {
                Millis::from(u32::MAX)
            } else {
                millis(client.config().attempt_timeout)
            },
            hedge_after_ms: (!spec.exact).then(|| millis(hedge_after)),
            stale_patience_ms: (!client.contact().is_streaming()).then_some(STALE_PATIENCE_MS),
            ..ScanLimits::default()
        };
        let state = DistributedScan::new(
            spec.collection,
            &client.map(),
            limits,
            client
                .recently_failed_nodes()
                .into_iter()
                .map(|node| (node, 0)),
            rand::random(),
        );
        Self {
            state,
            origin,
            page_rows: spec.page_rows.max(1) as usize,
            template: Arc::new(SearchTemplate::new(&spec, &client.map())),
            client,
            under_way: FuturesUnordered::new(),
        }
    }

    /// The next rows. After an error the scan may be asked again; nothing that was
    /// given before is given twice.
    pub async fn next_page(&mut self, deadline: Instant) -> Result<ScanPage, ScanError> {
        let deadline = deadline.saturating_duration_since(self.origin);
        let first = Event::NextPage {
            rows: self.page_rows,
            deadline: millis(deadline),
        };
        let mut events = VecDeque::from([first]);
        let map = self.client.map();
        if map.stamp() > self.state.map_stamp() {
            events.push_front(Event::Map(map));
        }
        loop {
            let mut wake = None;
            while let Some(event) = events.pop_front() {
                let now = self.now();
                for command in self.state.on(event, now) {
                    match command {
                        Command::Search(ask) => {
                            self.client.metrics().search_requests.add(1);
                            let send =
                                search::send(self.client.clone(), self.template.clone(), ask);
                            self.under_way.push(Box::pin(send));
                        }
                        Command::RefreshMap { at_least } => {
                            let refresh = refresh(self.client.clone(), at_least);
                            self.under_way.push(Box::pin(refresh));
                        }
                        Command::CloseCursors {
                            node,
                            resume_tokens,
                        } => {
                            close_cursors(&self.client, node, resume_tokens);
                        }
                        Command::WakeAt(at) => wake = Some(at),
                        Command::Page(page) => return Ok(self.page(page)),
                        Command::Fail(failure) => {
                            self.count_failure(now >= millis(deadline));
                            return Err(failure);
                        }
                    }
                }
            }
            let wake = self.origin + Duration::from_millis(wake.unwrap_or_default());
            events.push_back(tokio::select! {
                biased;
                Some(event) = self.under_way.next() => event,
                () = sleep_until(wake) => Event::Tick,
            });
            // A map that the watch brought may say whom to ask instead.
            let map = self.client.map();
            if map.stamp() > self.state.map_stamp() {
                events.push_back(Event::Map(map));
            }
        }
    }

    /// Lets the nodes forget the scan, best effort and in the background.
    pub fn close(mut self) {
        for command in self.state.close() {
            if let Command::CloseCursors {
                node,
                resume_tokens,
            } = command
            {
                close_cursors(&self.client, node, resume_tokens);
            }
        }
    }

    fn page(&self, page: MergedPage<Bytes>) -> ScanPage {
        let metrics = self.client.metrics();
        metrics.pages.add(1);
        metrics.spent(&page.stats);
        if page.stats.stale_partitions > 0 {
            metrics.pages_stale.add(1);
        }
        ScanPage {
            rows: page
                .rows
                .into_iter()
                .map(|Hit { key, distance }| (key, distance))
                .collect(),
            bound: page.bound,
            exhausted: page.exhausted,
            stats: page.stats,
        }
    }

    fn count_failure(&self, is_past_deadline: bool) {
        let metrics = self.client.metrics();
        metrics.spent(&self.state.spent());
        metrics.scans_failed.add(1);
        metrics.scans_past_deadline.add(u64::from(is_past_deadline));
    }

    fn now(&self) -> Millis {
        millis(self.origin.elapsed())
    }
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

async fn refresh(client: ClusterClient, at_least: MapStamp) -> Event<Bytes> {
    match client.refresh_map(at_least).await {
        Ok(map) => Event::Map(map),
        Err(problem) => {
            tracing::debug!(%problem, "the map could not be refreshed");
            Event::RefreshFailed
        }
    }
}

fn close_cursors(client: &ClusterClient, node: NodeId, resume_tokens: Vec<u64>) {
    let Ok(mut node) = client.node(node) else {
        return;
    };
    tokio::spawn(async move {
        let closing = node.close_cursors(CloseCursorsRequest { resume_tokens });
        // Best effort: the node forgets idle cursors by itself.
        drop(timeout(CLOSE_TIMEOUT, closing).await);
    });
}
