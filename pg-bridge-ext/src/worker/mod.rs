//! The background worker: one process that holds the connections to the cluster
//! and its map, for all backends of the server.
//!
//! Backends ask it through slots in shared memory ([`segment`], [`codec`],
//! [`call`]) and read what it knows of indexes from a table there ([`view`]). The
//! worker itself is a main thread that alone talks to Postgres ([`process`]) and
//! two runtime threads that talk to the cluster ([`service`], [`status`],
//! [`progress`], [`replicas`], [`elsewhere`]). Every 10 ms it notes how far the log is on disk
//! ([`samples`]), every few seconds what the cluster's slots retain ([`slot_watch`],
//! [`slot_guard`]).

mod call;
mod codec;
mod elsewhere;
mod process;
mod progress;
mod replicas;
mod samples;
mod segment;
mod service;
mod slot_guard;
mod slot_watch;
mod status;
mod view;

use crate::scan::visibility::VisibilityStats;
use cluster_core::freshness::samples::BootMicros;
use cluster_core::verify::Piece;
use codec::{Open, Request, Response};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;
use std::time::Duration;

pub use codec::IndexName;
pub use progress::{CollectionProgress, CollectionStanding, SourceProgress};
pub use replicas::{DigestCall, ReplicaPlace};
pub use samples::{LAG_MS_MAX, Samples};
pub use view::{IndexView, ViewState};

/// The consumer comes back to a server that it follows much sooner; until then its
/// searches wait. Later it is an outage, unless the consumer is heard to follow another
/// server: then this one is a copy, which is scanned exactly.
const IDENTIFIED_WITHIN: Duration = Duration::from_secs(30);
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// `ruvector_index_status()` asks a coordinator; it is not kept waiting long.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// A scan as a backend opens it.
pub struct OpenScan<'a> {
    pub database_oid: u32,
    pub index_oid: u32,
    pub definition_generation: u64,
    pub query: &'a [f32],
    pub ef_search: u32,
    pub page_rows: u32,
    /// Commit end that must have been applied; 0: none.
    pub min_lsn: u64,
    pub snapshot_xmin: u64,
    /// For each page.
    pub timeout_ms: u64,
    pub exact: bool,
}

/// Row keys in ascending order of the cluster's distance.
#[derive(Clone, Debug, PartialEq)]
pub struct ScanPage {
    pub rows: Vec<(Vec<u8>, f64)>,
    /// What is still to come is not nearer, as far as the cluster knows.
    pub bound: f64,
    pub exhausted: bool,
    pub stats: PageStats,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageStats {
    pub partitions: u32,
    pub tail_rows: u64,
    pub distances: u64,
    pub retries: u32,
    pub hedges: u32,
    /// Answered by nodes without a lease: newer rows may be missing.
    pub stale_partitions: u32,
    /// For the position, at the partition that waited longest.
    pub waited_ms: u64,
}

/// Why there is no page; docs/errors.md says who acts next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanFailure {
    Estale(String),
    Lagging(String),
    Unavailable(String),
    Throttled(String),
    Invalid(String),
    Corrupt(String),
    /// The cluster does not let searches in yet.
    Gated(String),
    NotAuthorised(String),
}

impl ScanFailure {
    fn parts(&self) -> (u8, &str) {
        match self {
            Self::Estale(text) => (1, text),
            Self::Lagging(text) => (2, text),
            Self::Unavailable(text) => (3, text),
            Self::Throttled(text) => (4, text),
            Self::Invalid(text) => (5, text),
            Self::Corrupt(text) => (6, text),
            Self::Gated(text) => (7, text),
            Self::NotAuthorised(text) => (8, text),
        }
    }

    fn from_parts(kind: u8, text: String) -> Option<Self> {
        Some(match kind {
            1 => Self::Estale(text),
            2 => Self::Lagging(text),
            3 => Self::Unavailable(text),
            4 => Self::Throttled(text),
            5 => Self::Invalid(text),
            6 => Self::Corrupt(text),
            7 => Self::Gated(text),
            8 => Self::NotAuthorised(text),
            _ => return None,
        })
    }
}

