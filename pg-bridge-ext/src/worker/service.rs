//! The worker's side that talks to the cluster, on runtime threads. It must never
//! call Postgres.

use super::codec::{IndexName, Open, PAGE_BYTES, ROW_BYTES, Request, Response};
use super::replicas::{self, DigestCall};
use super::segment::{Claim, RESPONSE_BYTES, Segment};
use super::view::{self, IndexView, ServerIdentity, ViewState};
use super::{PageStats, ScanFailure, ScanPage, elsewhere, progress, status};
use crate::settings::Coordinators;
use cluster_client::transport::Transport;
use cluster_client::{
    ClientConfig, ClientError, ClusterClient, Consistency, Scan, ScanError, ScanErrorKind, ScanSpec,
};
use cluster_core::ids::SourceId;
use cluster_core::map::PartitionMap;
use cluster_core::server::AskedBy;
use parking_lot::Mutex;
use proto::v1::RequestReconcileRequest;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Scans kept at one time; the one that has been idle longest makes room.
const SCANS_MAX: usize = 1024;
/// A cursor may stand open for long; nodes forget theirs much sooner, and the
/// scan then restarts there without the keys that it has given.
const SCAN_IDLE_MAX: Duration = Duration::from_secs(15 * 60);
const SWEEP_EVERY: Duration = Duration::from_secs(10);
const HEARTBEAT_EVERY: Duration = Duration::from_millis(250);

pub struct Service {
    segment: &'static Segment,
    server: ServerIdentity,
    connection: Mutex<Connection>,
    scans: Mutex<HashMap<u64, LiveScan>>,
    /// Scan ids carry the worker's start, so that one of a former worker is unknown.
    next_scan: AtomicU64,
    /// One writer of the table at a time, across reconnects; and the sources that
    /// are followed on another server with this one's identifiers.
    table: Mutex<BTreeSet<SourceId>>,
}

struct Connection {
    client: ClusterClient,
    stop: CancellationToken,
}

/// A scan between two calls.
struct LiveScan {
    index: IndexName,
    scan: Scan,
    /// Rows that did not fit into the last answer, and what is true after them.
    leftover: VecDeque<(Vec<u8>, f64)>,
    bound: f64,
    exhausted: bool,
    idle_since: Instant,
}

impl Service {
    /// Inside the runtime.
    pub fn start(
        segment: &'static Segment,
        server: ServerIdentity,
        start: u64,
        coordinators: Coordinators,
    ) -> Arc<Self> {
        let stop = CancellationToken::new();
        let client = client(coordinators);
        let service = Arc::new(Self {
            segment,
            server,
            connection: Mutex::new(Connection {
                client: client.clone(),
                stop: stop.clone(),
            }),
            scans: Mutex::default(),
            next_scan: AtomicU64::new((start << 32) + 1),
            table: Mutex::default(),
        });
        service.clone().follow(client, stop);
        tokio::spawn(service.clone().sweep());
        service
    }

    /// Goes to other coordinators. Open scans end with the connection that they
    /// were opened on.
    pub fn reconnect(self: &Arc<Self>, coordinators: Coordinators) {
        let (client, stop) = (client(coordinators), CancellationToken::new());
        let connection = Connection {
            client: client.clone(),
            stop: stop.clone(),
        };
        let old = std::mem::replace(&mut *self.connection.lock(), connection);
        old.stop.cancel();
        self.clone().follow(client, stop);
    }

    /// Answers one request into its slot. The latch to set comes back, unless the
    /// backend has left.
    pub async fn serve(
        self: Arc<Self>,
        claim: Claim,
        request: Vec<u8>,
        is_abandoned: CancellationToken,
    ) -> Option<*mut pgrx::pg_sys::Latch> {
        let work = self.answer(&request);
        let Some(response) = is_abandoned.run_until_cancelled(work).await else {
            self.segment.release(claim);
            return None;
        };
        let Some(response) = response else {
            // A notification: nobody waits.
            self.segment.release(claim);
            return None;
        };
        let opened = match &response {
            Response::Page { scan, .. } => Some(*scan),
            _ => None,
        };
        let latch = self.segment.answer(claim, &response.encode());
        if latch.is_none()
            && let Some(scan) = opened
        {
            self.close(scan);
        }
        latch
    }

