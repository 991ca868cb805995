//! What the slot costs the primary: nothing while the cluster follows, a known amount
//! while it does not, and never a full disk, a blocked write or a storm of scans.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use cluster_core::ids::Incarnation;
use integration_tests::{Cluster, Items, Session, Shape};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Asks again until it is so.
fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not in {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(250));
    }
    Ok(())
}

fn lag(cluster: &Cluster) -> Result<serde_json::Value> {
    Ok(cluster.ctl("lag")?[0].clone())
}

#[test]
fn p11_a_quiet_database_holds_no_wal_and_a_slot_near_its_limit_is_told_of() -> Result<()> {
    // No checkpoint but the test's own: what moves the slot is what moves it for hours
    // on a server that seldom has one.
    let settings = "checkpoint_timeout = 1h\nmax_wal_size = 16GB\nfsync = off";
    let consumer = "heartbeat_every_ms = 2000\nheartbeat_wal_bytes = 1048576";
    let cluster = Cluster::start_with(
        "slot-health",
        Shape::ONE,
        &[("PG_SETTINGS", settings), ("CONSUMER_SETTINGS", consumer)],
    )?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "watched", 200, 8)?;
    quiet_database_on_a_busy_server(&cluster, &mut session)?;
    a_heartbeat_that_fails_ends_nothing(&cluster, &mut session, &items)?;
    near_the_limit(&cluster, &mut session, &items)?;
    cluster.finish()
}

/// Nothing is written in the followed database, and another one is written to without
/// end: both positions of the slot follow, by heartbeats and by the records of running
/// transactions that the server's background writer makes every 15 s.
fn quiet_database_on_a_busy_server(cluster: &Cluster, session: &mut Session) -> Result<()> {
    session.batch_execute("CREATE DATABASE busy")?;
    let mut busy = Session::open(&cluster.dsn_of("busy"))?;
    busy.batch_execute("CREATE TABLE filler(id bigint, body text)")?;
    let mut looking = Session::open(&cluster.dsn_of("busy"))?;
    let checkpoints = "SELECT checkpoints_timed + checkpoints_req FROM pg_stat_bgwriter";
    let had = looking.value(checkpoints)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                busy.batch_execute(
                    "INSERT INTO filler SELECT i, repeat('x', 1000) FROM generate_series(1, 1000) i",
                )?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let followed = follows_the_log(&mut looking);
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("no panic")?;
        followed
    })?;
    let now = looking.value(checkpoints)?;
    ensure!(now == had, "{now} checkpoints after {had}");
    let line = |outcome| {
        format!("ruvector_consumer_heartbeats_total{{source=\"1\",reason=\"{outcome}\"}}")
    };
    for outcome in ["written", "received"] {
        let heartbeats = cluster.metric_line("consumer-1", &line(outcome))?;
        ensure!(heartbeats >= 3.0, "{heartbeats} heartbeats {outcome}");
    }
    Ok(())
}

/// Three times: what the log held when it was looked at is let go of. What the slot
/// retains is then never more than what is written in twice that time.
fn follows_the_log(looking: &mut Session) -> Result<()> {
    let slot = |what: &str| {
        format!(
            "SELECT ({what} - '0/0')::int8 FROM pg_replication_slots \
             WHERE slot_name LIKE 'ruvector%' AND NOT temporary"
        )
    };
    let began: u64 = looking.value(&slot("restart_lsn"))?.parse()?;
    let mut stood = began;
    for _ in 0..3 {
        let wrote: u64 = looking
            .value("SELECT (pg_current_wal_lsn() - '0/0')::int8")?
            .parse()?;
        wait_until("the quiet slot moves", Duration::from_secs(90), || {
            let restart: u64 = looking.value(&slot("restart_lsn"))?.parse()?;
            let confirmed: u64 = looking.value(&slot("confirmed_flush_lsn"))?.parse()?;
            stood = restart;
            Ok(restart >= wrote && confirmed >= wrote)
        })?;
    }
    ensure!(stood > began + 8 * MIB, "{stood} after {began}");
    Ok(())
}

