//! `ctl rebalance`: what moves by itself, what moves now, what would move.

use super::moves::{MoveLine, RunningMove, move_lines, planned_table, running_table};
use super::{Ctl, Observed, Report, show, usage, words};
use crate::failure::Failure;
use clap::Subcommand;
use cluster_core::control::RebalanceMode;
use proto::v1::{ApplyMovesRequest, PlanMovesRequest, SetRebalanceRequest};
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum RebalanceCommand {
    /// What the leader would move now; changes nothing
    Plan,
    /// Move exactly that, in place of what was planned before
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
#[serde(transparent)]
struct Plan(Vec<MoveLine>);

#[derive(Serialize)]
struct Applied {
    moves: Vec<MoveLine>,
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
}

pub async fn run(ctl: &Ctl, command: RebalanceCommand, json: bool) -> Result<String, Failure> {
    match command {
        RebalanceCommand::Plan => {
            let seen = ctl.leader_status().await?;
            show(&Plan(plan(ctl, &seen).await?), json)
        }
        RebalanceCommand::Apply { plan } => show(&apply(ctl, plan.as_deref()).await?, json),
        RebalanceCommand::Pause => show(&set_mode(ctl, RebalanceMode::Paused).await?, json),
        RebalanceCommand::Resume => show(&set_mode(ctl, RebalanceMode::Auto).await?, json),
        RebalanceCommand::Manual => show(&set_mode(ctl, RebalanceMode::Manual).await?, json),
        RebalanceCommand::Status => show(&status(&ctl.leader_status().await?)?, json),
    }
}

/// What the leader would move now.
pub async fn plan(ctl: &Ctl, seen: &Observed) -> Result<Vec<MoveLine>, Failure> {
    let planned = ctl
        .lead(|mut leader| async move { leader.plan_moves(PlanMovesRequest {}).await })
        .await?;
    move_lines(&seen.map, &planned.moves)
}

async fn apply(ctl: &Ctl, file: Option<&Path>) -> Result<Applied, Failure> {
    let seen = ctl.leader_status().await?;
    let moves = match file {
        Some(file) => read_plan(file)?,
        None => plan(ctl, &seen).await?,
    };
    if !moves.is_empty() {
        replace_plan(ctl, &moves).await?;
    }
    Ok(Applied {
        moves,
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

fn read_plan(file: &Path) -> Result<Vec<MoveLine>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| usage(format!("cannot read {}: {error}", file.display())))?;
    serde_json::from_str(&text).map_err(|error| {
        usage(format!(
            "{} is not a plan of `ruvector ctl rebalance plan --json`: {error}",
            file.display()
        ))
    })
}

async fn set_mode(ctl: &Ctl, mode: RebalanceMode) -> Result<ModeSet, Failure> {
    let request = SetRebalanceRequest {
        mode: proto::v1::RebalanceMode::from(mode).into(),
    };
    ctl.lead(|mut leader| async move { leader.set_rebalance(request).await })
        .await?;
    Ok(ModeSet { mode })
}

fn status(seen: &Observed) -> Result<RebalanceStatus, Failure> {
    Ok(RebalanceStatus {
        mode: seen.rebalance_mode(),
        running: seen.running_moves(),
        planned: seen.planned_moves()?,
    })
}

impl Report for Plan {
    fn text(&self) -> String {
        let text = planned_table(&self.0, "nothing to move: the cluster is balanced");
        match self.0.is_empty() {
            true => text,
            false => format!("{text}\nnothing has been changed: ruvector ctl rebalance apply\n"),
        }
    }
}

impl Report for Applied {
    fn text(&self) -> String {
        if self.moves.is_empty() {
            return "nothing to move: the cluster is balanced\n".to_owned();
        }
        let mut text = planned_table(&self.moves, "");
        text += match self.mode {
            RebalanceMode::Paused => {
                "\nplanned, and waiting: rebalancing is paused until ruvector ctl rebalance resume\n"
            }
            _ => "\nmoving, as there is room; follow it with ruvector ctl rebalance status\n",
        };
        text
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
        if let Some(remark) = words::mode_remark(self.mode) {
            text += &format!("\n! {remark}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{observed, quarter, running};
    use super::*;
    use cluster_core::map::ReplicaState::{Learner, Serving};

    #[test]
    fn the_status_says_that_nothing_runs_when_nothing_runs() {
        let report = status(&observed(2, &[&[(1, 3, Serving)]])).expect("a status");
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
        let report = status(&seen).expect("a status");
        let text = report.text();
        let at = |what: &str| {
            text.find(what)
                .unwrap_or_else(|| panic!("{what} in {text}"))
        };
        assert!(at("1 → 2") < at("1 → 3") && at("1 → 3") < at("! rebalancing is paused"));

        let json = serde_json::to_value(&report).expect("encodes");
        assert_eq!(json["mode"], "paused");
        assert_eq!(json["running"][0]["phase"], "copying");
        assert_eq!(json["running"][0]["left_ms"], 12_000);
        assert_eq!(json["planned"][0]["to"], 3);
    }

    #[test]
    fn a_plan_that_does_not_parse_names_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("plan.json");
        std::fs::write(&file, "{}").expect("writes");
        let problem = read_plan(&file).expect_err("no plan").to_string();
        assert!(problem.contains("plan.json"), "{problem}");
        std::fs::write(
            &file,
            "[{\"partition\":1,\"from\":1,\"to\":2,\"reason\":\"operator\"}]",
        )
        .expect("writes");
        assert_eq!(read_plan(&file).expect("a plan").len(), 1);
    }
}
