//! Which failures are worth repeating, and how long to pause before.

use proto::error;
use std::error::Error;
use std::time::Duration;
use tonic::{Code, Status};

const BACKOFF_BASE: Duration = Duration::from_millis(25);
const BACKOFF_DOUBLINGS_MAX: u32 = 5;

/// A jittered pause before round `round + 1`: 12 to 25 ms, doubling up to 0.8 s.
pub fn backoff(round: u32) -> Duration {
    let whole = BACKOFF_BASE * (1 << round.min(BACKOFF_DOUBLINGS_MAX));
    rand::random_range(whole / 2..=whole)
}

/// `Some` when a coordinator says that it does not lead; with the leader's
/// address when it knows one.
pub fn not_leader_hint(status: &Status) -> Option<Option<String>> {
    let is_not_leader = error::reason(status).as_deref() == Some(error::NOT_LEADER);
    is_not_leader.then(|| error::leader_hint(status))
}

/// Whether the same call may succeed elsewhere or later. A status with a source
/// was made here, by the transport: the server has said nothing.
pub fn is_worth_repeating(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    ) || status.source().is_some()
}

/// One line for a person: code, message, and the transport's root cause.
pub fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.source().is_none() {
            text.push_str(&format!(" ({error})"));
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_core::ids::{LeaseEpoch, MapVersion};

    #[test]
    fn a_coordinator_that_does_not_lead_names_who_does() {
        let hint = Some("127.0.0.1:7402".to_owned());
        assert_eq!(
            not_leader_hint(&error::not_leader(hint.as_deref())),
            Some(hint)
        );
        assert_eq!(not_leader_hint(&error::not_leader(None)), Some(None));
        assert_eq!(not_leader_hint(&Status::unavailable("no")), None);
    }

    #[test]
    fn refusals_are_final_and_outages_are_not() {
        assert!(is_worth_repeating(&Status::unavailable("election")));
        assert!(!is_worth_repeating(&Status::invalid_argument("bad")));
        let stale = error::estale("lower token", LeaseEpoch(1), MapVersion(1));
        assert!(!is_worth_repeating(&stale));
    }
}
