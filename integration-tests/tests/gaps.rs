//! What went by unseen although everything is where it should be when somebody looks: a
//! publication, a table's membership or a slot of the same name that is another one. Each
//! is found by identity, named, and mended until every replica holds the heap's rows and
//! no others.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::history::{
    DIMENSIONS, ROWS, SLOW, TWO, change, is_whole, slot_name, source, wait_for_map, wait_until,
    wait_until_broken, wait_until_left, wait_until_mended,
};
use integration_tests::{Cluster, Items, Session, Wire};
use std::time::Duration;

const LEASES: &str = "leases.ttl_ms = 10000\nleases.renew_every_ms = 500";

fn cluster(name: &str) -> Result<(Cluster, Wire)> {
    let settings = [
        ("COORDINATOR_SETTINGS", LEASES),
        ("CONSUMER_SETTINGS", SLOW),
    ];
    let cluster = Cluster::start_with(name, TWO, &settings)?;
    let wire = cluster.wire()?;
    wire.wait_for_nodes(2)?;
    Ok((cluster, wire))
}

/// Kills the consumer, and waits until the server has noticed.
fn stop_following(cluster: &Cluster, wire: &Wire, session: &mut Session) -> Result<()> {
    cluster.kill("consumer-1")?;
    wait_until_left(session, &slot_name(wire)?)
}

#[test]
fn p2_p3_a_publication_that_is_another_one_or_publishes_less_breaks_the_history() -> Result<()> {
    let (cluster, wire) = cluster("publication")?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "items", ROWS, DIMENSIONS)?;

    // Made again under its name, with all its tables, while nobody looks.
    let again = "DROP PUBLICATION ruvector";
    let create = "CREATE PUBLICATION ruvector FOR TABLE ruvector.collections, items";
    stop_following(&cluster, &wire, &mut session)?;
    session.batch_execute(again)?;
    change(&mut session, &items, 1)?;
    session.batch_execute(create)?;
    cluster.restart("consumer-1")?;
    let another = "publication ruvector is not the one that the slot was made for: \
                   it was dropped, and made again";
    let reason = wait_until_broken(&wire, 2)?;
    ensure!(reason.starts_with(another), "{reason}");
    wait_until_mended(&cluster, &wire, 2, Some(&items))?;
    items.assert_equals_heap(&cluster, 1_000)?;

    // Between two looks, under the consumer's eyes.
    session.batch_execute(&format!("{again}; {create}"))?;
    change(&mut session, &items, 2)?;
    let reason = wait_until_broken(&wire, 3)?;
    ensure!(reason.starts_with(another), "{reason}");
    wait_until_mended(&cluster, &wire, 3, Some(&items))?;
    items.assert_equals_heap(&cluster, 1_000)?;

    // It publishes no UPDATE for a while, and then only some rows.
    session.batch_execute("ALTER PUBLICATION ruvector SET (publish = 'insert, delete')")?;
    change(&mut session, &items, 3)?;
    let reason = wait_until_broken(&wire, 4)?;
    ensure!(
        reason.starts_with("publication ruvector does not publish UPDATE, TRUNCATE"),
        "{reason}"
    );
    wait_until_mended(&cluster, &wire, 4, Some(&items))?;
    assert_publishes_all_of(&mut session, "items, ruvector.collections")?;
    items.assert_equals_heap(&cluster, 1_000)?;
    stop_following(&cluster, &wire, &mut session)?;
    session.batch_execute(
        "ALTER PUBLICATION ruvector SET TABLE ruvector.collections, items WHERE (id > 500)",
    )?;
    change(&mut session, &items, 4)?;
    cluster.restart("consumer-1")?;
    let reason = wait_until_broken(&wire, 5)?;
    ensure!(
        reason.starts_with("publication ruvector has a row filter or column list for public.items"),
        "{reason}"
    );
    wait_until_mended(&cluster, &wire, 5, Some(&items))?;
    assert_publishes_all_of(&mut session, "items, ruvector.collections")?;
    items.assert_equals_heap(&cluster, 1_000)?;
    drop(session);
    cluster.finish()
}

