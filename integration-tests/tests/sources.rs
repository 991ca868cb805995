//! Many sources: eight databases of three servers (six of one server, to spare the
//! machine) and two consumer processes that share them. Each source goes on whatever
//! becomes of another, of its server or of a consumer, and none answers for another.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::{Cluster, Items, Proxy, Server, Session, Shape, clustered_vector, literal};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const ROWS: i64 = 150;
const DIMENSIONS: usize = 8;

/// A database that the cluster follows, with a table of its own.
struct Source {
    name: String,
    dsn: String,
    session: Session,
    items: Items,
    next_id: i64,
}

impl Source {
    fn follow(cluster: &Cluster, name: &str, dsn: String) -> Result<Self> {
        let mut session = Session::open(&dsn)?;
        session.batch_execute("CREATE EXTENSION IF NOT EXISTS ruvector")?;
        if name != "local" {
            cluster.ctl(&format!("source add {dsn} --name {name}"))?;
        }
        Self::with_table(name, dsn, session)
    }

    fn with_table(name: &str, dsn: String, mut session: Session) -> Result<Self> {
        let items = Items::create(&mut session, "items", ROWS, DIMENSIONS)?;
        Ok(Self {
            name: name.to_owned(),
            dsn,
            session,
            items,
            next_id: ROWS + 1,
        })
    }

    fn index(&mut self) -> Result<()> {
        let items = self.items.clone();
        items.create_index(&mut self.session, "vector_l2_ops")
    }

    /// A new row, a moved one, and one less.
    fn write(&mut self) -> Result<()> {
        let id = self.next_id;
        self.next_id += 1;
        let vector = |id| literal(&clustered_vector(id, DIMENSIONS));
        let (new, moved) = (vector(id), vector(2_000_000 + id));
        self.session.batch_execute(&format!(
            "INSERT INTO items VALUES ({id}, 0, '{new}');
             UPDATE items SET embedding = '{moved}' WHERE id = {};
             DELETE FROM items WHERE id = {}",
            id / 2,
            id - ROWS
        ))?;
        Ok(())
    }

    /// Its own last commit included, however long that takes.
    fn assert_exact(&mut self) -> Result<()> {
        let items = self.items.clone();
        items
            .assert_equals_exact(&mut self.session, 10)
            .and_then(|()| items.assert_every_row_once(&mut self.session))
            .with_context(|| self.name.clone())
    }
}

fn databases(session: &mut Session, names: &[&str]) -> Result<()> {
    for name in names {
        session.batch_execute(&format!("CREATE DATABASE {name}"))?;
    }
    Ok(())
}

/// Which consumer holds which sources, with their tokens.
fn holders(cluster: &Cluster) -> Result<BTreeMap<u64, Vec<String>>> {
    let mut holders = BTreeMap::new();
    for source in list(cluster)? {
        if let Some(consumer) = source["consumer_id"].as_u64() {
            let name = source["name"].as_str().unwrap_or_default().to_owned();
            holders.entry(consumer).or_insert_with(Vec::new).push(name);
        }
    }
    Ok(holders)
}

fn list(cluster: &Cluster) -> Result<Vec<Value>> {
    let list = cluster.ctl("source list")?;
    Ok(list.as_array().cloned().unwrap_or_default())
}

fn listed(cluster: &Cluster, name: &str) -> Result<Value> {
    let found = list(cluster)?.into_iter().find(|s| s["name"] == name);
    found.with_context(|| format!("{name} is not listed"))
}

