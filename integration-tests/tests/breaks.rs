//! A source's history breaks: each break is found and named, old rows answer flagged
//! until the index is reconciled with its table, and then every replica holds the
//! heap's rows and no others.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use cluster_core::apply::{StoredRow, StoredVector};
use cluster_core::ids::Incarnation;
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_node::storage::{Storage, StorageConfig, WriteSet};
use integration_tests::history::{
    DIMENSIONS, MENDED_WITHIN, ROWS, SLOW, TWO, change, is_whole, slot_name, source, wait_for_map,
    wait_until_broken, wait_until_left, wait_until_mended,
};
use integration_tests::{
    Cluster, DirectSearch, Items, Session, Standby, Wire, assert_replicas_agree, clustered_vector,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LEASES: &str = "leases.ttl_ms = 3000\nleases.renew_every_ms = 500";
const CONSUMER: &str = "retry_max_ms = 1000\npreflight_every_ms = 500";

fn cluster(name: &str, consumer: &str) -> Result<(Cluster, Wire)> {
    let settings = [
        ("COORDINATOR_SETTINGS", LEASES),
        ("CONSUMER_SETTINGS", consumer),
    ];
    let cluster = Cluster::start_with(name, TWO, &settings)?;
    let wire = cluster.wire()?;
    wire.wait_for_nodes(2)?;
    Ok((cluster, wire))
}

/// A table of vectors that lie out of line, and its index.
fn indexed(session: &mut Session, rows: i64) -> Result<Items> {
    Items::indexed(session, "items", rows, DIMENSIONS)
}

#[test]
fn p2_p3_a_slot_or_publication_that_is_gone_or_taken_breaks_the_history_and_is_mended() -> Result<()>
{
    let (cluster, wire) = cluster("breaks", SLOW)?;
    let mut session = cluster.session()?;
    let items = indexed(&mut session, ROWS)?;
    let slot = slot_name(&wire)?;
    let drop_slot = format!("SELECT pg_drop_replication_slot('{slot}')");

    // Dropped, while nobody looks, and the table goes on.
    cluster.kill("consumer-1")?;
    change(&mut session, &items, 1)?;
    wait_until_left(&mut session, &slot)?;
    session.batch_execute(&drop_slot)?;
    change(&mut session, &items, 2)?;
    cluster.restart("consumer-1")?;
    let reason = wait_until_broken(&wire, 2)?;
    ensure!(
        reason.starts_with(&format!("slot {slot} is gone: changes may be missing")),
        "{reason}"
    );
    let second = slot_name(&wire)?;
    ensure!(second == format!("{slot}_i2"), "{second}");
    assert_stale(&cluster, &items)?;
    change(&mut session, &items, 3)?;
    wait_until_mended(&cluster, &wire, 2, Some(&items))?;
    items.assert_equals_heap(&cluster, 1_000)?;

    // Somebody else's slot has its name: it stays whose it is.
    cluster.kill("consumer-1")?;
    wait_until_left(&mut session, &second)?;
    session.batch_execute(&format!(
        "SELECT pg_drop_replication_slot('{second}');
         SELECT pg_create_physical_replication_slot('{second}');
         SELECT pg_create_physical_replication_slot('{slot}')"
    ))?;
    change(&mut session, &items, 4)?;
    cluster.restart("consumer-1")?;
    let reason = wait_until_broken(&wire, 3)?;
    ensure!(
        reason.starts_with(&format!(
            "slot {second} belongs to another database or plugin"
        )),
        "{reason}"
    );
    wait_until_mended(&cluster, &wire, 3, Some(&items))?;
    items.assert_equals_heap(&cluster, 1_000)?;
    let own = slot_name(&wire)?;
    ensure!(own == format!("{slot}_i3"), "{own}");
    let kinds = "SELECT string_agg(slot_type, ',' ORDER BY slot_type) FROM pg_replication_slots WHERE NOT temporary";
    ensure!(session.value(kinds)? == "logical,physical,physical");
    session.batch_execute(&format!(
        "{drop_slot}; SELECT pg_drop_replication_slot('{second}')"
    ))?;

    // Under the consumer's eyes, with the consumer and a node dying meanwhile.
    session.batch_execute("DROP PUBLICATION ruvector")?;
    change(&mut session, &items, 5)?;
    let reason = wait_until_broken(&wire, 4)?;
    ensure!(
        reason.starts_with("publication ruvector is gone"),
        "{reason}"
    );
    for (round, process) in (6..).zip(["consumer-1", "node-2", "node-1", "consumer-1"]) {
        std::thread::sleep(Duration::from_millis(1_200));
        cluster.kill(process)?;
        change(&mut session, &items, round)?;
        cluster.restart(process)?;
    }
    wait_until_mended(&cluster, &wire, 4, None)?;
    items.assert_equals_heap(&cluster, 1_000)?;
    ensure!(slot_name(&wire)? == slot, "its first name is free again");
    ensure!(session.value(kinds)? == "logical", "no slot is left behind");
    drop(session);
    cluster.finish()
}

#[test]
fn p2_p3_a_faulty_replica_is_mended_on_demand_while_it_serves() -> Result<()> {
    let (cluster, wire) = cluster("on-demand", SLOW)?;
    let mut session = cluster.session()?;
    let items = indexed(&mut session, ROWS)?;
    session.batch_execute("CREATE ROLE stranger; SET ROLE stranger")?;
    let mend = format!("SELECT ruvector_reconcile('{}')", items.index());
    ensure!(session.client_error(&mend).as_deref() == Some("42501"));
    session.batch_execute("RESET ROLE")?;

    // Rows 1 to 50 are lost on one node, and it has 20 that no table ever had.
    let end = session.value("SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")?;
    cluster.make(&["stop", "PROC=node-2"])?;
    spoil(&cluster, &wire, &items)?;
    cluster.restart("node-2")?;
    wait_until_spoilt(&wire, &items, end.parse()?)?;

    session.batch_execute(&mend)?;
    session.batch_execute(&mend)?;
    let begun = wait_for_map(&wire, "begun", |map| {
        map.collections
            .values()
            .any(|c| c.reconciles_since().is_some())
    })?;
    let replicas = begun.partitions.values().flat_map(|p| &p.replicas);
    let mut states = replicas.map(|replica| replica.state);
    ensure!(states.all(|state| state == ReplicaState::Serving));
    session
        .explain(&items.nearest(9, 10))?
        .assert_answered_by_the_cluster()?;
    change(&mut session, &items, 1)?;
    wait_until_mended(&cluster, &wire, 1, None)?;
    items.assert_equals_heap(&cluster, 1_000)?;

    let told = cluster.ctl(&format!("reconcile {}", items.index()))?;
    ensure!(told["index"] == items.index().as_str(), "{told}");
    wait_until_mended(&cluster, &wire, 1, Some(&items))?;
    items.assert_equals_heap(&cluster, 1_000)?;
    drop(session);
    cluster.finish()
}

/// Reads every replica to its end: a cursor that stays open would keep old versions.
fn wait_until_spoilt(wire: &Wire, items: &Items, end: u64) -> Result<()> {
    let deadline = Instant::now() + MENDED_WITHIN;
    loop {
        let query = clustered_vector(7, DIMENSIONS);
        let search = DirectSearch::new(wire.map()?, &items.index(), query)?;
        match assert_replicas_agree(wire, &search, end, ROWS as usize) {
            Ok(()) => anyhow::bail!("the test has spoilt nothing"),
            Err(differ) if differ.to_string().contains("or others") => return Ok(()),
            Err(away) => ensure!(Instant::now() < deadline, "node-2 is not back: {away:#}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Writes into the files of a stopped node what no stream said.
fn spoil(cluster: &Cluster, wire: &Wire, items: &Items) -> Result<()> {
    let map = wire.map()?;
    let folder = cluster.run_dir().join("cluster/data/node-2");
    let files = ["db", "data", "rocksdb", "storage", "."];
    let mut files = files.iter().map(|name| folder.join(name));
    let path = files.find(|path| path.join("CURRENT").exists());
    let path = path.with_context(|| format!("no database in {}", folder.display()))?;
    // The process may be about to end, and its lock with it.
    let deadline = Instant::now() + Duration::from_secs(10);
    let storage = loop {
        match Storage::open(&path, &StorageConfig::default(), Arc::default()) {
            Ok(storage) => break storage,
            Err(locked) => ensure!(Instant::now() < deadline, "{locked}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut collections = map.collections.values();
    let collection = collections.find(|c| c.spec.index_name == items.index());
    let collection = collection.context("the collection")?.id;
    let key = |id: i64| RowKey::from_columns([id.to_be_bytes().as_slice()]).unwrap();
    let place = |key: &RowKey| map.partition_for(collection, key.placement_hash());
    let mut set = WriteSet::default();
    for id in 1..=50 {
        let partition = place(&key(id)).context("a partition")?.id;
        set.delete_row(partition, &key(id));
    }
    for id in 7_000_000..7_000_020 {
        let partition = place(&key(id)).context("a partition")?.id;
        let row = StoredRow {
            position: WalPosition::end_of(Incarnation(1), Lsn(1)),
            xid_high: 0,
            vector: StoredVector::Value(clustered_vector(id, DIMENSIONS).into()),
        };
        set.put_row(partition, &key(id), &row);
    }
    Ok(storage.commit(set)?)
}

/// The server stops, its files are changed by lines of bash, and it starts again.
fn while_stopped(cluster: &Cluster, lines: &str) -> Result<Session> {
    cluster.make(&["stop", "PROC=postgres"])?;
    cluster.shell(&format!("home=$RUN_DIR/cluster/postgres; {lines}"))?;
    cluster.restart("postgres")?;
    cluster.session_within(Duration::from_secs(30))
}

/// Waits until recovery is over, and the server takes writes.
fn wait_until_writable(session: &mut Session) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while session.value("SELECT pg_is_in_recovery()")? == "t" {
        ensure!(Instant::now() < deadline, "the server stays in recovery");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Recovers to the end of its own log, and begins another timeline there.
const RECOVER: &str = "
    as_server touch \"$home/data/recovery.signal\"
    as_server sh -c 'echo \"restore_command = false\" >> \"$1\"' sh \"$home/data/postgresql.auto.conf\"";
const BACK_UP: &str = "
    as_server rm -rf \"$home/log/backup\"; as_server cp -a \"$home/data\" \"$home/log/backup\"";
const PUT_BACK: &str = "
    as_server rm -rf \"$home/data\"/* ; as_server cp -a \"$home/log/backup\"/. \"$home/data\"";

fn timeline(map: &PartitionMap) -> Result<u32> {
    Ok(source(map)?.slot.as_ref().context("a slot")?.timeline)
}

#[test]
fn p3_a_server_that_was_put_back_or_replaced_by_its_standby_leaves_no_zombie() -> Result<()> {
    let (cluster, wire) = cluster("put-back", CONSUMER)?;
    let mut session = cluster.session()?;
    let items = indexed(&mut session, ROWS)?;
    items.assert_equals_heap(&cluster, 1_000)?;

    // Nothing is lost where the slot survives and nobody is beyond the switch.
    drop(session);
    let mut session = while_stopped(&cluster, RECOVER)?;
    wait_until_writable(&mut session)?;
    change(&mut session, &items, 1)?;
    let map = wait_for_map(&wire, "on timeline 2", |map| timeline(map).ok() == Some(2))?;
    ensure!(
        source(&map)?.incarnation.0 == 1 && is_whole(&map),
        "broken for nothing"
    );
    items.assert_equals_heap(&cluster, 1_000)?;

    // A copy of the files is put back: same identifiers, same timeline.
    drop(session);
    let mut session = while_stopped(&cluster, BACK_UP)?;
    items.insert(&mut session, 3_000_000..3_000_500)?;
    change(&mut session, &items, 2)?;
    items.assert_equals_heap(&cluster, 1_000)?;
    drop(session);
    let mut session = while_stopped(&cluster, PUT_BACK)?;
    let reason = wait_until_broken(&wire, 2)?;
    ensure!(
        reason.starts_with("the server was restored, or is a copy: its WAL ends at "),
        "{reason}"
    );
    wait_until_mended(&cluster, &wire, 2, Some(&items))?;
    items.assert_equals_heap(&cluster, 1_000)?;
    let second = slot_name(&wire)?;
    let zombies = format!("SELECT count(*) FROM {} WHERE id >= 3000000", items.name);
    ensure!(session.value(&zombies)? == "0");

    // The same, recovered to a timeline of its own.
    items.insert(&mut session, 4_000_000..4_000_500)?;
    items.assert_equals_heap(&cluster, 1_000)?;
    drop(session);
    let mut session = while_stopped(&cluster, &format!("{PUT_BACK}; {RECOVER}"))?;
    let reason = wait_until_broken(&wire, 3)?;
    let gone = format!("slot {second} is gone: the server went from timeline 2 to 3");
    ensure!(reason.starts_with(&gone), "{reason}");
    wait_until_writable(&mut session)?;
    change(&mut session, &items, 3)?;
    wait_until_mended(&cluster, &wire, 3, None)?;
    items.assert_equals_heap(&cluster, 1_000)?;

    // Somebody makes the slot anew, as ours would be: it stands where nobody is.
    let slot = slot_name(&wire)?;
    cluster.kill("consumer-1")?;
    wait_until_left(&mut session, &slot)?;
    change(&mut session, &items, 4)?;
    session.batch_execute(&format!(
        "SELECT pg_drop_replication_slot('{slot}');
         SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
    ))?;
    change(&mut session, &items, 5)?;
    cluster.restart("consumer-1")?;
    let reason = wait_until_broken(&wire, 4)?;
    ensure!(
        reason.starts_with(&format!("slot {slot} stands at ")) && reason.contains("made anew"),
        "{reason}"
    );
    let slot = slot_name(&wire)?;
    wait_until_mended(&cluster, &wire, 4, Some(&items))?;
    items.assert_equals_heap(&cluster, 1_000)?;

    // A standby takes over, without the primary's last transactions and its slot.
    let standby = Standby::of(&cluster)?;
    standby.session()?;
    standby.stop()?;
    items.insert(&mut session, 5_000_000..5_000_500)?;
    items.assert_equals_heap(&cluster, 1_000)?;
    drop(session);
    let session = while_stopped(
        &cluster,
        "as_server rm -rf \"$home/data\"/*; as_server cp -a \"$RUN_DIR/standby/data\"/. \"$home/data\"",
    )?;
    drop(session);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !source(&wire.map()?)?.problem.contains("standby") {
        ensure!(Instant::now() < deadline, "a standby is not to be followed");
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(
        source(&wire.map()?)?.incarnation.0 == 4,
        "nothing is broken yet"
    );
    cluster.shell(
        "as_server \"$PG_BIN/pg_ctl\" --pgdata \"$RUN_DIR/cluster/postgres/data\" --wait promote >/dev/null",
    )?;
    let reason = wait_until_broken(&wire, 5)?;
    let gone = format!("slot {slot} is gone: the server went from timeline 3 to 4");
    ensure!(reason.starts_with(&gone), "{reason}");
    let mut session = cluster.session_within(Duration::from_secs(30))?;
    wait_until_writable(&mut session)?;
    change(&mut session, &items, 6)?;
    wait_until_mended(&cluster, &wire, 5, None)?;
    items.assert_equals_heap(&cluster, 1_000)?;
    drop(session);
    cluster.finish()
}

/// While the index is stale: who takes old rows gets them, flagged; nobody else does.
fn assert_stale(cluster: &Cluster, items: &Items) -> Result<()> {
    let mut session = cluster.session()?;
    let nearest = items.nearest(7, 10);
    session.batch_execute("SET ruvector.read_consistency = eventual")?;
    let explained = session.explain(&nearest)?;
    explained.assert_answered_by_the_cluster()?;
    ensure!(
        explained.count("stale_partitions")? > 0,
        "{}",
        explained.text
    );
    for consistency in ["session", "bounded", "strong"] {
        session.batch_execute(&format!("SET ruvector.read_consistency = {consistency}"))?;
        let refused = session.client_error(&nearest);
        ensure!(
            refused.as_deref() == Some("RV002"),
            "{consistency}: {refused:?}"
        );
    }
    // By default the table itself is read.
    session
        .batch_execute("RESET ruvector.read_consistency; SET ruvector.on_unavailable = exact")?;
    ensure!(
        session.ids(&nearest)? == session.exact_ids(&nearest)?,
        "other rows than the heap's"
    );
    let told = session.value(&format!(
        "SELECT reason FROM ruvector_index_status('{}')",
        items.index()
    ))?;
    ensure!(told.contains("old data, flagged"), "{told}");
    let standing = session.value(&format!(
        "SELECT state || ': ' || reason FROM ruvector_replication_status WHERE index = '{}'::regclass",
        items.index()
    ))?;
    ensure!(standing.starts_with("stale: "), "{standing}");
    let sources = cluster.ctl("source list")?.to_string();
    ensure!(sources.contains("old data, flagged"), "{sources}");
    Ok(())
}
