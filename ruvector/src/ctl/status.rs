//! `ctl status`: who is there, and what is wrong.

use super::coordinator::{Answers, Coordinators, ask_each};
use super::moves::{RunningMove, running_table};
use super::source::list::state as source_state;
use super::table::{Align, Table, ago, bytes, count, or_dash};
use super::{Ctl, Observed, Report, words};
use crate::failure::{Failure, FailureKind};
use cluster_core::control::RebalanceMode;
use serde::Serialize;

#[derive(Serialize)]
pub struct Status {
    cluster_id: String,
    is_initialised: bool,
    leader_id: Option<u64>,
    epoch: u64,
    map_version: u64,
    is_plaintext: bool,
    /// The processes that may be reached in plaintext from other machines.
    plaintext_off_loopback: Vec<String>,
    coordinators: Coordinators,
    nodes: Vec<NodeLine>,
    consumers: Vec<ConsumerLine>,
    sources: Vec<SourceLine>,
    rebalance: RebalanceMode,
    moves: Vec<RunningMove>,
    /// Everything that somebody should look at, in sentences.
    problems: Vec<String>,
}

#[derive(Serialize)]
struct NodeLine {
    id: u64,
    address: String,
    zone: String,
    is_draining: bool,
    /// By the map, learners included.
    #[serde(skip)]
    replicas_left: usize,
    renewed_ms_ago: Option<u64>,
    replicas: u64,
    rows: u64,
    tail_rows: u64,
    memory_bytes: u64,
    /// Of the process, and where it stops taking more.
    memory_used_bytes: u64,
    memory_limit_bytes: u64,
    memory_pressure: String,
    disk_bytes: u64,
    searches_total: u64,
    estale_total: u64,
}

#[derive(Serialize)]
struct ConsumerLine {
    id: u64,
    renewed_ms_ago: Option<u64>,
    sources: Vec<String>,
}

#[derive(Serialize)]
struct SourceLine {
    id: u64,
    name: String,
    incarnation: u64,
    consumer_id: Option<u64>,
    slot: String,
    state: &'static str,
    is_paused: bool,
    collections: usize,
    problem: String,
}

pub async fn status(ctl: &Ctl) -> Result<Status, Failure> {
    // Any coordinator first: it answers at once, leader or not.
    let seen = ctl.any_status().await?;
    if !seen.status.is_initialised || seen.status.leader_id == 0 {
        let answers = ask_each(ctl, &seen).await;
        return Ok(Status::of(&seen, &answers, None));
    }
    let (seen, problem) = match ctl.leader_status().await {
        Ok(known) => (known, None),
        Err(failure) if failure.is(FailureKind::Unreachable) => (
            seen,
            Some("the leader does not answer; this is what another coordinator knows"),
        ),
        Err(failure) => return Err(failure),
    };
    let answers = ask_each(ctl, &seen).await;
    Ok(Status::of(&seen, &answers, problem))
}

impl Status {
    fn of(seen: &Observed, answers: &Answers, problem: Option<&str>) -> Self {
        let (status, map) = (&seen.status, &seen.map);
        let has_leader = status.leader_id != 0;
        let mut lines = Self {
            cluster_id: map.cluster_id.clone(),
            is_initialised: status.is_initialised,
            leader_id: has_leader.then_some(status.leader_id),
            epoch: map.epoch.0,
            map_version: map.version.0,
            is_plaintext: status.is_plaintext,
            plaintext_off_loopback: plaintext_off_loopback(seen, answers),
            coordinators: Coordinators::of(status, answers),
            nodes: map
                .nodes
                .values()
                .map(|node| NodeLine::of(seen, node))
                .collect(),
            consumers: status
                .consumers
                .iter()
                .map(|c| ConsumerLine::of(seen, c))
                .collect(),
            sources: map
                .sources
                .values()
                .map(|source| SourceLine::of(seen, source))
                .collect(),
            rebalance: seen.rebalance_mode(),
            moves: seen.running_moves(),
            problems: Vec::new(),
        };
        lines.problems = lines.find_problems(seen, problem);
        lines.problems.extend(lines.coordinators.problems());
        lines
    }

    fn find_problems(&self, seen: &Observed, problem: Option<&str>) -> Vec<String> {
        let mut problems: Vec<String> = problem.into_iter().map(str::to_owned).collect();
        if !self.is_initialised {
            problems.push(
                "the cluster is not initialised: ruvector ctl init --members 1=host:port,…"
                    .to_owned(),
            );
            return problems;
        }
        if self.leader_id.is_none() {
            problems.push(
                "there is no leader: fewer than half of the coordinators reach each other"
                    .to_owned(),
            );
        }
        if self.nodes.is_empty() {
            problems.push(
                "no node has joined: start one with ruvector node --coordinators …".to_owned(),
            );
        }
        problems.extend(seen.problems());
        problems
    }
}

fn plaintext_off_loopback(seen: &Observed, answers: &Answers) -> Vec<String> {
    let coordinators = answers.iter().filter_map(|(id, answer)| {
        let allows = answer.as_ref().ok()?.allows_plaintext_off_loopback;
        allows.then(|| format!("coordinator {id}"))
    });
    let nodes = seen.status.nodes.iter().filter_map(|node| {
        let allows = node.report.as_ref()?.allows_plaintext_off_loopback;
        allows.then(|| format!("node {}", node.node_id))
    });
    let consumers = seen.status.consumers.iter().filter_map(|consumer| {
        let allows = consumer.allows_plaintext_off_loopback;
        allows.then(|| format!("consumer {}", consumer.consumer_id))
    });
    coordinators.chain(nodes).chain(consumers).collect()
}