/// A role without the right, or a server that has become a standby: told, counted, and
/// the source goes on.
fn a_heartbeat_that_fails_ends_nothing(
    cluster: &Cluster,
    session: &mut Session,
    items: &Items,
) -> Result<()> {
    let restarts = || cluster.metric("consumer-1", "ruvector_consumer_restarts_total");
    let failed = "ruvector_consumer_heartbeats_total{source=\"1\",reason=\"failed\"}";
    let before = restarts()?;
    let rename = |from: &str, to: &str| {
        ["text", "bytea"].map(|content| {
            format!("ALTER FUNCTION {from}(boolean, text, {content}) RENAME TO {to};")
        })
    };
    let (shown, hidden) = ("pg_logical_emit_message", "hidden_emit");
    session.batch_execute(&rename(shown, hidden).concat())?;
    let mut busy = Session::open(&cluster.dsn_of("busy"))?;
    wait_until("a heartbeat fails", Duration::from_secs(60), || {
        busy.batch_execute(
            "INSERT INTO filler SELECT i, repeat('x', 1000) FROM generate_series(1, 1000) i",
        )?;
        Ok(cluster.metric_line("consumer-1", failed).unwrap_or(0.0) >= 2.0)
    })?;
    items.insert(session, 501..511)?;
    items.assert_every_row_once(session)?;
    assert_eq!(restarts()?, before, "the run went on");
    session.batch_execute(&rename(hidden, shown).concat())?;
    wait_until("little is retained", Duration::from_secs(40), || {
        session.batch_execute("CHECKPOINT")?;
        Ok(session.retained_wal_bytes()? < 20 * MIB)
    })
}

fn near_the_limit(cluster: &Cluster, session: &mut Session, items: &Items) -> Result<()> {
    wait_until("the consumer reports", Duration::from_secs(10), || {
        Ok(!lag(cluster)?["progress"]["slot_hold_limit_bytes"].is_null())
    })?;
    let source = lag(cluster)?["source_id"].to_string();
    let before = lag(cluster)?["progress"].clone();
    assert_eq!(before["slot_hold_limit_bytes"], 64u64 << 30, "the default");
    assert_eq!(before["slot_warnings"], serde_json::json!([]));
    assert!(before["safe_wal_bytes"].as_u64().unwrap() > 1 << 30);
    cluster.ctl(&format!("slot-limit {source} 64MiB"))?;
    // The consumer notes it at the server, for when there is no consumer.
    let noted = "SELECT hold_limit_bytes FROM ruvector.slots";
    wait_until("the limit is noted", Duration::from_secs(10), || {
        Ok(session.value(noted)? == (64 * MIB).to_string())
    })?;

    // Its only replica is gone, so the slot waits.
    cluster.kill("node-1")?;
    items.insert(session, 1_001..1_101)?;
    let danger = |reason: &str| {
        let line =
            format!("ruvector_consumer_slot_danger{{source=\"{source}\",reason=\"{reason}\"}}");
        cluster.metric_line("consumer-1", &line)
    };
    assert_eq!(danger("slot_hold_limit")?, 0.0);
    while session.retained_wal_bytes()? < 54 * MIB {
        session.write_wal(1)?;
    }
    wait_until("the warning", Duration::from_secs(15), || {
        let warnings = lag(cluster)?["progress"]["slot_warnings"].to_string();
        Ok(warnings.contains("near its slot_hold_limit of 64 MiB"))
    })?;
    let status = cluster.ctl("status")?.to_string();
    assert!(status.contains("near its slot_hold_limit"), "{status}");
    assert_eq!(danger("slot_hold_limit")?, 1.0);
    assert_eq!(
        cluster.metric("consumer-1", "ruvector_consumer_slot_hold_limit_bytes")?,
        (64 * MIB) as f64
    );

    cluster.restart("node-1")?;
    wait_until("the slot is free again", Duration::from_secs(40), || {
        session.batch_execute("CHECKPOINT")?;
        let progress = lag(cluster)?["progress"].clone();
        Ok(progress["slot_warnings"] == serde_json::json!([])
            && progress["retained_wal_bytes"].as_u64().unwrap() < 32 * MIB)
    })?;
    assert_eq!(danger("slot_hold_limit")?, 0.0);
    cluster.ctl(&format!("slot-limit {source} never"))?;
    wait_until("no limit", Duration::from_secs(10), || {
        Ok(lag(cluster)?["progress"]["slot_hold_limit_bytes"].is_null())
    })?;
    items.assert_every_row_once(session)
}

