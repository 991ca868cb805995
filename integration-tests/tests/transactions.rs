//! Transactions of every size: whole, in commit order, without what was rolled back,
//! and within the consumer's memory.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::{Cluster, Items, Session, Shape};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Of the large transaction.
const ROWS: i64 = 200_000;
const DIMENSIONS: usize = 64;

fn strong() -> &'static str {
    "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 60000"
}

#[test]
fn p2_p4_p10_transactions_of_every_size_arrive_whole_and_in_order() -> Result<()> {
    // A small limit, so that it is the spilled path that is seen; folding is not. One
    // partition for a table, for the order that is promised is that of one.
    let cluster = Cluster::start_with(
        "transactions",
        Shape::ONE,
        &[
            (
                "CONSUMER_SETTINGS",
                "transaction_memory_bytes = 4194304\noldest_xmin_every_ms = 100",
            ),
            ("COORDINATOR_SETTINGS", "partitions_per_collection_max = 1"),
            ("NODE_SETTINGS", "apply.tail_rows_max = 10000000"),
            (
                "PG_SETTINGS",
                "logical_decoding_work_mem = 1MB\nfsync = off",
            ),
        ],
    )?;
    aborted_subtransactions(&cluster)?;
    interleaved(&cluster)?;
    what_waits_for_the_commit(&cluster)?;
    one_large_among_small(&cluster)?;
    cluster.finish()
}

/// What a subtransaction did that was rolled back is not in the stream, whichever way it
/// ended and however large it was.
fn aborted_subtransactions(cluster: &Cluster) -> Result<()> {
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "aborted", 1_000, 8)?;
    let vector = "(SELECT embedding FROM aborted WHERE id = 1)";
    session.batch_execute(&format!(
        "BEGIN;
         INSERT INTO aborted SELECT i, 0, {vector} FROM generate_series(2001, 2010) i;
         SAVEPOINT a;
           DELETE FROM aborted WHERE id <= 500;
           -- More than the server decodes in memory.
           INSERT INTO aborted SELECT i, 0, {vector} FROM generate_series(3001, 33000) i;
           SAVEPOINT b;
             UPDATE aborted SET id = id + 100000 WHERE id BETWEEN 501 AND 600;
           RELEASE SAVEPOINT b;
         ROLLBACK TO SAVEPOINT a;
         UPDATE aborted SET id = id + 200000 WHERE id BETWEEN 601 AND 650;
         SAVEPOINT c;
           TRUNCATE aborted;
         ROLLBACK TO SAVEPOINT c;
         SAVEPOINT d;
           DELETE FROM aborted WHERE id BETWEEN 651 AND 700;
         RELEASE SAVEPOINT d;
         COMMIT"
    ))?;
    // Each exception ends a subtransaction of its own.
    session.batch_execute(&format!(
        "DO $$ BEGIN FOR i IN 40001..40200 LOOP BEGIN
           INSERT INTO aborted VALUES (i, 0, {vector});
           IF i % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF;
         EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$"
    ))?;
    session.batch_execute("BEGIN; DELETE FROM aborted; ROLLBACK")?;
    session.batch_execute(strong())?;
    let heap = session.value("SELECT count(*) FROM aborted")?;
    assert_eq!(heap, (1_000 + 10 - 50 + 100).to_string());
    items.assert_every_row_once(&mut session)
}

