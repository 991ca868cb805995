//! Bad input and awkward definitions: each gets its own clear word, no row is
//! lost, and what is gone from Postgres is gone from the cluster.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use integration_tests::{Cluster, Items, Session, literal};
use std::time::{Duration, Instant};

fn collections(cluster: &Cluster) -> Result<Vec<String>> {
    let all = cluster.ctl("collections")?;
    let rows = all.as_array().cloned().unwrap_or_default();
    Ok(rows
        .iter()
        .filter_map(|row| row["index"].as_str().map(str::to_owned))
        .collect())
}

fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds()? {
        ensure!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn is_listed(cluster: &Cluster, index: &str) -> Result<bool> {
    Ok(collections(cluster)?
        .iter()
        .any(|name| name.ends_with(index)))
}

#[test]
fn vectors_that_cannot_be_stored_are_refused_by_name() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "bad_vectors", 50, 3)?;
    for (vector, code, word) in [
        ("[1,2]", "22000", "expected 3 dimensions, not 2"),
        ("[1,2,NaN]", "22000", "NaN not allowed in vector"),
        (
            "[1,2,Infinity]",
            "22000",
            "infinite value not allowed in vector",
        ),
        ("[1,2,", "22P02", "invalid input syntax for type vector"),
    ] {
        let sql = format!("INSERT INTO bad_vectors VALUES (900, 0, '{vector}')");
        let error = session.execute(&sql, &[]).unwrap_err();
        let db = error.as_db_error().expect("an error of the server");
        assert!(db.message().contains(word), "{vector}: {}", db.message());
        assert_eq!(db.code().code(), code, "{vector}: {}", db.message());
    }
    let error = session
        .query(
            "SELECT id FROM bad_vectors ORDER BY embedding <-> '[1,2]' LIMIT 1",
            &[],
        )
        .unwrap_err();
    assert!(
        error
            .as_db_error()
            .unwrap()
            .message()
            .contains("different vector dimensions"),
        "{error}"
    );
    items.assert_every_row_once(&mut session)
}

#[test]
fn null_vectors_are_not_indexed_and_no_error() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "bad_nulls", 50, 3)?;
    session.batch_execute(
        "INSERT INTO bad_nulls VALUES (901, 0, NULL); UPDATE bad_nulls SET embedding = NULL WHERE id = 7;
         UPDATE bad_nulls SET embedding = '[1,1,1]' WHERE id = 901; UPDATE bad_nulls SET embedding = NULL WHERE id = 901",
    )?;
    items.assert_every_row_once(&mut session)?;
    let all = session.ids("SELECT id FROM bad_nulls ORDER BY embedding <-> '[0,0,0]'")?;
    assert_eq!(all.len(), 49);
    Ok(())
}

#[test]
fn a_table_without_a_key_is_scanned_exactly_and_its_writes_go_on() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    session.batch_execute(
        "DROP TABLE IF EXISTS bad_keyless; CREATE TABLE bad_keyless(id bigint, embedding vector(3));
         INSERT INTO bad_keyless SELECT i, ARRAY[i, 0, 0]::vector FROM generate_series(1, 30) i;
         CREATE INDEX bad_keyless_idx ON bad_keyless USING ruhnsw (embedding vector_l2_ops)",
    )?;
    session.batch_execute(
        "UPDATE bad_keyless SET id = id + 100; DELETE FROM bad_keyless WHERE id = 101",
    )?;
    assert_eq!(
        session.ids("SELECT id FROM bad_keyless ORDER BY embedding <-> '[5,0,0]' LIMIT 2")?[0],
        105
    );
    let reason = session.value("SELECT reason FROM ruvector_index_status('bad_keyless_idx')")?;
    assert!(
        reason.contains("key") || reason.contains("replica identity"),
        "{reason}"
    );
    Ok(())
}

#[test]
fn dropped_indexes_and_tables_leave_nothing_in_the_cluster() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "gone_index", 50, 3)?;
    assert!(is_listed(&cluster, &items.index())?);
    session.batch_execute("DROP INDEX gone_index_embedding_idx")?;
    wait_until("index dropped", || {
        Ok(!is_listed(&cluster, "gone_index_embedding_idx")?)
    })?;
    Items::indexed(&mut session, "gone_table", 50, 3)?;
    session.batch_execute("DROP TABLE gone_table")?;
    wait_until("table dropped", || {
        Ok(!is_listed(&cluster, "gone_table_embedding_idx")?)
    })?;
    Items::create(&mut session, "gone_rollback", 50, 3)?;
    session.batch_execute(
        "BEGIN; CREATE INDEX gone_rollback_idx ON gone_rollback USING ruhnsw (embedding vector_l2_ops); ROLLBACK",
    )?;
    let items = Items::indexed(&mut session, "gone_marker", 10, 3)?;
    assert!(
        is_listed(&cluster, &items.index())?,
        "created later, and listed"
    );
    assert!(!is_listed(&cluster, "gone_rollback_idx")?);
    wait_until("partitions dropped", || {
        let map = cluster.ctl("map")?;
        let text = map.to_string();
        Ok(
            !text.contains("gone_index_embedding_idx")
                && !text.contains("gone_table_embedding_idx"),
        )
    })
}