fn within(limit: Duration, what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let give_up = Instant::now() + limit;
    while !is_so().unwrap_or(false) {
        ensure!(Instant::now() < give_up, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn shared_evenly(cluster: &Cluster, each: &[usize]) -> Result<()> {
    within(Duration::from_secs(40), "shared evenly", || {
        let held = holders(cluster)?;
        let mut loads: Vec<usize> = held.values().map(Vec::len).collect();
        loads.sort_unstable();
        Ok(loads == each)
    })
}

/// How long until every one of these answers with a row that it has just written.
fn slowest_write(sources: &mut [Source], except: &str) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for source in sources.iter_mut().filter(|s| s.name != except) {
        let began = Instant::now();
        source.write()?;
        source.assert_exact()?;
        slowest = slowest.max(began.elapsed());
    }
    Ok(slowest)
}

#[test]
fn p2_p9_eight_sources_and_two_consumers_whatever_stops() -> Result<()> {
    let folder = format!("/var/tmp/ruvector-test-credentials-{}", std::process::id());
    std::fs::create_dir_all(&folder)?;
    let credentials = Credentials(Path::new(&folder));
    let setting = format!("credentials_dir = {folder:?}");
    let settings = [("CONSUMER_SETTINGS", setting.as_str())];
    let cluster = Cluster::start_with("sources", Shape::ONE, &settings)?;
    cluster.shell("scripts/cluster.sh add consumer")?;
    let (second, third) = (
        Server::start(&cluster, "postgres-2")?,
        Server::start(&cluster, "postgres-3")?,
    );
    databases(&mut cluster.session()?, &["s1", "s2", "s3", "s4", "s5"])?;
    databases(&mut second.session("postgres")?, &["t1"])?;
    databases(&mut third.session("postgres")?, &["u1"])?;
    let mut sources = vec![Source::follow(&cluster, "local", cluster.dsn().to_owned())?];
    for name in ["s1", "s2", "s3", "s4", "s5"] {
        sources.push(Source::follow(&cluster, name, cluster.dsn_of(name))?);
    }
    sources.push(Source::follow(&cluster, "t1", second.dsn_of("t1")?)?);
    sources.push(follow_as_a_lesser_role(&cluster, &third, &credentials)?);
    for source in &mut sources {
        source.index()?;
    }
    shared_evenly(&cluster, &[4, 4])?;
    isolated(&mut sources)?;
    a_password_changes_without_a_restart(&credentials, &mut sources)?;
    a_stopped_server_delays_nobody_else(&cluster, &second, &mut sources)?;
    a_killed_consumers_sources_go_on_elsewhere(&cluster, &mut sources)?;
    a_paused_source_waits_and_catches_up(&cluster, &mut sources)?;
    a_server_is_followed_at_another_address(&cluster, &mut sources)?;
    a_removed_source_leaves_nothing(&cluster, &mut sources)?;
    a_detached_source_stays_detached(&cluster, &mut sources)?;
    slowest_write(&mut sources, "")?;
    a_lesser_role_leaves_nothing(&cluster, &credentials, &mut sources)?;
    drop((second, third));
    std::fs::remove_dir_all(&folder)?;
    cluster.finish()
}

/// A folder of passwords, as the consumers have it.
struct Credentials<'a>(&'a Path);

impl Credentials<'_> {
    fn write(&self, source: &str, password: &str) -> Result<()> {
        let file = self.file(source);
        std::fs::write(&file, password)?;
        Ok(std::fs::set_permissions(
            &file,
            Permissions::from_mode(0o600),
        )?)
    }

    fn file(&self, source: &str) -> PathBuf {
        self.0.join(source)
    }
}

/// The role of docs/sources.md, word for word.
const ROLE: &str = "
CREATE ROLE ruvector_follower LOGIN REPLICATION PASSWORD 'first';
GRANT pg_read_all_stats TO ruvector_follower;";
const GRANTS: &str = "
GRANT USAGE ON SCHEMA ruvector TO ruvector_follower;
GRANT SELECT ON ruvector.collections, ruvector.detachments, ruvector.slot_advances TO ruvector_follower;
GRANT EXECUTE ON FUNCTION ruvector.create_publication(name), ruvector.publish_table(name, oid),
  ruvector.unpublish_table(name, oid), ruvector.drop_publication(name), ruvector.end_walsender(name),
  ruvector.note_slot(name, bigint)
  TO ruvector_follower;
GRANT USAGE ON SCHEMA public TO ruvector_follower;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO ruvector_follower;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO ruvector_follower;";

