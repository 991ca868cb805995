//! Partitioned tables: an index of each partition, merged by the executor. Rows move
//! between partitions and partitions come and go, and the answer stays the heap's (P1, P2).
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use integration_tests::{Cluster, Session, clustered_vector, literal};

const DIMENSIONS: usize = 8;

/// A table with the partitions `name_0`, `name_1` and `name_rest`, and rows in each.
fn create(session: &mut Session, name: &str, key: &str) -> Result<()> {
    session.batch_execute(&format!(
        "DROP TABLE IF EXISTS {name};
         CREATE TABLE {name}(id bigint, part int, embedding vector({DIMENSIONS}){key}) PARTITION BY LIST (part);
         CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES IN (0);
         CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES IN (1);
         CREATE TABLE {name}_rest PARTITION OF {name} DEFAULT"
    ))?;
    insert(session, name, 1..301)?;
    session
        .batch_execute(&format!("ANALYZE {name}"))
        .map_err(Into::into)
}

fn insert(session: &mut Session, name: &str, ids: std::ops::Range<i64>) -> Result<()> {
    for id in ids {
        session.execute(
            &format!(
                "INSERT INTO {name} VALUES ({id}, {}, '{}')",
                id % 3,
                literal(&clustered_vector(id, DIMENSIONS))
            ),
            &[],
        )?;
    }
    Ok(())
}

/// The whole order, and the nearest ten, are those of an exact scan, and no partition
/// was scanned.
fn assert_followed(session: &mut Session, name: &str) -> Result<()> {
    session.wait_for(&format!("{name}_idx"), false)?;
    for (probe, limit) in [(1, "LIMIT 10"), (2, "LIMIT 10"), (3, "")] {
        let query = literal(&clustered_vector(1_000 + probe, DIMENSIONS));
        let sql = format!("SELECT id FROM {name} ORDER BY embedding <-> '{query}' {limit}");
        let (got, want) = (session.ids(&sql)?, session.exact_ids(&sql)?);
        ensure!(
            got == want,
            "{name}, probe {probe}: got {got:?}, want {want:?}"
        );
        let explained = session.explain(&sql)?;
        ensure!(!explained.text.contains("Seq Scan"), "{}", explained.text);
        explained.assert_answered_by_the_cluster()?;
    }
    Ok(())
}

fn index(session: &mut Session, name: &str) -> Result<()> {
    session.batch_execute(&format!(
        "CREATE INDEX {name}_idx ON {name} USING ruhnsw (embedding vector_l2_ops)"
    ))?;
    assert_followed(session, name)
}

#[test]
fn p2_rows_of_every_partition_are_found_and_followed_when_they_move() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    create(&mut session, "parts", ", PRIMARY KEY (id, part)")?;
    index(&mut session, "parts")?;
    insert(&mut session, "parts", 301..331)?;
    session.batch_execute(
        "UPDATE parts SET part = 1 WHERE id % 9 = 0;
         UPDATE parts SET embedding = embedding + embedding WHERE id % 7 = 0;
         UPDATE parts SET id = id + 1000 WHERE id % 11 = 0;
         UPDATE parts SET part = 7, id = id + 5000, embedding = embedding - embedding WHERE id = 10;
         DELETE FROM parts WHERE id % 13 = 0",
    )?;
    assert_followed(&mut session, "parts")
}

#[test]
fn p3_a_truncated_partition_loses_its_rows_and_the_others_keep_theirs() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    create(&mut session, "parts_cut", ", PRIMARY KEY (id, part)")?;
    index(&mut session, "parts_cut")?;
    session.batch_execute("TRUNCATE parts_cut_1")?;
    assert_followed(&mut session, "parts_cut")?;
    session.batch_execute(
        "INSERT INTO parts_cut SELECT id + 600, 1, embedding + embedding FROM parts_cut_0",
    )?;
    assert_followed(&mut session, "parts_cut")?;
    session.batch_execute("BEGIN; TRUNCATE parts_cut; INSERT INTO parts_cut VALUES (1, 0, '[1,1,1,1,1,1,1,1]'); COMMIT")?;
    assert_followed(&mut session, "parts_cut")?;
    insert(&mut session, "parts_cut", 10..40)?;
    assert_followed(&mut session, "parts_cut")
}