#[test]
fn an_index_dropped_and_made_again_serves_the_new_definition() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "again", 300, 8)?;
    session.batch_execute("DROP INDEX again_embedding_idx; DELETE FROM again WHERE id <= 100")?;
    items.create_index(&mut session, "vector_l2_ops")?;
    items.assert_equals_exact(&mut session, 10)?;
    session.batch_execute("REINDEX INDEX again_embedding_idx")?;
    session.wait_for(&items.index(), false)?;
    session.batch_execute("VACUUM FULL again")?;
    session.wait_for(&items.index(), false)?;
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn definitions_that_cannot_be_served_are_refused_by_name() -> Result<()> {
    let mut session: Session = Cluster::shared()?.session()?;
    Items::create(&mut session, "bad_defs", 5, 3)?;
    session.batch_execute("ALTER TABLE bad_defs ADD COLUMN loose vector")?;
    for (sql, word) in [
        (
            "CREATE INDEX ON bad_defs USING ruhnsw (loose vector_l2_ops)",
            "column does not have dimensions",
        ),
        (
            "CREATE INDEX ON bad_defs USING ruhnsw (embedding vector_l2_ops) WITH (m = 1)",
            "out of bounds",
        ),
        (
            "CREATE INDEX ON bad_defs USING ruhnsw (embedding vector_l2_ops) WITH (m = 16, ef_construction = 20)",
            "ef_construction",
        ),
        (
            "CREATE INDEX ON bad_defs USING ruhnsw (embedding vector_l2_ops) WHERE label > 3",
            "partial",
        ),
    ] {
        let error = session.batch_execute(sql).unwrap_err();
        let message = error.as_db_error().unwrap().message().to_owned();
        assert!(message.to_lowercase().contains(word), "{sql}: {message}");
    }
    let error = session
        .batch_execute(&format!(
            "SELECT '{}'::vector(2)",
            literal(&[1.0, 2.0, 3.0])
        ))
        .unwrap_err();
    assert!(
        error
            .as_db_error()
            .unwrap()
            .message()
            .contains("expected 2 dimensions, not 3")
    );
    Ok(())
}

#[test]
fn keys_are_found_whatever_encoding_the_client_speaks() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    session.batch_execute(
        "DROP TABLE IF EXISTS key_text; CREATE TABLE key_text(id text PRIMARY KEY, n bigint, embedding vector(3));
         INSERT INTO key_text VALUES ('é', 1, '[1,2,3]'), ('plain', 2, '[7,8,9]');
         CREATE INDEX key_text_idx ON key_text USING ruhnsw (embedding vector_l2_ops)",
    )?;
    session.wait_for("key_text_idx", false)?;
    session.batch_execute("SET client_encoding = 'LATIN1'")?;
    let sql = "SELECT n FROM key_text ORDER BY embedding <-> '[1,2,3]' LIMIT 2";
    session.explain(sql)?.assert_answered_by_the_cluster()?;
    assert_eq!(session.ids(sql)?, [1, 2]);
    assert_eq!(session.value("SHOW client_encoding")?, "LATIN1");
    Ok(())
}

#[test]
fn a_table_that_loses_its_key_leaves_the_cluster_and_its_writes_go_on() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "key_lost", 50, 3)?;
    let nearest = "SELECT id FROM key_lost ORDER BY embedding <-> '[90,90,90]' LIMIT 1";
    let registered = "SELECT count(*) FROM ruvector.collections WHERE table_name = 'key_lost'";
    let reindex = |session: &mut Session| -> Result<()> {
        session.batch_execute("REINDEX INDEX key_lost_embedding_idx")?;
        session.wait_for(&items.index(), false)?;
        items.assert_every_row_once(session)
    };

    session.batch_execute(
        "BEGIN; ALTER TABLE key_lost DROP CONSTRAINT key_lost_pkey;
         UPDATE key_lost SET embedding = '[90,90,90]' WHERE id = 7;
         ALTER TABLE key_lost ADD PRIMARY KEY (id); COMMIT",
    )?;
    assert_eq!(session.ids(nearest)?, [7], "the update is not missed");
    reindex(&mut session)?;

    session.batch_execute("ALTER TABLE key_lost REPLICA IDENTITY NOTHING")?;
    session.batch_execute(
        "UPDATE key_lost SET embedding = '[90,90,91]' WHERE id = 7; DELETE FROM key_lost WHERE id = 8",
    )?;
    assert_eq!(session.ids(nearest)?, [7]);
    session.batch_execute("ALTER TABLE key_lost REPLICA IDENTITY DEFAULT")?;
    reindex(&mut session)?;

    session.batch_execute("ALTER TABLE key_lost SET UNLOGGED")?;
    session.batch_execute("DELETE FROM key_lost WHERE id = 7")?;
    assert_ne!(session.ids(nearest)?, [7]);
    session.batch_execute("ALTER TABLE key_lost SET LOGGED")?;
    reindex(&mut session)?;

    session.batch_execute(
        "CREATE UNIQUE INDEX key_lost_other ON key_lost (id);
         ALTER TABLE key_lost REPLICA IDENTITY USING INDEX key_lost_other",
    )?;
    session.batch_execute("DROP INDEX CONCURRENTLY key_lost_other")?;
    session.batch_execute("UPDATE key_lost SET label = 1")?;
    assert_eq!(session.value(registered)?, "0");
    Ok(())
}

