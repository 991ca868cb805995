//! `ruvector_verify(index)` and `ruvector_verify_differences(index, row_limit)`: whether
//! every replica holds what the heap holds, and which keys it does not.
//!
//! In reading order: a row as the cluster names it ([`row`]), the heap in the order of
//! its keys ([`heap`]), one replica against it ([`compare`]), and single keys, read until
//! each is judged ([`sandwich`]). The rules are `cluster_core::verify`'s.

mod compare;
mod heap;
mod row;
mod sandwich;

use super::records::{Rows, bigint};
use super::{status, wait};
use crate::access_method::definition::{Definition, RowKeyIndex};
use crate::error::{SqlError, SqlState, sql_functions};
use crate::scan::failure::failure_text;
use crate::scan::freshness;
use crate::worker::{self, IndexName, ReplicaPlace, ScanFailure};
use cluster_core::ids::NodeId;
use cluster_core::map::{HashRange, ReplicaState, tiles_whole_space};
use cluster_core::wal_position::Lsn;
use compare::{Comparison, Findings};
use heap::SortedHeap;
use pgrx::{IntoDatum, pg_sys};
use std::collections::HashMap;
use std::ffi::c_int;

sql_functions! {
    /// A row for each replica.
    pg_finfo_ruvector_verify for ruvector_verify(call) {
        let index_oid = pg_sys::Oid::from_u32(call.datum(0).value() as u32);
        refuse_where_nothing_can_be_compared();
        let mut rows = Rows::of(call);
        for index_oid in wait::with_storage(index_oid) {
            let subject = Subject::open(index_oid);
            for verified in verify(&subject, u64::MAX) {
                rows.put(verified.row(&subject.definition.index_name));
            }
            subject.close();
        }
        pg_sys::Datum::from(0usize)
    }

    /// A row for each key that differs, or that could not be judged; at most so many.
    pg_finfo_ruvector_verify_differences for ruvector_verify_differences(call) {
        let index_oid = pg_sys::Oid::from_u32(call.datum(0).value() as u32);
        let Ok(mut left) = u64::try_from(call.int32(1)) else {
            SqlError::new(SqlState::INVALID_PARAMETER, "row_limit must not be negative").raise()
        };
        refuse_where_nothing_can_be_compared();
        let mut rows = Rows::of(call);
        for index_oid in wait::with_storage(index_oid) {
            if left == 0 {
                break;
            }
            let subject = Subject::open(index_oid);
            for verified in verify(&subject, left) {
                verified.warn_if_not_compared();
                let named = verified.findings.named;
                left = left.saturating_sub(named.len() as u64);
                for (key, kind) in named {
                    rows.put([
                        subject.definition.index_name.clone().into_datum(),
                        Some(bigint(verified.place.partition.0)),
                        Some(bigint(verified.place.node.0)),
                        key.into_datum(),
                        kind.to_owned().into_datum(),
                    ]);
                }
            }
            subject.close();
        }
        pg_sys::Datum::from(0usize)
    }
}

/// # Safety
/// In a backend.
unsafe fn refuse_where_nothing_can_be_compared() {
    let refuse = |what: &str| {
        SqlError::new(
            SqlState::NOT_IN_PREREQUISITE_STATE,
            format!("replicas cannot be compared with the table {what}"),
        )
    };
    if pg_sys::RecoveryInProgress() {
        refuse("on a standby")
            .hint("Run it on the primary, whose log the cluster follows.")
            .raise();
    }
    if pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as c_int {
        refuse("under a snapshot that does not move on")
            .hint("Run it in a transaction of isolation level READ COMMITTED.")
            .raise();
    }
    if pg_sys::GetTopTransactionIdIfAny() != pg_sys::TransactionId::INVALID {
        refuse("in a transaction that has written")
            .detail("The cluster learns of what it has written when it commits.")
            .hint("Run it in a transaction of its own.")
            .raise();
    }
}

/// An index with what it takes to compare it.
struct Subject {
    index: pg_sys::Relation,
    table: pg_sys::Relation,
    definition: Definition,
    key: RowKeyIndex,
    name: IndexName,
}

impl Subject {
    /// Locked as a query locks it. Only its owner may look.
    unsafe fn open(index_oid: pg_sys::Oid) -> Self {
        let local = status::local(index_oid);
        if !pg_sys::pg_class_ownercheck(index_oid, pg_sys::GetUserId()) {
            SqlError::new(
                SqlState::NOT_AUTHORISED,
                format!("must be owner of index \"{}\"", local.index_name),
            )
            .raise();
        }
        if local.state != "ready" {
            let error = SqlError::new(
                SqlState::NOT_IN_PREREQUISITE_STATE,
                format!(
                    "index \"{}\" has no replicas to compare: it is {}",
                    local.index_name, local.state
                ),
            );
            match local.reason.as_str() {
                "" => error,
                reason => error.detail(reason),
            }
            .hint("ruvector_index_status() shows how far it is.")
            .raise();
        }
        let lock = pg_sys::AccessShareLock as c_int;
        let index = pg_sys::index_open(index_oid, lock);
        let table = pg_sys::table_open((*(*index).rd_index).indrelid, lock);
        let definition = Definition::of(table, index);
        let key = match &definition.key {
            Ok(key) => key.clone(),
            Err(reason) => {
                SqlError::new(SqlState::NOT_IN_PREREQUISITE_STATE, reason.as_str()).raise()
            }
        };
        Self {
            index,
            table,
            definition,
            key,
            name: IndexName {
                database_oid: pg_sys::MyDatabaseId.to_u32(),
                index_oid: index_oid.to_u32(),
                definition_generation: local.definition_generation,
            },
        }
    }