/// The disk first: nobody streams, the limit is small, and writes go on throughout.
#[test]
fn p11_with_the_cluster_gone_past_the_limit_the_wal_is_bounded_and_scans_too() -> Result<()> {
    let settings = "ruvector.slot_hold_limit = 32MB\nmax_wal_size = 64MB\nmin_wal_size = 32MB\n\
                    max_slot_wal_keep_size = -1\nfsync = off";
    let consumer = "slot_hold_limit_bytes = 50331648\nbackfill_bytes_per_second_max = 1048576";
    let cluster = Cluster::start_with(
        "slot-gone",
        Shape::ONE,
        &[("PG_SETTINGS", settings), ("CONSUMER_SETTINGS", consumer)],
    )?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "held", 300, 8)?;
    wait_until("the limit is noted", Duration::from_secs(10), || {
        Ok(session
            .value("SELECT count(*) FROM ruvector.slots WHERE hold_limit_bytes = 50331648")?
            == "1")
    })?;
    for process in ["consumer-1", "node-1", "coordinator-1"] {
        cluster.kill(process)?;
    }
    drop(session);
    cluster.stop_postgres_immediately()?;
    cluster.restart("postgres")?;
    let mut session = cluster.session_within(Duration::from_secs(30))?;
    assert_eq!(
        session.value("SELECT count(*) FROM ruvector.slot_advances")?,
        "0"
    );
    // More at once than one step of the worker takes.
    session.write_wal_at_once(400)?;
    let retained_bytes = session.retained_wal_bytes()?;
    ensure!(retained_bytes > 390 * MIB, "{retained_bytes}");
    // The slot will pass the row that tells of this index.
    let late = Items::create(&mut session, "late", 300, 8)?;
    let index = late.index();
    session.batch_execute(&format!(
        "CREATE INDEX {index} ON late USING ruhnsw (embedding vector_l2_ops)"
    ))?;

    let mut next = 301;
    let mut slowest = Duration::ZERO;
    wait_until("the slot is advanced", Duration::from_secs(90), || {
        let began = Instant::now();
        items.insert(&mut session, next..next + 10)?;
        slowest = slowest.max(began.elapsed());
        next += 10;
        session.batch_execute("CHECKPOINT")?;
        let traces = session.value("SELECT count(*) FROM ruvector.slot_advances")?;
        Ok(traces != "0" && session.retained_wal_bytes()? < 48 * MIB)
    })?;
    assert!(
        slowest < Duration::from_secs(10),
        "a write took {slowest:?}"
    );
    let trace = session.value(
        "SELECT (to_lsn > from_lsn AND retained_bytes > 157286400 AND limit_bytes = 50331648)::text \
         FROM ruvector.slot_advances ORDER BY id LIMIT 1",
    )?;
    assert_eq!(trace, "true", "the consumer's limit, not the server's");
    session.batch_execute("CHECKPOINT")?;
    let on_disk = session.wal_bytes_on_disk()?;
    assert!(on_disk < 140 * MIB, "{on_disk} bytes of WAL");

    bounded_scans(&cluster, &mut session, &items)?;
    // The consumer that comes back does not take what is missing for there.
    for process in ["node-1", "consumer-1"] {
        cluster.restart(process)?;
    }
    the_break_is_told(&cluster, &items)?;
    wait_until("the break is seen", Duration::from_secs(40), || {
        let advanced = "ruvector_consumer_slot_advanced_by_server_total";
        Ok(cluster.metric("consumer-1", advanced)? >= 1.0)
    })?;
    session.batch_execute(
        "SET ruvector.on_unavailable = exact; SET ruvector.exact_scan_max_rows = 100000",
    )?;
    for probe in 0..20 {
        let sql = items.nearest(i64::from(probe), 10);
        assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?);
        std::thread::sleep(Duration::from_millis(100));
    }
    for items in [&items, &late] {
        items.assert_followed(&mut session)?;
    }
    cluster.finish()
}

