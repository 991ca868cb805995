//! `ctl node`: the nodes, what each holds, and whether it is still there.

use super::drain::{self, DrainArgs};
use super::table::{Align, Table, ago, bytes, count, or_dash, span};
use super::{Ctl, Observed, Report, show, usage, words};
use crate::failure::{Failure, FailureKind};
use clap::Subcommand;
use cluster_core::ids::{NodeId, PartitionId};
use cluster_core::map::{Node, ReplicaState};
use proto::v1::{RemoveNodeRequest, SetDrainingRequest};
use serde::Serialize;

/// Of a coordinator that does not say how long a lease is.
const LEASE_TTL_MS: u64 = 10_000;
/// How many partitions a refusal names.
const NAMED_MAX: usize = 8;

#[derive(Subcommand)]
pub enum NodeCommand {
    /// Nodes: state, replicas, rows, memory, disk, lease
    List,
    /// Move everything off a node, and give it nothing new
    Drain(DrainArgs),
    /// Let a draining node hold replicas again
    Undrain { node: u64 },
    /// Forget a node that holds nothing; its id does not come back
    Remove { node: u64 },
}

#[derive(Serialize)]
#[serde(transparent)]
struct Nodes(Vec<NodeLine>);

#[derive(Serialize)]
struct NodeLine {
    id: u64,
    address: String,
    zone: String,
    /// In words, as the table has it.
    state: String,
    is_draining: bool,
    /// Absent while the node renews its lease in time.
    silent_ms: Option<u64>,
    serving: usize,
    learning: usize,
    demoted: usize,
    stale: usize,
    releasing: usize,
    rows: u64,
    memory_bytes: u64,
    disk_bytes: u64,
    renewed_ms_ago: Option<u64>,
}

#[derive(Serialize)]
struct Undrained {
    node: u64,
}

#[derive(Serialize)]
struct Removed {
    node: u64,
    is_alive: bool,
}

pub async fn run(ctl: &Ctl, command: NodeCommand, json: bool) -> Result<String, Failure> {
    match command {
        NodeCommand::List => show(&list(&ctl.leader_status().await?), json),
        NodeCommand::Drain(args) => show(&drain::drain(ctl, args).await?, json),
        NodeCommand::Undrain { node } => show(&undrain(ctl, NodeId(node)).await?, json),
        NodeCommand::Remove { node } => show(&remove(ctl, NodeId(node)).await?, json),
    }
}

fn list(seen: &Observed) -> Nodes {
    let nodes = seen.map.nodes.values();
    Nodes(nodes.map(|node| NodeLine::of(seen, node)).collect())
}

async fn undrain(ctl: &Ctl, node: NodeId) -> Result<Undrained, Failure> {
    let seen = ctl.leader_status().await?;
    if !seen.map.nodes.contains_key(&node) {
        return Err(seen.no_such_node(node));
    }
    set_draining(ctl, node, false).await?;
    Ok(Undrained { node: node.0 })
}

pub async fn set_draining(ctl: &Ctl, node: NodeId, is_draining: bool) -> Result<(), Failure> {
    let request = SetDrainingRequest {
        node_id: node.0,
        is_draining,
    };
    ctl.lead(|mut leader| async move { leader.set_draining(request).await })
        .await?;
    Ok(())
}

async fn remove(ctl: &Ctl, node: NodeId) -> Result<Removed, Failure> {
    let seen = ctl.leader_status().await?;
    check_removable(&seen, node)?;
    let request = RemoveNodeRequest { node_id: node.0 };
    ctl.lead(|mut leader| async move { leader.remove_node(request).await })
        .await?;
    Ok(Removed {
        node: node.0,
        is_alive: seen.is_alive(node),
    })
}

/// The coordinators refuse as well; here the refusal says what to do.
fn check_removable(seen: &Observed, node: NodeId) -> Result<(), Failure> {
    let Some(known) = seen.map.nodes.get(&node) else {
        return Err(seen.no_such_node(node));
    };
    let refused = |message: String| Err(Failure::new(FailureKind::Refused, message));
    let held = seen.held_by(node);
    if !held.is_empty() {
        let mut named: Vec<String> = held.iter().map(|(p, _)| p.0.to_string()).collect();
        if named.len() > NAMED_MAX {
            named.truncate(NAMED_MAX);
            named.push("…".to_owned());
        }
        return refused(format!(
            "node {} still holds {} (of partition {}), and is not removed with that:\n\
             ruvector ctl node drain {} --wait moves it elsewhere; then remove the node",
            node.0,
            words::counted(held.len(), "replica"),
            named.join(", "),
            node.0
        ));
    }
    if seen.is_alive(node) && !known.is_draining {
        return refused(format!(
            "node {} is alive and may be given replicas at any moment:\n\
             ruvector ctl node drain {} first; then remove it",
            node.0, node.0
        ));
    }
    Ok(())
}

