//! `ruvector_verify`: what it says of replicas that are as the heap is, however busy
//! both are, and of one that is not (P2, P3).
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, bail, ensure};
use cluster_core::ids::PartitionId;
use cluster_core::row_key::RowKey;
use integration_tests::{
    Cluster, Difference, Items, ReplicaDisk, Session, Shape, Verified, clustered_vector, literal,
    wait_until_served,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DIMENSIONS: usize = 16;

fn verify(session: &mut Session, index: &str) -> Result<Vec<Verified>> {
    Verified::all(session, index).with_context(|| format!("ruvector_verify('{index}')"))
}

fn differences(session: &mut Session, index: &str) -> Result<BTreeSet<Difference>> {
    let named = Difference::all(session, index);
    named.with_context(|| format!("ruvector_verify_differences('{index}')"))
}

/// Every replica was compared to its end and holds exactly the heap's rows.
fn assert_equal(session: &mut Session, index: &str, replicas: usize) -> Result<()> {
    let verified = verify(session, index)?;
    ensure!(verified.len() >= replicas, "{verified:?}");
    for replica in &verified {
        ensure!(replica.is_equal(), "{index}: {replica:?}");
    }
    Ok(())
}

/// Sessions that write until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64>>>,
}

impl Writers {
    fn start(cluster: &Cluster, statements: &[fn(u64) -> String]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for statement in statements {
            let mut session = cluster.session()?;
            let (stop, statement) = (stop.clone(), *statement);
            threads.push(std::thread::spawn(move || {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    session.batch_execute(&statement(done))?;
                    done += 1;
                }
                Ok(done)
            }));
        }
        Ok(Self { stop, threads })
    }

    /// How many statements each of them ran.
    fn finish(mut self) -> Result<Vec<u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let done = std::mem::take(&mut self.threads).into_iter();
        done.map(|thread| thread.join().expect("a writer panicked"))
            .collect()
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn vector(n: u64) -> String {
    literal(&clustered_vector(n as i64, DIMENSIONS))
}

/// Few rows, written again and again: most keys are in flux most of the time.
fn hot(n: u64) -> String {
    let (id, other) = (n % 7 + 1, vector(n % 3));
    match n % 4 {
        0 => format!("UPDATE verified SET embedding = '{other}' WHERE id = {id}"),
        1 => format!("DELETE FROM verified WHERE id = {id}"),
        2 => format!("INSERT INTO verified VALUES ({id}, 0, '{other}') ON CONFLICT DO NOTHING"),
        _ => format!("UPDATE verified SET embedding = NULL WHERE id = {id}"),
    }
}

/// All over the table, several rows in a transaction, some of it rolled back.
fn wide(n: u64) -> String {
    let from = (n * 37) % 2_000 + 10;
    let end = if n.is_multiple_of(5) {
        "ROLLBACK"
    } else {
        "COMMIT"
    };
    format!(
        "BEGIN; UPDATE verified SET embedding = '{}' WHERE id BETWEEN {from} AND {from} + 5;
         UPDATE verified SET label = label + 1 WHERE id = {from} + 7;
         UPDATE verified SET id = 100000 + {n} WHERE id = {from} + 8; {end}",
        vector(n)
    )
}

/// New rows, and old ones go.
fn grow(n: u64) -> String {
    format!(
        "INSERT INTO verified VALUES ({}, 0, '{}'); DELETE FROM verified WHERE id = {}",
        1_000_000 + n,
        vector(n),
        1_000_000 + n.saturating_sub(50)
    )
}

#[test]
fn p2_p3_a_busy_table_differs_in_nothing_and_at_rest_every_key_is_judged() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "verified", 3_000, DIMENSIONS)?;
    let index = items.index();
    assert_equal(&mut session, &index, 2)?;

    // A transaction that has written and is left open says nothing and hides nothing.
    let mut open = cluster.session()?;
    open.batch_execute("BEGIN; UPDATE verified SET embedding = NULL WHERE id IN (2500, 2501)")?;
    let writers = Writers::start(&cluster, &[hot, wide, grow])?;
    let until = Instant::now() + Duration::from_secs(12);
    let mut rounds = 0;
    while Instant::now() < until {
        for replica in verify(&mut session, &index)? {
            ensure!(replica.problem.is_none(), "{replica:?}");
            ensure!(replica.differences == Some(0), "{replica:?}");
        }
        let named = differences(&mut session, &index)?;
        let false_ones: Vec<_> = named.iter().filter(|d| d.kind != "undetermined").collect();
        ensure!(false_ones.is_empty(), "{false_ones:?}");
        rounds += 1;
    }
    let done = writers.finish()?;
    ensure!(
        done.iter().all(|done| *done > 50),
        "too little was written: {done:?}"
    );
    eprintln!("{rounds} rounds beside {done:?} statements");
    open.batch_execute("ROLLBACK")?;
    assert_equal(&mut session, &index, 2)?;
    ensure!(differences(&mut session, &index)?.is_empty());
    Ok(())
}

