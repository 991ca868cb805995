//! Moves that run and moves that are planned, as lines of a table.

use super::Observed;
use super::pace::Pace;
use super::table::{Align, Table, bytes, or_dash, span};
use super::words;
use crate::failure::{Failure, FailureKind};
use cluster_core::control::{MoveReason, PlannedMove, RebalanceMode};
use cluster_core::ids::{Generation, NodeId, PartitionId};
use cluster_core::map::{PartitionMap, ReplicaState};
use proto::v1::{LearnerProgress, MoveStatus};
use serde::{Deserialize, Serialize};

/// What a move does right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The new replica has not reported yet.
    Starting,
    /// It copies rows from a peer.
    Copying,
    /// It has the rows, and applies what was streamed meanwhile.
    CatchingUp,
    /// It serves; the old one lets go.
    Releasing,
}

impl Phase {
    fn of(map: &PartitionMap, planned: &PlannedMove, progress: Option<&LearnerProgress>) -> Self {
        let partition = map.partitions.get(&planned.partition);
        let replica = partition.and_then(|partition| partition.replica_on(planned.to));
        match (replica.map(|replica| replica.state), progress) {
            (Some(ReplicaState::Serving), _) => Self::Releasing,
            (_, None) => Self::Starting,
            (_, Some(progress)) if progress.is_copied => Self::CatchingUp,
            _ => Self::Copying,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Copying => "copying",
            Self::CatchingUp => "catching up",
            Self::Releasing => "releasing",
        }
    }
}

#[derive(Clone, Serialize)]
pub struct RunningMove {
    #[serde(flatten)]
    pub planned: MoveLine,
    generation: u64,
    phase: Phase,
    running_ms: u64,
    rows_copied: u64,
    rows_total: u64,
    bytes_copied: u64,
    /// Streamed since the copy began, and not applied yet.
    log_bytes: u64,
    #[serde(flatten)]
    pace: Pace,
}

impl RunningMove {
    fn of(map: &PartitionMap, status: &MoveStatus) -> Option<Self> {
        let planned = PlannedMove::try_from(status.r#move?).ok()?;
        let phase = Phase::of(map, &planned, status.learner.as_ref());
        let progress = status.learner.unwrap_or_default();
        let pace = match phase {
            Phase::Copying | Phase::CatchingUp => Pace::of(&progress),
            Phase::Starting => Pace::default(),
            Phase::Releasing => Pace {
                percent: Some(100),
                ..Pace::default()
            },
        };
        Some(Self {
            planned: MoveLine::of(map, &planned),
            generation: Generation(status.generation).0,
            phase,
            running_ms: status.running_ms,
            rows_copied: progress.rows_copied,
            rows_total: progress.rows_total,
            bytes_copied: progress.bytes_copied,
            log_bytes: progress.log_bytes,
            pace,
        })
    }

    /// `14 to node 3 (copying, 62 %, 12 MB/s, 8 s left)`.
    pub fn sentence(&self) -> String {
        let mut said = vec![self.phase.word().to_owned()];
        if self.phase == Phase::Copying {
            said.extend(self.pace.percent.map(|percent| format!("{percent} %")));
            said.extend(self.pace.bytes_per_second.map(rate));
            said.extend(self.pace.left_ms.map(|ms| format!("{} left", span(ms))));
        }
        let MoveLine { partition, to, .. } = self.planned;
        format!("{partition} to node {to} ({})", said.join(", "))
    }
}

fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// A move without its progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveLine {
    pub partition: u64,
    #[serde(default)]
    pub index: String,
    pub from: Option<u64>,
    pub to: u64,
    pub reason: MoveReason,
}

impl MoveLine {
    pub fn of(map: &PartitionMap, planned: &PlannedMove) -> Self {
        Self {
            partition: planned.partition.0,
            index: index_of(map, planned.partition),
            from: planned.from.map(|node| node.0),
            to: planned.to.0,
            reason: planned.reason,
        }
    }

    pub fn planned(&self) -> PlannedMove {
        PlannedMove {
            partition: PartitionId(self.partition),
            to: NodeId(self.to),
            from: self.from.map(NodeId),
            reason: self.reason,
        }
    }

    fn way(&self) -> String {
        match self.from {
            Some(from) => format!("{from} → {}", self.to),
            None => format!("new → {}", self.to),
        }
    }
}

/// The name of the index that a partition belongs to.
pub fn index_of(map: &PartitionMap, partition: PartitionId) -> String {
    let mut held = map.held_partitions().map(|(partition, _)| partition);
    let found = held.find(|found| found.id == partition);
    let collection = found.and_then(|found| map.collections.get(&found.collection));
    collection.map_or_else(String::new, |c| c.spec.index_name.clone())
}

impl Observed {
    pub fn running_moves(&self) -> Vec<RunningMove> {
        let moves = self.status.moves.iter();
        moves
            .filter_map(|status| RunningMove::of(&self.map, status))
            .collect()
    }

    /// What an operator wants moved and has not begun.
    pub fn planned_moves(&self) -> Result<Vec<MoveLine>, Failure> {
        move_lines(&self.map, &self.status.planned)
    }

    /// Automatic while the coordinator does not say.
    pub fn rebalance_mode(&self) -> RebalanceMode {
        self.status.rebalance().try_into().unwrap_or_default()
    }
}

pub fn move_lines(
    map: &PartitionMap,
    moves: &[proto::v1::PlannedMove],
) -> Result<Vec<MoveLine>, Failure> {
    let line = |wire: &proto::v1::PlannedMove| {
        let planned = PlannedMove::try_from(*wire).map_err(|problem| {
            let message = format!("the coordinator's plan does not decode: {problem}");
            Failure::new(FailureKind::Failed, message)
        })?;
        Ok(MoveLine::of(map, &planned))
    };
    moves.iter().map(line).collect()
}

pub fn running_table(moves: &[RunningMove]) -> String {
    let mut table = Table::new(&[
        ("partition", Align::Right),
        ("index", Align::Left),
        ("from → to", Align::Left),
        ("reason", Align::Left),
        ("phase", Align::Left),
        ("done", Align::Right),
        ("copied", Align::Right),
        ("speed", Align::Right),
        ("left", Align::Right),
    ]);
    let dash = || "-".to_owned();
    for line in moves {
        let left = match (line.phase, line.pace.left_ms) {
            (Phase::CatchingUp, _) => format!("{} of log", bytes(line.log_bytes)),
            (_, Some(ms)) => span(ms),
            (_, None) => dash(),
        };
        table.row([
            line.planned.partition.to_string(),
            or_dash(&line.planned.index),
            line.planned.way(),
            words::reason(line.planned.reason).to_owned(),
            line.phase.word().to_owned(),
            line.pace.percent.map_or_else(dash, |p| format!("{p} %")),
            bytes(line.bytes_copied),
            line.pace.bytes_per_second.map_or_else(dash, rate),
            left,
        ]);
    }
    table.render("no move is running")
}

pub fn planned_table(moves: &[MoveLine], otherwise: &str) -> String {
    let mut table = Table::new(&[
        ("partition", Align::Right),
        ("index", Align::Left),
        ("from → to", Align::Left),
        ("reason", Align::Left),
    ]);
    for line in moves {
        table.row([
            line.partition.to_string(),
            or_dash(&line.index),
            line.way(),
            words::reason(line.reason).to_owned(),
        ]);
    }
    table.render(otherwise)
}

#[cfg(test)]
#[path = "moves_tests.rs"]
mod tests;
