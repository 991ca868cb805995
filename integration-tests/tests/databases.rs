//! Whole databases: dumped and restored, copied, cloned, renamed, dropped, upgraded. A
//! copy is never answered from its original's index (P1, P9), and no statement about a
//! database fails because it is followed (P11).
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::{Answer, Cluster, DirectSearch, Items, Session, Shape};
use proto::v1;
use std::time::{Duration, Instant};

/// A database of the shared server that the cluster follows.
struct Database<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Database<'a> {
    /// New and empty but for the extension.
    fn followed(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let database = Self {
            cluster,
            name: name.to_owned(),
        };
        cluster
            .session()?
            .batch_execute(&format!("CREATE DATABASE {name}"))?;
        database
            .session()?
            .batch_execute("CREATE EXTENSION ruvector")?;
        database.follow()?;
        Ok(database)
    }

    fn follow(&self) -> Result<()> {
        let arguments = format!("source add {} --name {}", self.dsn(), self.name);
        self.cluster.ctl(&arguments).map(drop)
    }

    fn unfollow(&self) -> Result<()> {
        self.cluster
            .ctl(&format!("source remove {}", self.name))
            .map(drop)
    }

    fn dsn(&self) -> String {
        self.cluster.dsn_of(&self.name)
    }

    fn session(&self) -> Result<Session> {
        Session::open(&self.dsn())
    }
}

fn fill(session: &mut Session) -> Result<Vec<Items>> {
    let mut all = Vec::new();
    for name in ["first", "second", "third"] {
        all.push(Items::indexed(session, name, 200, 8)?);
    }
    session.batch_execute(
        "CREATE TABLE parted(id bigint, label int, embedding vector(8), PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (100);
         CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (100) TO (100000);
         INSERT INTO parted SELECT * FROM first;
         CREATE INDEX parted_embedding_idx ON parted USING ruhnsw (embedding vector_l2_ops);
         ALTER TABLE second REPLICA IDENTITY FULL",
    )?;
    all.push(Items {
        name: "parted".into(),
        dimensions: 8,
    });
    for items in &all {
        items.assert_followed(session)?;
    }
    Ok(all)
}

fn assert_followed(session: &mut Session, all: &[Items]) -> Result<()> {
    for items in all {
        items
            .assert_followed(session)
            .with_context(|| items.name.clone())?;
    }
    Ok(())
}

#[test]
fn p2_a_dump_is_restored_into_a_followed_database_also_in_parallel() -> Result<()> {
    let cluster = Cluster::shared()?;
    let origin = Database::followed(&cluster, "dumped")?;
    let all = fill(&mut origin.session()?)?;
    let dump = format!("\"$PG_BIN/pg_dump\" -d '{}'", origin.dsn());

    // Into a database that nobody follows yet: plain SQL, extension and all.
    cluster
        .session()?
        .batch_execute("CREATE DATABASE restored_plain")?;
    let plain = Database {
        cluster: &cluster,
        name: "restored_plain".into(),
    };
    cluster.shell(&format!(
        "{dump} | \"$PG_BIN/psql\" -X -q -v ON_ERROR_STOP=1 -d '{}' >/dev/null",
        plain.dsn()
    ))?;
    let mut session = plain.session()?;
    let reason = "SELECT reason FROM ruvector_index_status('first_embedding_idx')";
    let told = session.value(reason)?;
    ensure!(told.contains("ctl source add"), "{told}");
    let sql = all[0].nearest(3, 10);
    assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?);
    plain.follow()?;
    assert_followed(&mut session, &all)?;

    // Into one that is followed, with everything at once: an index may come before its
    // table's key.
    for round in 0..3 {
        let parallel = Database::followed(&cluster, &format!("restored_{round}"))?;
        cluster.shell(&format!(
            "folder=$(mktemp -d /var/tmp/ruvector-dump.XXXXXX); trap 'rm -rf \"$folder\"' EXIT
             {dump} -Fd -f \"$folder/dump\" -n public
             \"$PG_BIN/pg_restore\" -l \"$folder/dump\" | grep -v ' EXTENSION \\| SCHEMA ' >\"$folder/list\"
             \"$PG_BIN/pg_restore\" -j 4 -e -L \"$folder/list\" -d '{}' \"$folder/dump\"",
            parallel.dsn()
        ))?;
        let mut session = parallel.session()?;
        session
            .batch_execute("UPDATE third SET embedding = embedding + embedding WHERE id % 5 = 0")?;
        assert_followed(&mut session, &all)?;
        drop(session);
        cluster
            .session()?
            .batch_execute(&format!("DROP DATABASE {}", parallel.name))?;
        parallel.unfollow()?;
    }
    drop(session);
    let mut session = cluster.session()?;
    for database in [&origin, &plain] {
        session.batch_execute(&format!("DROP DATABASE {}", database.name))?;
        database.unfollow()?;
    }
    Ok(())
}