impl NodeLine {
    fn of(seen: &Observed, node: &cluster_core::map::Node) -> Self {
        let known = seen
            .status
            .nodes
            .iter()
            .find(|status| status.node_id == node.id.0);
        let report = known
            .and_then(|status| status.report.clone())
            .unwrap_or_default();
        Self {
            id: node.id.0,
            address: node.address.clone(),
            zone: node.zone.clone(),
            is_draining: node.is_draining,
            renewed_ms_ago: known.and_then(|status| status.renewed_ms_ago),
            replicas: report.partitions.len() as u64,
            replicas_left: seen.held_by(node.id).len(),
            rows: report
                .partitions
                .iter()
                .map(|partition| partition.rows)
                .sum(),
            tail_rows: report
                .partitions
                .iter()
                .map(|partition| partition.tail_rows)
                .sum(),
            memory_bytes: report.memory_bytes,
            memory_used_bytes: report.memory_used_bytes,
            memory_limit_bytes: report.memory_limit_bytes,
            memory_pressure: report.memory_pressure,
            disk_bytes: report.disk_bytes,
            searches_total: report.searches_total,
            estale_total: report.estale_total,
        }
    }
}

impl ConsumerLine {
    fn of(seen: &Observed, consumer: &proto::v1::ConsumerStatus) -> Self {
        let followed = seen.map.sources.values().filter(|source| {
            source
                .consumer
                .is_some_and(|id| id.0 == consumer.consumer_id)
        });
        Self {
            id: consumer.consumer_id,
            renewed_ms_ago: consumer.renewed_ms_ago,
            sources: followed.map(|source| source.name.clone()).collect(),
        }
    }
}

impl SourceLine {
    fn of(seen: &Observed, source: &cluster_core::map::Source) -> Self {
        let collections = seen
            .map
            .collections
            .values()
            .filter(|c| c.spec.source == source.id);
        Self {
            id: source.id.0,
            name: source.name.clone(),
            incarnation: source.incarnation.0,
            consumer_id: source.consumer.map(|id| id.0),
            slot: source.slot_name.clone(),
            state: source_state(source),
            is_paused: source.is_paused,
            collections: collections.count(),
            problem: source.problem.clone(),
        }
    }
}

impl Report for Status {
    fn text(&self) -> String {
        let security = match (self.is_plaintext, &self.plaintext_off_loopback[..]) {
            (false, _) => "TLS".to_owned(),
            (true, []) => "plaintext on loopback".to_owned(),
            (true, open) => format!("PLAINTEXT ALLOWED OFF LOOPBACK: {}", open.join(", ")),
        };
        let mut text = format!(
            "cluster {}   epoch {}   map version {}   {security}\n\n",
            or_dash(&self.cluster_id),
            self.epoch,
            self.map_version
        );
        text += &self.coordinators.table();

        let mut nodes = Table::new(&[
            ("node", Align::Right),
            ("address", Align::Left),
            ("zone", Align::Left),
            ("lease renewed", Align::Right),
            ("replicas", Align::Right),
            ("rows", Align::Right),
            ("tail", Align::Right),
            ("memory", Align::Right),
            ("disk", Align::Right),
        ]);
        for line in &self.nodes {
            nodes.row([
                line.id.to_string(),
                line.address.clone(),
                or_dash(&line.zone),
                ago(line.renewed_ms_ago),
                count(line.replicas),
                count(line.rows),
                count(line.tail_rows),
                bytes(line.memory_bytes),
                bytes(line.disk_bytes),
            ]);
        }
        text += &format!("\n{}", nodes.render("no nodes"));

        let mut consumers = Table::new(&[
            ("consumer", Align::Right),
            ("lease renewed", Align::Right),
            ("follows", Align::Left),
        ]);
        for line in &self.consumers {
            consumers.row([
                line.id.to_string(),
                ago(line.renewed_ms_ago),
                or_dash(&line.sources.join(", ")),
            ]);
        }
        text += &format!("\n{}", consumers.render("no consumers"));

        let mut sources = Table::new(&[
            ("source", Align::Right),
            ("name", Align::Left),
            ("incarnation", Align::Right),
            ("state", Align::Left),
            ("consumer", Align::Right),
            ("slot", Align::Left),
            ("collections", Align::Right),
        ]);
        for line in &self.sources {
            sources.row([
                line.id.to_string(),
                line.name.clone(),
                line.incarnation.to_string(),
                line.state.to_owned(),
                line.consumer_id.map_or("-".to_owned(), |id| id.to_string()),
                or_dash(&line.slot),
                count(line.collections as u64),
            ]);
        }
        text += &format!(
            "\n{}",
            sources.render("no sources: ruvector ctl source add DSN")
        );
        if !self.moves.is_empty() {
            text += &format!("\n{}", running_table(&self.moves));
        }
        for node in self.nodes.iter().filter(|node| node.is_draining) {
            let left = words::counted(node.replicas_left, "replica");
            text += &format!("\n! node {} drains: {left} left\n", node.id);
        }
        if let Some(remark) = words::mode_remark(self.rebalance) {
            text += &format!("\n! {remark}\n");
        }
        for problem in &self.problems {
            text += &format!("\n! {problem}\n");
        }
        text
    }
}
