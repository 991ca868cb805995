//! A slot can be made only once what was open before has ended, anywhere on the server.
//! For whom an index waits is told where its user looks.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use integration_tests::{Cluster, Items, Session};
use std::time::{Duration, Instant};

const SAID_WITHIN: Duration = Duration::from_secs(60);

/// Looks again until it says all of it.
fn wait_for_words(words: &[&str], mut look: impl FnMut() -> Result<String>) -> Result<()> {
    let deadline = Instant::now() + SAID_WITHIN;
    loop {
        let said = look()?;
        if words.iter().all(|word| said.contains(word)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not {words:?} but {said:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn p8_for_whom_a_new_slot_waits_is_told_until_that_ends() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    session.batch_execute("CREATE DATABASE elsewhere")?;
    session.batch_execute("CREATE DATABASE followed_late")?;
    Session::open(&cluster.dsn_of("followed_late"))?.batch_execute("CREATE EXTENSION ruvector")?;
    // In a database that nobody follows: a slot waits for the whole server.
    let mut writer = Session::open(&cluster.dsn_of("elsewhere"))?;
    writer.batch_execute(
        "SET application_name = 'nightly report'; CREATE TABLE t(x int); BEGIN; INSERT INTO t VALUES (1)",
    )?;
    let pid = writer.value("SELECT pg_backend_pid()")?;
    let who = format!("pid {pid} in database elsewhere (application nightly report,");
    let act = format!("pg_terminate_backend({pid})");

    let items = Items::create(&mut session, "waits", 300, 8)?;
    session.batch_execute(&format!(
        "CREATE INDEX {} ON waits USING ruhnsw (embedding vector_l2_ops)",
        items.index()
    ))?;
    let status = format!(
        "SELECT state || ': ' || coalesce(reason, '') FROM ruvector_index_status('{}')",
        items.index()
    );
    wait_for_words(&["building: its backfill waits for", &who, &act], || {
        session.value(&status)
    })?;
    for command in ["lag", "collections", "status"] {
        wait_for_words(&[&who, &act], || Ok(cluster.ctl(command)?.to_string()))?;
    }
    // A source whose first slot waits has no index yet that could tell.
    let dsn = cluster.dsn_of("followed_late");
    cluster.ctl(&format!("source add {dsn} --name followed-late"))?;
    for command in ["lag", "status"] {
        wait_for_words(&["a new slot waits for", &who, &act], || {
            Ok(cluster.ctl(command)?.to_string())
        })?;
    }
    let building = session.value(&status)?;
    ensure!(
        building.starts_with("building"),
        "before it ended: {building}"
    );

    writer.batch_execute("COMMIT")?;
    items.assert_followed(&mut session)?;
    let deadline = Instant::now() + SAID_WITHIN;
    loop {
        let said = cluster.ctl("lag")?.to_string() + &cluster.ctl("status")?.to_string();
        if !said.contains("waits for transactions") {
            break;
        }
        ensure!(Instant::now() < deadline, "still told: {said}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let ready = session.value(&status)?;
    ensure!(ready.starts_with("ready"), "{ready}");
    cluster.ctl("source remove followed-late")?;
    drop(writer);
    session.batch_execute("DROP TABLE waits")?;
    session.batch_execute("DROP DATABASE elsewhere WITH (FORCE)")?;
    session.batch_execute("DROP DATABASE followed_late WITH (FORCE)")?;
    Ok(())
}
