//! `ctl map`: which replica of what lies where.

use super::table::{Align, Table};
use super::{Ctl, Report, words};
use crate::failure::Failure;
use cluster_core::map::{PartitionMap, ReplicaState};
use serde::Serialize;

/// As JSON it is the map itself.
#[derive(Serialize)]
#[serde(transparent)]
pub struct MapReport {
    map: PartitionMap,
    /// Printed above the table.
    #[serde(skip)]
    heading: String,
}

pub async fn map(ctl: &Ctl) -> Result<MapReport, Failure> {
    let map = ctl.any_status().await?.map;
    Ok(MapReport::new(map, String::new()))
}

impl MapReport {
    pub fn new(map: PartitionMap, heading: String) -> Self {
        Self { map, heading }
    }
}

impl Report for MapReport {
    fn text(&self) -> String {
        let map = &self.map;
        let mut table = Table::new(&[
            ("partition", Align::Right),
            ("collection", Align::Right),
            ("index", Align::Left),
            ("hash range", Align::Left),
            ("replicas (node:generation)", Align::Left),
        ]);
        for (partition, parent) in map.held_partitions() {
            let index = map
                .collections
                .get(&partition.collection)
                .map(|c| c.spec.index_name.clone());
            let replicas = partition.replicas.iter().map(|replica| {
                let held = format!("{}:{}", replica.node.0, replica.generation.0);
                match replica.state {
                    // What a replica is for needs no word.
                    ReplicaState::Serving => held,
                    state => format!("{held} {}", words::replica_state(state)),
                }
            });
            table.row([
                match parent {
                    None => partition.id.0.to_string(),
                    Some(parent) => format!("{} of {}", partition.id.0, parent.0),
                },
                partition.collection.0.to_string(),
                index.unwrap_or_else(|| "-".to_owned()),
                // The upper half tells ranges apart; --json has all of it.
                format!(
                    "{:08x}… - {:08x}…",
                    partition.range.lo >> 32,
                    partition.range.hi >> 32
                ),
                replicas.collect::<Vec<_>>().join(", "),
            ]);
        }
        let rows = table.render("no partitions: no collection has been created");
        format!(
            "{}epoch {}   version {}\n\n{rows}",
            self.heading, map.epoch.0, map.version.0
        )
    }
}
