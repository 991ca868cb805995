//! How one scan is answered: by the cluster if it can, exactly if not. The
//! reasons for an exact scan are of two kinds. *Structural* ones (no key, an old
//! snapshot, …) always run. An *outage* runs only within the limits that keep it
//! from becoming a storm of scans, and only if the session wants it.

use super::cluster::{ClusterScan, Subject};
use super::exact::{ExactRequest, ExactScan, TooManyRows};
use super::failure::{
    failure_error, failure_text, notice_stale, outage_reason, outage_state, too_large,
};
use super::key_lookup::KeyLookup;
use super::ranking::{Ranked, Ranking};
use super::visibility::{self, ExactReason};
use super::{counters, exact_slots, freshness, own_writes, snapshot};
use crate::access_method::definition::{Definition, RowKeyIndex};
use crate::access_method::metapage::Metapage;
use crate::catalog::{collections, prerequisites};
use crate::error::{SqlError, SqlState};
use crate::pause::pause;
use crate::settings::{self, IterativeScan, OnUnavailable};
use crate::types::vector;
use crate::worker::{self, IndexView, OpenScan, ScanFailure, ScanHandle, ScanPage, ViewState};
use pgrx::pg_sys;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Rows in a page: few, for the first page is often all that is read.
const PAGE_ROWS_MIN: u32 = 10;
const IDENTITY_POLL_EVERY: Duration = Duration::from_millis(20);

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
    Structural(ExactReason, String),
    Outage(ScanFailure),
}

impl Refusal {
    fn structural(kind: ExactReason, reason: impl Into<String>) -> Self {
        Self::Structural(kind, reason.into())
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
        counters::publish();
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
        return Err(Refusal::structural(
            ExactReason::Order,
            "the scan has no vector to order by",
        ));
    };
    if ranking.is_undefined() {
        return Err(Refusal::structural(
            ExactReason::Order,
            "the query has no direction",
        ));
    }
    if !snapshot::is_mvcc(request.snapshot) {
        return Err(Refusal::structural(
            ExactReason::Snapshot,
            "the snapshot is not an ordinary one",
        ));
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
        min_lsn: freshness::min_lsn(view.stale_partitions > 0),
        snapshot_xmin,
        timeout_ms: settings::search_timeout_ms(),
        exact: false,
    };
    let (handle, first) = open_scan(&open).map_err(Refusal::Outage)?;
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

/// Opens the scan, and counts what its freshness cost.
fn open_scan(open: &OpenScan<'_>) -> Result<(ScanHandle, ScanPage), ScanFailure> {
    let level = settings::read_consistency();
    visibility::searched(level);
    let began = Instant::now();
    let outcome = worker::open_scan(open);
    match &outcome {
        Ok((_, first)) => visibility::waited(level, first.stats.waited_ms),
        Err(ScanFailure::Lagging(_)) => {
            visibility::lagged(level, began.elapsed().as_millis() as u64);
        }
        Err(_) => {}
    }
    outcome
}

/// The key, if the cluster follows this very definition.
unsafe fn followed_key<'a>(
    definition: &'a Definition,
    metapage: &Metapage,
) -> Result<&'a RowKeyIndex, Refusal> {
    if pg_sys::RecoveryInProgress() {
        return Err(Refusal::structural(
            ExactReason::Standby,
            "the server is a standby",
        ));
    }
    if let Some(missing) = prerequisites::missing() {
        return Err(Refusal::structural(
            ExactReason::Prerequisites,
            missing.reason,
        ));
    }
    let key = definition
        .key
        .as_ref()
        .map_err(|reason| Refusal::structural(ExactReason::NoKey, reason.as_str()))?;
    if metapage.definition_generation == 0 {
        return Err(Refusal::structural(
            ExactReason::NotFollowed,
            NOT_REGISTERED,
        ));
    }
    if !metapage.stands_for(definition) {
        return Err(Refusal::structural(
            ExactReason::NotFollowed,
            "the table's key or column changed; REINDEX the index",
        ));
    }
    if !collections::is_registered(definition.index_oid, metapage.definition_generation) {
        return Err(Refusal::structural(
            ExactReason::NotFollowed,
            NO_LONGER_REGISTERED,
        ));
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
            ExactReason::OwnWrites,
            "a parallel worker of a transaction that writes",
        ));
    }
    own_writes::of((*request.index).rd_id)
        .map_err(|reason| Refusal::structural(ExactReason::OwnWrites, reason))
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
        pause(IDENTITY_POLL_EVERY);
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
        ViewState::Building => {
            let reason = "the collection is being built";
            return Err(Refusal::structural(ExactReason::Building, reason));
        }
        ViewState::Unknown => {
            let reason = match view.reason.as_str() {
                "" => "the cluster does not have the collection yet",
                reason => reason,
            };
            return Err(Refusal::structural(ExactReason::Building, reason));
        }
        ViewState::Failed => {
            let reason = format!("the collection failed: {}", view.reason);
            return Err(Refusal::structural(ExactReason::Failed, reason));
        }
    }
    snapshot::covered(request.snapshot, &view.snapshot).ok_or_else(|| {
        Refusal::structural(
            ExactReason::Snapshot,
            "the snapshot is older than the collection",
        )
    })
}

impl Request {
    /// Answers from the table, or ends the statement.
    unsafe fn exact(&self, refusal: Refusal, ranking: &Ranking, returned: HashSet<u64>) -> Phase {
        let (kind, reason, outage) = match refusal {
            Refusal::Structural(kind, reason) => (kind, reason, None),
            Refusal::Outage(failure) => {
                let rows_max = self.admit_outage(&failure);
                let reason = failure_text(&failure);
                (outage_reason(&failure), reason, Some((failure, rows_max)))
            }
        };
        visibility::scanned_exactly(kind);
        counters::fallback(self.index_oid, &reason);
        let exact = ExactRequest {
            table: self.table,
            index: self.index,
            snapshot: self.snapshot,
            row_memory: self.row_memory,
            with_nulls: !self.ordered,
            rows_max: outage.as_ref().map(|(_, rows_max)| *rows_max),
        };
        let outcome = ExactScan::run(&exact, ranking, returned);
        exact_slots::release();
        match outcome {
            Ok(scan) => Phase::Exact(scan),
            Err(TooManyRows) => match outage {
                Some((failure, rows_max)) => too_large(&failure, rows_max),
                None => pgrx::error!("an exact scan without a limit met one"),
            },
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
            too_large(failure, rows_max);
        }
        if !exact_slots::acquire() {
            let (state, what) = outage_state(failure);
            SqlError::new(
                state,
                format!("{what}, and enough exact scans are running already"),
            )
            .detail(failure_text(failure))
            .hint("Try again later, or raise ruvector.exact_scan_max_concurrent.")
            .raise();
        }
        rows_max
    }
}
