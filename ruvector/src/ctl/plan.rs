//! What the leader would move now, and what it cannot: asked by `rebalance` and
//! by `node drain`.

use super::moves::{MoveLine, move_lines, planned_table};
use super::{Ctl, Observed, Report, usage, words};
use crate::failure::Failure;
use cluster_core::control::MoveReason;
use proto::v1::{PlanMovesRequest, PlanMovesResponse};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What `rebalance plan --json` prints, `rebalance apply --plan` reads.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    pub moves: Vec<MoveLine>,
    /// What the plan could not have, each in a sentence.
    #[serde(default)]
    pub conflicts: Vec<String>,
}

pub async fn plan(ctl: &Ctl, seen: &Observed) -> Result<Plan, Failure> {
    let planned = ctl
        .lead(|mut leader| async move { leader.plan_moves(PlanMovesRequest {}).await })
        .await?;
    Plan::of(seen, planned)
}

impl Plan {
    pub fn of(seen: &Observed, planned: PlanMovesResponse) -> Result<Self, Failure> {
        Ok(Self {
            moves: move_lines(&seen.map, &planned.moves)?,
            conflicts: planned.conflicts,
        })
    }

    pub fn read(file: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| usage(format!("cannot read {}: {error}", file.display())))?;
        serde_json::from_str(&text).map_err(|error| {
            usage(format!(
                "{} is not a plan of `ruvector ctl rebalance plan --json`: {error}",
                file.display()
            ))
        })
    }

    /// Leaves what waits for an operator's word; the number of the others, which
    /// the leader begins by itself.
    pub fn keep_applicable(&mut self) -> usize {
        let all = self.moves.len();
        self.moves.retain(|line| !begins_by_itself(line));
        all - self.moves.len()
    }
}

fn begins_by_itself(line: &MoveLine) -> bool {
    matches!(line.reason, MoveReason::Repair | MoveReason::Drain)
}

/// A remark for each, as a report ends with them.
pub fn remarks(conflicts: &[String]) -> String {
    let remark = |conflict: &String| format!("\n! {conflict}\n");
    conflicts.iter().map(remark).collect()
}

impl Report for Plan {
    fn text(&self) -> String {
        let balances = |line: &MoveLine| !begins_by_itself(line);
        let mut text = match (self.moves.is_empty(), self.conflicts.is_empty()) {
            (true, true) => "nothing to balance\n".to_owned(),
            (true, false) => "no move would help\n".to_owned(),
            (false, _) => planned_table(&self.moves, ""),
        };
        if self.moves.iter().any(balances) {
            text += "\nnothing has been changed: ruvector ctl rebalance apply\n";
        } else if !self.moves.is_empty() {
            text += &format!("\n{}\n", words::BEGINS_BY_ITSELF);
        }
        text + &remarks(&self.conflicts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{observed, planned};
    use super::*;
    use cluster_core::map::ReplicaState::Serving;
    use proto::v1;

    fn response(reasons: &[v1::MoveReason], conflicts: &[&str]) -> Plan {
        let seen = observed(2, &[&[(1, 1, Serving)], &[(1, 2, Serving)]]);
        let moves = (1..).zip(reasons);
        let response = PlanMovesResponse {
            moves: moves
                .map(|(id, reason)| planned(id, Some(1), 2, *reason))
                .collect(),
            conflicts: conflicts.iter().map(|said| (*said).to_owned()).collect(),
        };
        Plan::of(&seen, response).expect("it decodes")
    }

    #[test]
    fn a_plan_names_every_move_with_its_reason_and_every_conflict() {
        let reasons = [v1::MoveReason::Drain, v1::MoveReason::Balance];
        let text = response(&reasons, &["node 1 cannot be emptied"]).text();
        assert!(text.contains("drain") && text.contains("balance"), "{text}");
        assert!(text.contains("rebalance apply"), "{text}");
        assert!(text.ends_with("\n! node 1 cannot be emptied\n"), "{text}");
        let text = response(&[v1::MoveReason::Repair], &[]).text();
        assert!(text.contains(words::BEGINS_BY_ITSELF), "{text}");
        assert!(!text.contains("rebalance apply"), "{text}");
    }

    #[test]
    fn only_a_plan_without_conflicts_has_nothing_to_balance() {
        assert_eq!(response(&[], &[]).text(), "nothing to balance\n");
        let text = response(&[], &["add nodes"]).text();
        assert_eq!(text, "no move would help\n\n! add nodes\n");
    }

    #[test]
    fn only_what_waits_for_an_operator_is_applied() {
        let reasons = [
            v1::MoveReason::Repair,
            v1::MoveReason::Balance,
            v1::MoveReason::Drain,
            v1::MoveReason::Operator,
        ];
        let mut plan = response(&reasons, &[]);
        assert_eq!(plan.keep_applicable(), 2);
        let left: Vec<_> = plan.moves.iter().map(|line| line.reason).collect();
        assert_eq!(left, [MoveReason::Balance, MoveReason::Operator]);
    }

    #[test]
    fn a_plan_comes_back_from_its_file_and_one_that_does_not_parse_names_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("plan.json");
        std::fs::write(&file, "{}").expect("writes");
        let problem = Plan::read(&file).expect_err("no plan").to_string();
        assert!(problem.contains("plan.json"), "{problem}");
        let plan = response(&[v1::MoveReason::Balance], &["add nodes"]);
        let json = serde_json::to_string(&plan).expect("encodes");
        std::fs::write(&file, json).expect("writes");
        let read = Plan::read(&file).expect("a plan");
        assert_eq!(read.moves, plan.moves);
        assert_eq!(read.conflicts, plan.conflicts);
    }
}