fn follow_as_a_lesser_role(
    cluster: &Cluster,
    server: &Server,
    credentials: &Credentials,
) -> Result<Source> {
    let dsn = server.dsn_of("u1")?;
    let mut session = Session::open(&dsn)?;
    session.batch_execute("CREATE EXTENSION ruvector")?;
    session.batch_execute(ROLE)?;
    credentials.write("u1", "first")?;
    let (_, place) = dsn.rsplit_once('@').context("a DSN with a user")?;
    let add = format!(
        "source add postgresql://ruvector_follower@{place} --name u1 --password-file {}",
        credentials.file("u1").display()
    );
    // Nothing is granted yet, and each right is named.
    let refused = cluster
        .ctl(&add)
        .err()
        .context("registered without rights")?;
    let said = format!("{refused:#}");
    for name in ["definitions", "publication"] {
        ensure!(said.contains(name), "{name} is not among {said}");
    }
    session.batch_execute(GRANTS)?;
    let added = cluster.ctl(&add)?;
    ensure!(
        added["checks"].to_string().contains("is no superuser"),
        "{added}"
    );
    let stored = cluster.ctl("source list")?.to_string() + &cluster.ctl("status")?.to_string();
    ensure!(!stored.contains("first"), "{stored}");
    Source::with_table("u1", dsn, session)
}

fn a_password_changes_without_a_restart(
    credentials: &Credentials,
    sources: &mut [Source],
) -> Result<()> {
    let source = find(sources, "u1");
    source
        .session
        .batch_execute("ALTER ROLE ruvector_follower PASSWORD 'second'")?;
    credentials.write("u1", "second")?;
    source.session.batch_execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ruvector_follower'",
    )?;
    source.write()?;
    source.assert_exact()?;
    // An index made now is copied over new connections.
    source
        .session
        .batch_execute("CREATE INDEX second ON items USING ruhnsw (embedding vector_cosine_ops)")?;
    source.session.wait_for("second", false)?;
    source.session.batch_execute("DROP INDEX second")?;
    source.assert_exact()
}

fn a_lesser_role_leaves_nothing(
    cluster: &Cluster,
    credentials: &Credentials,
    sources: &mut [Source],
) -> Result<()> {
    let session = &mut find(sources, "u1").session;
    let published =
        "SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_publication_tables";
    ensure!(session.value(published)? == "collections,items");
    session.batch_execute("DROP INDEX items_embedding_idx")?;
    within(
        Duration::from_secs(20),
        "the table leaves the publication",
        || Ok(session.value(published)? == "collections"),
    )?;
    // Without the password the server is not reached, and the SQL for it is told.
    let refused = cluster
        .ctl("source check u1")
        .err()
        .context("reached without a password")?;
    ensure!(
        format!("{refused:#}").contains("--password-file"),
        "{refused:#}"
    );
    let file = credentials.file("u1");
    cluster.ctl(&format!(
        "source remove u1 --password-file {}",
        file.display()
    ))?;
    ensure!(slots_of(session, "u1")? == "0");
    ensure!(session.value("SELECT count(*) FROM pg_publication")? == "0");
    Ok(())
}

/// P9: the same ids and the same vectors in each, but for one row that names it.
fn isolated(sources: &mut [Source]) -> Result<()> {
    for (n, source) in (1..9).zip(sources.iter_mut()) {
        let own = literal(&clustered_vector(500_000 + n, DIMENSIONS));
        let insert = format!("INSERT INTO items VALUES ({}, 0, '{own}')", 500_000 + n);
        source.session.batch_execute(&insert)?;
    }
    for _ in 0..5 {
        for source in sources.iter_mut() {
            source.write()?;
        }
    }
    for (n, source) in (1..).zip(sources.iter_mut()) {
        source.assert_exact()?;
        for other in 1..=8 {
            let probe = source.items.nearest(500_000 + other, 1);
            let found = source.session.ids(&probe)? == [500_000 + other];
            ensure!(
                found == (n == other),
                "{} found the row of {other}",
                source.name
            );
        }
    }
    Ok(())
}

fn a_stopped_server_delays_nobody_else(
    cluster: &Cluster,
    server: &Server,
    sources: &mut [Source],
) -> Result<()> {
    slowest_write(sources, "")?;
    cluster.signal(server.name(), "STOP")?;
    let pid_children = format!(
        "pkill -STOP -P \"$(head -n 1 $RUN_DIR/pids/{}.pid)\"",
        server.name()
    );
    cluster.shell(&pid_children)?;
    let until = Instant::now() + Duration::from_secs(12);
    let mut slowest = Duration::ZERO;
    while Instant::now() < until {
        slowest = slowest.max(slowest_write(sources, "t1")?);
    }
    ensure!(
        slowest < Duration::from_secs(4),
        "a write took {slowest:?} to be seen while another server stood still"
    );
    cluster.signal(server.name(), "CONT")?;
    cluster.shell(&pid_children.replace("-STOP", "-CONT"))?;
    slowest_write(sources, "").map(drop)
}

