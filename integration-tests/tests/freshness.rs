//! P8: a search that asks for freshness gets it, waits, or fails by name.
//!
//! A stopped consumer is a cluster that lags by as much as a test likes. It is
//! stopped for less than its lease, so that it goes on where it was.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use integration_tests::{Cluster, Items, Session, Shape, Standby, clustered_vector, literal};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CONSUMER: &str = "consumer-1";
const DIMENSIONS: usize = 8;
const DEADLINE_MS: u64 = 1_000;

/// The cluster of these tests: one consumer to stop, and a log that nothing but a
/// commit flushes.
fn start(name: &str) -> Result<Cluster> {
    let lazy = [("PG_SETTINGS", "wal_writer_delay = 10s")];
    Cluster::start_with(name, Shape::ONE, &lazy)
}

fn every_row(items: &Items) -> String {
    let query = literal(&clustered_vector(1, DIMENSIONS));
    format!(
        "SELECT id FROM {} ORDER BY embedding <-> '{query}'",
        items.name
    )
}

fn with_deadline(session: &mut Session) -> Result<()> {
    session.batch_execute(&format!("SET ruvector.search_timeout_ms = {DEADLINE_MS}"))?;
    Ok(())
}

fn counter(session: &mut Session, counter: &str, label: &str) -> Result<u64> {
    let sql = format!(
        "SELECT value FROM ruvector_visibility_stats WHERE counter = '{counter}' AND label = '{label}'"
    );
    Ok(session.value(&sql)?.parse()?)
}

#[test]
fn p8_a_bound_is_kept_or_fails_by_name_while_the_consumer_stands_still() -> Result<()> {
    let cluster = start("bounded")?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "bounded", 200, DIMENSIONS)?;
    let sql = every_row(&items);
    with_deadline(&mut session)?;
    let counts = |session: &mut Session| -> Result<[u64; 4]> {
        Ok([
            counter(session, "searches", "bounded")?,
            counter(session, "lagging", "bounded")?,
            counter(session, "waits", "bounded")?,
            counter(session, "exact_scans", "lagging")?,
        ])
    };
    session.batch_execute("SET ruvector.read_consistency = bounded")?;
    ensure!(session.ids(&sql)?.len() == 200, "at rest");
    session.explain(&sql)?.assert_answered_by_the_cluster()?;
    let before = counts(&mut session)?;

    cluster.signal(CONSUMER, "STOP")?;
    items.insert(&mut session, 201..202)?;
    session.batch_execute("SET ruvector.max_lag_ms = '1min'")?;
    let asked = Instant::now();
    let got = session.ids(&sql)?;
    ensure!(!got.contains(&201), "the new row is younger than the bound");
    ensure!(asked.elapsed() < Duration::from_millis(DEADLINE_MS));

    std::thread::sleep(Duration::from_millis(200));
    session.batch_execute("SET ruvector.max_lag_ms = 100")?;
    let asked = Instant::now();
    let (state, text) = session.failure(&sql)?;
    let took = asked.elapsed();
    ensure!(state == "RV002", "{state} {text}");
    ensure!(text.contains("bytes before"), "how far behind: {text}");
    let deadline = Duration::from_millis(DEADLINE_MS);
    ensure!(
        (deadline - Duration::from_millis(100)..deadline * 3).contains(&took),
        "told after {took:?}"
    );

    // An exact scan is always fresh, and bounded as in an outage.
    session.batch_execute("SET ruvector.on_unavailable = exact")?;
    ensure!(session.ids(&sql)?.len() == 201);
    let explained = session.explain(&sql)?;
    let fallback = explained.property("Fallback")?;
    ensure!(fallback.starts_with("lagging: "), "{fallback}");
    session.batch_execute("SET ruvector.exact_scan_max_rows = 100")?;
    let (state, text) = session.failure(&sql)?;
    ensure!(state == "RV002", "above the limit: {state} {text}");
    session.batch_execute("SET ruvector.on_unavailable = error")?;

    let [searches, lagging, waits, exact] = counts(&mut session)?;
    ensure!(searches == before[0] + 5, "{searches} after {}", before[0]);
    ensure!(lagging == before[1] + 4, "{lagging} after {}", before[1]);
    ensure!(waits >= before[2] + 4, "{waits} after {}", before[2]);
    ensure!(exact >= before[3] + 2, "{exact} after {}", before[3]);

    cluster.signal(CONSUMER, "CONT")?;
    session.batch_execute("SET ruvector.search_timeout_ms = '20s'; SET ruvector.max_lag_ms = 0")?;
    ensure!(session.ids(&sql)?.len() == 201, "it has caught up");
    cluster.finish()
}

