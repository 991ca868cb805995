//! `ctl move`: one partition's replica, to a node of the operator's choice.

use super::moves::MoveLine;
use super::rebalance::replace_plan;
use super::{Ctl, Observed, Report, show, usage, words};
use crate::failure::{Failure, FailureKind};
use clap::{Args, Subcommand};
use cluster_core::control::{MoveReason, PlannedMove, RebalanceMode};
use cluster_core::ids::{NodeId, PartitionId};
use cluster_core::map::Partition;
use proto::v1::CancelMoveRequest;
use serde::Serialize;

#[derive(Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct MoveArgs {
    #[command(subcommand)]
    command: Option<MoveCommand>,
    /// The partition, as `ctl map` numbers it
    #[arg(required = true)]
    partition: Option<u64>,
    /// The node that is to hold it
    #[arg(long, required = true, value_name = "NODE")]
    to: Option<u64>,
    /// The node that gives it; needed when several serve it
    #[arg(long, value_name = "NODE")]
    from: Option<u64>,
}

#[derive(Subcommand)]
enum MoveCommand {
    /// Give up a move whose new replica does not serve yet, or that has not begun
    Cancel { partition: u64 },
}

#[derive(Serialize)]
struct Moving {
    #[serde(flatten)]
    planned: MoveLine,
    mode: RebalanceMode,
}

#[derive(Serialize)]
struct Cancelled {
    partition: u64,
    was_running: bool,
    was_planned: bool,
}

pub async fn run(ctl: &Ctl, args: MoveArgs, json: bool) -> Result<String, Failure> {
    match (args.command, args.partition, args.to) {
        (Some(MoveCommand::Cancel { partition }), ..) => {
            show(&cancel(ctl, PartitionId(partition)).await?, json)
        }
        (None, Some(partition), Some(to)) => {
            let from = args.from.map(NodeId);
            let moving = begin(ctl, PartitionId(partition), NodeId(to), from).await?;
            show(&moving, json)
        }
        _ => Err(usage("want: ctl move PARTITION --to NODE".to_owned())),
    }
}

async fn begin(
    ctl: &Ctl,
    partition: PartitionId,
    to: NodeId,
    from: Option<NodeId>,
) -> Result<Moving, Failure> {
    let seen = ctl.leader_status().await?;
    let planned = MoveLine::of(&seen.map, &check(&seen, partition, to, from)?);
    // What was planned before stays planned.
    let mut moves = seen.planned_moves()?;
    moves.retain(|other| other.partition != partition.0);
    moves.push(planned.clone());
    replace_plan(ctl, &moves).await?;
    Ok(Moving {
        planned,
        mode: seen.rebalance_mode(),
    })
}

/// The move, when the map allows it; otherwise what to do instead.
fn check(
    seen: &Observed,
    partition: PartitionId,
    to: NodeId,
    from: Option<NodeId>,
) -> Result<PlannedMove, Failure> {
    let Some(held) = seen.map.partitions.get(&partition) else {
        return Err(usage(format!(
            "there is no partition {}: ruvector ctl map lists them",
            partition.0
        )));
    };
    let Some(node) = seen.map.nodes.get(&to) else {
        return Err(seen.no_such_node(to));
    };
    if node.is_draining {
        return Err(refused(format!(
            "node {} is draining: ruvector ctl node undrain {} first, or choose another",
            to.0, to.0
        )));
    }
    if let Some(stale) = words::needs_reconcile([held]) {
        return Err(refused(format!(
            "partition {} has no replica to copy: {stale}",
            partition.0
        )));
    }
    if let Some(there) = held.replica_on(to) {
        return Err(refused(format!(
            "node {} holds partition {} already ({})",
            to.0,
            partition.0,
            words::replica_state(there.state)
        )));
    }
    let mut running = seen.running_moves().into_iter();
    if let Some(running) = running.find(|running| running.planned.partition == partition.0) {
        return Err(refused(format!(
            "partition {} is moving already, to node {}: ruvector ctl move cancel {}",
            partition.0, running.planned.to, partition.0
        )));
    }
    Ok(PlannedMove {
        partition,
        to,
        from: Some(giver(held, from)?),
        reason: MoveReason::Operator,
    })
}

/// Who gives its replica: the one named, or the only one that can.
fn giver(held: &Partition, named: Option<NodeId>) -> Result<NodeId, Failure> {
    let givers: Vec<NodeId> = held
        .replicas
        .iter()
        .filter(|replica| replica.state.gives_its_place())
        .map(|replica| replica.node)
        .collect();
    let ids: Vec<String> = givers.iter().map(|node| node.0.to_string()).collect();
    match (named, &givers[..]) {
        (Some(named), _) if givers.contains(&named) => Ok(named),
        (Some(named), _) => Err(usage(format!(
            "node {} has no replica of partition {} to give; those that have: {}",
            named.0,
            held.id.0,
            ids.join(", ")
        ))),
        (None, [only]) => Ok(*only),
        (None, _) => Err(usage(format!(
            "partition {} is on nodes {}: say with --from which one gives it",
            held.id.0,
            ids.join(", ")
        ))),
    }
}