/// What the coordinators know of a collection's progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexStatus {
    pub partitions: u32,
    /// Serving replicas of the partition that has the fewest.
    pub replicas: u32,
    pub rows: u64,
    /// Searchable, but not yet in the graph.
    pub tail_rows: u64,
    pub pending_rows: u64,
    /// Lowest over all replicas.
    pub applied_lsn: u64,
    pub durable_lsn: u64,
    pub backfill_rows_copied: u64,
    pub backfill_rows_estimated: u64,
    pub backfill_blocks_copied: u64,
    pub backfill_blocks_total: u64,
    pub backfill_snapshots: u64,
    /// What stands in the way; empty when nothing does.
    pub problem: String,
    /// What passes by itself: a replica whose changes wait. Empty where none does.
    pub waits: String,
}

/// From `_PG_init` while libraries are preloaded: reserves the shared memory and
/// registers the worker.
///
/// # Safety
/// In the postmaster, once.
pub unsafe fn init() {
    static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
    static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn on_request() {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        segment::request();
    }

    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn on_startup() {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        segment::start_up();
    }

    PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
    pg_sys::shmem_request_hook = Some(on_request);
    PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
    pg_sys::shmem_startup_hook = Some(on_startup);
    // pg_upgrade's servers talk to nobody.
    if pg_sys::IsBinaryUpgrade {
        return;
    }
    BackgroundWorkerBuilder::new("ruvector worker")
        .set_type("ruvector worker")
        .set_library("ruvector")
        .set_function("ruvector_worker_main")
        .enable_shmem_access(None)
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(RESTART_AFTER))
        .load();
}

pub fn is_preloaded() -> bool {
    segment::get().is_some()
}

/// What the cluster last said about an index: shared memory only.
pub fn index_view(database_oid: u32, index_oid: u32, definition_generation: u64) -> IndexView {
    let Some(segment) = segment::get() else {
        let reason = "the extension is not in shared_preload_libraries";
        return IndexView::without_collection(ViewState::Unknown, reason);
    };
    let mut view = segment
        .table
        .read(database_oid, index_oid, definition_generation);
    let never_reached = segment.table.silent_for(view::boot_ms()).is_none();
    // What was not ready before the silence is planned as if there were no index,
    // as it was then. Only where nothing was ever heard may it have been ready.
    let may_have_been_ready = match view.state {
        ViewState::Ready => true,
        ViewState::Unknown => never_reached,
        _ => false,
    };
    if may_have_been_ready && let Some(reason) = silence() {
        view.state = ViewState::Disconnected;
        view.reason = reason;
    } else if view.is_of_other_server && uptime() < IDENTIFIED_WITHIN {
        view.state = ViewState::Unidentified;
        view.reason = "the cluster has not seen this start of the server yet".to_owned();
    } else if view.is_of_other_server && !view.is_followed_elsewhere {
        view.state = ViewState::Disconnected;
        view.reason = "no consumer has followed this server since it was started; \
                       `ruvector ctl lag` says why"
            .to_owned();
    }
    view
}

/// How long this server has been running.
pub(crate) fn uptime() -> Duration {
    // SAFETY: set before any backend starts; the clock is Postgres's own.
    let microseconds = unsafe { pg_sys::GetCurrentTimestamp() - pg_sys::PgStartTime };
    Duration::from_micros(u64::try_from(microseconds).unwrap_or(0))
}

/// The start of this server, 0 where the library was not preloaded.
pub fn server_start() -> u64 {
    segment::get().map_or(0, |segment| segment.server_start().0)
}

/// Why the cluster has not been heard of lately; None while it is.
pub fn silence() -> Option<String> {
    let segment = segment::get()?;
    told(segment, segment.table.silent_for(view::boot_ms()))
}

/// Why no coordinator has been heard of lately, who alone makes collections.
pub fn coordinators_silence() -> Option<String> {
    let segment = segment::get()?;
    told(
        segment,
        segment.table.coordinators_silent_for(view::boot_ms()),
    )
}

fn told(segment: &segment::Segment, silent_for: Option<Duration>) -> Option<String> {
    match silent_for {
        _ if segment.worker_latch().is_null() => {
            Some("the background worker is not running".to_owned())
        }
        None => Some("no coordinator has been reached yet".to_owned()),
        Some(silent) if silent > view::DISCONNECTED_AFTER => Some(format!(
            "no coordinator has been reached for {} s",
            silent.as_secs()
        )),
        Some(_) => None,
    }
}

/// A scan that the worker keeps for this backend. Dropping it closes it.
#[derive(Debug)]
pub struct ScanHandle {
    scan: u64,
    timeout: Duration,
    /// Nothing is left to close once the last page has come.
    is_open: bool,
}

