//! How one scan is answered: by the cluster if it can, exactly if not. The
//! reasons for an exact scan are of two kinds. *Structural* ones (no key, an old
//! snapshot, …) always run. An *outage* runs only within the limits that keep it
//! from becoming a storm of scans, and only if the session wants it.

use super::cluster::{ClusterScan, Subject};
use super::exact::{ExactRequest, ExactScan, TooManyRows};
use super::key_lookup::KeyLookup;
use super::ranking::{Ranked, Ranking};
use super::{counters, exact_slots, freshness, own_writes, snapshot};
use crate::access_method::definition::{Definition, RowKeyIndex};
use crate::access_method::metapage::Metapage;
use crate::catalog::{collections, prerequisites};
use crate::error::{SqlError, SqlState};
use crate::settings::{self, IterativeScan, OnUnavailable};
use crate::types::vector;
use crate::worker::{self, IndexView, OpenScan, ScanFailure, ViewState};
use pgrx::pg_sys;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Rows in a page: few, for the first page is often all that is read.
const PAGE_ROWS_MIN: u32 = 10;
const IDENTITY_POLL_MS: std::ffi::c_long = 20;

pub struct ScanState {
    phase: Phase,
    row_memory: pg_sys::MemoryContext,
    /// Of the last row returned.
    last_distance: f64,
    /// The cluster was asked again, and has not given a row since.
    retried: bool,
    /// The client has been told that rows may be missing: once, however often the
    /// scan is started again.
    told_stale: bool,
}

enum Phase {
    Fresh,
    Cluster(Box<ClusterScan>),
    Exact(ExactScan),
    Done,
}

/// Why the cluster is not asked.
enum Refusal {
    Structural(String),
    Outage(ScanFailure),
}

impl Refusal {
    fn structural(reason: impl Into<String>) -> Self {
        Self::Structural(reason.into())
    }
}

/// The open relations and the order that is asked for.
struct Request {
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    row_memory: pg_sys::MemoryContext,
    index_oid: u32,
    ordered: bool,
}

impl ScanState {
    pub fn new(row_memory: pg_sys::MemoryContext) -> Self {
        Self {
            phase: Phase::Fresh,
            row_memory,
            last_distance: f64::NEG_INFINITY,
            retried: false,
            told_stale: false,
        }
    }

    /// Ends what runs; the next row starts over.
    ///
    /// # Safety
    /// In the transaction of the scan.
    pub unsafe fn reset(&mut self) {
        self.last_distance = f64::NEG_INFINITY;
        match std::mem::replace(&mut self.phase, Phase::Fresh) {
            Phase::Cluster(scan) => {
                scan.close();
            }
            Phase::Exact(scan) => scan.close(),
            Phase::Fresh | Phase::Done => {}
        }
    }

    /// The next row, None at the end.
    ///
    /// # Safety
    /// The descriptor is the scan's own; its relations are open.
    pub unsafe fn next(&mut self, scan: pg_sys::IndexScanDesc) -> Option<Ranked> {
        loop {
            let row = match &mut self.phase {
                Phase::Fresh => {
                    self.phase = self.start(scan);
                    continue;
                }
                Phase::Cluster(cluster) => match cluster.next() {
                    Ok(row) => {
                        self.retried = false;
                        let stale_partitions = cluster.stale_partitions();
                        if stale_partitions > 0 && !self.told_stale {
                            self.told_stale = true;
                            notice_stale(stale_partitions);
                        }
                        row
                    }
                    Err(failure) => {
                        self.phase = self.take_over(scan, failure);
                        continue;
                    }
                },
                Phase::Exact(exact) => exact.next(),
                Phase::Done => None,
            };
            let Some(row) = row else {
                self.reset();
                self.phase = Phase::Done;
                return None;
            };
            if row.distance < self.last_distance {
                counters::count(|counters| counters.rows_late += 1);
                if settings::iterative_scan() == IterativeScan::Strict {
                    continue;
                }
            } else {
                self.last_distance = row.distance;
            }
            return Some(row);
        }
    }

    unsafe fn start(&self, scan: pg_sys::IndexScanDesc) -> Phase {
        counters::count(|counters| counters.scans += 1);
        let request = self.request(scan);
        let definition = Definition::of(request.table, request.index);
        let ranking = ranking(scan, &definition);
        let refusal = match ask_cluster(&request, &definition, ranking) {
            Ok(cluster) => return Phase::Cluster(Box::new(cluster)),
            Err(refusal) => refusal,
        };
        let ranking = self::ranking(scan, &definition);
        request.exact(refusal, &ranking, HashSet::new())
    }

