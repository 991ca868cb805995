//! A message that cannot be read may hold a row: the source stops there, and says where
//! and what it was. It is never logged and skipped.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::{Cluster, Items, Proxy, Shape};
use std::time::{Duration, Instant};

const MARK: &[u8] = b"spoil this row";
const SAID_WITHIN: Duration = Duration::from_secs(30);

fn problem(cluster: &Cluster) -> Result<String> {
    let sources = cluster.ctl("source list")?;
    let problem = sources[0]["problem"].as_str();
    Ok(problem.unwrap_or_default().to_owned())
}

fn wait_for_problem(cluster: &Cluster, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + SAID_WITHIN;
    loop {
        let problem = problem(cluster)?;
        if is_it(&problem) {
            return Ok(problem);
        }
        ensure!(
            Instant::now() < deadline,
            "{what}: the source's problem is {problem:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn p2_an_undecodable_message_stops_the_source_with_its_position_and_bytes() -> Result<()> {
    let cluster = Cluster::start("undecodable", Shape::ONE)?;
    let mut session = cluster.session()?;
    let (server, database) = cluster.dsn().rsplit_once('/').context("a DSN")?;
    let (before, address) = server.rsplit_once('@').context("a DSN with a password")?;
    let proxy = Proxy::to(address.parse()?, MARK)?;
    cluster.ctl("source remove local")?;
    let dsn = format!("{before}@127.0.0.1:{}/{database}", proxy.port());
    cluster.ctl(&format!("source add {dsn} --name local"))?;
    let items = Items::indexed(&mut session, "marked", 100, 8)?;
    session.batch_execute("ALTER TABLE marked ADD COLUMN note text")?;

    proxy.spoil();
    session.batch_execute(
        "INSERT INTO marked VALUES (1001, 1, '[1,2,3,4,5,6,7,8]', 'spoil this row');
         INSERT INTO marked VALUES (1002, 1, '[1,2,3,4,5,6,7,9]', 'and not this one')",
    )?;
    let said = wait_for_problem(&cluster, "spoiled", |text| {
        text.contains("unknown message 'i'")
    })?;
    // 69 is the `i`; the row's bytes follow the relation's number.
    ensure!(
        said.contains(" at 0/") && said.contains("bytes: 69"),
        "{said}"
    );
    ensure!(said.chars().count() < 500, "{said}");

    // Looked at again it is the same, and nothing behind it is let by.
    let spoiled = proxy.spoiled();
    let deadline = Instant::now() + SAID_WITHIN;
    while proxy.spoiled() < spoiled + 2 {
        ensure!(Instant::now() < deadline, "the source does not try again");
        ensure!(
            problem(&cluster)? == said,
            "forgotten, though nothing has changed"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let confirmed = session.value(&format!(
        "SELECT bool_and(confirmed_flush_lsn <= '{}') FROM pg_replication_slots",
        said.split(" at ")
            .nth(1)
            .and_then(|rest| rest.split(';').next())
            .context("a position")?
    ))?;
    ensure!(confirmed == "t", "the slot has passed what was not read");
    let sql = items.nearest(3, 5);
    ensure!(
        session
            .client_error(&format!("SET ruvector.search_timeout_ms = 500; {sql}"))
            .as_deref()
            == Some("RV002"),
        "a search that needs the row does not say that the index lags"
    );

    proxy.heal();
    session.batch_execute("SET ruvector.search_timeout_ms = 40000")?;
    items.assert_equals_exact(&mut session, 10)?;
    items.assert_every_row_once(&mut session)?;
    wait_for_problem(&cluster, "healed", str::is_empty)?;
    cluster.finish()
}
