//! What an error means: one that a user would have met without us, one of ours that
//! something which is down excuses, or a failure.

use super::crash::Outage;
use std::time::Instant;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Change,
    Definition,
    Check,
    /// For an index, which may take longer than that.
    Wait,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Postgres refuses this with or without us.
    Refused,
    /// Named, and something is down.
    Excused,
    /// The session is gone, and so was Postgres.
    CutOff,
    Wrong,
}

/// Conflicts between sessions, and definitions that changed meanwhile.
const ORDINARY: [&str; 22] = [
    "40001", // serialization_failure
    "40P01", // deadlock_detected
    "55P03", // lock_not_available
    "25P02", // in_failed_sql_transaction
    "23505", // unique_violation
    "23514", // check_violation: a partition's, at ATTACH
    "42P01", // undefined_table: renamed, detached
    "42P07", // duplicate_table
    "42701", // duplicate_column
    "42703", // undefined_column
    "42704", // undefined_object: an index
    "42P16", // invalid_table_definition: attached twice
    "42809", // wrong_object_type: detached, or attached twice
    "42P17", // invalid_object_definition: partitions overlap
    "55006", // object_in_use: a cursor of the same session is open
    "55000", // object_not_in_prerequisite_state: an invalid index
    "3B001", // a savepoint is gone
    "34000", // and with it a cursor
    "2BP01", // dependent_objects_still_exist
    "25001", // active_sql_transaction
    "0A000", // feature_not_supported, as CONCURRENTLY on a partitioned table
    "42P10", // invalid_column_reference: ON CONFLICT without an index to infer
];
/// RV001, RV002, RV003, and throttled.
const OURS: [&str; 4] = ["RV001", "RV002", "RV003", "53400"];
/// The server stops, or is not there yet.
const CUT_OFF: [&str; 6] = ["57P01", "57P02", "57P03", "08006", "08003", "08001"];
/// elog texts of Postgres's own for catalogs that changed under a command.
const CHANGED_BENEATH: [&str; 4] = [
    "tuple concurrently updated",
    "tuple concurrently deleted",
    "could not open relation with OID",
    "cache lookup failed for",
];

/// Of a statement that began at `began`, by a session that last answered at `alive_at`:
/// a server that was killed in between cuts the session off at its next statement.
pub fn of(
    error: &postgres::Error,
    kind: Kind,
    began: Instant,
    alive_at: Instant,
    outage: &Outage,
) -> Verdict {
    let Some(error) = error.as_db_error() else {
        return if outage.cuts_off_since(alive_at) {
            Verdict::CutOff
        } else {
            Verdict::Wrong
        };
    };
    let state = error.code().code();
    let excused = |verdict, is_excused| if is_excused { verdict } else { Verdict::Wrong };
    match state {
        _ if CUT_OFF.contains(&state) => excused(Verdict::CutOff, outage.cuts_off_since(alive_at)),
        _ if OURS.contains(&state) && kind == Kind::Wait => Verdict::Refused,
        _ if OURS.contains(&state) => excused(
            Verdict::Excused,
            kind == Kind::Check && outage.excuses_since(began),
        ),
        // A search that hangs is none that waits for a lock.
        "57014" if kind == Kind::Check => excused(Verdict::Excused, outage.excuses_since(began)),
        "57014" => Verdict::Refused,
        "XX000" => {
            let is_ordinary = CHANGED_BENEATH
                .iter()
                .any(|text| error.message().starts_with(text));
            excused(Verdict::Refused, is_ordinary)
        }
        _ if ORDINARY.contains(&state) => Verdict::Refused,
        _ => Verdict::Wrong,
    }
}