/// Runs a statement with a synchronous standby that never comes: its commit is in the
/// log and with the replicas, and the server does not show it.
fn beside_a_hidden_commit<T>(
    cluster: &Cluster,
    statement: &str,
    look: impl FnOnce(&mut Session) -> Result<T>,
) -> Result<T> {
    let mut admin = cluster.session()?;
    let mut writer = cluster.session()?;
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")?;
    admin.batch_execute("SELECT pg_reload_conf()")?;
    let statement = statement.to_owned();
    let writing = std::thread::spawn(move || {
        // The session has to hear of the setting first.
        writer.batch_execute("SELECT pg_sleep(0.5)")?;
        writer.batch_execute(&statement)
    });
    let waits = "SELECT count(*) FROM pg_stat_activity \
                  WHERE wait_event = 'SyncRep' AND query LIKE '%verified_hidden%'";
    let deadline = Instant::now() + Duration::from_secs(10);
    let looked = loop {
        match admin.value(waits) {
            Ok(count) if count == "1" => break look(&mut admin),
            Err(error) => break Err(error),
            Ok(_) if Instant::now() > deadline => break Err(anyhow::anyhow!("nobody waits")),
            Ok(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    // Whatever came of it: the others share the server.
    admin.batch_execute("ALTER SYSTEM RESET synchronous_standby_names")?;
    admin.batch_execute("SELECT pg_reload_conf()")?;
    writing.join().expect("the writer panicked")?;
    looked
}

#[test]
fn p2_p3_a_commit_that_the_server_does_not_show_yet_is_no_difference() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "verified_hidden", 500, DIMENSIONS)?;
    let index = items.index();
    let statement = format!(
        "BEGIN; UPDATE verified_hidden SET embedding = '{}' WHERE id = 1; DELETE FROM verified_hidden WHERE id = 2;
         INSERT INTO verified_hidden VALUES (9999, 0, '{}'); COMMIT",
        vector(3),
        vector(4)
    );
    let named =
        beside_a_hidden_commit(&cluster, &statement, |session| differences(session, &index))?;
    let keys: BTreeSet<_> = named
        .iter()
        .map(|d| (d.key.as_str(), d.kind.as_str()))
        .collect();
    let expected = ["1", "2", "9999"].map(|key| (key, "undetermined"));
    ensure!(
        keys == BTreeSet::from(expected) && named.len() == 6,
        "{named:?}"
    );
    assert_equal(&mut session, &index, 2)
}

#[test]
fn p2_keys_of_every_kind_and_partitions_are_compared() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    session.batch_execute(
        "DROP TABLE IF EXISTS verified_keys, verified_parted;
         CREATE TABLE verified_keys(a text, b numeric, c timestamptz, d uuid, embedding vector(3), PRIMARY KEY (c, a, b, d));
         INSERT INTO verified_keys SELECT 'Grüße, \"x\" ' || i, i * 1.10, timestamptz '2026-01-01 00:00+00' + i * interval '1 hour',
                md5(i::text)::uuid, ARRAY[i, 1, 2]::real[]::vector FROM generate_series(1, 300) i;
         INSERT INTO verified_keys VALUES ('no vector', 1, now(), md5('')::uuid, NULL);
         CREATE INDEX verified_keys_embedding_idx ON verified_keys USING ruhnsw (embedding vector_cosine_ops);
         CREATE TABLE verified_parted(id bigint, embedding vector(3), PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE verified_parted_low PARTITION OF verified_parted FOR VALUES FROM (0) TO (100);
         CREATE TABLE verified_parted_high PARTITION OF verified_parted FOR VALUES FROM (100) TO (1000);
         INSERT INTO verified_parted SELECT i, ARRAY[i, 1, 2]::real[]::vector FROM generate_series(1, 250) i;
         CREATE INDEX verified_parted_embedding_idx ON verified_parted USING ruhnsw (embedding vector_l2_ops)",
    )?;
    for (index, rows) in [
        ("verified_keys_embedding_idx", 300),
        ("verified_parted_embedding_idx", 250),
    ] {
        session.wait_for(index, false)?;
        // Whatever the client's encoding is.
        session.batch_execute("SET client_encoding = LATIN1")?;
        let verified = verify(&mut session, index);
        session.batch_execute("SET client_encoding = UTF8")?;
        let mut nodes = BTreeSet::new();
        let mut heap_rows = 0;
        for replica in verified? {
            ensure!(
                replica.differences == Some(0) && replica.undetermined == Some(0),
                "{replica:?}"
            );
            nodes.insert(replica.node);
            heap_rows += replica.heap_rows;
        }
        ensure!(
            nodes.len() == 2 && heap_rows == 2 * rows,
            "{nodes:?} {heap_rows}"
        );
    }
    Ok(())
}

fn key(id: i64) -> RowKey {
    RowKey::from_columns([id.to_be_bytes().as_slice()]).unwrap()
}

#[test]
fn p2_p3_a_replica_that_is_another_is_named_with_exactly_its_keys() -> Result<()> {
    let cluster = Cluster::start(
        "verify",
        Shape {
            nodes: 2,
            coordinators: 1,
            replicas: 2,
        },
    )?;
    let mut session = cluster.session()?;
    // More rows in a partition than a backend holds at one time.
    let items = Items::indexed(&mut session, "damaged", 24_000, DIMENSIONS)?;
    let index = items.index();
    assert_equal(&mut session, &index, 2)?;
    let wire = cluster.wire()?;
    let map = wire.map()?;
    let collection = map
        .collections
        .values()
        .find(|c| c.spec.index_name == index);
    let collection = collection.context("the map has the collection")?.id;
    let partitions: Vec<PartitionId> = map.partitions_of(collection).iter().map(|p| p.id).collect();
    let address = cluster.address("node-2")?;
    let node = map
        .nodes
        .values()
        .find(|node| node.address == address)
        .context("node-2")?
        .id;

    cluster.make(&["stop", "PROC=node-2"])?;
    let disk = || ReplicaDisk::open(&cluster.data_dir("node-2")?, partitions.clone());
    let damaged = disk()?;
    let mut expected = BTreeSet::new();
    let mut expect = |id: i64, kind: &str| {
        let partition = map.partition_for(collection, key(id).placement_hash());
        let partition = partition.context("a partition")?.id;
        expected.insert(Difference {
            partition: partition.0 as i64,
            node: node.0 as i64,
            key: id.to_string(),
            kind: kind.to_owned(),
        });
        Ok::<_, anyhow::Error>(partition)
    };
    expect(17, "missing")?;
    damaged.delete(&key(17))?;
    expect(1_234, "different")?;
    damaged.alter(&key(1_234))?;
    let (_, like) = damaged.row(&key(5))?;
    let partition = expect(777_777, "extra")?;
    damaged.add(&key(777_777), partition, &like)?;
    drop(damaged);
    cluster.restart("node-2")?;
    let probe = clustered_vector(1, DIMENSIONS);
    wait_until_served(&wire, &index, &probe, &address, Duration::from_secs(30))?;

    let found = differences(&mut session, &index)?;
    ensure!(
        found == expected,
        "found {found:#?}, expected {expected:#?}"
    );
    for replica in verify(&mut session, &index)? {
        let differs = replica.differences.context("a count")?;
        let here = |d: &&Difference| d.partition == replica.partition && d.node == replica.node;
        let own = expected.iter().filter(here).count() as i64;
        ensure!(
            differs == own && replica.undetermined == Some(0),
            "{replica:?}"
        );
    }
    let two = "SELECT count(*) FROM ruvector_verify_differences('damaged_embedding_idx', 2)";
    ensure!(session.value(two)? == "2");
    // A row that is written again is whole again.
    session
        .batch_execute("UPDATE damaged SET embedding = embedding + embedding WHERE id = 1234")?;
    expected.retain(|difference| difference.key != "1234");
    let found = differences(&mut session, &index)?;
    ensure!(
        found == expected,
        "found {found:#?}, expected {expected:#?}"
    );

    // A replica that has lost nearly all.
    cluster.make(&["stop", "PROC=node-2"])?;
    let lost = disk()?.gut(partitions[0])?;
    ensure!(lost > 5_000, "only {lost} rows were there to lose");
    cluster.restart("node-2")?;
    wait_until_served(&wire, &index, &probe, &address, Duration::from_secs(30))?;
    for replica in verify(&mut session, &index)? {
        let differs = replica.differences.context("a count")?;
        if replica.partition == partitions[0].0 as i64 && replica.node == node.0 as i64 {
            ensure!(replica.replica_rows == Some(2), "{replica:?}");
            ensure!(
                (lost as i64..=replica.heap_rows).contains(&differs),
                "{lost} {replica:?}"
            );
        } else {
            ensure!(differs <= 2, "{replica:?}");
        }
    }

    // A node that is down is not taken for equal.
    cluster.kill("node-2")?;
    let verified = verify(&mut session, &index)?;
    for replica in &verified {
        let is_down = replica.node == node.0 as i64;
        ensure!(replica.problem.is_some() == is_down, "{replica:?}");
        ensure!(replica.differences.is_none() == is_down, "{replica:?}");
    }
    drop(session);
    cluster.finish()
}

/// What the stream tells of a row before its table leaves the publication, and never tells the
/// end of: all of it in the transaction that makes the index.
#[test]
fn p3_a_row_that_went_while_its_table_was_not_published_is_no_zombie() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "verified_gap", 200, DIMENSIONS)?;
    let publication = session
        .value("SELECT pubname FROM pg_publication_tables WHERE tablename = 'verified_gap'")?;
    session.batch_execute(&format!(
        "BEGIN;
         CREATE INDEX verified_gap_second ON verified_gap USING ruhnsw (embedding vector_l2_ops);
         INSERT INTO verified_gap VALUES (7001, 0, '{}'), (7002, 0, '{}');
         ALTER PUBLICATION {publication} DROP TABLE verified_gap;
         DELETE FROM verified_gap WHERE id = 7001;
         DROP INDEX {};
         COMMIT",
        vector(1),
        vector(2),
        items.index()
    ))?;
    session.wait_for("verified_gap_second", false)?;
    let named = differences(&mut session, "verified_gap_second")?;
    ensure!(named.is_empty(), "{named:?}");
    assert_equal(&mut session, "verified_gap_second", 2)
}