    unsafe fn close(self) {
        let lock = pg_sys::AccessShareLock as c_int;
        pg_sys::table_close(self.table, lock);
        pg_sys::index_close(self.index, lock);
    }
}

/// A replica and what was found.
struct Verified {
    place: ReplicaPlace,
    heap_rows: u64,
    /// What the replica had applied at least.
    position: Option<Lsn>,
    findings: Findings,
    /// Why it was not compared, or not to the end.
    problem: Option<String>,
}

/// Compares every replica; names so many keys at most, and stops there.
unsafe fn verify(subject: &Subject, keys_max: u64) -> Vec<Verified> {
    let places = match worker::replicas(subject.name) {
        Ok(places) => places,
        Err(failure) => SqlError::new(
            SqlState::UNAVAILABLE,
            format!(
                "the replicas of index \"{}\" cannot be listed",
                subject.definition.index_name
            ),
        )
        .detail(failure_text(&failure))
        .raise(),
    };
    let mut ranges: Vec<HashRange> = places.iter().map(|place| place.range).collect();
    ranges.dedup();
    if !tiles_whole_space(ranges.iter().copied()) {
        pgrx::error!("the map's partitions of the index do not cover it");
    }
    let mut heap = SortedHeap::read(subject, &ranges);
    // Not before the snapshot: whatever it showed is below.
    let position = Lsn(freshness::flushed_end_of_wal());
    // Nodes that did not answer: their other replicas are not waited for.
    let mut silent: HashMap<NodeId, String> = HashMap::new();
    let mut left = keys_max;
    let mut all = Vec::with_capacity(places.len());
    for (number, range) in ranges.iter().enumerate() {
        heap.enter(number);
        for place in places.iter().filter(|place| place.range == *range) {
            let mut verified = Verified {
                place: *place,
                heap_rows: heap.rows(),
                position: None,
                findings: Findings::default(),
                problem: not_compared(place.state).map(str::to_owned),
            };
            let is_silent = silent.get(&place.node).cloned();
            verified.problem = verified.problem.or(is_silent);
            if verified.problem.is_none() {
                heap.rewind();
                let is_fed = place.state == ReplicaState::Serving;
                verified.position = is_fed.then_some(position);
                let mut comparison = Comparison::new(subject, *place, verified.position, left);
                let outcome = comparison.run(&mut heap);
                if let Err(failure) = outcome {
                    let text = failure_text(&failure);
                    if matches!(failure, ScanFailure::Unavailable(_)) {
                        silent.insert(place.node, text.clone());
                    }
                    verified.problem = Some(text);
                }
                verified.findings = comparison.finish();
                left = left.saturating_sub(verified.findings.named.len() as u64);
            }
            all.push(verified);
            if left == 0 {
                heap.close();
                return all;
            }
        }
        heap.leave();
    }
    heap.close();
    all
}

fn not_compared(state: ReplicaState) -> Option<&'static str> {
    match state {
        ReplicaState::Serving | ReplicaState::Stale | ReplicaState::Demoted => None,
        ReplicaState::Learner => Some("it copies a peer and answers nothing yet"),
        ReplicaState::Releasing => Some("it gives its place away and answers nothing"),
    }
}

fn state_name(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Learner => "learner",
        ReplicaState::Serving => "serving",
        ReplicaState::Demoted => "demoted",
        ReplicaState::Stale => "stale",
        ReplicaState::Releasing => "releasing",
    }
}

impl Verified {
    /// Counts of a comparison that did not come to its end would pass for its result.
    fn row(&self, index_name: &str) -> [Option<pg_sys::Datum>; 10] {
        let count = |count: u64| self.problem.is_none().then(|| bigint(count));
        [
            index_name.to_owned().into_datum(),
            Some(bigint(self.place.partition.0)),
            Some(bigint(self.place.node.0)),
            state_name(self.place.state).to_owned().into_datum(),
            Some(bigint(self.heap_rows)),
            count(self.findings.replica_rows),
            count(self.findings.differences),
            count(self.findings.undetermined),
            self.position.map(|position| bigint(position.0)),
            self.problem.clone().and_then(IntoDatum::into_datum),
        ]
    }

    fn warn_if_not_compared(&self) {
        let Some(problem) = &self.problem else { return };
        let place = &self.place;
        SqlError::new(
            SqlState::WARNING,
            format!("{} on {} was not compared", place.partition, place.node),
        )
        .detail(problem.as_str())
        .warn();
    }
}
