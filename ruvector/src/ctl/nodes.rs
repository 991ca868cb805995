//! `ctl status` and `ctl map` while no coordinator answers: what the nodes know.

use super::map::MapReport;
use super::table::{Align, Table};
use super::{ATTEMPT_TIMEOUT, Ctl, Report, print, show};
use crate::failure::{Failure, FailureKind};
use cluster_core::map::{Node, PartitionMap};
use futures::StreamExt;
use proto::v1::GetMapRequest;
use serde::Serialize;

/// Nodes asked at one time.
const ASKED_AT_ONCE: usize = 16;

#[derive(Serialize)]
struct WithoutCoordinators {
    /// Always false: what tells this answer from the usual one.
    is_coordinator_reachable: bool,
    coordinators_tried: Vec<String>,
    nodes: Vec<NodeAnswer>,
}

/// What a node says of the map that it answers by.
#[derive(Serialize)]
struct NodeAnswer {
    id: u64,
    address: String,
    epoch: Option<u64>,
    map_version: Option<u64>,
    /// Why it does not say; empty when it does.
    problem: String,
}

/// Prints what nodes know, and still fails: the cluster cannot be changed.
pub async fn status(ctl: &Ctl, failure: Failure, json: bool) -> Result<String, Failure> {
    if let Some(known) = WithoutCoordinators::ask(ctl, &failure).await {
        print(&show(&known, json)?)?;
    }
    Err(failure)
}

/// The newest map that a node has.
pub async fn map(ctl: &Ctl, failure: Failure, json: bool) -> Result<String, Failure> {
    let Some(known) = WithoutCoordinators::ask(ctl, &failure).await else {
        return Err(failure);
    };
    let map = (*ctl.client.map()).clone();
    show(&MapReport::new(map, known.heading()), json)
}

impl WithoutCoordinators {
    /// `None` when the failure is another, or no node is known.
    async fn ask(ctl: &Ctl, failure: &Failure) -> Option<Self> {
        if !failure.is(FailureKind::Unreachable) {
            return None;
        }
        let map = ctl.client.map();
        if map.nodes.is_empty() {
            return None;
        }
        let asking = map.nodes.values().map(|node| NodeAnswer::ask(ctl, node));
        let mut nodes: Vec<_> = futures::stream::iter(asking)
            .buffer_unordered(ASKED_AT_ONCE)
            .collect()
            .await;
        nodes.sort_by_key(|node| node.id);
        Some(Self {
            is_coordinator_reachable: false,
            coordinators_tried: ctl.client.coordinator_addresses(),
            nodes,
        })
    }

    fn heading(&self) -> String {
        format!(
            "! no coordinator answers (tried {}); this is what nodes know.\n             ! Nothing can be changed. Searches go on until the nodes' leases end, and then\n             ! as each node's setting lease_loss says.\n\n",
            self.coordinators_tried.join(", ")
        )
    }
}

impl NodeAnswer {
    async fn ask(ctl: &Ctl, node: &Node) -> Self {
        let mut answer = Self {
            id: node.id.0,
            address: node.address.clone(),
            epoch: None,
            map_version: None,
            problem: String::new(),
        };
        match map_of(ctl, node).await {
            Ok(map) => {
                answer.epoch = Some(map.epoch.0);
                answer.map_version = Some(map.version.0);
                ctl.client.offer_map(map);
            }
            Err(problem) => answer.problem = problem,
        }
        answer
    }
}

async fn map_of(ctl: &Ctl, node: &Node) -> Result<PartitionMap, String> {
    let client = ctl.client.node_at(&node.address);
    let mut client = client.map_err(|problem| problem.to_string())?;
    let asking = client.get_map(GetMapRequest::default());
    let answer = tokio::time::timeout(ctl.timeout.min(ATTEMPT_TIMEOUT), asking).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?;
    let map = answer.map_err(|status| status.message().to_owned())?;
    PartitionMap::try_from(map.into_inner()).map_err(|problem| problem.to_string())
}

impl Report for WithoutCoordinators {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            ("node", Align::Right),
            ("address", Align::Left),
            ("epoch", Align::Right),
            ("map version", Align::Right),
            ("", Align::Left),
        ]);
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
        for node in &self.nodes {
            table.row([
                node.id.to_string(),
                node.address.clone(),
                number(node.epoch),
                number(node.map_version),
                node.problem.clone(),
            ]);
        }
        format!("{}{}", self.heading(), table.render("no nodes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_first_that_no_coordinator_is_there() {
        let node = |id, version: Option<u64>, problem: &str| NodeAnswer {
            id,
            address: format!("127.0.0.1:750{id}"),
            epoch: version.map(|_| 3),
            map_version: version,
            problem: problem.to_owned(),
        };
        let report = WithoutCoordinators {
            is_coordinator_reachable: false,
            coordinators_tried: vec!["127.0.0.1:7401".to_owned()],
            nodes: vec![node(1, Some(41), ""), node(2, None, "no answer in time")],
        };
        let text = report.text();
        assert!(text.starts_with("! no coordinator answers (tried 127.0.0.1:7401)"));
        assert!(
            text.contains("41") && text.contains("no answer in time"),
            "{text}"
        );
    }
}
