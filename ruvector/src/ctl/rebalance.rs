//! `ctl rebalance`: what moves by itself, what moves now, what would move.

use super::moves::{MoveLine, RunningMove, planned_table, running_table};
use super::plan::{Plan, plan, remarks};
use super::splits::RunningSplit;
use super::{Ctl, Observed, Report, show, words};
use crate::failure::Failure;
use clap::Subcommand;
use cluster_core::control::RebalanceMode;
use proto::v1::{ApplyMovesRequest, SetRebalanceRequest};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum RebalanceCommand {
    /// What the leader would move now, and why; changes nothing
    Plan,
    /// Move what balances in it, in place of what was planned before
    Apply {
        /// A plan that `rebalance plan --json` printed; the leader's by default
        #[arg(long, value_name = "FILE")]
        plan: Option<PathBuf>,
    },
    /// Start no further move; those that run go on
    Pause,
    /// Repair, drain and balance by itself
    Resume,
    /// Repair and drain by itself, balance only by `rebalance apply`
    Manual,
    /// Moves that run, with their progress, and moves that are planned
    Status,
}

#[derive(Serialize)]
struct Applied {
    moves: Vec<MoveLine>,
    /// Repairs and drains of the plan, which the leader begins by itself.
    left_out: usize,
    conflicts: Vec<String>,
    mode: RebalanceMode,
}

#[derive(Serialize)]
struct ModeSet {
    mode: RebalanceMode,
}

#[derive(Serialize)]
struct RebalanceStatus {
    mode: RebalanceMode,
    running: Vec<RunningMove>,
    planned: Vec<MoveLine>,
    splits: Vec<RunningSplit>,
    /// What a plan could not have now, each in a sentence.
    conflicts: Vec<String>,
}

pub async fn run(ctl: &Ctl, command: RebalanceCommand, json: bool) -> Result<String, Failure> {
    match command {
        RebalanceCommand::Plan => {
            let seen = ctl.leader_status().await?;
            show(&plan(ctl, &seen).await?, json)
        }
        RebalanceCommand::Apply { plan } => show(&apply(ctl, plan.as_deref()).await?, json),
        RebalanceCommand::Pause => show(&set_mode(ctl, RebalanceMode::Paused).await?, json),
        RebalanceCommand::Resume => show(&set_mode(ctl, RebalanceMode::Auto).await?, json),
        RebalanceCommand::Manual => show(&set_mode(ctl, RebalanceMode::Manual).await?, json),
        RebalanceCommand::Status => {
            let seen = ctl.leader_status().await?;
            let conflicts = plan(ctl, &seen).await?.conflicts;
            show(&status(&seen, conflicts)?, json)
        }
    }
}

async fn apply(ctl: &Ctl, file: Option<&Path>) -> Result<Applied, Failure> {
    let seen = ctl.leader_status().await?;
    let mut plan = match file {
        Some(file) => Plan::read(file)?,
        None => plan(ctl, &seen).await?,
    };
    let left_out = plan.keep_applicable();
    if !plan.moves.is_empty() {
        replace_plan(ctl, &plan.moves).await?;
    }
    Ok(Applied {
        moves: plan.moves,
        left_out,
        conflicts: plan.conflicts,
        mode: seen.rebalance_mode(),
    })
}

/// Hands the leader what is to be moved from now on.
pub async fn replace_plan(ctl: &Ctl, moves: &[MoveLine]) -> Result<(), Failure> {
    let request = ApplyMovesRequest {
        moves: moves.iter().map(|line| line.planned().into()).collect(),
    };
    ctl.lead(|mut leader| {
        let request = request.clone();
        async move { leader.apply_moves(request).await }
    })
    .await?;
    Ok(())
}

async fn set_mode(ctl: &Ctl, mode: RebalanceMode) -> Result<ModeSet, Failure> {
    let request = SetRebalanceRequest {
        mode: proto::v1::RebalanceMode::from(mode).into(),
    };
    ctl.lead(|mut leader| async move { leader.set_rebalance(request).await })
        .await?;
    Ok(ModeSet { mode })
}

fn status(seen: &Observed, conflicts: Vec<String>) -> Result<RebalanceStatus, Failure> {
    Ok(RebalanceStatus {
        mode: seen.rebalance_mode(),
        running: seen.running_moves(),
        planned: seen.planned_moves()?,
        splits: seen.running_splits(),
        conflicts,
    })
}

