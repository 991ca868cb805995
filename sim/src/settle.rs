//! When everything is mended: what must be reached, and what must then be true.

use crate::checks::{Truth, data_of, serving_when_ready};
use crate::postgres::INCARNATION;
use crate::process::Proc;
use crate::world::World;
use cluster_core::map::ReplicaState;
use cluster_core::wal_position::WalPosition;

/// By then everything has caught up, after the last fault.
const SETTLE_MS_MAX: u64 = 120_000;
/// Whole, strong answers from every session at the end.
const FINAL_SEARCHES: u64 = 6;

/// Every replica that serves, against the table as it was at its watermark.
pub fn compare_replicas(world: &mut World) -> Result<(), String> {
    let truth = Truth {
        postgres: &world.postgres,
        state: &world.state,
        disks: &world.disks,
    };
    let map = world.state.map();
    for (id, node, generation) in serving_when_ready(map) {
        let Some(range) = map.held_partition(id).map(|p| p.range) else {
            continue;
        };
        let data = data_of(map, &world.disks, id, node);
        let Some(data) = data.filter(|d| d.generation == generation) else {
            return Err(format!("P2: {node} does not hold {id}, which it serves"));
        };
        let who = map.nodes.get(&node).and_then(|n| Proc::at(&n.address));
        let who = who.unwrap_or(Proc::Postgres);
        world.checks.replica(who, (id, range), data, &truth)?;
    }
    Ok(())
}

/// What is still missing for everything to have caught up.
fn unsettled(world: &World) -> Option<String> {
    let map = world.state.map();
    let end = world.postgres.end();
    if world.postgres.confirmed() < end {
        let confirmed = world.postgres.confirmed();
        return Some(format!(
            "the slot is confirmed at {confirmed}, not at {end}"
        ));
    }
    if let Some((partition, running)) = world.state.moves().first_key_value() {
        return Some(format!("the move of {partition} to {} runs", running.to));
    }
    if let Some(parent) = map.splits.keys().next() {
        return Some(format!("{parent} is being split"));
    }
    let ready = serving_when_ready(map).next();
    if map.collections.len() != 1 || ready.is_none() {
        let states: Vec<_> = map.collections.values().map(|c| &c.state).collect();
        return Some(format!("the collections are {states:?}"));
    }
    for partition in map.partitions.values() {
        let idle = partition
            .replicas
            .iter()
            .find(|r| r.state != ReplicaState::Serving);
        if let Some(replica) = idle {
            return Some(format!(
                "{} is {:?} on {}",
                partition.id, replica.state, replica.node
            ));
        }
    }
    let end = WalPosition::end_of(INCARNATION, end);
    for (id, node, _) in serving_when_ready(map) {
        let at = data_of(map, &world.disks, id, node).map(|d| d.watermark);
        if at < Some(end) {
            return Some(format!("{id} on {node} stands at {at:?}, not at {end}"));
        }
    }
    None
}

/// Lets the world settle; what is broken, or did not come about.
pub fn settle(world: &mut World) {
    world.calm();
    let began = world.now;
    let mut looked_at = world.now;
    let mut is_final = false;
    let mut missing = String::new();
    while world.violation.is_none() && world.now < began + SETTLE_MS_MAX {
        world.step();
        if world.now < looked_at + 200 {
            continue;
        }
        looked_at = world.now;
        match unsettled(world) {
            Some(what) => missing = what,
            None if !is_final => {
                is_final = true;
                world.checks.final_searches = 0;
                world.clients.iter_mut().for_each(|c| c.is_final = true);
                missing = "no whole answer".to_owned();
            }
            None if world.checks.final_searches >= FINAL_SEARCHES => {
                let verdict = compare_replicas(world);
                return world.judge(verdict);
            }
            None => {}
        }
    }
    if world.violation.is_none() {
        let consumers = world.describe();
        let what = format!("nothing fails any more, and still after {SETTLE_MS_MAX} ms: {missing}");
        world.trace.line(world.now, format_args!("{consumers}"));
        world.judge(Err(what));
    }
}
