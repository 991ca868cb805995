//! Error details on the wire: an error says what its caller does next.
//!
//! The reason travels as `google.rpc.ErrorInfo`; see docs/errors.md.

use cluster_core::ids::{LeaseEpoch, MapVersion};
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub const DOMAIN: &str = "ruvector";
pub const ESTALE: &str = "ESTALE";
pub const NOT_LEADER: &str = "NOT_LEADER";
pub const LAGGING: &str = "LAGGING";
pub const PENDING: &str = "PENDING";
pub const NOT_READY: &str = "NOT_READY";
pub const STRANGER: &str = "STRANGER";

fn with_reason<const N: usize>(
    code: Code,
    message: impl Into<String>,
    reason: &str,
    metadata: [(&str, String); N],
) -> Status {
    let metadata: HashMap<String, String> = metadata
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v))
        .collect();
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

/// The caller's map, epoch or token is out of date: refetch, then retry. Bears
/// what the answerer knows.
pub fn estale(message: impl Into<String>, epoch: LeaseEpoch, version: MapVersion) -> Status {
    let known = [
        ("epoch", epoch.0.to_string()),
        ("version", version.0.to_string()),
    ];
    with_reason(Code::Aborted, message, ESTALE, known)
}

/// Ask the leader, when one is known.
pub fn not_leader(leader: Option<&str>) -> Status {
    let message = match leader {
        Some(leader) => format!("not the leader; it is {leader}"),
        None => "not the leader, and none is known; retry".to_owned(),
    };
    match leader {
        Some(leader) => with_reason(
            Code::FailedPrecondition,
            message,
            NOT_LEADER,
            [("leader", leader.to_owned())],
        ),
        None => with_reason(Code::FailedPrecondition, message, NOT_LEADER, []),
    }
}

/// The replica has not reached the position: wait, or accept older data.
pub fn lagging(message: impl Into<String>) -> Status {
    with_reason(Code::FailedPrecondition, message, LAGGING, [])
}

/// A column is pending: read it again before closing the backfill.
pub fn pending(message: impl Into<String>) -> Status {
    with_reason(Code::FailedPrecondition, message, PENDING, [])
}

/// Not possible yet (no nodes, not initialised): retry later.
pub fn not_ready(message: impl Into<String>) -> Status {
    with_reason(Code::Unavailable, message, NOT_READY, [])
}

/// The request comes from a server or database that the source is not of.
pub fn stranger(message: impl Into<String>) -> Status {
    with_reason(Code::PermissionDenied, message, STRANGER, [])
}

/// A limit is reached: back off for `retry_after`.
pub fn throttled(message: impl Into<String>, retry_after: Duration) -> Status {
    let details = ErrorDetails::with_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// The reason of an error of ours.
pub fn reason(status: &Status) -> Option<String> {
    status
        .get_details_error_info()
        .filter(|info| info.domain == DOMAIN)
        .map(|info| info.reason)
}

pub fn is_estale(status: &Status) -> bool {
    reason(status).as_deref() == Some(ESTALE)
}

/// What the answerer of an ESTALE knew.
pub fn estale_hint(status: &Status) -> Option<(LeaseEpoch, MapVersion)> {
    let info = status
        .get_details_error_info()
        .filter(|info| info.reason == ESTALE)?;
    let number = |name| info.metadata.get(name)?.parse().ok();
    Some((LeaseEpoch(number("epoch")?), MapVersion(number("version")?)))
}

/// Where a NOT_LEADER answer sends the caller.
pub fn leader_hint(status: &Status) -> Option<String> {
    let info = status
        .get_details_error_info()
        .filter(|info| info.reason == NOT_LEADER)?;
    info.metadata.get("leader").cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_status() {
        let status = estale("lease over", LeaseEpoch(3), MapVersion(9));
        assert_eq!(status.code(), Code::Aborted);
        assert!(is_estale(&status));
        assert_eq!(estale_hint(&status), Some((LeaseEpoch(3), MapVersion(9))));
        assert_eq!(
            leader_hint(&not_leader(Some("h:1"))),
            Some("h:1".to_owned())
        );
        assert_eq!(leader_hint(&not_leader(None)), None);
        assert_eq!(reason(&Status::unavailable("else")), None);
    }
}