    /// The cluster failed in the middle, or the worker restarted and has forgotten
    /// the scan: a new search leaves out what was returned; if there is none, the
    /// rest comes from the table.
    unsafe fn take_over(&mut self, scan: pg_sys::IndexScanDesc, failure: ScanFailure) -> Phase {
        let request = self.request(scan);
        match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Cluster(cluster) => {
                let (ranking, returned) = cluster.close();
                if !std::mem::replace(&mut self.retried, true) {
                    let definition = Definition::of(request.table, request.index);
                    let again = self::ranking(scan, &definition);
                    if let Ok(mut cluster) = ask_cluster(&request, &definition, again) {
                        counters::count(|counters| counters.retries += 1);
                        cluster.skip(returned);
                        return Phase::Cluster(Box::new(cluster));
                    }
                }
                request.exact(Refusal::Outage(failure), &ranking, returned)
            }
            other => other,
        }
    }

    unsafe fn request(&self, scan: pg_sys::IndexScanDesc) -> Request {
        Request {
            table: (*scan).heapRelation,
            index: (*scan).indexRelation,
            snapshot: (*scan).xs_snapshot,
            row_memory: self.row_memory,
            index_oid: (*(*scan).indexRelation).rd_id.to_u32(),
            ordered: (*scan).numberOfOrderBys > 0,
        }
    }
}

/// What the scan is ordered by. A query of the wrong length is an error here, as
/// it is where the operator is evaluated.
unsafe fn ranking(scan: pg_sys::IndexScanDesc, definition: &Definition) -> Ranking {
    let mut query = None;
    if (*scan).numberOfOrderBys > 0 {
        let order_by = &*(*scan).orderByData;
        if order_by.sk_flags as u32 & pg_sys::SK_ISNULL == 0 {
            let elements = vector::elements(order_by.sk_argument);
            let expected = definition.dimensions() as usize;
            // A column without dimensions takes any: rows tell, as without the index.
            if expected != 0 && elements.len() != expected {
                SqlError::new(
                    SqlState::DATA_EXCEPTION,
                    format!(
                        "different vector dimensions {expected} and {}",
                        elements.len()
                    ),
                )
                .raise();
            }
            query = Some(elements.to_vec());
        }
    }
    Ranking {
        metric: definition.metric,
        query,
    }
}

/// Opens the search, or says why not.
unsafe fn ask_cluster(
    request: &Request,
    definition: &Definition,
    ranking: Ranking,
) -> Result<ClusterScan, Refusal> {
    let Some(query) = ranking.query.as_ref() else {
        return Err(Refusal::structural("the scan has no vector to order by"));
    };
    if ranking.is_undefined() {
        return Err(Refusal::structural("the query has no direction"));
    }
    if !snapshot::is_mvcc(request.snapshot) {
        return Err(Refusal::structural("the snapshot is not an ordinary one"));
    }
    let metapage = Metapage::read(request.index);
    let key = followed_key(definition, &metapage)?;
    let own_writes = own_writes_of(request)?;
    let view = identified_view(request, metapage.definition_generation);
    let snapshot_xmin = covered_xmin(request, &view)?;
    let open = OpenScan {
        database_oid: pg_sys::MyDatabaseId.to_u32(),
        index_oid: request.index_oid,
        definition_generation: metapage.definition_generation,
        query,
        ef_search: settings::ef_search(),
        page_rows: settings::ef_search().max(PAGE_ROWS_MIN),
        min_lsn: freshness::min_lsn(),
        snapshot_xmin,
        timeout_ms: settings::search_timeout_ms(),
        exact: false,
    };
    let (handle, first) = worker::open_scan(&open).map_err(Refusal::Outage)?;
    let lookup = KeyLookup::open(request.table, request.snapshot, key);
    let subject = Subject {
        table: request.table,
        snapshot: request.snapshot,
        column_attnum: definition.column_attnum,
        row_memory: request.row_memory,
    };
    let mut scan = ClusterScan::new(&subject, ranking, lookup, handle, first);
    scan.merge_own_writes(own_writes);
    Ok(scan)
}