    async fn answer(&self, request: &[u8]) -> Option<Response> {
        let answer = match Request::decode(request) {
            Ok(Request::Open(open)) => self.open(open).await,
            Ok(Request::Next { scan, timeout_ms }) => self.next(scan, timeout_ms).await,
            Ok(Request::Status { index, timeout_ms }) => self.status(index, timeout_ms).await,
            Ok(Request::Progress {
                database_oid,
                timeout_ms,
            }) => Ok(self.progress(database_oid, timeout_ms).await),
            Ok(Request::Replicas { index }) => self.replicas(index),
            Ok(Request::Digest(call)) => self.digest(call).await,
            Ok(Request::Reconcile { index, timeout_ms }) => self.reconcile(index, timeout_ms).await,
            Ok(Request::Close { scan }) => {
                self.close(scan);
                return None;
            }
            Err(_) => Err(ScanFailure::Invalid(
                "the request does not decode".to_owned(),
            )),
        };
        Some(answer.unwrap_or_else(Response::Failure))
    }

    async fn open(&self, open: Open) -> Result<Response, ScanFailure> {
        let view = self.known(open.index)?;
        let spec = ScanSpec {
            source: view.source,
            asked_by: self.asked_by(open.index),
            collection: view.collection,
            query: open.query,
            ef_search: open.ef_search,
            page_rows: open.page_rows,
            consistency: match open.min_lsn {
                0 => Consistency::Eventual,
                _ => Consistency::Position,
            },
            min_lsn: open.min_lsn,
            snapshot_xmin: open.snapshot_xmin,
            deadline: Instant::now() + Duration::from_millis(open.timeout_ms),
            exact: open.exact,
        };
        let client = self.client();
        let (scan, page) = client.open_scan(spec).await.map_err(scan_failure)?;
        let id = self.next_scan.fetch_add(1, Ordering::Relaxed);
        let live = LiveScan {
            index: open.index,
            scan,
            leftover: VecDeque::new(),
            bound: f64::NEG_INFINITY,
            exhausted: false,
            idle_since: Instant::now(),
        };
        Ok(self.give(id, live, page))
    }

    async fn next(&self, id: u64, timeout_ms: u64) -> Result<Response, ScanFailure> {
        let Some(mut live) = self.scans.lock().remove(&id) else {
            let text = "the scan was forgotten: the worker restarted, or it was idle too long";
            return Err(ScanFailure::Unavailable(text.to_owned()));
        };
        // A collection that is gone, or is rebuilt, is not read on.
        self.known(live.index)?;
        if !live.leftover.is_empty() || live.exhausted {
            let page = cluster_client::ScanPage {
                rows: Vec::new(),
                bound: live.bound,
                exhausted: live.exhausted,
                stats: Default::default(),
            };
            return Ok(self.give(id, live, page));
        }
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        match live.scan.next_page(deadline).await {
            Ok(page) => Ok(self.give(id, live, page)),
            Err(error) => {
                live.scan.close();
                Err(scan_failure(error))
            }
        }
    }

    /// Answers with as many rows as fit, and keeps the scan for the rest.
    fn give(&self, id: u64, mut live: LiveScan, page: cluster_client::ScanPage) -> Response {
        live.bound = page.bound;
        live.exhausted = page.exhausted;
        live.leftover
            .extend(page.rows.into_iter().map(|(key, d)| (key.to_vec(), d)));
        let mut room = RESPONSE_BYTES - PAGE_BYTES;
        let mut rows = Vec::with_capacity(live.leftover.len());
        while let Some((key, _)) = live.leftover.front()
            && ROW_BYTES + key.len() <= room
        {
            room -= ROW_BYTES + key.len();
            rows.extend(live.leftover.pop_front());
        }
        let exhausted = live.exhausted && live.leftover.is_empty();
        let bound = live
            .leftover
            .front()
            .map_or(live.bound, |(_, distance)| *distance);
        if exhausted {
            live.scan.close();
        } else {
            live.idle_since = Instant::now();
            self.keep(id, live);
        }
        let stats = PageStats {
            partitions: page.stats.partitions,
            tail_rows: page.stats.tail_rows,
            distances: page.stats.distances,
            retries: page.stats.retries,
            hedges: page.stats.hedges,
            stale_partitions: page.stats.stale_partitions,
            waited_ms: page.stats.waited_ms,
        };
        Response::Page {
            scan: id,
            page: ScanPage {
                rows,
                bound,
                exhausted,
                stats,
            },
        }
    }