#[test]
fn p9_a_template_copy_is_scanned_exactly_until_it_has_a_source_of_its_own() -> Result<()> {
    let cluster = Cluster::shared()?;
    let origin = Database::followed(&cluster, "template_of")?;
    let all = fill(&mut origin.session()?)?;
    let mut admin = cluster.session()?;
    admin.batch_execute("CREATE DATABASE template_copy TEMPLATE template_of")?;
    let copy = Database {
        cluster: &cluster,
        name: "template_copy".into(),
    };
    let (mut session, mut of_origin) = (copy.session()?, origin.session()?);
    session.batch_execute("DELETE FROM first WHERE id <= 100; INSERT INTO first SELECT id + 5000, 0, embedding + embedding FROM first")?;
    of_origin.batch_execute("DELETE FROM first WHERE id > 100")?;
    let told = session.value("SELECT reason FROM ruvector_index_status('first_embedding_idx')")?;
    ensure!(told.contains("no source of the cluster follows"), "{told}");
    for probe in 0..5 {
        let sql = all[0].nearest(probe, 20);
        assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?);
    }
    // The consumer came back to the original.
    assert_followed(&mut of_origin, &all)?;
    copy.follow()?;
    assert_followed(&mut session, &all)?;
    drop((session, of_origin));

    // A name that is gone is a problem of its own name.
    admin.batch_execute("ALTER DATABASE template_of RENAME TO template_renamed")?;
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let sources = cluster.ctl("source list")?.to_string();
        if sources.contains("there is no database template_of") {
            break;
        }
        ensure!(Instant::now() < deadline, "{sources}");
        std::thread::sleep(Duration::from_millis(200));
    }
    admin.batch_execute("DROP DATABASE template_renamed")?;
    admin.batch_execute("DROP DATABASE template_copy WITH (FORCE)")?;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database LIKE 'template%'";
    assert_eq!(admin.value(slots)?, "0");
    origin.unfollow()?;
    copy.unfollow()
}

#[test]
fn p9_a_node_answers_only_the_server_and_database_that_it_knows() -> Result<()> {
    let cluster = Cluster::shared()?;
    let database = Database::followed(&cluster, "wired")?;
    let mut session = database.session()?;
    let items = Items::indexed(&mut session, "wired_items", 50, 3)?;
    let wire = cluster.wire()?;
    let search = DirectSearch::new(wire.map()?, &items.index(), vec![0.0; 3])?;
    let address = cluster.address("node-1")?;
    let node = search.node_at(&address)?;
    let request = search.of_node(node, None)?;
    let asked_by = request.asked_by.context("the map knows the server")?;
    let start = session.value("SHOW ruvector.server_start")?;
    ensure!(start == asked_by.server_start.to_string(), "{start}");
    let oid = session.value("SELECT oid FROM pg_database WHERE datname = current_database()")?;
    ensure!(oid == asked_by.database_oid.to_string(), "{oid}");
    wire.search(&address, request.clone())?.rows()?;

    // Who says less or otherwise is refused for good, by name.
    let other_start = v1::AskedBy {
        server_start: asked_by.server_start ^ 1,
        ..asked_by
    };
    let other_database = v1::AskedBy {
        database_oid: 1,
        ..asked_by
    };
    for (asked_by, named) in [
        (Some(other_start), "on another server"),
        (Some(other_database), "comes from database 1"),
        (None, "does not say which server"),
    ] {
        // By this very map, or the refusal may be ESTALE.
        let map = wire.map()?;
        let request = v1::SearchRequest {
            epoch: map.epoch.0,
            map_version: map.version.0,
            asked_by,
            ..request.clone()
        };
        match wire.search(&address, request)? {
            Answer::Other(told) => {
                ensure!(
                    told.contains("PermissionDenied") && told.contains(named),
                    "{told}"
                );
            }
            answer => anyhow::bail!("{named}: {answer:?}"),
        }
    }
    // With an older map a server may have started anew since: fetch it and see.
    let outdated = v1::SearchRequest {
        map_version: request.map_version - 1,
        asked_by: Some(other_start),
        ..request
    };
    wire.search(&address, outdated)?.assert_estale()?;
    drop(session);
    cluster.session()?.batch_execute("DROP DATABASE wired")?;
    database.unfollow()
}