/// Sessions whose transactions overlap, touch the same rows, and commit in another order
/// than they began.
fn interleaved(cluster: &Cluster) -> Result<()> {
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "interleaved", 400, 8)?;
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..4i64)
            .map(|worker| {
                scope.spawn(move || -> Result<()> {
                    let mut session = cluster.session()?;
                    for round in 0..100i64 {
                        let (own, id) = (100_000 * (worker + 1) + round, (round * 7 + worker) % 400 + 1);
                        session.batch_execute(&format!(
                            "BEGIN;
                             INSERT INTO interleaved SELECT {own}, {worker}, embedding + '[{},0,0,0,0,0,0,0]' FROM interleaved WHERE id = {id};
                             UPDATE interleaved SET embedding = embedding + embedding WHERE id = {id} AND label <> 9;
                             SELECT pg_sleep({});
                             UPDATE interleaved SET label = {worker} WHERE id = {own};
                             {}",
                            // No two rows at one distance.
                            own as f64 / 1e6,
                            f64::from((round % 3) as i32) / 500.0,
                            if round % 5 == 4 { "ROLLBACK" } else { "COMMIT" }
                        ))?;
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("no panic")?;
        }
        Ok(())
    })?;
    session.batch_execute(strong())?;
    items.assert_every_row_once(&mut session)?;
    items.assert_equals_exact(&mut session, 10)
}

/// Rows that are understood as they come, then what needs the commit (keys that change, a
/// new index, TRUNCATE), then rows again: each does what it does where it stands.
fn what_waits_for_the_commit(cluster: &Cluster) -> Result<()> {
    let mut session = cluster.session()?;
    // Vectors out of line: where a key changes, the stream does not repeat them.
    let moved = Items::indexed(&mut session, "moved", 60, 600)?;
    let late = Items::create(&mut session, "late", 40, 16)?;
    let cut = Items::indexed(&mut session, "cut", 30, 8)?;
    session.batch_execute(
        "BEGIN;
         INSERT INTO cut SELECT id + 1000, label, embedding FROM cut;
         INSERT INTO late SELECT id + 1000, label, embedding FROM late;
         INSERT INTO moved SELECT id + 1000, label, embedding + embedding FROM moved;
         DELETE FROM moved WHERE id BETWEEN 1 AND 5;
         UPDATE moved SET id = id + 5000 WHERE id BETWEEN 1001 AND 1020;
         UPDATE moved SET label = 7 WHERE id BETWEEN 1021 AND 1040;
         CREATE INDEX late_embedding_idx ON late USING ruhnsw (embedding vector_l2_ops);
         INSERT INTO late SELECT id + 2000, label, embedding + embedding FROM late;
         TRUNCATE cut;
         INSERT INTO cut VALUES (1, 0, '[1,2,3,4,5,6,7,8]'), (2, 0, '[2,2,3,4,5,6,7,8]');
         DELETE FROM moved WHERE id BETWEEN 6001 AND 6003;
         INSERT INTO moved SELECT id + 9000, label, embedding + embedding + embedding FROM moved WHERE id < 30;
         COMMIT",
    )?;
    session.wait_for(&late.index(), false)?;
    session.batch_execute(strong())?;
    for items in [&moved, &late, &cut] {
        items.assert_every_row_once(&mut session)?;
    }
    moved.assert_equals_exact(&mut session, 10)
}

/// One large transaction between small ones: those before it are found before, those
/// after it after, none out of order; the lag is told; the consumer's memory is bounded.
fn one_large_among_small(cluster: &Cluster) -> Result<()> {
    let mut session = cluster.session()?;
    Items::indexed(&mut session, "small", 1, 8)?;
    let numbers = vec!["random()"; DIMENSIONS].join(",");
    session.batch_execute(&format!(
        "CREATE TABLE large(id bigint PRIMARY KEY, embedding vector({DIMENSIONS}));
         ALTER TABLE large ALTER embedding SET STORAGE PLAIN;
         CREATE INDEX large_embedding_idx ON large USING ruhnsw (embedding vector_l2_ops)"
    ))?;
    session.wait_for("large_embedding_idx", false)?;
    let idle_bytes = cluster.peak_memory_bytes("consumer-1")?;
    let (stop, written) = (AtomicBool::new(false), AtomicI64::new(1));
    let mut lag_bytes_max = 0;
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| -> Result<()> {
            let mut session = cluster.session()?;
            while !stop.load(Ordering::Relaxed) {
                let id = written.load(Ordering::Relaxed) + 1;
                session.execute(
                    &format!("INSERT INTO small SELECT {id}, 0, embedding FROM small WHERE id = 1"),
                    &[],
                )?;
                written.store(id, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        let reader = scope.spawn(|| in_order(cluster, &stop));
        let large = scope.spawn(|| -> Result<i64> {
            let mut session = cluster.session()?;
            session.batch_execute("SET statement_timeout = 0")?;
            session.batch_execute(&format!(
                "INSERT INTO large SELECT i, ARRAY[{numbers}]::real[]::vector FROM generate_series(1, {ROWS}) i"
            ))?;
            // Committed: this session's next search must have all of it, though what
            // was applied before its commit's end is found piece by piece.
            session.batch_execute("SET ruvector.search_timeout_ms = 120000; SET statement_timeout = 0")?;
            let query = format!("'[{}]'", vec!["0"; DIMENSIONS].join(","));
            let nearest = format!("SELECT count(*) FROM (SELECT id FROM large ORDER BY embedding <-> {query}) s");
            let count = session.value(&nearest)?;
            Ok(count.parse()?)
        });
        while !large.is_finished() {
            let lag = cluster.ctl("lag")?;
            let behind = lag[0]["progress"]["behind_bytes"].as_u64().unwrap_or(0);
            lag_bytes_max = lag_bytes_max.max(behind);
            std::thread::sleep(Duration::from_millis(20));
        }
        let found = large.join().expect("no panic");
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("no panic")?;
        let seen = reader.join().expect("no panic")?;
        assert_eq!(found?, ROWS, "a search of the session that committed");
        assert!(seen > 10, "the reader saw {seen} states");
        Ok(())
    })?;
    assert!(
        // The small rows alone are far less between two looks.
        lag_bytes_max > MIB / 8,
        "the lag was never told: {lag_bytes_max}"
    );
    session.batch_execute(strong())?;
    let small = session.ids("SELECT id FROM small ORDER BY embedding <-> '[0,0,0,0,0,0,0,0]'")?;
    assert_eq!(small.len() as i64, written.load(Ordering::Relaxed));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let lag = cluster.ctl("lag")?;
        if lag[0]["progress"]["behind_bytes"].as_u64() < Some(MIB) {
            break;
        }
        ensure!(Instant::now() < deadline, "the lag does not end: {lag}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let peak_bytes = cluster.peak_memory_bytes("consumer-1")?;
    println!(
        "consumer: {} MiB, {} before",
        peak_bytes / MIB,
        idle_bytes / MIB
    );
    assert!(peak_bytes < 512 * MIB, "{} MiB", peak_bytes / MIB);
    Ok(())
}

/// Whatever a search finds of the small rows, it finds all that were committed before
/// the newest of them. Answers how many different states were seen.
fn in_order(cluster: &Cluster, stop: &AtomicBool) -> Result<usize> {
    let mut session = cluster.session()?;
    session.batch_execute(
        "SET ruvector.read_consistency = eventual; SET ruvector.search_timeout_ms = 30000",
    )?;
    let (mut last, mut states) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let mut ids =
            session.ids("SELECT id FROM small ORDER BY embedding <-> '[0,0,0,0,0,0,0,0]'")?;
        ids.sort_unstable();
        let newest = ids.last().copied().unwrap_or(0);
        ensure!(
            ids.iter().copied().eq(1..=newest),
            "rows are missing below {newest}: {ids:?}"
        );
        ensure!(newest >= last, "{newest} after {last}");
        states += usize::from(newest > last);
        last = newest;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(states)
}

/// Of what a transaction with `NOTES` notes takes, the consumer may keep a part.
const SPILL_MAX: u64 = 4 * MIB;
const NOTES: i64 = 150;

#[test]
fn p2_p10_a_transaction_past_the_spill_limit_stops_its_source_by_name_until_there_is_room()
-> Result<()> {
    let consumer = format!(
        "transaction_memory_bytes = 1048576\ntransaction_spill_bytes_max = {SPILL_MAX}\n\
         preflight_every_ms = 500\ntransaction_retry_ms_max = 2000"
    );
    let settings = [("CONSUMER_SETTINGS", consumer.as_str())];
    let cluster = Cluster::start_with("spill-limit", Shape::ONE, &settings)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "limited", 100, 8)?;
    session.batch_execute("ALTER TABLE limited ADD COLUMN note text")?;
    // Within the limit, and spilled.
    noted(&mut session, 1_001, 40)?;
    session.batch_execute(strong())?;
    items.assert_every_row_once(&mut session)?;

    let xid = noted(&mut session, 2_001, NOTES)?;
    session
        .batch_execute("INSERT INTO limited SELECT 3001, 0, embedding + embedding + embedding FROM limited WHERE id = 5")?;
    let said = wait_for_problem(&cluster, |text| {
        text.contains("transaction_spill_bytes_max")
    })?;
    let limit = SPILL_MAX.to_string();
    for word in [
        &format!("transaction {xid},"),
        &limit,
        "start the consumer again",
    ] {
        ensure!(said.contains(word), "no {word:?} in {said:?}");
    }
    // It stays named while it is tried again, and nothing is confirmed.
    let restarts = || cluster.metric("consumer-1", "ruvector_consumer_restarts_total");
    let (before, began) = (restarts()?, Instant::now());
    while restarts()? < before + 4.0 {
        ensure!(began.elapsed() < Duration::from_secs(60), "not tried again");
        let now = wait_for_problem(&cluster, |_| true)?;
        // A new connection is told of the table again: the bytes differ by that.
        ensure!(
            now.contains(&format!("transaction {xid},")),
            "forgotten, though nothing has changed: {now:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let rate = (restarts()? - before) / began.elapsed().as_secs_f64();
    ensure!(rate < 2.0, "{rate} attempts in a second");
    let at = said
        .split("commits at ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .context("a position")?;
    let passed = "SELECT bool_or(confirmed_flush_lsn > $$POSITION$$) FROM pg_replication_slots";
    ensure!(session.value(&passed.replace("POSITION", at))? == "f");
    let sql = items.nearest(3, 5);
    session.batch_execute("SET ruvector.search_timeout_ms = 500")?;
    ensure!(session.client_error(&sql).as_deref() == Some("RV002"));

    cluster.kill("consumer-1")?;
    cluster.shell(
        "sed -i 's/^transaction_spill_bytes_max.*/transaction_spill_bytes_max = 1073741824/' \
         $RUN_DIR/cluster/config/consumer-1.toml",
    )?;
    cluster.restart("consumer-1")?;
    session.batch_execute("SET ruvector.search_timeout_ms = 60000")?;
    items.assert_every_row_once(&mut session)?;
    items.assert_equals_exact(&mut session, 10)?;
    wait_for_problem(&cluster, str::is_empty)?;
    cluster.finish()
}

/// Rows with 64 KiB each beside their vectors, in one transaction; its id.
fn noted(session: &mut Session, first: i64, rows: i64) -> Result<String> {
    // Behind a changed key everything stays as it came, notes and all.
    session.batch_execute("BEGIN; UPDATE limited SET id = -id WHERE abs(id) = 7")?;
    session.batch_execute(&format!(
        "INSERT INTO limited SELECT {first} + i, 0,
                embedding + array_fill((({first} + i) / 1000.0)::real, ARRAY[8])::vector,
                repeat('x', 65536)
           FROM generate_series(1, {rows}) i JOIN limited l ON l.id = i % 100 + 1"
    ))?;
    let xid = session.value("SELECT pg_current_xact_id()::xid")?;
    session.batch_execute("COMMIT")?;
    Ok(xid)
}

fn wait_for_problem(cluster: &Cluster, is_it: impl Fn(&str) -> bool) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let sources = cluster.ctl("source list")?;
        let problem = sources[0]["problem"].as_str().unwrap_or_default();
        if is_it(problem) {
            return Ok(problem.to_owned());
        }
        ensure!(Instant::now() < deadline, "the problem is {problem:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