/// Opens a scan and gives its first page.
pub fn open_scan(scan: &OpenScan) -> Result<(ScanHandle, ScanPage), ScanFailure> {
    let request = Request::Open(Open {
        index: IndexName {
            database_oid: scan.database_oid,
            index_oid: scan.index_oid,
            definition_generation: scan.definition_generation,
        },
        ef_search: scan.ef_search,
        page_rows: scan.page_rows,
        min_lsn: scan.min_lsn,
        snapshot_xmin: scan.snapshot_xmin,
        timeout_ms: scan.timeout_ms,
        exact: scan.exact,
        query: scan.query.into(),
    });
    let timeout = Duration::from_millis(scan.timeout_ms);
    match call::call(&request, timeout)? {
        Response::Page { scan, page } => Ok((
            ScanHandle {
                scan,
                timeout,
                is_open: !page.exhausted,
            },
            page,
        )),
        other => Err(unexpected(&other)),
    }
}

impl ScanHandle {
    pub fn next_page(&mut self) -> Result<ScanPage, ScanFailure> {
        let timeout_ms = self.timeout.as_millis() as u64;
        let request = Request::Next {
            scan: self.scan,
            timeout_ms,
        };
        match call::call(&request, self.timeout)? {
            Response::Page { page, .. } => {
                self.is_open = !page.exhausted;
                Ok(page)
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Drop for ScanHandle {
    fn drop(&mut self) {
        if self.is_open {
            call::notify(&Request::Close { scan: self.scan });
        }
    }
}

/// Asks the coordinators, through the worker.
pub fn index_status(
    database_oid: u32,
    index_oid: u32,
    definition_generation: u64,
) -> Result<IndexStatus, ScanFailure> {
    let index = IndexName {
        database_oid,
        index_oid,
        definition_generation,
    };
    let timeout_ms = STATUS_TIMEOUT.as_millis() as u64;
    match call::call(&Request::Status { index, timeout_ms }, STATUS_TIMEOUT)? {
        Response::Status(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

/// Asks the coordinators to have an index compared with its table.
pub fn request_reconcile(
    database_oid: u32,
    index_oid: u32,
    definition_generation: u64,
) -> Result<(), ScanFailure> {
    let index = IndexName {
        database_oid,
        index_oid,
        definition_generation,
    };
    let timeout_ms = STATUS_TIMEOUT.as_millis() as u64;
    match call::call(&Request::Reconcile { index, timeout_ms }, STATUS_TIMEOUT)? {
        Response::Reconcile => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// How far the cluster has followed a database; `None` where no source does.
pub fn source_progress(database_oid: u32) -> Result<Option<SourceProgress>, ScanFailure> {
    let timeout_ms = STATUS_TIMEOUT.as_millis() as u64;
    let request = Request::Progress {
        database_oid,
        timeout_ms,
    };
    // The worker's own answer, without positions, comes at the timeout.
    match call::call(&request, STATUS_TIMEOUT)? {
        Response::Progress(progress) => Ok(progress),
        other => Err(unexpected(&other)),
    }
}

/// Where the index's replicas are, by the worker's map.
pub fn replicas(index: IndexName) -> Result<Vec<ReplicaPlace>, ScanFailure> {
    match call::call(&Request::Replicas { index }, STATUS_TIMEOUT)? {
        Response::Replicas(places) => Ok(places),
        other => Err(unexpected(&other)),
    }
}

/// A piece of what a replica holds.
pub fn replica_digest(call: DigestCall) -> Result<Piece, ScanFailure> {
    let timeout = Duration::from_millis(call.timeout_ms);
    match call::call(&Request::Digest(call), timeout)? {
        Response::Piece(piece) => Ok(piece),
        other => Err(unexpected(&other)),
    }
}

/// The worker's samples of the log; `None` where the library is not preloaded.
pub fn samples() -> Option<&'static Samples> {
    segment::get().map(|segment| &segment.samples)
}

pub fn visibility_stats() -> Option<&'static VisibilityStats> {
    segment::get().map(|segment| &segment.visibility)
}

/// The clock of [`samples`].
pub fn boot_micros() -> BootMicros {
    view::boot_micros()
}

fn unexpected(response: &Response) -> ScanFailure {
    let kind = match response {
        Response::Page { .. } => "a page",
        Response::Status(_) => "a status",
        Response::Progress(_) => "a source's progress",
        Response::Replicas(_) => "replicas",
        Response::Piece(_) => "a digest",
        Response::Reconcile => "a reconcile",
        Response::Failure(_) => "a failure",
    };
    ScanFailure::Unavailable(format!("the worker answered with {kind} to something else"))
}