async fn cancel(ctl: &Ctl, partition: PartitionId) -> Result<Cancelled, Failure> {
    let seen = ctl.leader_status().await?;
    let of_it = |line: &MoveLine| line.partition == partition.0;
    let mut planned = seen.planned_moves()?;
    let was_planned = planned.iter().any(of_it);
    let was_running = seen.running_moves().iter().any(|m| of_it(&m.planned));
    if was_planned {
        planned.retain(|line| !of_it(line));
        replace_plan(ctl, &planned).await?;
    }
    if was_running {
        let request = CancelMoveRequest {
            partition_id: partition.0,
        };
        ctl.lead(|mut leader| async move { leader.cancel_move(request).await })
            .await?;
    }
    if !was_planned && !was_running {
        return Err(usage(format!(
            "no move of partition {} is running or planned",
            partition.0
        )));
    }
    Ok(Cancelled {
        partition: partition.0,
        was_running,
        was_planned,
    })
}

fn refused(message: String) -> Failure {
    Failure::new(FailureKind::Refused, message)
}

impl Report for Moving {
    fn text(&self) -> String {
        let MoveLine {
            partition,
            from,
            to,
            ..
        } = self.planned;
        let from = from.map_or_else(String::new, |from| format!(" from node {from}"));
        let next = match self.mode {
            RebalanceMode::Paused => "rebalancing is paused: ruvector ctl rebalance resume",
            _ => "ruvector ctl rebalance status shows how far it is",
        };
        format!("Partition {partition} goes{from} to node {to}; {next}\n")
    }
}

impl Report for Cancelled {
    fn text(&self) -> String {
        let what = match self.was_running {
            true => "is given up; its old replica serves on",
            false => "is no longer planned",
        };
        format!("The move of partition {} {what}\n", self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{observed, running};
    use super::*;
    use cluster_core::map::ReplicaState::{Learner, Serving, Stale};

    fn said(outcome: Result<PlannedMove, Failure>) -> String {
        outcome.expect_err("refused").to_string()
    }

    #[test]
    fn the_only_replica_gives_and_one_of_several_is_named() {
        let seen = observed(
            3,
            &[&[(1, 3, Serving)], &[(1, 4, Serving), (2, 5, Serving)]],
        );
        let check = |partition, to, from: Option<u64>| {
            check(&seen, PartitionId(partition), NodeId(to), from.map(NodeId))
        };
        let only = check(1, 2, None).expect("allowed");
        assert_eq!(
            (only.from, only.reason),
            (Some(NodeId(1)), MoveReason::Operator)
        );
        assert!(said(check(2, 3, None)).contains("on nodes 1, 2: say with --from"));
        assert_eq!(check(2, 3, Some(2)).expect("allowed").from, Some(NodeId(2)));
        assert!(said(check(2, 3, Some(3))).contains("those that have: 1, 2"));
    }

    #[test]
    fn what_is_only_stale_is_not_copied_and_what_is_served_beside_may_be_replaced() {
        let left = [(1, 3, Stale), (2, 4, Stale)];
        let seen = observed(3, &[&left, &[(1, 5, Serving), (2, 6, Stale)]]);
        let check = |partition| {
            let from = Some(NodeId(2));
            check(&seen, PartitionId(partition), NodeId(3), from)
        };
        assert!(said(check(1)).contains("reconciled"));
        assert_eq!(check(2).expect("allowed").from, Some(NodeId(2)));
    }

    #[test]
    fn a_move_that_cannot_be_is_refused_with_what_to_do() {
        let mut seen = observed(
            3,
            &[&[(1, 3, Serving), (2, 9, Learner)], &[(1, 4, Serving)]],
        );
        seen.status.moves = vec![running(1, Some(1), 2, None)];
        seen.map
            .nodes
            .get_mut(&NodeId(3))
            .expect("a node")
            .is_draining = true;
        let check = |partition, to| check(&seen, PartitionId(partition), NodeId(to), None);
        assert!(said(check(9, 2)).contains("no partition 9"));
        assert!(said(check(2, 9)).contains("there are 1, 2, 3"));
        assert!(said(check(2, 3)).contains("node undrain 3"));
        assert!(said(check(2, 1)).contains("already (serving)"));
        assert!(said(check(1, 2)).contains("already (learner)"));
        seen.map
            .nodes
            .get_mut(&NodeId(3))
            .expect("a node")
            .is_draining = false;
        let outcome = super::check(&seen, PartitionId(1), NodeId(3), None);
        assert!(said(outcome).contains("move cancel 1"));
    }
}
