//! What a failure of the cluster means to a statement: its text, its SQLSTATE, and
//! what the client may do.

use super::visibility::ExactReason;
use crate::error::{SqlError, SqlState};
use crate::worker::ScanFailure;

pub fn notice_stale(partitions: u32) {
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
         status shows stale partitions, they are reconciled with the table first.",
    )
    .notice()
}

pub fn too_large(failure: &ScanFailure, rows_max: u64) -> ! {
    let (state, what) = outage_state(failure);
    SqlError::new(
        state,
        format!("{what}, and the table has more than {rows_max} rows to scan instead"),
    )
    .detail(failure_text(failure))
    .hint(match failure {
        ScanFailure::Lagging(_) => {
            "Try again later, take older data with ruvector.read_consistency = bounded or \
             eventual, or raise ruvector.exact_scan_max_rows."
        }
        _ => "Try again later, or raise ruvector.exact_scan_max_rows.",
    })
    .raise()
}

/// The state of an error that says why the table is not scanned instead. One that
/// lags stays one that lags: the caller may wait, or take older data.
pub fn outage_state(failure: &ScanFailure) -> (SqlState, &'static str) {
    match failure {
        ScanFailure::Lagging(_) => (SqlState::LAGGING, LAGGING),
        ScanFailure::Throttled(_) => (
            SqlState::CONFIGURATION_LIMIT,
            "the vector index is unavailable",
        ),
        _ => (SqlState::UNAVAILABLE, "the vector index is unavailable"),
    }
}

const LAGGING: &str = "the vector index has not caught up with this query";

pub fn outage_reason(failure: &ScanFailure) -> ExactReason {
    match failure {
        ScanFailure::Estale(_) => ExactReason::Estale,
        ScanFailure::Lagging(_) => ExactReason::Lagging,
        ScanFailure::Throttled(_) => ExactReason::Throttled,
        ScanFailure::Corrupt(_) => ExactReason::Corrupt,
        ScanFailure::Gated(_) => ExactReason::Gated,
        // The last two end the statement before.
        ScanFailure::Unavailable(_) | ScanFailure::Invalid(_) | ScanFailure::NotAuthorised(_) => {
            ExactReason::Unavailable
        }
    }
}

pub fn failure_text(failure: &ScanFailure) -> String {
    let (kind, text) = match failure {
        ScanFailure::Estale(text) => ("estale", text),
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

pub fn failure_error(failure: &ScanFailure) -> SqlError {
    let detail = failure_text(failure);
    let (state, message, hint) = match failure {
        ScanFailure::Estale(_) => (
            SqlState::ESTALE,
            "the cluster's map kept changing during the search",
            "Try again.",
        ),
        ScanFailure::Lagging(_) => (
            SqlState::LAGGING,
            LAGGING,
            "Try again, raise ruvector.search_timeout_ms, or take older data with \
             ruvector.read_consistency = bounded or eventual. ruvector_replication_status shows \
             how far the cluster is, and whether the index is stale: then only eventual answers \
             until it is reconciled with its table. ruvector.on_unavailable = exact scans the table instead.",
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
