//! The server throws away WAL that the slot needs (`max_slot_wal_keep_size`): it is told
//! of before, named after, and mended, with an index that was complete and with one that
//! was being filled.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use integration_tests::history::{
    DIMENSIONS, ROWS, SLOW, TWO, change, slot_name, source, wait_for_map, wait_until,
    wait_until_broken, wait_until_mended,
};
use integration_tests::{Cluster, Items, Session};

const LEASES: &str = "leases.ttl_ms = 3000\nleases.renew_every_ms = 500";
/// Set once nothing is written any more but what a test writes.
const KEEP_LITTLE: &str = "ALTER SYSTEM SET max_slot_wal_keep_size = '32MB'";

fn cluster(name: &str) -> Result<Cluster> {
    let settings = [
        (
            "PG_SETTINGS",
            "max_wal_size = 64MB\nmin_wal_size = 32MB\nfsync = off",
        ),
        ("COORDINATOR_SETTINGS", LEASES),
        ("CONSUMER_SETTINGS", SLOW),
    ];
    let cluster = Cluster::start_with(name, TWO, &settings)?;
    cluster.wire()?.wait_for_nodes(2)?;
    Ok(cluster)
}

fn wal_status(session: &mut Session, slot: &str) -> Result<String> {
    session.value(&format!(
        "SELECT coalesce(wal_status, '') FROM pg_replication_slots WHERE slot_name = '{slot}'"
    ))
}

/// Writes until the server has dropped what the slot needs.
fn lose(session: &mut Session, slot: &str) -> Result<()> {
    session.batch_execute(KEEP_LITTLE)?;
    session.batch_execute("SELECT pg_reload_conf()")?;
    wait_until("lost", || {
        session.write_wal(24)?;
        session.batch_execute("CHECKPOINT")?;
        Ok(wal_status(session, slot)? == "lost")
    })?;
    session.batch_execute("ALTER SYSTEM RESET max_slot_wal_keep_size")?;
    session.batch_execute("SELECT pg_reload_conf()")?;
    Ok(())
}

#[test]
fn p2_p3_a_slot_that_lost_its_wal_is_told_of_before_named_and_mended() -> Result<()> {
    let cluster = cluster("lost-ready")?;
    let wire = cluster.wire()?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "items", ROWS, DIMENSIONS)?;
    let slot = slot_name(&wire)?;

    // The nodes are gone, so that the slot waits; the consumer sees what comes.
    for node in ["node-1", "node-2"] {
        cluster.kill(node)?;
    }
    change(&mut session, &items, 1)?;
    wait_until("a warning", || {
        session.write_wal(8)?;
        let told = cluster.ctl("lag")?.to_string();
        Ok(told.contains("max_wal_size"))
    })?;
    ensure!(wal_status(&mut session, &slot)? == "extended");
    cluster.kill("consumer-1")?;
    for node in ["node-1", "node-2"] {
        cluster.restart(node)?;
    }
    change(&mut session, &items, 2)?;
    lose(&mut session, &slot)?;
    change(&mut session, &items, 3)?;

    cluster.restart("consumer-1")?;
    let lost = format!("slot {slot} has lost its WAL (max_slot_wal_keep_size)");
    let reason = wait_until_broken(&wire, 2)?;
    ensure!(reason.starts_with(&lost), "{reason}");
    let told = cluster.ctl("source list")?.to_string();
    ensure!(told.contains(&lost), "{told}");
    let told = session.value(&format!(
        "SELECT reason FROM ruvector_index_status('{}')",
        items.index()
    ))?;
    ensure!(told.contains(&lost), "{told}");
    wait_until_mended(&cluster, &wire, 2, Some(&items))?;
    items.assert_equals_heap(&cluster, 1_000)?;
    ensure!(wal_status(&mut session, &slot_name(&wire)?)? == "reserved");
    drop(session);
    cluster.finish()
}

#[test]
fn p2_p3_a_slot_that_lost_its_wal_in_the_first_backfill_begins_empty() -> Result<()> {
    let cluster = cluster("lost-building")?;
    let wire = cluster.wire()?;
    let mut session = cluster.session()?;
    let items = Items::create(&mut session, "items", 4 * ROWS, DIMENSIONS)?;
    session.batch_execute(&format!(
        "CREATE INDEX {} ON items USING ruhnsw (embedding vector_l2_ops)",
        items.index()
    ))?;
    wait_until("half copied", || {
        let all = cluster.ctl("collections")?;
        ensure!(all[0]["state"] != "ready", "too fast to be looked at");
        Ok(all[0]["rows_copied"].as_u64().unwrap_or(0) >= 2_000)
    })?;
    cluster.kill("consumer-1")?;
    for round in 0..10 {
        change(&mut session, &items, round)?;
    }
    let slot = slot_name(&wire)?;
    lose(&mut session, &slot)?;
    change(&mut session, &items, 10)?;

    cluster.restart("consumer-1")?;
    wait_for_map(&wire, "broken", |map| {
        source(map).is_ok_and(|s| s.incarnation.0 == 2)
    })?;
    session.wait_for(&items.index(), false)?;
    items.assert_equals_heap(&cluster, 1_000)?;
    ensure!(slot_name(&wire)? != slot);
    drop(session);
    cluster.finish()
}