#[test]
fn p11_another_session_keeps_a_followed_database_from_being_dropped_as_ever() -> Result<()> {
    let cluster = Cluster::shared()?;
    let database = Database::followed(&cluster, "in_use")?;
    let mut session = database.session()?;
    let items = Items::indexed(&mut session, "items", 50, 3)?;
    let mut admin = cluster.session()?;
    admin.batch_execute("DROP ROLE IF EXISTS nobody_special; CREATE ROLE nobody_special")?;
    admin.batch_execute("SET ROLE nobody_special")?;
    assert_eq!(
        admin.client_error("DROP DATABASE in_use").as_deref(),
        Some("42501")
    );
    admin.batch_execute("RESET ROLE")?;
    assert_eq!(
        admin.client_error("DROP DATABASE in_use").as_deref(),
        Some("55006")
    );
    // What it ended for nothing comes back.
    session.batch_execute("UPDATE items SET embedding = embedding + embedding")?;
    items.assert_followed(&mut session)?;
    drop(session);
    admin.batch_execute("DROP DATABASE in_use")?;
    database.unfollow()
}

#[test]
fn p11_the_extension_is_dropped_and_its_new_indexes_are_followed_when_it_is_back() -> Result<()> {
    let cluster = Cluster::shared()?;
    let database = Database::followed(&cluster, "extended")?;
    let mut session = database.session()?;
    let items = Items::indexed(&mut session, "items", 100, 3)?;
    session.batch_execute("BEGIN; DROP EXTENSION ruvector CASCADE; ROLLBACK")?;
    items.assert_followed(&mut session)?;
    session.batch_execute(
        "DROP EXTENSION ruvector CASCADE; UPDATE items SET label = label + 1; DELETE FROM items WHERE id < 10;
         DROP TABLE items; CREATE EXTENSION ruvector",
    )?;
    let items = Items::create(&mut session, "items", 100, 3)?;
    session.batch_execute(
        "CREATE INDEX items_embedding_idx ON items USING ruhnsw (embedding vector_l2_ops)",
    )?;
    let sql = items.nearest(3, 10);
    assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?);
    until_followed(&items, &mut session)?;
    drop(session);
    cluster.session()?.batch_execute("DROP DATABASE extended")?;
    database.unfollow()
}

/// Waits until a history that broke is mended, and the index answers as the heap does.
fn until_followed(items: &Items, session: &mut Session) -> Result<()> {
    session.batch_execute("SET ruvector.on_unavailable = error")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match items.assert_followed(session) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}

/// Copies the stopped server's files and starts both: the copy on another port.
const CLONE: &str = "
    home=$RUN_DIR/cluster/postgres; clone=$RUN_DIR/clone
    as_server cp -a \"$home/data\" \"$home/log/clone\"
    as_server sed -i \"s/^port = .*/port = $PORT/\" \"$home/log/clone/ruvector.conf\"
    as_server setsid \"$PG_BIN/pg_ctl\" --pgdata \"$home/log/clone\" --log \"$home/log/clone.log\" --wait start >/dev/null";
const STOP_CLONE: &str = "
    as_server \"$PG_BIN/pg_ctl\" --pgdata \"$RUN_DIR/cluster/postgres/log/clone\" --mode fast --wait stop >/dev/null";