#[test]
fn p2_partitions_that_come_and_go_are_followed_by_themselves() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    create(&mut session, "parts_come", ", PRIMARY KEY (id, part)")?;
    index(&mut session, "parts_come")?;

    session.batch_execute(
        "CREATE TABLE parts_come_5 PARTITION OF parts_come FOR VALUES IN (5);
         INSERT INTO parts_come SELECT id + 400, 5, embedding + embedding FROM parts_come WHERE id < 50",
    )?;
    assert_followed(&mut session, "parts_come")?;

    // One with rows, and without a key or an index: ATTACH makes both.
    session.batch_execute(&format!(
        "DROP TABLE IF EXISTS parts_come_6;
         CREATE TABLE parts_come_6(id bigint NOT NULL, part int NOT NULL, embedding vector({DIMENSIONS}));
         INSERT INTO parts_come_6 SELECT id + 800, 6, embedding - embedding - embedding FROM parts_come WHERE id < 50;
         ALTER TABLE parts_come ATTACH PARTITION parts_come_6 FOR VALUES IN (6);
         UPDATE parts_come SET embedding = embedding + embedding WHERE part = 6 AND id % 2 = 0"
    ))?;
    assert_followed(&mut session, "parts_come")?;

    session.batch_execute("ALTER TABLE parts_come DETACH PARTITION parts_come_1")?;
    session.batch_execute("DELETE FROM parts_come_1 WHERE id < 100")?;
    session.batch_execute("ALTER TABLE parts_come DETACH PARTITION parts_come_rest")?;
    session.batch_execute("ALTER TABLE parts_come DETACH PARTITION parts_come_0 CONCURRENTLY")?;
    session.batch_execute("DELETE FROM parts_come_0 WHERE id < 100")?;
    assert_followed(&mut session, "parts_come")?;
    // A table of its own, whose index goes on.
    let alone = "SELECT id FROM parts_come_1 ORDER BY embedding <-> '[0,0,0,0,0,0,0,0]'";
    let (got, want) = (session.ids(alone)?, session.exact_ids(alone)?);
    assert_eq!(got, want);
    session.explain(alone)?.assert_answered_by_the_cluster()?;
    session.batch_execute(
        "DROP TABLE parts_come_5;
         ALTER TABLE parts_come ATTACH PARTITION parts_come_1 FOR VALUES IN (1)",
    )?;
    assert_followed(&mut session, "parts_come")
}

#[test]
fn p2_a_key_that_comes_after_the_index_has_every_partition_followed() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    create(&mut session, "parts_late", "")?;
    session.batch_execute(
        "CREATE INDEX parts_late_idx ON parts_late USING ruhnsw (embedding vector_l2_ops)",
    )?;
    let reason = "SELECT string_agg(DISTINCT reason, ', ') FROM ruvector_index_status() WHERE table_name LIKE 'parts_late%'";
    assert!(session.value(reason)?.contains("no primary key"));
    session.batch_execute("ALTER TABLE parts_late ADD PRIMARY KEY (id, part)")?;
    assert_followed(&mut session, "parts_late")?;
    // The key's index is older than the other one no more, so that a new partition's
    // is made later.
    session.batch_execute(
        "CREATE TABLE parts_late_5 PARTITION OF parts_late FOR VALUES IN (5);
         UPDATE parts_late SET part = 5 WHERE id % 5 = 0",
    )?;
    assert_followed(&mut session, "parts_late")?;
    session.batch_execute("REINDEX INDEX parts_late_idx")?;
    assert_followed(&mut session, "parts_late")?;
    session.batch_execute("REINDEX INDEX CONCURRENTLY parts_late_idx")?;
    assert_followed(&mut session, "parts_late")?;
    session.batch_execute("REINDEX TABLE CONCURRENTLY parts_late")?;
    assert_followed(&mut session, "parts_late")
}