/// Whatever was altered: every statement, of these tables and no others, whole, each under
/// its own name.
fn assert_publishes_all_of(session: &mut Session, tables: &str) -> Result<()> {
    let published = session.value(
        "SELECT concat_ws(', ', CASE WHEN pubinsert THEN 'INSERT' END, CASE WHEN pubupdate THEN 'UPDATE' END,
                          CASE WHEN pubdelete THEN 'DELETE' END, CASE WHEN pubtruncate THEN 'TRUNCATE' END,
                          CASE WHEN pubviaroot THEN 'by root' END)
                || ' of ' || CASE WHEN puballtables THEN 'all' ELSE
                   (SELECT string_agg(concat_ws(' ', prrelid::regclass, prattrs, pg_get_expr(prqual, prrelid)),
                                      ', ' ORDER BY prrelid::regclass::text)
                      FROM pg_publication_rel WHERE prpubid = p.oid) END
           FROM pg_publication p WHERE pubname = 'ruvector'",
    )?;
    let wanted = format!("INSERT, UPDATE, DELETE, TRUNCATE of {tables}");
    ensure!(published == wanted, "{published}, not {wanted}");
    Ok(())
}

#[test]
fn p2_p3_a_table_that_left_the_publication_and_came_back_is_reconciled_alone() -> Result<()> {
    let (cluster, wire) = cluster("membership")?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "items", ROWS, DIMENSIONS)?;
    let other = Items::indexed(&mut session, "others", 300, 8)?;
    let out = "ALTER PUBLICATION ruvector DROP TABLE items";
    let back = "ALTER PUBLICATION ruvector ADD TABLE items";

    // While nobody looks: what was streamed before and after does not tell of it.
    stop_following(&cluster, &wire, &mut session)?;
    change(&mut session, &items, 1)?;
    session.batch_execute(out)?;
    change(&mut session, &items, 2)?;
    session.batch_execute(back)?;
    change(&mut session, &items, 3)?;
    cluster.restart("consumer-1")?;
    assert_only_this_is_mended(&cluster, &wire, &items)?;

    // Between two looks of the consumer, in one transaction each.
    session.batch_execute(&format!(
        "{out}; DELETE FROM items WHERE id BETWEEN 501 AND 520;
         UPDATE items SET embedding = NULL WHERE id BETWEEN 521 AND 540; {back}"
    ))?;
    change(&mut session, &items, 6)?;
    assert_only_this_is_mended(&cluster, &wire, &items)?;
    other.assert_followed(&mut session)?;
    drop(session);
    cluster.finish()
}

/// The table's index is reconciled, for a reason that is told; the history goes on, and so
/// does every other index.
fn assert_only_this_is_mended(cluster: &Cluster, wire: &Wire, items: &Items) -> Result<()> {
    let is_wanted = |map: &cluster_core::map::PartitionMap| {
        map.collections.values().any(|c| c.reconcile.is_some())
    };
    let map = wait_for_map(wire, "to be reconciled", is_wanted)?;
    let mut wanted = map.collections.values().filter(|c| c.reconcile.is_some());
    let collection = wanted.next().context("a collection")?;
    ensure!(collection.spec.table_name == items.name && wanted.next().is_none());
    let reason = collection.reconcile.clone().context("a reason")?.reason;
    ensure!(
        reason.starts_with("table public.items left publication ruvector and came back"),
        "{reason}"
    );
    let map = wait_until_mended(cluster, wire, 1, None)?;
    ensure!(source(&map)?.incarnation.0 == 1, "broken for nothing");
    items.assert_equals_heap(cluster, 1_000)
}