#[test]
fn p1_p9_a_clone_of_the_servers_files_is_neither_answered_nor_followed() -> Result<()> {
    let cluster = Cluster::start("clone", Shape::ONE)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "cloned", 300, 8)?;
    session.batch_execute("CHECKPOINT")?;
    drop(session);
    cluster.make(&["stop", "PROC=postgres"])?;
    let free = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    cluster.shell(&format!("PORT={free}\n{CLONE}"))?;
    cluster.restart("postgres")?;

    let port = cluster
        .dsn()
        .rsplit_once(':')
        .and_then(|(_, rest)| rest.split_once('/'))
        .map(|(port, _)| port.to_owned())
        .context("a port")?;
    let clone_dsn = cluster
        .dsn()
        .replace(&format!(":{port}/"), &format!(":{free}/"));
    let mut original = cluster.session_within(Duration::from_secs(30))?;
    // They part: what the index holds is the original's.
    original.batch_execute("DELETE FROM cloned WHERE id <= 150")?;
    let mut clone = Session::open(&clone_dsn)?;
    clone.batch_execute(
        "SET ruvector.on_unavailable = exact;
         DELETE FROM cloned WHERE id > 150; INSERT INTO cloned SELECT id + 9000, 0, embedding + embedding FROM cloned",
    )?;
    items.assert_followed(&mut original)?;
    let identity = "SELECT system_identifier::text FROM pg_control_system()";
    assert_eq!(original.value(identity)?, clone.value(identity)?);
    for _ in 0..40 {
        for probe in 0..3 {
            let sql = items.nearest(probe, 20);
            assert_eq!(clone.ids(&sql)?, clone.exact_ids(&sql)?);
        }
        let state = clone.value(
            "SELECT state || ': ' || reason FROM ruvector_index_status('cloned_embedding_idx')",
        )?;
        if state.starts_with("exact: the cluster follows this database on another server") {
            break;
        }
        ensure!(state.starts_with("waiting"), "{state}");
        std::thread::sleep(Duration::from_secs(1));
    }
    clone.batch_execute("SET ruvector.on_unavailable = error")?;
    items.assert_exact(&mut clone, "on another server")?;
    items.assert_followed(&mut original)?;

    // Who puts the clone in the original's place has the clone's rows in the index.
    original.batch_execute(
        "INSERT INTO cloned SELECT i, 0, '[1,2,3,4,5,6,7,8]' FROM generate_series(20001, 40000) i",
    )?;
    items.assert_every_row_once(&mut original)?;
    drop((original, clone));
    cluster.shell(STOP_CLONE)?;
    cluster.make(&["stop", "PROC=postgres"])?;
    cluster.shell(
        "home=$RUN_DIR/cluster/postgres
         as_server rm -rf \"$home/log/original\"; mv \"$home/data\" \"$home/original\"; mv \"$home/log/clone\" \"$home/data\"
         as_server sed -i \"s/^port = .*/port = $(cat \"$home/port\")/\" \"$home/data/ruvector.conf\"",
    )?;
    cluster.restart("postgres")?;
    let mut session = cluster.session_within(Duration::from_secs(30))?;
    // It is another history, and the index is reconciled with it.
    until_followed(&items, &mut session)?;
    drop(session);
    cluster.finish()
}

#[test]
fn p9_an_upgraded_server_is_scanned_exactly_until_its_indexes_are_reconciled() -> Result<()> {
    let cluster = Cluster::start("upgrade", Shape::ONE)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "upgraded", 200, 8)?;
    session.batch_execute("ALTER TABLE upgraded REPLICA IDENTITY FULL")?;
    items.assert_followed(&mut session)?;
    drop(session);
    cluster.make(&["stop", "PROC=postgres"])?;
    cluster.shell(
        "home=$RUN_DIR/cluster/postgres; new=$home/log/new
         as_server \"$PG_BIN/initdb\" --pgdata \"$new\" --username postgres --auth trust --encoding UTF8 --locale C.UTF-8 >/dev/null
         as_server cp \"$home/data/ruvector.conf\" \"$new/ruvector.conf\"
         as_server tee -a \"$new/postgresql.conf\" >/dev/null <<<\"include 'ruvector.conf'\"
         as_server cp \"$home/data/pg_hba.conf\" \"$home/log/hba\"
         as_server cp \"$new/pg_hba.conf\" \"$home/data/pg_hba.conf\"
         (cd \"$home/log\" && as_server sh -c 'cd \"$1\" && shift && exec \"$@\"' sh \"$home/log\" \\
           \"$PG_BIN/pg_upgrade\" -U postgres -b \"$PG_BIN\" -B \"$PG_BIN\" -d \"$home/data\" -D \"$new\" \\
           -p 50911 -P 50912 -s \"$home/log\" >\"$home/log/upgrade.out\" 2>&1) || { cat \"$home/log/upgrade.out\"; exit 1; }
         as_server cp \"$home/log/hba\" \"$new/pg_hba.conf\"
         mv \"$home/data\" \"$home/old\"; mv \"$new\" \"$home/data\"",
    )?;
    cluster.restart("postgres")?;
    let mut session = cluster.session_within(Duration::from_secs(30))?;
    session
        .batch_execute("UPDATE upgraded SET embedding = embedding + embedding WHERE id % 3 = 0")?;
    session.batch_execute("SET ruvector.on_unavailable = exact")?;
    let sql = items.nearest(3, 10);
    assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?);
    let known = "SELECT count(*) FROM ruvector.collections WHERE table_name = 'upgraded'";
    assert_eq!(session.value(known)?, "1", "as it was before");

    until_followed(&items, &mut session)?;
    drop(session);
    cluster.finish()
}
