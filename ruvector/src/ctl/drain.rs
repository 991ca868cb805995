//! `ctl node drain`: says what will move, and follows it when asked to.

use super::moves::{MoveLine, RunningMove, index_of};
use super::node::set_draining;
use super::plan::{Plan, plan, remarks};
use super::table::{Align, Table, count, or_dash};
use super::{Ctl, Observed, Report, words};
use crate::failure::{Failure, FailureKind};
use clap::Args;
use cluster_core::control::RebalanceMode;
use cluster_core::ids::{NodeId, PartitionId};
use cluster_core::map::ReplicaState;
use serde::Serialize;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many moves a line of progress names.
const NAMED_MAX: usize = 3;

#[derive(Args)]
pub struct DrainArgs {
    node: u64,
    /// Follow until the node is empty, for at most so many seconds
    #[arg(long, value_name = "SECONDS")]
    wait: Option<Option<u64>>,
}

#[derive(Serialize)]
pub struct Drained {
    node: u64,
    /// What it held when the draining began, or still held.
    replicas: Vec<HeldLine>,
    /// Of the other nodes, how many may take replicas.
    takers: usize,
    mode: RebalanceMode,
    /// What stands in the way, each in a sentence.
    conflicts: Vec<String>,
    is_empty: bool,
}

#[derive(Serialize)]
struct HeldLine {
    partition: u64,
    index: String,
    state: &'static str,
    rows: Option<u64>,
    /// Where it goes, once the leader has said.
    to: Option<u64>,
}

pub async fn drain(ctl: &Ctl, args: DrainArgs) -> Result<Drained, Failure> {
    let node = NodeId(args.node);
    let seen = ctl.leader_status().await?;
    if !seen.map.nodes.contains_key(&node) {
        return Err(seen.no_such_node(node));
    }
    set_draining(ctl, node, true).await?;
    // The leader may not have made up its mind yet; the node drains anyway.
    let planned = plan(ctl, &seen).await.unwrap_or_default();
    let mut report = Drained::of(&seen, node, planned);
    if let Some(limit) = args.wait {
        eprint!("{}", report.text());
        follow(ctl, node, report.replicas.len(), limit).await?;
        report.is_empty = true;
    }
    Ok(report)
}