    fn keep(&self, id: u64, live: LiveScan) {
        let mut scans = self.scans.lock();
        let evicted = if scans.len() >= SCANS_MAX {
            let idlest = scans
                .iter()
                .min_by_key(|(_, live)| live.idle_since)
                .map(|(id, _)| *id);
            idlest.and_then(|id| scans.remove(&id))
        } else {
            None
        };
        scans.insert(id, live);
        drop(scans);
        if let Some(evicted) = evicted {
            evicted.scan.close();
        }
    }

    fn close(&self, id: u64) {
        let live = self.scans.lock().remove(&id);
        if let Some(live) = live {
            live.scan.close();
        }
    }

    async fn status(&self, index: IndexName, timeout_ms: u64) -> Result<Response, ScanFailure> {
        let client = self.client();
        let view = self.known(index)?;
        let fetch = status::fetch(&client);
        match timeout(Duration::from_millis(timeout_ms), fetch).await {
            Ok(Ok(status)) => Ok(Response::Status(status::of_collection(
                &client,
                view.collection,
                &status,
            ))),
            Ok(Err(problem)) => Err(ScanFailure::Unavailable(problem.to_string())),
            Err(_) => Err(ScanFailure::Unavailable(
                "no coordinator answered in time".to_owned(),
            )),
        }
    }

    /// Asks the leader; what it refuses is said in its words.
    async fn reconcile(&self, index: IndexName, timeout_ms: u64) -> Result<Response, ScanFailure> {
        let client = self.client();
        let request = RequestReconcileRequest {
            collection_id: self.known(index)?.collection.0,
            reason: "asked for by ruvector_reconcile()".to_owned(),
        };
        let asking = client.leader(|mut leader| {
            let request = request.clone();
            async move { leader.request_reconcile(request).await }
        });
        match timeout(Duration::from_millis(timeout_ms), asking).await {
            Ok(Ok(_)) => Ok(Response::Reconcile),
            Ok(Err(ClientError::Refused(status))) => {
                Err(ScanFailure::Invalid(status.message().to_owned()))
            }
            Ok(Err(problem)) => Err(ScanFailure::Unavailable(problem.to_string())),
            Err(_) => Err(ScanFailure::Unavailable(
                "no coordinator answered in time".to_owned(),
            )),
        }
    }

    async fn progress(&self, database_oid: u32, timeout_ms: u64) -> Response {
        let client = self.client();
        let limit = Duration::from_millis(timeout_ms);
        let of = progress::of_database(&client, self.server.system_identifier, database_oid, limit);
        Response::Progress(of.await)
    }

    fn replicas(&self, index: IndexName) -> Result<Response, ScanFailure> {
        let view = self.known(index)?;
        let places = replicas::of_collection(&self.client(), view.collection)?;
        Ok(Response::Replicas(places))
    }

    async fn digest(&self, call: DigestCall) -> Result<Response, ScanFailure> {
        let view = self.known(call.index)?;
        let deadline = Instant::now() + Duration::from_millis(call.timeout_ms);
        let asked_by = self.asked_by(call.index);
        let ask = call.ask(&view, asked_by);
        let piece = self.client().replica_digest(&ask, deadline).await;
        let response = Response::Piece(piece.map_err(scan_failure)?);
        match response.encode().len() {
            bytes if bytes > RESPONSE_BYTES => Err(ScanFailure::Unavailable(format!(
                "{} answered with {bytes} bytes",
                ask.node
            ))),
            _ => Ok(response),
        }
    }

