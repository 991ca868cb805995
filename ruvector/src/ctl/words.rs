//! One word for one idea, in every table and every JSON answer.

use cluster_core::control::{MoveReason, RebalanceMode};
use cluster_core::map::{Partition, ReplicaState};

pub fn replica_state(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Serving => "serving",
        ReplicaState::Learner => "learner",
        ReplicaState::Demoted => "demoted",
        ReplicaState::Releasing => "releasing",
        ReplicaState::Stale => "stale",
    }
}

/// Partitions that answer old data only; nothing without any.
pub fn needs_reconcile<'a>(partitions: impl IntoIterator<Item = &'a Partition>) -> Option<String> {
    let stale = partitions.into_iter().filter(|p| p.needs_reconcile());
    match stale.count() {
        0 => None,
        1 => Some("1 partition stale: needs reconcile (REINDEX the index)".to_owned()),
        n => Some(format!(
            "{n} partitions stale: needs reconcile (REINDEX the index)"
        )),
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