/// Until the node is empty. Progress goes to standard error, so that the answer
/// stays one.
async fn follow(ctl: &Ctl, node: NodeId, of: usize, limit: Option<u64>) -> Result<(), Failure> {
    let give_up = limit.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut last = String::new();
    loop {
        let seen = ctl.leader_status().await?;
        let Some(known) = seen.map.nodes.get(&node) else {
            return Ok(());
        };
        let left = seen.held_by(node).len();
        if left == 0 {
            return Ok(());
        }
        if !known.is_draining {
            let left = words::counted(left, "replica");
            let message = format!("node {} is not to drain any more, and holds {left}", node.0);
            return Err(Failure::new(FailureKind::Failed, message));
        }
        let mut line = progress(node, left, of, &seen.running_moves(), seen.rebalance_mode());
        // Only said: the moves themselves are followed in the status.
        let planned = plan(ctl, &seen).await.unwrap_or_default();
        for conflict in &planned.conflicts {
            line += &format!("\n! {conflict}");
        }
        if line != last {
            eprintln!("{line}");
            last = line;
        }
        if give_up.is_some_and(|give_up| Instant::now() >= give_up) {
            let message = format!(
                "node {} still holds {left} of {}; it goes on draining: \
                 ruvector ctl rebalance status",
                node.0,
                words::counted(of.max(left), "replica")
            );
            return Err(Failure::new(FailureKind::Failed, message));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// `node 2: 5 of 8 replicas left; moving 14 to node 3 (copying, 62 %)`.
fn progress(
    node: NodeId,
    left: usize,
    of: usize,
    moves: &[RunningMove],
    mode: RebalanceMode,
) -> String {
    let from_node = moves.iter().filter(|m| m.planned.from == Some(node.0));
    let mut moving: Vec<_> = from_node.map(RunningMove::sentence).collect();
    let more = moving.len().saturating_sub(NAMED_MAX);
    moving.truncate(NAMED_MAX);
    if more > 0 {
        moving.push(format!("{more} more"));
    }
    let doing = match (moving.is_empty(), words::mode_remark(mode)) {
        (false, _) => format!("moving {}", moving.join(", ")),
        (true, Some(remark)) if mode == RebalanceMode::Paused => remark.to_owned(),
        (true, _) => "none is moving".to_owned(),
    };
    format!(
        "node {}: {left} of {} left; {doing}",
        node.0,
        words::counted(of.max(left), "replica")
    )
}

impl Drained {
    fn of(seen: &Observed, node: NodeId, plan: Plan) -> Self {
        let running = seen.running_moves();
        let begun = running.iter().map(|running| &running.planned);
        let moves: Vec<&MoveLine> = begun.chain(&plan.moves).collect();
        let destination = |partition: PartitionId| {
            let mut moves = moves.iter();
            let found = moves.find(|m| (m.partition, m.from) == (partition.0, Some(node.0)));
            found.map(|line| line.to)
        };
        let rows = |partition: PartitionId| {
            let mut reports = seen.replica_reports(partition);
            let found = reports.find(|(reporter, _)| *reporter == node.0);
            found.map(|(_, report)| report.rows)
        };
        let line = |(partition, state): (PartitionId, ReplicaState)| HeldLine {
            partition: partition.0,
            index: index_of(&seen.map, partition),
            state: words::replica_state(state),
            rows: rows(partition),
            to: destination(partition),
        };
        let replicas: Vec<_> = seen.held_by(node).into_iter().map(line).collect();
        let others = seen.map.nodes.values().filter(|other| other.id != node);
        Self {
            node: node.0,
            is_empty: replicas.is_empty(),
            replicas,
            takers: others
                .filter(|other| !other.is_draining && seen.is_alive(other.id))
                .count(),
            mode: seen.rebalance_mode(),
            conflicts: plan.conflicts,
        }
    }
}

impl Report for Drained {
    fn text(&self) -> String {
        let node = self.node;
        if self.is_empty {
            return format!(
                "Node {node} is empty and gets nothing new: ruvector ctl node remove {node}\n"
            );
        }
        let mut table = Table::new(&[
            ("partition", Align::Right),
            ("index", Align::Left),
            ("state", Align::Left),
            ("rows", Align::Right),
            ("to node", Align::Right),
        ]);
        for line in &self.replicas {
            table.row([
                line.partition.to_string(),
                or_dash(&line.index),
                line.state.to_owned(),
                line.rows.map_or("?".to_owned(), count),
                line.to.map_or("-".to_owned(), |to| to.to_string()),
            ]);
        }
        let mut text = format!(
            "Node {node} drains: {} to go to other nodes, and it gets nothing new\n\n{}",
            words::counted(self.replicas.len(), "replica"),
            table.render("")
        );
        if self.takers == 0 {
            text += "\n! no other node is there to take them: start one, or undrain one\n";
        }
        if self.mode == RebalanceMode::Paused {
            let remark = words::mode_remark(self.mode).unwrap_or_default();
            text += &format!("\n! {remark}\n");
        }
        text + &remarks(&self.conflicts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{observed, planned, quarter, running};
    use super::*;
    use cluster_core::map::ReplicaState::{Learner, Serving};
    use proto::v1::PlanMovesResponse;

    /// Node 1 holds three partitions; the first is on its way to node 2.
    fn draining() -> Observed {
        let mut seen = observed(
            2,
            &[
                &[(1, 1, Serving), (2, 9, Learner)],
                &[(1, 2, Serving)],
                &[(1, 3, Serving)],
            ],
        );
        seen.status.moves = vec![running(1, Some(1), 2, Some(quarter()))];
        seen
    }

    #[test]
    fn draining_says_what_moves_and_where_as_far_as_that_is_known() {
        let seen = draining();
        let answered = PlanMovesResponse {
            moves: vec![planned(2, Some(1), 2, proto::v1::MoveReason::Drain)],
            conflicts: Vec::new(),
        };
        let plan = Plan::of(&seen, answered).expect("it decodes");
        let report = Drained::of(&seen, NodeId(1), plan);
        let to: Vec<_> = report.replicas.iter().map(|line| line.to).collect();
        assert_eq!(to, [Some(2), Some(2), None]);
        assert_eq!(report.takers, 1);
        let text = report.text();
        assert!(
            text.contains("3 replicas to go") && !text.contains('!'),
            "{text}"
        );
    }

    #[test]
    fn draining_says_why_nothing_can_move() {
        let mut seen = draining();
        seen.map
            .nodes
            .get_mut(&NodeId(2))
            .expect("a node")
            .is_draining = true;
        seen.status.set_rebalance(proto::v1::RebalanceMode::Paused);
        let plan = Plan {
            conflicts: vec!["node 1 cannot be emptied".to_owned()],
            ..Plan::default()
        };
        let text = Drained::of(&seen, NodeId(1), plan).text();
        assert!(text.contains("\n! node 1 cannot be emptied\n"), "{text}");
        assert!(text.contains("no other node is there"), "{text}");
        assert!(text.contains("rebalance resume"), "{text}");
        let empty = Drained::of(&observed(2, &[]), NodeId(1), Plan::default()).text();
        assert!(empty.contains("node remove 1"), "{empty}");
    }

    #[test]
    fn progress_counts_what_is_left_and_names_what_moves() {
        let seen = draining();
        let line = |moves: &[RunningMove], mode| progress(NodeId(1), 3, 8, moves, mode);
        assert_eq!(
            line(&seen.running_moves(), RebalanceMode::Auto),
            "node 1: 3 of 8 replicas left; moving 1 to node 2 (copying, 25 %, 12 MB/s, 12 s left)"
        );
        assert!(line(&[], RebalanceMode::Auto).ends_with("none is moving"));
        assert!(line(&[], RebalanceMode::Paused).contains("resume"));
        let five: Vec<_> = seen.running_moves().into_iter().cycle().take(5).collect();
        assert!(line(&five, RebalanceMode::Auto).ends_with("2 more"));
    }
}