/// CREATE INDEX CONCURRENTLY commits the index's entry before it builds, and leaves it there
/// when it is cut off.
#[test]
fn p11_an_index_that_is_not_built_yet_is_named_as_such_and_not_taken_for_corrupt() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    session.batch_execute(
        "DROP TABLE IF EXISTS verified_late;
         CREATE TABLE verified_late(id bigint PRIMARY KEY, embedding vector(3));
         INSERT INTO verified_late SELECT i, ARRAY[i, 1, 2]::real[]::vector FROM generate_series(1, 50) i",
    )?;
    let mut writer = cluster.session()?;
    writer.batch_execute("BEGIN; INSERT INTO verified_late VALUES (1000, '[1,2,3]')")?;
    let mut builder = cluster.session()?;
    let building = std::thread::spawn(move || {
        builder.batch_execute(
            "CREATE INDEX CONCURRENTLY verified_late_idx ON verified_late USING ruhnsw (embedding vector_l2_ops)",
        )
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    let entry = "SELECT count(*) FROM pg_class WHERE relname = 'verified_late_idx'";
    while session.value(entry)? != "1" {
        ensure!(Instant::now() < deadline, "no index");
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = "SELECT state || ': ' || reason FROM ruvector_index_status('verified_late_idx')";
    let status = session.value(status)?;
    ensure!(
        status.starts_with("exact: the index is not built"),
        "{status}"
    );
    for call in [
        "SELECT ruvector_verify('verified_late_idx')",
        "SELECT ruvector_wait_for_index('verified_late_idx', 1)",
        "SELECT ruvector_reconcile('verified_late_idx')",
    ] {
        assert_eq!(
            session.client_error(call).as_deref(),
            Some("55000"),
            "{call}"
        );
    }
    writer.batch_execute("COMMIT")?;
    building.join().expect("the builder panicked")?;
    session.wait_for("verified_late_idx", false)?;
    assert_equal(&mut session, "verified_late_idx", 2)
}

#[test]
fn who_may_verify_and_when() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "verified_by", 2_000, DIMENSIONS)?;
    let call = format!("SELECT * FROM ruvector_verify('{}')", items.index());
    session.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(session.client_error(&call).as_deref(), Some("55000"));
    session.batch_execute("ROLLBACK; BEGIN; UPDATE verified_by SET label = 1 WHERE id = 1")?;
    assert_eq!(session.client_error(&call).as_deref(), Some("55000"));
    session.batch_execute("ROLLBACK; DROP ROLE IF EXISTS verify_nobody; CREATE ROLE verify_nobody; SET ROLE verify_nobody")?;
    assert_eq!(session.client_error(&call).as_deref(), Some("42501"));
    session.batch_execute("RESET ROLE; DROP ROLE verify_nobody")?;
    let key = "SELECT * FROM ruvector_verify('verified_by_pkey')";
    assert_eq!(session.client_error(key).as_deref(), Some("42809"));
    // A cancelled one leaves nothing behind.
    session.batch_execute("SET statement_timeout = '2ms'")?;
    match session.client_error(&call).as_deref() {
        Some("57014") => {}
        other => bail!("{other:?}"),
    }
    session.batch_execute("SET statement_timeout = '60s'")?;
    assert_equal(&mut session, &items.index(), 2)
}