impl Observed {
    /// How long a node has been silent, once that is longer than a lease.
    pub fn silent_ms(&self, node: NodeId) -> Option<u64> {
        let ttl = match self.status.lease_ttl_ms {
            0 => LEASE_TTL_MS,
            told => told,
        };
        self.renewed_ms_ago(node).filter(|ago| *ago > ttl)
    }

    fn renewed_ms_ago(&self, node: NodeId) -> Option<u64> {
        let mut nodes = self.status.nodes.iter();
        nodes
            .find(|status| status.node_id == node.0)?
            .renewed_ms_ago
    }

    pub fn is_alive(&self, node: NodeId) -> bool {
        self.renewed_ms_ago(node).is_some() && self.silent_ms(node).is_none()
    }

    /// `active`, or what keeps it from being that.
    pub fn node_state(&self, node: &Node) -> String {
        let mut said = Vec::new();
        if node.is_draining {
            said.push("draining".to_owned());
        }
        match (self.renewed_ms_ago(node.id), self.silent_ms(node.id)) {
            (None, _) => said.push("not heard of yet".to_owned()),
            (_, Some(ms)) => said.push(format!("silent for {}", span(ms))),
            _ => {}
        }
        match said.is_empty() {
            true => "active".to_owned(),
            false => said.join(", "),
        }
    }

    /// The partitions that the map has on a node, and in which state.
    pub fn held_by(&self, node: NodeId) -> Vec<(PartitionId, ReplicaState)> {
        let held = self.map.held_partitions();
        held.filter_map(|(partition, _)| Some((partition.id, partition.replica_on(node)?.state)))
            .collect()
    }

    pub fn no_such_node(&self, node: NodeId) -> Failure {
        let ids: Vec<_> = self.map.nodes.keys().map(|id| id.0.to_string()).collect();
        let known = match ids.is_empty() {
            true => "none has joined".to_owned(),
            false => format!("there are {}", ids.join(", ")),
        };
        usage(format!("there is no node {}; {known}", node.0))
    }
}

impl NodeLine {
    fn of(seen: &Observed, node: &Node) -> Self {
        let held = seen.held_by(node.id);
        let in_state = |state| held.iter().filter(|(_, s)| *s == state).count();
        let mut nodes = seen.status.nodes.iter();
        let known = nodes.find(|status| status.node_id == node.id.0);
        let report = known.and_then(|status| status.report.clone());
        let report = report.unwrap_or_default();
        Self {
            id: node.id.0,
            address: node.address.clone(),
            zone: node.zone.clone(),
            state: seen.node_state(node),
            is_draining: node.is_draining,
            silent_ms: seen.silent_ms(node.id),
            serving: in_state(ReplicaState::Serving),
            learning: in_state(ReplicaState::Learner),
            demoted: in_state(ReplicaState::Demoted),
            stale: in_state(ReplicaState::Stale),
            releasing: in_state(ReplicaState::Releasing),
            rows: report.partitions.iter().map(|p| p.rows).sum(),
            memory_bytes: report.memory_bytes,
            disk_bytes: report.disk_bytes,
            renewed_ms_ago: seen.renewed_ms_ago(node.id),
        }
    }
}

impl Report for Nodes {
    /// Zones and stale replicas only where there are any, so that a row fits a
    /// terminal.
    fn text(&self) -> String {
        let has_zones = self.0.iter().any(|line| !line.zone.is_empty());
        let has_stale = self.0.iter().any(|line| line.stale > 0);
        let mut columns = vec![
            ("node", Align::Right),
            ("address", Align::Left),
            ("zone", Align::Left),
            ("state", Align::Left),
            ("serve", Align::Right),
            ("learn", Align::Right),
            ("demoted", Align::Right),
            ("stale", Align::Right),
            ("release", Align::Right),
            ("rows", Align::Right),
            ("memory", Align::Right),
            ("disk", Align::Right),
            ("lease", Align::Right),
        ];
        columns.retain(|(name, _)| match *name {
            "zone" => has_zones,
            "stale" => has_stale,
            _ => true,
        });
        let mut table = Table::new(&columns);
        for line in &self.0 {
            let zone = has_zones.then(|| or_dash(&line.zone));
            let standing = [line.id.to_string(), line.address.clone()];
            let replicas = [
                line.state.clone(),
                line.serving.to_string(),
                line.learning.to_string(),
                line.demoted.to_string(),
            ];
            let stale = has_stale.then(|| line.stale.to_string());
            let figures = [
                line.releasing.to_string(),
                count(line.rows),
                bytes(line.memory_bytes),
                bytes(line.disk_bytes),
                ago(line.renewed_ms_ago),
            ];
            let row = standing.into_iter().chain(zone).chain(replicas);
            table.row(row.chain(stale).chain(figures));
        }
        table.render("no node has joined: start one with ruvector node --coordinators …")
    }
}