fn a_killed_consumers_sources_go_on_elsewhere(
    cluster: &Cluster,
    sources: &mut [Source],
) -> Result<()> {
    let tokens = |cluster: &Cluster| -> Result<BTreeMap<u64, u64>> {
        let map = cluster.wire()?.map()?;
        let sources = map.sources.values();
        Ok(sources.map(|s| (s.id.0, s.consumer_epoch.0)).collect())
    };
    let before = tokens(cluster)?;
    cluster.kill("consumer-2")?;
    let killed = Instant::now();
    for source in sources.iter_mut() {
        source.write()?;
    }
    within(Duration::from_secs(25), "one consumer follows all", || {
        Ok(holders(cluster)?.values().any(|held| held.len() == 8))
    })?;
    for source in sources.iter_mut() {
        source.assert_exact()?;
    }
    let took = killed.elapsed();
    ensure!(took < Duration::from_secs(40), "failover took {took:?}");
    let after = tokens(cluster)?;
    let risen = after.iter().filter(|(id, token)| **token > before[id]);
    ensure!(risen.count() == 4, "before {before:?}, after {after:?}");
    cluster.restart("consumer-2")?;
    shared_evenly(cluster, &[4, 4])?;
    slowest_write(sources, "").map(drop)
}

fn find<'a>(sources: &'a mut [Source], name: &str) -> &'a mut Source {
    sources.iter_mut().find(|s| s.name == name).unwrap()
}

fn is_streamed(session: &mut Session, slot: &str) -> Result<bool> {
    let sql = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    Ok(session.value(&sql)? == "t")
}

fn slots_of(session: &mut Session, database: &str) -> Result<String> {
    session.value(&format!(
        "SELECT count(*) FROM pg_replication_slots WHERE database = '{database}'"
    ))
}

fn a_paused_source_waits_and_catches_up(cluster: &Cluster, sources: &mut [Source]) -> Result<()> {
    let source = find(sources, "s1");
    let slot = listed(cluster, "s1")?["slot"].as_str().unwrap().to_owned();
    cluster.ctl("source pause s1")?;
    within(Duration::from_secs(10), "the slot is let go", || {
        Ok(!is_streamed(&mut source.session, &slot)?)
    })?;
    let fresh = source.next_id;
    source.write()?;
    // Old data is answered to who takes it.
    let near = source.items.nearest(fresh, 1);
    source
        .session
        .batch_execute("SET ruvector.read_consistency = eventual")?;
    ensure!(source.session.ids(&near)? != [fresh], "it is not followed");
    cluster.kill("coordinator-1")?;
    cluster.restart("coordinator-1")?;
    cluster.kill("consumer-1")?;
    cluster.restart("consumer-1")?;
    within(Duration::from_secs(30), "the pause survives", || {
        Ok(listed(cluster, "s1")?["state"] == "paused")
    })?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(!is_streamed(&mut source.session, &slot)?, "it was paused");
    let status = cluster.ctl("status")?.to_string();
    ensure!(status.contains("(s1) is paused"), "{status}");
    source
        .session
        .batch_execute("RESET ruvector.read_consistency")?;
    cluster.ctl("source resume s1")?;
    source.assert_exact()
}