impl Report for Applied {
    fn text(&self) -> String {
        let mut text = match (self.moves.is_empty(), self.conflicts.is_empty()) {
            (false, _) => planned_table(&self.moves, ""),
            (true, true) => "nothing to balance\n".to_owned(),
            (true, false) => "no balancing move would help\n".to_owned(),
        };
        if !self.moves.is_empty() {
            text += match self.mode {
                RebalanceMode::Paused => {
                    "\nplanned, and waiting: rebalancing is paused until ruvector ctl rebalance resume\n"
                }
                _ => "\nmoving, as there is room; follow it with ruvector ctl rebalance status\n",
            };
        }
        if self.left_out > 0 {
            let moves = words::counted(self.left_out, "move");
            text += &format!(
                "\n{moves} of the plan left out: {}\n",
                words::BEGINS_BY_ITSELF
            );
        }
        text + &remarks(&self.conflicts)
    }
}

impl Report for ModeSet {
    fn text(&self) -> String {
        match words::mode_remark(self.mode) {
            Some(remark) => format!("{remark}\n"),
            None => "rebalancing is automatic\n".to_owned(),
        }
    }
}

impl Report for RebalanceStatus {
    fn text(&self) -> String {
        let mut text = format!(
            "rebalancing {}   running {}   planned {}\n\n",
            words::mode(self.mode),
            self.running.len(),
            self.planned.len()
        );
        text += &running_table(&self.running);
        text += &format!("\n{}", planned_table(&self.planned, "no move is planned"));
        for split in &self.splits {
            text += &format!("\n{}\n", split.sentence());
        }
        if let Some(remark) = words::mode_remark(self.mode) {
            text += &format!("\n! {remark}\n");
        }
        text + &remarks(&self.conflicts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{observed, quarter, running, split};
    use super::*;
    use cluster_core::map::ReplicaState::{Learner, Serving};

    #[test]
    fn the_status_says_that_nothing_runs_when_nothing_runs() {
        let report = status(&observed(2, &[&[(1, 3, Serving)]]), Vec::new()).expect("a status");
        let text = report.text();
        assert!(text.starts_with("rebalancing auto   running 0   planned 0\n"));
        assert!(text.contains("no move is running") && text.contains("no move is planned"));
        assert!(!text.contains('!'), "{text}");
    }

    #[test]
    fn the_status_shows_progress_then_plan_then_the_unusual_mode() {
        let mut seen = observed(
            3,
            &[&[(1, 3, Serving), (2, 9, Learner)], &[(1, 4, Serving)]],
        );
        seen.status.moves = vec![running(1, Some(1), 2, Some(quarter()))];
        let planned = running(2, Some(1), 3, None);
        seen.status.planned = planned.r#move.into_iter().collect();
        seen.status.set_rebalance(proto::v1::RebalanceMode::Paused);
        split(&mut seen, 2, &[1, 3]);
        let report = status(&seen, vec!["add nodes".to_owned()]).expect("a status");
        let text = report.text();
        let at = |what: &str| {
            text.find(what)
                .unwrap_or_else(|| panic!("{what} in {text}"))
        };
        assert!(
            at("1 → 2") < at("1 → 3") && at("1 → 3") < at("partition 2 is being split: 1 of 4")
        );
        assert!(at("being split") < at("! rebalancing is paused"));
        assert!(at("! rebalancing is paused") < at("! add nodes"));

        let json = serde_json::to_value(&report).expect("encodes");
        assert_eq!(json["mode"], "paused");
        assert_eq!(json["running"][0]["phase"], "copying");
        assert_eq!(json["running"][0]["left_ms"], 12_000);
        assert_eq!(json["planned"][0]["to"], 3);
        assert_eq!(json["splits"][0]["replicas"], 4);
        assert_eq!(json["conflicts"][0], "add nodes");
    }

    #[test]
    fn applying_says_what_is_left_out_and_what_is_in_the_way() {
        let report = Applied {
            moves: Vec::new(),
            left_out: 1,
            conflicts: vec!["add nodes".to_owned()],
            mode: RebalanceMode::Auto,
        };
        let text = report.text();
        assert!(text.starts_with("no balancing move would help\n"), "{text}");
        assert!(
            text.contains("1 move of the plan left out: repairs and drains begin by themselves"),
            "{text}"
        );
        assert!(text.ends_with("\n! add nodes\n"), "{text}");
    }
}
