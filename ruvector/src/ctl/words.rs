//! One word for one idea, in every table and every JSON answer.

use super::table::count;
use cluster_core::control::{MoveReason, RebalanceMode};
use cluster_core::map::{Partition, ReplicaState};

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
        ReplicaState::Stale => "stale",
    }
}

/// Partitions that answer old data only; nothing without any.
pub fn needs_reconcile<'a>(partitions: impl IntoIterator<Item = &'a Partition>) -> Option<String> {
    let stale = partitions.into_iter().filter(|p| p.needs_reconcile());
    match stale.count() {
        0 => None,
        1 => Some("1 partition stale until it is reconciled with its table".to_owned()),
        n => Some(format!(
            "{n} partitions stale until they are reconciled with their table"
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

#[cfg(test)]
mod tests {
    use super::super::testing::observed;
    use super::*;
    use ReplicaState::{Serving, Stale};

    #[test]
    fn partitions_whose_replicas_are_all_stale_are_counted() {
        let said = |partitions: &[&[super::super::testing::Held]]| {
            needs_reconcile(observed(2, partitions).map.partitions.values())
        };
        assert_eq!(said(&[&[(1, 1, Serving), (2, 2, Stale)]]), None);
        let one = said(&[&[(1, 1, Stale)], &[(1, 2, Serving)]]);
        let text = "1 partition stale until it is reconciled with its table";
        assert_eq!(one.as_deref(), Some(text));
        let two = said(&[&[(1, 1, Stale), (2, 2, Stale)], &[(2, 3, Stale)]]);
        let text = "2 partitions stale until they are reconciled with their table";
        assert_eq!(two.as_deref(), Some(text));
    }

    #[test]
    fn one_is_singular() {
        let said = [0, 1, 2, 1_000].map(|number| counted(number, "replica"));
        assert_eq!(
            said,
            ["0 replicas", "1 replica", "2 replicas", "1,000 replicas"]
        );
    }
}