#[test]
fn p8_bounded_answers_lack_no_commit_older_than_the_bound() -> Result<()> {
    const LAG: Duration = Duration::from_millis(40);
    let cluster = start("bound-load")?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "bound_load", 50, DIMENSIONS)?;
    let sql = every_row(&items);
    // Ids with the moments by which their commits had returned.
    let committed: Mutex<Vec<(i64, Instant)>> = Mutex::default();
    let stop = AtomicBool::new(false);
    let mut writer = cluster.session()?;
    let (mut answered, mut lacked) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| -> Result<()> {
            for id in 1_000.. {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                items.insert(&mut writer, id..id + 1)?;
                committed.lock().unwrap().push((id, Instant::now()));
            }
            Ok(())
        });
        let jolting = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                cluster.signal(CONSUMER, "STOP")?;
                std::thread::sleep(Duration::from_millis(70));
                cluster.signal(CONSUMER, "CONT")?;
                std::thread::sleep(Duration::from_millis(130));
            }
            Ok(())
        });
        session.batch_execute(&format!(
            "SET ruvector.read_consistency = bounded; SET ruvector.max_lag_ms = {}",
            LAG.as_millis()
        ))?;
        let until = Instant::now() + Duration::from_secs(6);
        let outcome = (|| -> Result<()> {
            while Instant::now() < until {
                let asked = Instant::now();
                let got = session.ids(&sql)?;
                let committed = committed.lock().unwrap();
                let lacks: Vec<_> = committed
                    .iter()
                    .filter(|(id, _)| !got.contains(id))
                    .collect();
                for (id, at) in &lacks {
                    let age = asked.saturating_duration_since(*at);
                    ensure!(age < LAG, "row {id} had been committed for {age:?}");
                }
                answered += 1;
                lacked += lacks.len();
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        writing.join().expect("no panic")?;
        jolting.join().expect("no panic")?;
        outcome
    })?;
    println!("{answered} answers lacked {lacked} younger rows");
    ensure!(answered > 20, "only {answered} answers");
    cluster.finish()
}

#[test]
fn p8_a_token_of_one_connection_makes_another_see_its_row() -> Result<()> {
    let cluster = start("token")?;
    let (mut writer, mut reader) = (cluster.session()?, cluster.session()?);
    let items = Items::indexed(&mut writer, "token", 100, DIMENSIONS)?;
    let sql = every_row(&items);
    with_deadline(&mut reader)?;
    ensure!(reader.ids(&sql)?.len() == 100);

    cluster.signal(CONSUMER, "STOP")?;
    // On disk only because the token is.
    writer.batch_execute("SET synchronous_commit = off")?;
    items.insert(&mut writer, 101..102)?;
    let token = writer.value("SELECT ruvector_session_token()")?;
    ensure!(!reader.ids(&sql)?.contains(&101), "nothing makes it wait");
    reader.batch_execute(&format!("SET ruvector.session_token = '{token}'"))?;
    ensure!(reader.client_error(&sql).as_deref() == Some("RV002"));
    reader.batch_execute("SET ruvector.read_consistency = eventual")?;
    ensure!(
        !reader.ids(&sql)?.contains(&101),
        "the token is for session reads"
    );
    reader.batch_execute("RESET ruvector.read_consistency")?;

    cluster.signal(CONSUMER, "CONT")?;
    reader.batch_execute("SET ruvector.search_timeout_ms = '20s'")?;
    ensure!(reader.ids(&sql)?.contains(&101));
    reader.explain(&sql)?.assert_answered_by_the_cluster()?;

    // What this server never wrote is not waited for.
    let (server, _) = token.rsplit_once(':').unwrap();
    reader.batch_execute(&format!("SET ruvector.session_token = '{server}:FFFF/0'"))?;
    let (state, text) = reader.failure(&sql)?;
    ensure!(
        state == "55000" && text.contains("ends at"),
        "{state} {text}"
    );
    cluster.finish()
}

#[test]
fn p8_strong_and_session_reads_flush_what_they_wait_for_in_parallel_workers_too() -> Result<()> {
    let cluster = start("strong")?;
    let (mut writer, mut reader) = (cluster.session()?, cluster.session()?);
    let items = Items::indexed(&mut writer, "strong", 100, DIMENSIONS)?;
    let sql = every_row(&items);
    // Committed, and in memory only: the log's writer sleeps for ten seconds.
    writer.batch_execute("SET synchronous_commit = off")?;
    with_deadline(&mut writer)?;
    with_deadline(&mut reader)?;
    for (round, level) in ["session", "strong"].into_iter().enumerate() {
        let id = 101 + round as i64;
        items.insert(&mut writer, id..id + 1)?;
        let asker = match level {
            "session" => &mut writer,
            _ => &mut reader,
        };
        asker.batch_execute(&format!("SET ruvector.read_consistency = {level}"))?;
        ensure!(asker.ids(&sql)?.contains(&id), "{level}");
    }
    items.insert(&mut writer, 103..104)?;
    writer.batch_execute("SET force_parallel_mode = on")?;
    ensure!(writer.ids(&sql)?.contains(&103), "in a parallel worker");
    let plan = writer.query(&format!("EXPLAIN {sql}"), &[])?;
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    let plan = plan.join("\n");
    ensure!(
        plan.contains("Gather") && plan.contains("Index Scan"),
        "{plan}"
    );

    cluster.signal(CONSUMER, "STOP")?;
    items.insert(&mut writer, 104..105)?;
    ensure!(
        writer.client_error(&sql).as_deref() == Some("RV002"),
        "a worker that does not know its leader's commits waits for all"
    );
    ensure!(reader.client_error(&sql).as_deref() == Some("RV002"));
    cluster.signal(CONSUMER, "CONT")?;
    reader.batch_execute("SET ruvector.search_timeout_ms = '20s'")?;
    ensure!(reader.ids(&sql)?.contains(&104));
    cluster.finish()
}

