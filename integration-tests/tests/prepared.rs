//! Two-phase commit: what a prepared transaction did is there once it is committed, for
//! whoever waits for that commit, and never if it is rolled back.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use integration_tests::{Cluster, Items, Session};
use std::time::{Duration, Instant};

const DIMENSIONS: usize = 8;
const SAID_WITHIN: Duration = Duration::from_secs(60);

/// A prepared transaction outlives its session, and holds what the next test needs.
struct Prepared<'a> {
    cluster: &'a Cluster,
    name: &'static str,
}

impl Prepared<'_> {
    fn end(&self, session: &mut Session, how: &str) -> Result<()> {
        Ok(session.batch_execute(&format!("{how} PREPARED '{}'", self.name))?)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if let Ok(mut session) = self.cluster.session() {
            // Over already, unless the test failed.
            let _ = self.end(&mut session, "ROLLBACK");
        }
    }
}

/// Prepares a new row, a moved one and one less, and says which.
fn prepare<'a>(
    cluster: &'a Cluster,
    session: &mut Session,
    items: &Items,
    name: &'static str,
) -> Result<Prepared<'a>> {
    session.batch_execute("BEGIN")?;
    items.insert(session, 1_001..1_002)?;
    let table = &items.name;
    session.batch_execute(&format!(
        "UPDATE {table} SET embedding = (SELECT embedding FROM {table} WHERE id = 1001) + embedding WHERE id = 7;
         DELETE FROM {table} WHERE id = 8"
    ))?;
    // Its own writes are seen before it is prepared, and not by its session afterwards.
    ensure!(session.ids(&items.nearest(1_001, 1))? == [1_001]);
    session.batch_execute(&format!("PREPARE TRANSACTION '{name}'"))?;
    Ok(Prepared { cluster, name })
}

fn strong(session: &mut Session) -> Result<()> {
    Ok(session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 30000",
    )?)
}

/// Until the status says that the index waits for the prepared transaction.
fn wait_until_it_is_told_for_whom(
    items: &Items,
    session: &mut Session,
    prepared: &str,
) -> Result<()> {
    let waits = "building: its backfill waits for transactions that were open before it";
    let whom = format!("ROLLBACK PREPARED '{prepared}'");
    let status = format!(
        "SELECT state || ': ' || coalesce(reason, '') FROM ruvector_index_status('{}')",
        items.index()
    );
    let deadline = Instant::now() + SAID_WITHIN;
    loop {
        let said = session.value(&status)?;
        ensure!(
            !said.starts_with("ready"),
            "built under an open transaction: {said}"
        );
        if said.starts_with(waits) && said.contains(&whom) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not {whom:?} but {said:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn p1_p2_what_was_prepared_is_found_once_it_is_committed_by_whoever_waits_for_that() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut session, mut other, mut third) =
        (cluster.session()?, cluster.session()?, cluster.session()?);
    let items = Items::indexed(&mut session, "prepared", 200, DIMENSIONS)?;
    strong(&mut third)?;
    let prepared = prepare(&cluster, &mut session, &items, "rows")?;
    for asker in [&mut session, &mut other, &mut third] {
        ensure!(asker.ids(&items.nearest(1_001, 1))? != [1_001]);
        items.assert_equals_exact(asker, 10)?;
        items.assert_every_row_once(asker)?;
    }
    // A slot is made only when older transactions have ended: what is built waits.
    let built = Items::create(&mut third, "built_meanwhile", 50, DIMENSIONS)?;
    third.batch_execute(
        "CREATE INDEX built_meanwhile_embedding_idx ON built_meanwhile USING ruhnsw (embedding vector_l2_ops)",
    )?;
    wait_until_it_is_told_for_whom(&built, &mut third, prepared.name)?;
    // Another one that commits later, and before it.
    items.insert(&mut other, 2_001..2_002)?;
    ensure!(other.ids(&items.nearest(2_001, 1))? == [2_001]);

    prepared.end(&mut other, "COMMIT")?;
    // The session that committed it waits for it as for a commit of its own.
    ensure!(other.ids(&items.nearest(1_001, 1))? == [1_001]);
    ensure!(third.ids(&items.nearest(1_001, 1))? == [1_001]);
    for asker in [&mut other, &mut third] {
        items.assert_equals_exact(asker, 10)?;
        items.assert_every_row_once(asker)?;
    }
    built.assert_followed(&mut third)?;
    // A token of that session covers it too.
    let token = other.value("SELECT ruvector_session_token()")?;
    session.batch_execute(&format!("SET ruvector.session_token = '{token}'"))?;
    ensure!(session.ids(&items.nearest(1_001, 1))? == [1_001]);
    items.assert_equals_heap(&cluster, 200)
}

#[test]
fn p3_what_was_prepared_and_rolled_back_is_never_found() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut session, mut other) = (cluster.session()?, cluster.session()?);
    let items = Items::indexed(&mut session, "prepared_not", 200, DIMENSIONS)?;
    let prepared = prepare(&cluster, &mut session, &items, "rolled_back")?;
    prepared.end(&mut other, "ROLLBACK")?;
    strong(&mut other)?;
    ensure!(other.ids(&items.nearest(1_001, 1))? != [1_001]);
    items.assert_equals_exact(&mut other, 10)?;
    items.assert_equals_heap(&cluster, 200)
}

/// P11: CREATE INDEX, what rewrites a table, and what takes one out of the publication can
/// be prepared; the index is made when that commits.
#[test]
fn p11_definitions_can_be_prepared_and_count_once_they_are_committed() -> Result<()> {
    let cluster = Cluster::shared()?;
    let (mut session, mut other) = (cluster.session()?, cluster.session()?);
    let items = Items::create(&mut session, "prepared_ddl", 200, DIMENSIONS)?;
    let known = "SELECT count(*) FROM ruvector.collections WHERE table_name = 'prepared_ddl'";
    session.batch_execute(
        "BEGIN; CREATE INDEX prepared_ddl_embedding_idx ON prepared_ddl USING ruhnsw (embedding vector_l2_ops);
         UPDATE prepared_ddl SET embedding = embedding + embedding WHERE id % 9 = 1;
         PREPARE TRANSACTION 'defined'",
    )?;
    let prepared = Prepared {
        cluster: &cluster,
        name: "defined",
    };
    ensure!(other.value(known)? == "0");
    prepared.end(&mut other, "COMMIT")?;
    items.assert_followed(&mut other)?;

    session.batch_execute(
        "BEGIN; ALTER TABLE prepared_ddl ALTER COLUMN embedding TYPE vector(8) USING embedding - embedding;
         ALTER TABLE prepared_ddl DROP CONSTRAINT prepared_ddl_pkey; PREPARE TRANSACTION 'defined'",
    )?;
    prepared.end(&mut other, "ROLLBACK")?;
    items.assert_followed(&mut other)?;
    session.batch_execute(
        "BEGIN; TRUNCATE prepared_ddl; ALTER TABLE prepared_ddl ADD COLUMN volatile float8 DEFAULT random();
         INSERT INTO prepared_ddl SELECT n, 0, ARRAY[n, 1, 1, 1, n % 7, 1, 1, 1]::real[]::vector FROM generate_series(1, 60) n;
         PREPARE TRANSACTION 'defined'",
    )?;
    prepared.end(&mut other, "COMMIT")?;
    items.assert_followed(&mut other)?;
    items.assert_equals_heap(&cluster, 60)
}