impl Report for Undrained {
    fn text(&self) -> String {
        format!("Node {} may hold replicas again\n", self.node)
    }
}

impl Report for Removed {
    fn text(&self) -> String {
        let next = match self.is_alive {
            true => "its process still runs, and is refused from now on: stop it",
            false => "on an empty data_dir it would join as a new node",
        };
        format!("Node {} is removed; {next}\n", self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TTL_MS, alive, observed};
    use super::*;
    use cluster_core::map::ReplicaState::{Demoted, Learner, Releasing, Serving, Stale};

    #[test]
    fn a_node_is_active_draining_or_silent() {
        let mut seen = observed(4, &[]);
        seen.status.nodes[1] = alive(2, TTL_MS + 32_000, &[]);
        seen.status.nodes[2].renewed_ms_ago = None;
        for id in [2, 4] {
            seen.map
                .nodes
                .get_mut(&NodeId(id))
                .expect("a node")
                .is_draining = true;
        }
        let states: Vec<_> = seen
            .map
            .nodes
            .values()
            .map(|n| seen.node_state(n))
            .collect();
        assert_eq!(
            states,
            [
                "active",
                "draining, silent for 42 s",
                "not heard of yet",
                "draining"
            ]
        );
        assert!(seen.is_alive(NodeId(1)) && !seen.is_alive(NodeId(2)));
        assert!(!seen.is_alive(NodeId(3)), "nobody has heard of it");
    }

    #[test]
    fn a_lease_that_still_runs_is_no_silence() {
        let mut seen = observed(1, &[]);
        seen.status.nodes[0] = alive(1, TTL_MS, &[]);
        assert_eq!(seen.silent_ms(NodeId(1)), None);
        // A coordinator of an earlier version does not say how long it is.
        seen.status.lease_ttl_ms = 0;
        assert_eq!(seen.silent_ms(NodeId(1)), None);
        seen.status.nodes[0] = alive(1, LEASE_TTL_MS + 1, &[]);
        assert_eq!(seen.silent_ms(NodeId(1)), Some(LEASE_TTL_MS + 1));
    }

    #[test]
    fn the_list_counts_replicas_by_the_map_and_rows_by_the_report() {
        let mut seen = observed(
            2,
            &[
                &[(1, 1, Serving), (2, 2, Learner)],
                &[(1, 3, Releasing), (2, 4, Serving)],
                &[(1, 5, Demoted), (2, 6, Serving)],
            ],
        );
        seen.status.nodes[0] = alive(1, 1_200, &[(1, 40_000), (2, 20_000)]);
        let nodes = list(&seen);
        let one = &nodes.0[0];
        assert_eq!(
            (one.serving, one.learning, one.demoted, one.releasing),
            (1, 0, 1, 1)
        );
        assert_eq!((nodes.0[1].serving, nodes.0[1].learning), (2, 1));
        let text = nodes.text();
        assert!(
            text.contains("60,000") && text.contains("1.2 s ago"),
            "{text}"
        );
        let row: Vec<_> = text.lines().nth(1).expect("a row").split("  ").collect();
        let cells: Vec<_> = row
            .iter()
            .map(|c| c.trim())
            .filter(|c| !c.is_empty())
            .collect();
        assert_eq!(cells[2..7], ["active", "1", "0", "1", "1"], "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        assert!(!text.contains("STALE"), "{text}");
        let seen = observed(1, &[&[(1, 1, Stale)]]);
        let text = list(&seen).text();
        assert!(text.contains("STALE"), "{text}");
    }

    #[test]
    fn only_an_empty_node_that_gets_nothing_more_is_removed() {
        let mut seen = observed(3, &[&[(1, 1, Serving)]]);
        let said = |seen: &Observed, node| {
            let outcome = check_removable(seen, NodeId(node));
            outcome.map_err(|failure| failure.to_string())
        };
        let full = said(&seen, 1).expect_err("it holds one");
        assert!(full.contains("1 replica (") && full.contains("node drain 1 --wait"));
        let alive = said(&seen, 2).expect_err("it may be given one");
        assert!(alive.contains("node drain 2"), "{alive}");
        seen.map
            .nodes
            .get_mut(&NodeId(2))
            .expect("a node")
            .is_draining = true;
        assert_eq!(said(&seen, 2), Ok(()));
        seen.status.nodes[2] = super::super::testing::alive(3, TTL_MS * 9, &[]);
        assert_eq!(said(&seen, 3), Ok(()), "it is gone and holds nothing");
        assert!(
            said(&seen, 7)
                .expect_err("unknown")
                .contains("there are 1, 2, 3")
        );
    }
}
