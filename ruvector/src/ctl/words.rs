//! One word for one idea, in every table and every JSON answer.

use super::table::count;
use cluster_core::control::{MoveReason, RebalanceMode};
use cluster_core::map::ReplicaState;

/// Of moves that nobody has to apply.
pub const BEGINS_BY_ITSELF: &str = "repairs and drains begin by themselves, as there is room";

/// `1 replica`, `2 replicas`, `1,000 replicas`.
pub fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(number as u64))
}

pub fn replica_state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Serving => "serving",
        ReplicaState::Learner => "learner",
        ReplicaState::Demoted => "demoted",
        ReplicaState::Releasing => "releasing",
    }
}

pub fn reason(reason: MoveReason) -> &'static str {
    match reason {
        MoveReason::Drain => "drain",
        MoveReason::Balance => "balance",
        MoveReason::Repair => "repair",
        MoveReason::Operator => "operator",
    }
}

pub fn mode(mode: RebalanceMode) -> &'static str {
    match mode {
        RebalanceMode::Auto => "auto",
        RebalanceMode::Manual => "manual",
        RebalanceMode::Paused => "paused",
    }
}

/// What a mode other than the usual one means for the operator.
pub fn mode_remark(mode: RebalanceMode) -> Option<&'static str> {
    match mode {
        RebalanceMode::Auto => None,
        RebalanceMode::Manual => Some(
            "rebalancing is manual: the cluster repairs and drains, and balances only what \
             `ruvector ctl rebalance apply` says",
        ),
        RebalanceMode::Paused => {
            Some("rebalancing is paused: no move starts until `ruvector ctl rebalance resume`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_singular() {
        let said = [0, 1, 2, 1_000].map(|number| counted(number, "replica"));
        assert_eq!(
            said,
            ["0 replicas", "1 replica", "2 replicas", "1,000 replicas"]
        );
    }
}