#[test]
fn p2_p3_a_break_that_is_cut_off_is_found_again_wherever_that_was() -> Result<()> {
    let (cluster, wire) = cluster("cut-off")?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "items", ROWS, DIMENSIONS)?;
    let slot = slot_name(&wire)?;
    let slots = "SELECT coalesce(string_agg(slot_name, ','), '') FROM pg_replication_slots \
                 WHERE NOT temporary";

    // Before the publication is made: its table is locked.
    stop_following(&cluster, &wire, &mut session)?;
    session.batch_execute("DROP PUBLICATION ruvector")?;
    change(&mut session, &items, 1)?;
    let mut lock = cluster.session()?;
    let hold = "BEGIN; LOCK TABLE ruvector.collections IN SHARE UPDATE EXCLUSIVE MODE";
    lock.batch_execute(hold)?;
    cluster.restart("consumer-1")?;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                    AND application_name = 'ruvector-consumer'";
    wait_until(
        "before the publication",
        || Ok(session.value(waits)? != "0"),
    )?;
    ensure!(
        session.value(slots)?.is_empty(),
        "the former slot goes first"
    );
    cluster.kill("consumer-1")?;
    session.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
          WHERE application_name = 'ruvector-consumer'",
    )?;
    change(&mut session, &items, 2)?;
    ensure!(source(&wire.map()?)?.incarnation.0 == 1);

    // Behind the slot, before the record: nobody is there to record it.
    cluster.restart("consumer-1")?;
    wait_until(
        "before the publication",
        || Ok(session.value(waits)? != "0"),
    )?;
    cluster.signal("coordinator-1", "STOP")?;
    lock.batch_execute("COMMIT")?;
    wait_until("a slot", || Ok(!session.value(slots)?.is_empty()))?;
    // It is kept once it is consistent.
    std::thread::sleep(Duration::from_secs(1));
    cluster.kill("consumer-1")?;
    cluster.signal("coordinator-1", "CONT")?;
    ensure!(session.value(slots)? == format!("{slot}_i2"));
    ensure!(source(&wire.map()?)?.incarnation.0 == 1);
    change(&mut session, &items, 3)?;

    cluster.restart("consumer-1")?;
    let reason = wait_until_broken(&wire, 2)?;
    ensure!(
        reason.contains("publication ruvector") && reason.contains("made again"),
        "{reason}"
    );
    wait_until_mended(&cluster, &wire, 2, Some(&items))?;
    assert_publishes_all_of(&mut session, "items, ruvector.collections")?;
    items.assert_equals_heap(&cluster, 1_000)?;
    ensure!(
        session.value(slots)? == slot_name(&wire)?,
        "no slot is left behind"
    );
    drop(session);
    cluster.finish()
}

#[test]
fn p2_p3_a_slot_made_anew_in_mid_backfill_loses_no_row_and_no_index() -> Result<()> {
    let (cluster, wire) = cluster("anew")?;
    let mut session = cluster.session()?;
    let slot = slot_name_once(&wire)?;

    // Nothing is followed yet, and an index comes in the gap.
    stop_following(&cluster, &wire, &mut session)?;
    let early = Items::create(&mut session, "early", 300, 8)?;
    create_index(&mut session, &early)?;
    make_anew(&mut session, &slot)?;
    cluster.restart("consumer-1")?;
    early.assert_followed(&mut session)?;
    session.batch_execute("DROP TABLE early")?;
    wait_for_map(&wire, "empty", |map| map.collections.is_empty())?;

    // Ranges are copied, and their rows change in the gap.
    let items = Items::create(&mut session, "items", 4 * ROWS, DIMENSIONS)?;
    create_index(&mut session, &items)?;
    wait_until("half copied", || {
        let all = cluster.ctl("collections")?;
        let copied = all[0]["rows_copied"].as_u64().unwrap_or(0);
        ensure!(all[0]["state"] != "ready", "too fast to be looked at");
        Ok(copied >= 2_000)
    })?;
    stop_following(&cluster, &wire, &mut session)?;
    for round in 0..10 {
        change(&mut session, &items, round)?;
    }
    make_anew(&mut session, &slot)?;
    change(&mut session, &items, 10)?;
    cluster.restart("consumer-1")?;
    let map = wait_for_map(&wire, "broken", |map| {
        source(map).is_ok_and(|s| s.incarnation.0 == 2)
    })?;
    ensure!(!map.collections.is_empty());
    session.wait_for(&items.index(), false)?;
    wait_for_map(&wire, "whole", is_whole)?;
    items.assert_equals_heap(&cluster, 1_000)?;
    drop(session);
    cluster.finish()
}

fn slot_name_once(wire: &Wire) -> Result<String> {
    wait_for_map(wire, "followed", |map| {
        source(map).is_ok_and(|s| s.slot.is_some())
    })?;
    slot_name(wire)
}

/// Somebody drops the slot, and makes one that looks the same.
fn make_anew(session: &mut Session, slot: &str) -> Result<()> {
    session.batch_execute(&format!(
        "SELECT pg_drop_replication_slot('{slot}');
         SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))?;
    Ok(())
}

fn create_index(session: &mut Session, items: &Items) -> Result<()> {
    Ok(session.batch_execute(&format!(
        "CREATE INDEX {} ON {} USING ruhnsw (embedding vector_l2_ops)",
        items.index(),
        items.name
    ))?)
}