#[test]
fn a_key_that_is_made_again_keeps_the_index() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "key_again", 50, 3)?;
    session.batch_execute(
        "ALTER TABLE key_again DROP CONSTRAINT key_again_pkey, ADD PRIMARY KEY (id)",
    )?;
    items.assert_every_row_once(&mut session)?;
    session.batch_execute("ALTER TABLE key_again ALTER COLUMN id TYPE bigint USING id + 0")?;
    session.wait_for(&items.index(), false)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn rebuilds_are_allowed_in_read_only_transactions() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "read_only", 50, 3)?;
    session.batch_execute("SET default_transaction_read_only = on")?;
    for rebuild in [
        "REINDEX INDEX read_only_embedding_idx",
        "VACUUM FULL read_only",
        "CLUSTER read_only USING read_only_pkey",
    ] {
        session.batch_execute(rebuild)?;
    }
    let insert = "INSERT INTO read_only VALUES (99, 0, '[1,1,1]')";
    assert_eq!(session.client_error(insert).as_deref(), Some("25006"));
    session.wait_for(&items.index(), false)?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn a_second_order_by_operator_breaks_ties_as_without_an_index() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    Items::indexed(&mut session, "two_orders", 50, 3)?;
    let sql = "SELECT id FROM two_orders ORDER BY embedding <-> '[0,0,0]', embedding <-> '[1,1,1]'";
    let text = session.explain(sql)?.text;
    assert!(
        !text.contains("Index Scan using two_orders_embedding"),
        "{text}"
    );
    Ok(())
}

#[test]
fn an_index_of_the_own_transaction_is_not_waited_for() -> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::create(&mut session, "too_early", 5, 3)?;
    session.batch_execute(
        "BEGIN; CREATE INDEX too_early_embedding_idx ON too_early USING ruhnsw (embedding vector_l2_ops)",
    )?;
    let wait = "SELECT ruvector_wait_for_index('too_early_embedding_idx', 30)";
    assert_eq!(session.client_error(wait).as_deref(), Some("55000"));
    session.batch_execute("ROLLBACK")?;
    items.create_index(&mut session, "vector_l2_ops")?;
    items.assert_every_row_once(&mut session)
}

#[test]
fn a_temporary_index_does_not_hide_the_status_of_others() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut one, mut other) = (cluster.session()?, cluster.session()?);
    one.batch_execute(
        "CREATE TEMP TABLE mine(id int PRIMARY KEY, embedding vector(3));
         CREATE INDEX mine_idx ON mine USING ruhnsw (embedding vector_l2_ops)",
    )?;
    let count = "SELECT count(*) FROM ruvector_index_status() WHERE index_name = 'mine_idx'";
    assert_eq!(one.value(count)?, "1");
    assert_eq!(other.value(count)?, "0");
    Ok(())
}

#[test]
fn a_table_taken_out_of_the_publication_fails_its_index_by_name_and_reindex_builds_it_anew()
-> Result<()> {
    let mut session = Cluster::shared()?.session()?;
    let items = Items::indexed(&mut session, "unpublished", 300, 8)?;
    session.batch_execute("ALTER PUBLICATION ruvector DROP TABLE unpublished")?;
    session.execute("DELETE FROM unpublished WHERE id <= 50", &[])?;
    let status =
        "SELECT state || ': ' || reason FROM ruvector_index_status('unpublished_embedding_idx')";
    wait_until("failed by name", || {
        let status = session.value(status)?;
        Ok(status.starts_with("failed") && status.contains("publication"))
    })?;
    let standing = "SELECT state || ': ' || reason FROM ruvector_replication_status WHERE index = 'unpublished_embedding_idx'::regclass";
    wait_until("failed in the view too", || {
        let standing = session.value(standing)?;
        Ok(standing.starts_with("failed: ") && standing.contains("publication"))
    })?;
    let sql = items.nearest(5, 10);
    assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?);
    session.batch_execute("REINDEX INDEX unpublished_embedding_idx")?;
    session.wait_for(&items.index(), false)?;
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)
}