    /// In whose name a backend's requests go out.
    fn asked_by(&self, index: IndexName) -> AskedBy {
        AskedBy {
            start: self.server.start,
            database_oid: index.database_oid,
        }
    }

    /// What the table says of the index, if it has a collection.
    fn known(&self, index: IndexName) -> Result<IndexView, ScanFailure> {
        let IndexName {
            database_oid,
            index_oid,
            definition_generation,
        } = index;
        let view = self
            .segment
            .table
            .read(database_oid, index_oid, definition_generation);
        match view.state {
            ViewState::Unknown => Err(ScanFailure::Unavailable(match view.reason.as_str() {
                "" => "the cluster does not have the collection".to_owned(),
                reason => reason.to_owned(),
            })),
            _ => Ok(view),
        }
    }

    fn client(&self) -> ClusterClient {
        self.connection.lock().client.clone()
    }

    /// Keeps the table as new as the map.
    fn follow(self: Arc<Self>, client: ClusterClient, stop: CancellationToken) {
        // Before the first map can come, so that it is not missed.
        let mut maps = client.watch_map();
        maps.mark_changed();
        client.spawn_map_watch(stop.clone());
        let watching = elsewhere::watch(self.clone(), client.clone());
        let until = stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(watching).await });
        tokio::spawn(async move {
            let follow = async {
                let mut heartbeat = tokio::time::interval(HEARTBEAT_EVERY);
                loop {
                    tokio::select! {
                        Ok(()) = maps.changed() => {
                            let map = maps.borrow_and_update().clone();
                            // Nobody has spoken yet.
                            if map.epoch.0 == 0 {
                                continue;
                            }
                            let one_writer = self.table.lock();
                            if !stop.is_cancelled() {
                                self.segment.table.write(&map, self.server, &one_writer);
                                let is_coordinator = client.is_streaming_map();
                                let table = &self.segment.table;
                                table.note_heard(view::boot_ms(), is_coordinator);
                            }
                        }
                        _ = heartbeat.tick() => {
                            if client.is_in_contact() {
                                let is_coordinator = client.is_streaming_map();
                                let table = &self.segment.table;
                                table.note_heard(view::boot_ms(), is_coordinator);
                            }
                        }
                    }
                }
            };
            stop.run_until_cancelled(follow).await;
        });
    }

    pub fn server(&self) -> ServerIdentity {
        self.server
    }

    /// What was found out about this server's sources.
    pub fn followed_elsewhere(&self, map: &PartitionMap, found: BTreeSet<SourceId>) {
        let mut known = self.table.lock();
        if *known != found {
            *known = found;
            self.segment.table.write(map, self.server, &known);
        }
    }

    async fn sweep(self: Arc<Self>) {
        let mut every = tokio::time::interval(SWEEP_EVERY);
        loop {
            every.tick().await;
            let idle: Vec<_> = {
                let mut scans = self.scans.lock();
                scans
                    .extract_if(|_, live| live.idle_since.elapsed() > SCAN_IDLE_MAX)
                    .collect()
            };
            for (_, live) in idle {
                live.scan.close();
            }
        }
    }
}

fn client(coordinators: Coordinators) -> ClusterClient {
    ClusterClient::new(ClientConfig {
        coordinators: coordinators.addresses,
        transport: Transport {
            allow_plaintext_off_loopback: coordinators.allow_plaintext_off_loopback,
            ..Transport::default()
        },
        ..ClientConfig::default()
    })
}

fn scan_failure(error: ScanError) -> ScanFailure {
    let text = error.message;
    match error.kind {
        ScanErrorKind::Estale => ScanFailure::Estale(text),
        ScanErrorKind::Lagging => ScanFailure::Lagging(text),
        ScanErrorKind::Throttled => ScanFailure::Throttled(text),
        ScanErrorKind::Corrupt => ScanFailure::Corrupt(text),
        ScanErrorKind::Invalid => ScanFailure::Invalid(text),
        ScanErrorKind::Gated => ScanFailure::Gated(text),
        ScanErrorKind::NotAuthorised => ScanFailure::NotAuthorised(text),
        ScanErrorKind::CursorLost | ScanErrorKind::Unavailable => ScanFailure::Unavailable(text),
    }
}