#[test]
fn p2_partitions_of_partitions_are_followed() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    create(&mut session, "parts_deep", ", PRIMARY KEY (id, part)")?;
    session.batch_execute(
        "DROP TABLE parts_deep_1;
         CREATE TABLE parts_deep_1 PARTITION OF parts_deep FOR VALUES IN (1) PARTITION BY RANGE (id);
         CREATE TABLE parts_deep_1_low PARTITION OF parts_deep_1 FOR VALUES FROM (0) TO (500);
         CREATE TABLE parts_deep_1_high PARTITION OF parts_deep_1 FOR VALUES FROM (500) TO (100000);
         INSERT INTO parts_deep SELECT id + 300 * (id % 3), 1, embedding + embedding FROM parts_deep",
    )?;
    index(&mut session, "parts_deep")?;
    let leaves = "SELECT count(*) FROM ruvector.collections WHERE table_name LIKE 'parts_deep%'";
    assert_eq!(session.value(leaves)?, "4");
    // Within the inner one, out of it and into it.
    session.batch_execute(
        "UPDATE parts_deep SET id = id + 700 WHERE part = 1 AND id % 5 = 0 AND id < 300;
         UPDATE parts_deep SET part = 0, id = id + 10000 WHERE part = 1 AND id % 5 = 1;
         UPDATE parts_deep SET part = 1, id = id + 20000 WHERE part = 2 AND id % 2 = 0;
         DELETE FROM parts_deep WHERE id % 13 = 0",
    )?;
    assert_followed(&mut session, "parts_deep")?;
    session.batch_execute(
        "TRUNCATE parts_deep_1_low;
         CREATE TABLE parts_deep_1_top PARTITION OF parts_deep_1 FOR VALUES FROM (100000) TO (200000);
         INSERT INTO parts_deep SELECT id + 100000, 1, embedding - embedding - embedding FROM parts_deep_0 WHERE id < 200",
    )?;
    assert_followed(&mut session, "parts_deep")?;
    session.batch_execute("ALTER TABLE parts_deep_1 DETACH PARTITION parts_deep_1_high")?;
    assert_followed(&mut session, "parts_deep")?;
    session.batch_execute("ALTER TABLE parts_deep DETACH PARTITION parts_deep_1")?;
    assert_followed(&mut session, "parts_deep")?;
    session.batch_execute(
        "ALTER TABLE parts_deep_1 ATTACH PARTITION parts_deep_1_high FOR VALUES FROM (500) TO (100000);
         ALTER TABLE parts_deep ATTACH PARTITION parts_deep_1 FOR VALUES IN (1);
         UPDATE parts_deep SET embedding = embedding + embedding + embedding WHERE part = 1 AND id % 2 = 0",
    )?;
    assert_followed(&mut session, "parts_deep")?;
    session.batch_execute("TRUNCATE parts_deep_1")?;
    assert_followed(&mut session, "parts_deep")?;
    session.batch_execute("DROP TABLE parts_deep_1")?;
    assert_followed(&mut session, "parts_deep")
}

#[test]
fn the_status_of_a_partitioned_index_names_where_to_look() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    create(&mut session, "parts_status", ", PRIMARY KEY (id, part)")?;
    index(&mut session, "parts_status")?;
    let one = "SELECT * FROM ruvector_index_status('parts_status_idx')";
    assert_eq!(session.client_error(one).as_deref(), Some("42809"));
    let all = "SELECT count(*) FROM ruvector_index_status() WHERE table_name LIKE 'parts_status%' AND state = 'ready'";
    assert_eq!(session.value(all)?, "3");
    Ok(())
}
