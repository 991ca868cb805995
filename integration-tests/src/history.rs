//! A source's history as tests look at it: whether it broke, whether what broke is whole
//! again, and what the table lives through meanwhile.

use crate::cluster::{Cluster, Shape};
use crate::items::{Items, clustered_vector, literal};
use crate::sql::Session;
use crate::wire::Wire;
use anyhow::{Context, Result, ensure};
use cluster_core::map::{PartitionMap, ReplicaState, Source};
use std::time::{Duration, Instant};

pub const MENDED_WITHIN: Duration = Duration::from_secs(120);
/// Such a vector lies out of line: an UPDATE of another column does not carry it.
pub const DIMENSIONS: usize = 600;
pub const ROWS: i64 = 2_000;
pub const TWO: Shape = Shape {
    nodes: 2,
    coordinators: 1,
    replicas: 2,
};
/// A consumer that copies slowly enough to be looked at.
pub const SLOW: &str = "retry_max_ms = 1000\npreflight_every_ms = 500\n\
                        backfill_bytes_per_second_max = 1048576\ndemote_after_ms = 120000";

/// The only one.
pub fn source(map: &PartitionMap) -> Result<&Source> {
    map.sources.values().next().context("a source")
}

/// All serve, and nothing is to be reconciled.
pub fn is_whole(map: &PartitionMap) -> bool {
    let replicas = map.partitions.values().flat_map(|p| &p.replicas);
    let mut states = replicas.map(|replica| replica.state);
    states.all(|state| state == ReplicaState::Serving)
        && map.collections.values().all(|c| c.reconcile.is_none())
}

/// As `what` says.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + MENDED_WITHIN;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "never {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Until the map is such, as `what` says.
pub fn wait_for_map(
    wire: &Wire,
    what: &str,
    is_such: impl Fn(&PartitionMap) -> bool,
) -> Result<PartitionMap> {
    let deadline = Instant::now() + MENDED_WITHIN;
    loop {
        let map = wire.map()?;
        if is_such(&map) {
            return Ok(map);
        }
        ensure!(
            Instant::now() < deadline,
            "not {what}: {:?} {:?}",
            map.sources.values(),
            map.collections.values()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Until the history has broken so many times, and all is well again. `resting`: a table
/// that nobody writes to, which answers as the heap does at every moment meanwhile.
pub fn wait_until_mended(
    cluster: &Cluster,
    wire: &Wire,
    incarnation: u64,
    resting: Option<&Items>,
) -> Result<PartitionMap> {
    let mut session = cluster.session()?;
    session.batch_execute("SET ruvector.on_unavailable = exact")?;
    let began = Instant::now();
    let map = loop {
        if let Some(items) = resting {
            let nearest = items.nearest(1_000_007, 10);
            let (got, want) = (session.ids(&nearest)?, session.exact_ids(&nearest)?);
            ensure!(
                got == want,
                "while it is mended: got {got:?}, want {want:?}"
            );
        }
        let map = wire.map()?;
        if source(&map)?.incarnation.0 >= incarnation && is_whole(&map) {
            break map;
        }
        ensure!(
            began.elapsed() < MENDED_WITHIN,
            "not mended: {:?} {:?} {:?}",
            map.sources.values(),
            map.collections.values(),
            map.partitions.values()
        );
        std::thread::sleep(Duration::from_millis(50));
    };
    println!(
        "incarnation {incarnation} is whole after {:?}",
        began.elapsed()
    );
    let found = source(&map)?.incarnation.0;
    ensure!(
        found == incarnation,
        "incarnation {found}, not {incarnation}"
    );
    Ok(map)
}

/// Waits for a break, while its index is still stale, and answers the reason.
pub fn wait_until_broken(wire: &Wire, incarnation: u64) -> Result<String> {
    let map = wait_for_map(wire, "broken", |map| {
        let source = map.sources.values().next();
        source.is_some_and(|s| s.incarnation.0 >= incarnation)
    })?;
    let mut collections = map.collections.values();
    let reconcile = collections.find_map(|c| c.reconcile.clone());
    Ok(reconcile.context("nothing is to be reconciled")?.reason)
}

/// Every kind of change, to rows of its own for each `round`.
pub fn change(session: &mut Session, items: &Items, round: i64) -> Result<()> {
    let (name, low) = (&items.name, round * 100);
    let vector = |n| literal(&clustered_vector(n, items.dimensions));
    session.batch_execute(&format!(
        "DELETE FROM {name} WHERE id > {low} AND id <= {low} + 20;
         UPDATE {name} SET embedding = '{}' WHERE id > {low} + 20 AND id <= {low} + 40;
         UPDATE {name} SET label = label + 1 WHERE id > {low} + 40 AND id <= {low} + 60;
         UPDATE {name} SET id = id + 1000000 WHERE id > {low} + 60 AND id <= {low} + 70;
         UPDATE {name} SET embedding = NULL WHERE id > {low} + 70 AND id <= {low} + 80;
         INSERT INTO {name} SELECT 2000000 + {low} + i, 0, '{}' FROM generate_series(1, 20) i",
        vector(5_000 + round),
        vector(6_000 + round),
    ))?;
    Ok(())
}

/// As the cluster knows it now.
pub fn slot_name(wire: &Wire) -> Result<String> {
    Ok(source(&wire.map()?)?.slot_name.clone())
}

/// Waits until no walsender holds the slot of a consumer that was killed.
pub fn wait_until_left(session: &mut Session, slot: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let active =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active");
    while session.value(&active)? != "0" {
        ensure!(Instant::now() < deadline, "the slot stays active");
        session.batch_execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active",
        )?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