/// The source has another incarnation, and until the index is reconciled it is stale
/// for a reason that says what happened. Looked at often: that may not last long.
fn the_break_is_told(cluster: &Cluster, items: &Items) -> Result<()> {
    let wire = cluster.wire()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let reason = loop {
        let map = wire.map()?;
        let source = map.sources.values().next().unwrap();
        let mut collections = map.collections.values();
        let index = collections.find(|c| c.spec.table_name == items.name);
        if let Some(reconcile) = index.and_then(|c| c.reconcile.as_ref()) {
            assert_eq!(source.incarnation, Incarnation(2));
            break reconcile.reason.clone();
        }
        ensure!(
            Instant::now() < deadline,
            "nothing is to be reconciled: {source:?} {index:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    };
    for word in [
        "the server advanced slot ruvector_",
        "past slot_hold_limit",
        "changes may be missing",
        "old data, flagged",
    ] {
        ensure!(reason.contains(word), "no {word:?} in {reason:?}");
    }
    wait_until("the index is mended", Duration::from_secs(60), || {
        let map = wire.map()?;
        let mut collections = map.collections.values();
        Ok(collections.all(|c| c.reconcile.is_none() && map.stale_partitions(c.id) == 0))
    })
}

/// The server was started again and its consumer is gone: however long that lasts, the
/// index is not scanned around without a bound.
fn bounded_scans(cluster: &Cluster, session: &mut Session, items: &Items) -> Result<()> {
    cluster.restart("coordinator-1")?;
    let status = format!(
        "SELECT reason FROM ruvector_index_status('{}')",
        items.index()
    );
    wait_until("the map is there", Duration::from_secs(30), || {
        Ok(session
            .value(&status)?
            .contains("no consumer has followed this server"))
    })?;
    let sql = items.nearest(3, 10);
    session.batch_execute("SET ruvector.on_unavailable = exact; SET enable_seqscan = on")?;
    let began = Instant::now();
    let explained = session.explain(&sql)?;
    assert!(
        explained.text.contains("Index Scan using"),
        "{}",
        explained.text
    );
    assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?);
    session.batch_execute("SET enable_seqscan = on; SET ruvector.exact_scan_max_rows = 100")?;
    assert_eq!(session.client_error(&sql).as_deref(), Some("RV003"));
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "nobody is waited for"
    );
    session.batch_execute("SET enable_seqscan = off")?;
    no_more_scans_at_once_than_the_limit(cluster, session, items)
}

/// Past `exact_scan_max_concurrent` a scan ends with `RV003`, by name, and the others go on.
fn no_more_scans_at_once_than_the_limit(
    cluster: &Cluster,
    session: &mut Session,
    items: &Items,
) -> Result<()> {
    let limit =
        |value: &str| format!("ALTER SYSTEM SET ruvector.exact_scan_max_concurrent = {value}");
    let reload = |session: &mut Session, statement: &str, value: &str| -> Result<()> {
        session.batch_execute(statement)?;
        session.batch_execute("SELECT pg_reload_conf()")?;
        wait_until("the setting is in force", Duration::from_secs(10), || {
            Ok(session.value("SHOW ruvector.exact_scan_max_concurrent")? == value)
        })
    };
    let sql = items.nearest(3, 10);
    session.batch_execute("SET ruvector.exact_scan_max_rows = 100000")?;
    reload(session, &limit("0"), "0")?;
    let (state, said) = session.failure(&sql)?;
    assert_eq!(state, "RV003");
    ensure!(said.contains("enough exact scans are running"), "{said}");

    // Long enough to meet each other.
    items.insert(session, 100_001..110_001)?;
    reload(session, &limit("1"), "1")?;
    let (done, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| -> Result<()> {
        let scan = || -> Result<()> {
            let mut session = cluster.session()?;
            session.batch_execute("SET ruvector.on_unavailable = exact")?;
            while refused.load(Ordering::Relaxed) == 0 || done.load(Ordering::Relaxed) == 0 {
                ensure!(Instant::now() < deadline, "scans never met");
                let counted = match session.client_error(&sql).as_deref() {
                    None => &done,
                    Some("RV003") => &refused,
                    Some(other) => anyhow::bail!("{other}"),
                };
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let scans: Vec<_> = (0..4).map(|_| scope.spawn(scan)).collect();
        for scan in scans {
            scan.join().expect("no panic")?;
        }
        Ok(())
    })?;
    reload(
        session,
        "ALTER SYSTEM RESET ruvector.exact_scan_max_concurrent",
        "2",
    )?;
    // None is held on to by whom it was refused.
    assert_eq!(session.ids(&sql)?, session.exact_ids(&sql)?);
    Ok(())
}