/// The same server, past a line of its own: no break, and nothing is copied.
fn a_server_is_followed_at_another_address(
    cluster: &Cluster,
    sources: &mut [Source],
) -> Result<()> {
    let source = find(sources, "s4");
    let incarnation = |cluster: &Cluster| -> Result<u64> {
        let map = cluster.wire()?.map()?;
        let found = map.sources.values().find(|s| s.name == "s4");
        Ok(found.context("s4 is not in the map")?.incarnation.0)
    };
    let before = incarnation(cluster)?;
    let (_, place) = source.dsn.rsplit_once('@').context("a DSN with a user")?;
    let (server, _) = place.split_once('/').context("a DSN with a database")?;
    let proxy = Proxy::to(server.parse()?, b"nothing is spoiled")?;
    let elsewhere = source
        .dsn
        .replace(server, &format!("127.0.0.1:{}", proxy.port()));
    // Another database is not the same source.
    let other = elsewhere.replace("/s4", "/s5");
    let refused = cluster.ctl(&format!("source set-dsn s4 {other}"));
    ensure!(refused.is_err(), "set-dsn to another database");
    cluster.ctl(&format!("source set-dsn s4 {elsewhere}"))?;
    within(Duration::from_secs(20), "streamed past the proxy", || {
        Ok(proxy.passed_bytes() > 0 && listed(cluster, "s4")?["state"] == "followed")
    })?;
    let passed = proxy.passed_bytes();
    source.write()?;
    source.assert_exact()?;
    ensure!(
        proxy.passed_bytes() > passed,
        "what was written did not come that way"
    );
    ensure!(incarnation(cluster)? == before, "that was no break");
    cluster.ctl(&format!("source set-dsn s4 {}", source.dsn))?;
    source.write()?;
    source.assert_exact()
}

fn a_removed_source_leaves_nothing(cluster: &Cluster, sources: &mut Vec<Source>) -> Result<()> {
    let id = listed(cluster, "s2")?["id"].as_u64().unwrap();
    cluster.ctl("source remove s2")?;
    let mut source = {
        let at = sources.iter().position(|s| s.name == "s2").unwrap();
        sources.remove(at)
    };
    ensure!(slots_of(&mut source.session, "s2")? == "0");
    let publications = "SELECT count(*) FROM pg_publication";
    ensure!(source.session.value(publications)? == "0");
    let map = cluster.wire()?.map()?;
    ensure!(!map.collections.values().any(|c| c.spec.source.0 == id));
    within(Duration::from_secs(15), "the node lets go", || {
        let partitions = cluster.wire()?.map()?.partitions.len() as u64;
        let nodes = cluster.ctl("status")?["nodes"].clone();
        let held: u64 = nodes
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|n| n["replicas"].as_u64())
            .sum();
        Ok(held == partitions)
    })
}

fn a_detached_source_stays_detached(cluster: &Cluster, sources: &mut Vec<Source>) -> Result<()> {
    let at = sources.iter().position(|s| s.name == "s3").unwrap();
    let Source {
        mut session, dsn, ..
    } = sources.remove(at);
    session.batch_execute(
        "CREATE ROLE s3_owner LOGIN; ALTER DATABASE s3 OWNER TO s3_owner; SET ROLE s3_owner",
    )?;
    ensure!(session.value("SELECT ruvector_detach_source()")? == "1");
    within(Duration::from_secs(20), "shown as detached", || {
        Ok(listed(cluster, "s3")?["state"] == "detached")
    })?;
    let standing = "SELECT state || ': ' || reason FROM ruvector_replication_status";
    session.batch_execute("RESET ROLE")?;
    within(Duration::from_secs(10), "told inside as well", || {
        Ok(session.value(standing)?.starts_with("not followed: "))
    })?;
    let problem = listed(cluster, "s3")?["problem"].to_string();
    ensure!(problem.contains("s3_owner"), "{problem}");
    // Longer than a server is left alone between two looks.
    std::thread::sleep(Duration::from_secs(7));
    ensure!(slots_of(&mut session, "s3")? == "0", "the slot came back");
    let refused = cluster.ctl("source resume s3");
    ensure!(refused.is_err_and(|e| format!("{e}").contains("source remove s3")));
    cluster.ctl("source remove s3")?;
    // It can be followed anew, as a source that is new.
    cluster.ctl(&format!("source add {dsn} --name s3"))?;
    session.wait_for("items_embedding_idx", false)?;
    ensure!(session.value("SELECT ruvector_detach_source()")? == "1");
    drop(session);
    let mut admin = cluster.session()?;
    admin.batch_execute("DROP DATABASE s3")?;
    admin.batch_execute("DROP ROLE s3_owner")?;
    cluster.ctl("source remove s3").map(drop)
}
