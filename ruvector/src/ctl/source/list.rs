//! `ctl source list`: never a password, nor the user that it belongs to.

use crate::ctl::table::{Align, Table, or_dash};
use crate::ctl::{Ctl, Report};
use crate::failure::Failure;
use cluster_core::map::{PartitionMap, Source};
use serde::Serialize;

#[derive(Serialize)]
#[serde(transparent)]
pub struct Sources(Vec<SourceLine>);

#[derive(Serialize)]
struct SourceLine {
    id: u64,
    name: String,
    state: &'static str,
    consumer_id: Option<u64>,
    slot: String,
    publication: String,
    system_identifier: Option<String>,
    problem: String,
}

/// How a source stands, in one word.
pub fn state(source: &Source) -> &'static str {
    match source {
        source if source.is_detached() => "detached",
        source if source.is_paused => "paused",
        source if !source.problem.is_empty() => "problem",
        source if source.slot.is_none() || source.consumer.is_none() => "waiting",
        _ => "followed",
    }
}

pub async fn list(ctl: &Ctl) -> Result<Sources, Failure> {
    let seen = ctl.leader_status().await?;
    let line = |source: &Source| SourceLine {
        id: source.id.0,
        name: source.name.clone(),
        state: state(source),
        consumer_id: source.consumer.map(|consumer| consumer.0),
        slot: source.slot_name.clone(),
        publication: source.publication_name.clone(),
        // As text: JSON readers lose digits of 64-bit numbers.
        system_identifier: source
            .slot
            .as_ref()
            .map(|slot| slot.system_identifier.to_string()),
        problem: problem_of(&seen.map, source),
    };
    Ok(Sources(seen.map.sources.values().map(line).collect()))
}

/// Why it is not followed; or why it is, and its indexes have old rows only.
fn problem_of(map: &PartitionMap, source: &Source) -> String {
    if !source.problem.is_empty() {
        return source.problem.clone();
    }
    let of_source = map
        .collections
        .values()
        .filter(|c| c.spec.source == source.id);
    let mut stale = of_source.filter(|c| map.stale_partitions(c.id) > 0);
    let reconcile = stale.find_map(|c| c.reconcile.as_ref());
    reconcile.map(|r| r.reason.clone()).unwrap_or_default()
}

impl Report for Sources {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            ("source", Align::Right),
            ("name", Align::Left),
            ("state", Align::Left),
            ("consumer", Align::Right),
            ("slot", Align::Left),
        ]);
        let mut problems = String::new();
        for line in &self.0 {
            let consumer = line.consumer_id.map_or("-".to_owned(), |id| id.to_string());
            table.row([
                line.id.to_string(),
                line.name.clone(),
                line.state.to_owned(),
                consumer,
                or_dash(&line.slot),
            ]);
            if !line.problem.is_empty() {
                problems += &format!("\n! {}: {}\n", line.name, line.problem);
            }
        }
        table.render("no sources: ruvector ctl source add DSN") + &problems
    }
}