/// The key, if the cluster follows this very definition.
unsafe fn followed_key<'a>(
    definition: &'a Definition,
    metapage: &Metapage,
) -> Result<&'a RowKeyIndex, Refusal> {
    if pg_sys::RecoveryInProgress() {
        return Err(Refusal::structural("the server is a standby"));
    }
    if let Some(missing) = prerequisites::missing() {
        return Err(Refusal::structural(missing.reason));
    }
    let key = definition
        .key
        .as_ref()
        .map_err(|reason| Refusal::structural(reason.as_str()))?;
    if metapage.definition_generation == 0 {
        return Err(Refusal::structural(NOT_REGISTERED));
    }
    if !metapage.stands_for(definition) {
        return Err(Refusal::structural(
            "the table's key or column changed; REINDEX the index",
        ));
    }
    if !collections::is_registered(definition.index_oid, metapage.definition_generation) {
        return Err(Refusal::structural(NO_LONGER_REGISTERED));
    }
    Ok(key)
}

pub const NOT_REGISTERED: &str =
    "the index was built when the cluster could not keep it; REINDEX the index";

pub const NO_LONGER_REGISTERED: &str =
    "the table left the cluster when it lost its key; REINDEX the index";

unsafe fn own_writes_of(request: &Request) -> Result<Vec<u64>, Refusal> {
    let in_worker = pg_sys::ParallelWorkerNumber >= 0;
    if in_worker && pg_sys::GetTopTransactionIdIfAny() != pg_sys::TransactionId::INVALID {
        return Err(Refusal::structural(
            "a parallel worker of a transaction that writes",
        ));
    }
    own_writes::of((*request.index).rd_id).map_err(Refusal::structural)
}

