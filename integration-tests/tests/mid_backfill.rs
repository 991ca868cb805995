//! What goes wrong while an index is first filled: the slot passes a node that is away, and
//! a table leaves its publication and comes back. Neither fails the index, and neither
//! leaves anything in it that the table has not.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use cluster_core::collection::{Collection, CollectionState};
use cluster_core::map::{PartitionMap, ReplicaState};
use integration_tests::history::{
    DIMENSIONS, is_whole, slot_name, source, wait_for_map, wait_until,
};
use integration_tests::{Cluster, Items, Session, Shape, Wire, clustered_vector, literal};
use std::time::Instant;

const ROWS: i64 = 4_000;
const COPIED: u64 = 1_000;
const SHAPE: Shape = Shape {
    nodes: 2,
    coordinators: 1,
    replicas: 1,
};
const LEASES: &str = "leases.ttl_ms = 3000\nleases.renew_every_ms = 500";
/// Slow enough for a copy to be looked at.
const SLOW: &str = "retry_max_ms = 1000\nbackfill_bytes_per_second_max = 1048576\n\
                    demote_after_ms = 3000\nslot_hold_limit_bytes = 2000000";

fn cluster(name: &str) -> Result<(Cluster, Wire)> {
    let settings = [
        ("COORDINATOR_SETTINGS", LEASES),
        ("CONSUMER_SETTINGS", SLOW),
    ];
    let cluster = Cluster::start_with(name, SHAPE, &settings)?;
    let wire = cluster.wire()?;
    wire.wait_for_nodes(2)?;
    Ok((cluster, wire))
}

/// A table whose index has some of its rows, and goes on being filled.
fn half_copied(cluster: &Cluster, session: &mut Session) -> Result<Items> {
    let items = Items::create(session, "items", ROWS, DIMENSIONS)?;
    session.batch_execute(&format!(
        "CREATE INDEX {} ON items USING ruhnsw (embedding vector_l2_ops)",
        items.index()
    ))?;
    wait_until("half copied", || {
        let all = cluster.ctl("collections")?;
        ensure!(all[0]["state"] != "ready", "too fast to be looked at");
        Ok(all[0]["rows_copied"].as_u64().unwrap_or(0) >= COPIED)
    })?;
    Ok(items)
}

fn collection(map: &PartitionMap) -> Result<&Collection> {
    map.collections.values().next().context("no collection")
}

#[test]
fn p11_past_its_limit_the_slot_passes_a_node_in_mid_backfill_and_the_index_is_filled_later()
-> Result<()> {
    let (cluster, wire) = cluster("mid-backfill-limit")?;
    let mut session = cluster.session()?;
    let items = half_copied(&cluster, &mut session)?;
    let slot = slot_name(&wire)?;
    cluster.kill("node-2")?;
    items.insert(&mut session, ROWS + 1..2 * ROWS)?;
    let held = session.value("SELECT pg_current_wal_lsn()")?;
    let written_at = Instant::now();
    let is_past = format!(
        "SELECT confirmed_flush_lsn >= '{held}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    wait_until("past its limit", || Ok(session.value(&is_past)? == "t"))?;
    println!("the slot passed it after {:?}", written_at.elapsed());
    let map = wire.map()?;
    let passed = collection(&map)?;
    ensure!(
        matches!(passed.state, CollectionState::Building { .. }),
        "{passed:?}"
    );
    let reason = &passed.reconcile.as_ref().context("it is queued")?.reason;
    ensure!(reason.contains("the slot has passed"), "{reason}");
    let stale = map.partitions.values().flat_map(|p| &p.replicas);
    ensure!(stale.filter(|r| r.state == ReplicaState::Stale).count() > 0);
    let said = session.value("SELECT reason FROM ruvector_index_status()")?;
    ensure!(said.contains("the slot has passed"), "said: {said}");

    cluster.restart("node-2")?;
    wait_for_map(&wire, "whole", is_whole)?;
    items.assert_equals_heap(&cluster, 2 * ROWS as usize - 1)?;
    drop(session);
    cluster.finish()
}

#[test]
fn p2_a_table_that_leaves_its_publication_in_mid_backfill_leaves_no_old_vector() -> Result<()> {
    let (cluster, wire) = cluster("mid-backfill-out")?;
    let mut session = cluster.session()?;
    let items = half_copied(&cluster, &mut session)?;
    let publication = source(&wire.map()?)?.publication_name.clone();
    let vector = |n| literal(&clustered_vector(n, DIMENSIONS));
    // Some are copied by now, and some are not.
    let some = "WHERE id % 100 = 7";
    session.batch_execute(&format!(
        "UPDATE items SET embedding = '{}' {some}",
        vector(10_001)
    ))?;
    session.batch_execute(&format!(
        "ALTER PUBLICATION {publication} DROP TABLE items;
         UPDATE items SET embedding = '{}' {some};
         DELETE FROM items WHERE id % 100 = 8",
        vector(10_002)
    ))?;
    // The consumer may have put it back already.
    let _ = session.batch_execute(&format!("ALTER PUBLICATION {publication} ADD TABLE items"));
    session.batch_execute(&format!("UPDATE items SET label = label + 1 {some}"))?;
    session.wait_for(&items.index(), false)?;
    wait_for_map(&wire, "whole", is_whole)?;
    items.assert_equals_heap(&cluster, ROWS as usize / 2)?;
    drop(session);
    cluster.finish()
}