#[test]
fn p8_p9_a_standby_scans_exactly_and_is_not_answered_once_promoted() -> Result<()> {
    let cluster = start("standby")?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "standby", 100, DIMENSIONS)?;
    let sql = every_row(&items);
    let token = session.value("SELECT ruvector_session_token()")?;
    let standby = Standby::of(&cluster)?;
    items.insert(&mut session, 101..111)?;
    let mut on_standby = standby.session()?;
    let mut got = on_standby.ids(&sql)?;
    got.sort_unstable();
    ensure!(got == (1..=110).collect::<Vec<i64>>(), "{got:?}");
    let plan = on_standby.explain(&sql)?.text;
    ensure!(
        !plan.contains("Index Scan"),
        "planned as without an index: {plan}"
    );
    let reason = format!(
        "SELECT reason FROM ruvector_index_status('{}')",
        items.index()
    );
    ensure!(on_standby.value(&reason)? == "the server is a standby");
    on_standby.batch_execute("SET ruvector.read_consistency = bounded")?;
    ensure!(on_standby.ids(&sql)?.len() == 110, "bounded as well");
    ensure!(
        on_standby
            .client_error("SELECT ruvector_session_token()")
            .as_deref()
            == Some("55000")
    );

    let mut promoted = standby.promote()?;
    promoted.batch_execute("SET enable_sort = off")?;
    promoted.batch_execute("SET ruvector.search_timeout_ms = 300")?;
    promoted.batch_execute(&format!("SET ruvector.session_token = '{token}'"))?;
    // The cluster follows the old primary: it is not asked in the name of another.
    let (state, text) = promoted.failure(&sql)?;
    ensure!(
        state == "RV003" && text.contains("this start of the server"),
        "{state} {text}"
    );
    promoted.batch_execute("SET ruvector.on_unavailable = exact")?;
    ensure!(promoted.ids(&sql)?.len() == 110, "the heap answers");
    standby.stop()?;
    cluster.finish()
}

#[test]
fn p8_p9_the_replication_status_shows_how_far_behind_an_index_is_to_who_may_read_its_table()
-> Result<()> {
    let cluster = start("lag-view")?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "lag_view", 100, DIMENSIONS)?;
    let status = |what: &str| {
        format!(
            "SELECT {what} FROM ruvector_replication_status WHERE index = '{}'::regclass",
            items.index()
        )
    };
    let until = |session: &mut Session, what: &str| -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while session.value(&status(what))? != "t" {
            let row = session.value(&status("ruvector_replication_status::text"))?;
            ensure!(Instant::now() < deadline, "not {what}: {row}");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    let flushed = session.value("SELECT pg_current_wal_flush_lsn()")?;
    until(
        &mut session,
        &format!(
            "coalesce(applied_lsn >= '{flushed}' AND received_lsn >= confirmed_lsn, false)
             AND state = 'ready' AND reason IS NULL AND slot_active AND wal_status = 'reserved'
             AND retained_bytes > 0 AND \"table\" = 'lag_view'::regclass"
        ),
    )?;

    cluster.signal(CONSUMER, "STOP")?;
    items.insert(&mut session, 101..301)?;
    until(&mut session, "lag_bytes > 10000 AND lag_ms > 500")?;
    cluster.signal(CONSUMER, "CONT")?;
    let flushed = session.value("SELECT pg_current_wal_flush_lsn()")?;
    until(
        &mut session,
        &format!("applied_lsn >= '{flushed}' AND lag_ms < 500"),
    )?;

    session.batch_execute("CREATE ROLE stranger; SET ROLE stranger")?;
    let count = "SELECT count(*) FROM ruvector_replication_status";
    ensure!(session.value(count)? == "0", "no right to the table");
    session.batch_execute("RESET ROLE; GRANT SELECT ON lag_view TO stranger; SET ROLE stranger")?;
    ensure!(session.value(count)? == "1");
    cluster.finish()
}