/// What is known of the index. A server that has just started is answered once the
/// cluster has seen its start, which is soon if it is the one that is followed.
unsafe fn identified_view(request: &Request, definition_generation: u64) -> IndexView {
    let give_up_at = Instant::now() + Duration::from_millis(settings::search_timeout_ms());
    loop {
        let view = worker::index_view(
            pg_sys::MyDatabaseId.to_u32(),
            request.index_oid,
            definition_generation,
        );
        if view.state != ViewState::Unidentified || Instant::now() >= give_up_at {
            return view;
        }
        pgrx::check_for_interrupts!();
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32,
            IDENTITY_POLL_MS,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

unsafe fn covered_xmin(request: &Request, view: &IndexView) -> Result<u64, Refusal> {
    match view.state {
        ViewState::Ready => {}
        ViewState::Disconnected | ViewState::Unidentified => {
            return Err(Refusal::Outage(ScanFailure::Unavailable(
                view.reason.clone(),
            )));
        }
        ViewState::Building => return Err(Refusal::structural("the collection is being built")),
        ViewState::Unknown => {
            let reason = match view.reason.as_str() {
                "" => "the cluster does not have the collection yet",
                reason => reason,
            };
            return Err(Refusal::structural(reason));
        }
        ViewState::Failed => {
            return Err(Refusal::structural(format!(
                "the collection failed: {}",
                view.reason
            )));
        }
    }
    snapshot::covered(request.snapshot, &view.snapshot)
        .ok_or_else(|| Refusal::structural("the snapshot is older than the collection"))
}

impl Request {
    /// Answers from the table, or ends the statement.
    unsafe fn exact(&self, refusal: Refusal, ranking: &Ranking, returned: HashSet<u64>) -> Phase {
        let (reason, rows_max) = match refusal {
            Refusal::Structural(reason) => (reason, None),
            Refusal::Outage(failure) => {
                let rows_max = self.admit_outage(&failure);
                (failure_text(&failure), Some(rows_max))
            }
        };
        counters::fallback(self.index_oid, &reason);
        let exact = ExactRequest {
            table: self.table,
            index: self.index,
            snapshot: self.snapshot,
            row_memory: self.row_memory,
            with_nulls: !self.ordered,
            rows_max,
        };
        let outcome = ExactScan::run(&exact, ranking, returned);
        exact_slots::release();
        match outcome {
            Ok(scan) => Phase::Exact(scan),
            Err(TooManyRows) => too_large(&reason, rows_max.unwrap_or_default()),
        }
    }

    /// Whether an outage may cost an exact scan of this table; the row limit.
    unsafe fn admit_outage(&self, failure: &ScanFailure) -> u64 {
        let forbidden = settings::on_unavailable() == OnUnavailable::Error
            || matches!(
                failure,
                ScanFailure::Invalid(_) | ScanFailure::NotAuthorised(_)
            );
        if forbidden {
            failure_error(failure).raise();
        }
        let rows_max = settings::exact_scan_rows_max();
        let estimate = (*(*self.table).rd_rel).reltuples;
        if f64::from(estimate) > rows_max as f64 {
            too_large(&failure_text(failure), rows_max);
        }
        if !exact_slots::acquire() {
            let state = match failure {
                ScanFailure::Throttled(_) => SqlState::CONFIGURATION_LIMIT,
                _ => SqlState::UNAVAILABLE,
            };
            SqlError::new(
                state,
                "the vector index is unavailable, and enough exact scans are running already",
            )
            .detail(failure_text(failure))
            .hint("Try again later, or raise ruvector.exact_scan_max_concurrent.")
            .raise();
        }
        rows_max
    }
}

fn notice_stale(partitions: u32) {
    SqlError::new(
        SqlState::SUCCESS,
        format!("{partitions} partitions were answered from data that may be old"),
    )
    .detail(
        "Their nodes reach no coordinator, or all their replicas are stale; newer rows may be \
         missing from the result.",
    )
    .hint(
        "Nodes without a lease answer where lease_loss = serve_stale is set. If ruvector ctl \
         status shows stale partitions, REINDEX builds the index anew.",
    )
    .notice()
}

fn too_large(reason: &str, rows_max: u64) -> ! {
    SqlError::new(
        SqlState::UNAVAILABLE,
        format!(
            "the vector index is unavailable, and the table has more than {rows_max} rows to scan instead"
        ),
    )
    .detail(reason)
    .hint("Try again later, or raise ruvector.exact_scan_max_rows.")
    .raise()
}

pub fn failure_text(failure: &ScanFailure) -> String {
    let (kind, text) = match failure {
        ScanFailure::Estale(text) => ("stale map", text),
        ScanFailure::Lagging(text) => ("lagging", text),
        ScanFailure::Unavailable(text) => ("unavailable", text),
        ScanFailure::Throttled(text) => ("throttled", text),
        ScanFailure::Invalid(text) => ("invalid request", text),
        ScanFailure::Corrupt(text) => ("corrupt", text),
        ScanFailure::Gated(text) => ("gated", text),
        ScanFailure::NotAuthorised(text) => ("not authorised", text),
    };
    format!("{kind}: {text}")
}

fn failure_error(failure: &ScanFailure) -> SqlError {
    let detail = failure_text(failure);
    let (state, message, hint) = match failure {
        ScanFailure::Estale(_) => (
            SqlState::ESTALE,
            "the cluster's map kept changing during the search",
            "Try again.",
        ),
        ScanFailure::Lagging(_) => (
            SqlState::LAGGING,
            "the vector index has not caught up with this query",
            "Wait, raise ruvector.search_timeout_ms, or set ruvector.read_consistency = eventual.",
        ),
        ScanFailure::Unavailable(_) => (
            SqlState::UNAVAILABLE,
            "the vector index is unavailable",
            "See ruvector_index_status(); ruvector.on_unavailable = exact scans the table instead.",
        ),
        ScanFailure::Throttled(_) => (
            SqlState::CONFIGURATION_LIMIT,
            "the cluster is overloaded",
            "Try again later.",
        ),
        ScanFailure::Invalid(_) => (
            SqlState::DATA_EXCEPTION,
            "the cluster refused the search",
            "REINDEX the index if its column was changed.",
        ),
        ScanFailure::Corrupt(_) => (
            SqlState::CORRUPT_DATA,
            "the vector index is corrupt",
            "The cluster rebuilds the partition; ruvector.on_unavailable = exact scans the table instead.",
        ),
        ScanFailure::Gated(_) => (
            SqlState::GATED,
            "the cluster does not admit searches of this index yet",
            "Wait; ruvector.on_unavailable = exact scans the table instead.",
        ),
        ScanFailure::NotAuthorised(_) => (
            SqlState::NOT_AUTHORISED,
            "the cluster does not let this server search the index",
            "The operator of the cluster decides who may search it.",
        ),
    };
    SqlError::new(state, message).detail(detail).hint(hint)
}
