//! Definitions change while others write to the table: no write and no statement fails (P11),
//! nobody waits long for a session of ours, and afterwards every replica has the heap's
//! rows (P2, P3).
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::{Cluster, Items, Session, Verified, clustered_vector, literal};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ROWS: i64 = 1_500;
const DIMENSIONS: usize = 32;
const WRITERS: i64 = 2;
/// Of the cluster that tests share.
const REPLICAS: usize = 2;
const WRITE_PAUSE: Duration = Duration::from_millis(3);
/// What a session of ours may make another wait: `publication_lock_timeout_ms`, and what
/// a busy machine adds.
const BLOCKED_MAX: Duration = Duration::from_secs(4);

/// What ends in a `;` is one transaction, held open until writers wait behind it.
const STATEMENTS: &[&str] = &[
    "ALTER TABLE busy ADD COLUMN constant text DEFAULT 'x' NOT NULL;",
    "ALTER TABLE busy ADD COLUMN volatile float8 DEFAULT random();",
    "ALTER TABLE busy ADD COLUMN doubled int GENERATED ALWAYS AS (label * 2) STORED;",
    "ALTER TABLE busy DROP COLUMN doubled;",
    "ALTER TABLE busy RENAME COLUMN constant TO renamed;",
    "ALTER TABLE busy ALTER COLUMN renamed TYPE varchar(50);",
    "ALTER TABLE busy ALTER COLUMN label TYPE bigint;",
    "ALTER TABLE busy ALTER COLUMN embedding SET NOT NULL;",
    "ALTER TABLE busy ALTER COLUMN embedding DROP NOT NULL;",
    "ALTER TABLE busy ALTER COLUMN embedding SET STORAGE EXTERNAL;",
    "ALTER TABLE busy ALTER COLUMN embedding TYPE vector(32) USING embedding + embedding;",
    "ALTER TABLE busy ALTER COLUMN id TYPE numeric; ALTER TABLE busy ALTER COLUMN id TYPE bigint;",
    "ALTER TABLE busy ADD CONSTRAINT positive CHECK (id > 0);",
    "ALTER TABLE busy SET (fillfactor = 80);",
    "ALTER TABLE busy RENAME TO idle; ALTER TABLE idle RENAME TO busy;",
    "ALTER TABLE busy RENAME COLUMN id TO key; ALTER TABLE busy RENAME COLUMN key TO id;",
    "ALTER TABLE busy RENAME COLUMN embedding TO e; UPDATE busy SET e = e + e WHERE id % 97 = 1;
     ALTER TABLE busy RENAME COLUMN e TO embedding;",
    "ALTER TABLE busy REPLICA IDENTITY FULL;",
    "ALTER TABLE busy REPLICA IDENTITY DEFAULT;",
    "ALTER TABLE busy REPLICA IDENTITY NOTHING",
    "ALTER TABLE busy REPLICA IDENTITY DEFAULT",
    "ALTER TABLE busy DROP CONSTRAINT busy_pkey",
    "ALTER TABLE busy ADD PRIMARY KEY (id)",
    "ALTER TABLE busy DROP CONSTRAINT busy_pkey, ADD PRIMARY KEY (id);",
    "ALTER TABLE busy SET UNLOGGED",
    "ALTER TABLE busy SET LOGGED",
    "CREATE INDEX CONCURRENTLY busy_label ON busy (label)",
    "REINDEX TABLE CONCURRENTLY busy",
    "REINDEX INDEX busy_embedding_idx",
    "DROP INDEX CONCURRENTLY busy_label",
    "VACUUM FULL busy",
    "CLUSTER busy USING busy_pkey",
    "DROP INDEX busy_embedding_idx;
     CREATE INDEX busy_embedding_idx ON busy USING ruhnsw (embedding vector_l2_ops);",
];
/// After these the table is scanned exactly, for a reason with this in it, until the next
/// statement.
const EXACT_AFTER: &[(&str, &str)] = &[
    ("IDENTITY NOTHING", "REPLICA IDENTITY NOTHING"),
    ("DROP CONSTRAINT busy_pkey", "no primary key"),
    ("SET UNLOGGED", "unlogged"),
];

#[test]
fn p2_p3_p11_no_write_fails_or_waits_for_us_while_definitions_change() -> Result<()> {
    let cluster = Cluster::shared()?;
    let mut session = cluster.session()?;
    let watch = Blocked::watch(&cluster)?;
    the_watch_sees_a_session_of_ours_that_blocks(&cluster, &watch)?;
    let items = Items::indexed(&mut session, "busy", ROWS, DIMENSIONS)?;
    // Others write, and what they have committed is looked for.
    session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 30000",
    )?;
    let writers = Writers::start(&cluster)?;
    for statement in STATEMENTS {
        amid_writes(&mut session, &writers, statement)?;
        let _resting = writers.turn.write().expect("no writer panicked");
        let exact = EXACT_AFTER.iter().find(|(end, _)| statement.ends_with(end));
        if let Some((_, reason)) = exact {
            let exact = items.assert_exact(&mut session, reason);
            exact.with_context(|| format!("after {statement}"))?;
            continue;
        }
        session.wait_for(&items.index(), false)?;
        items
            .assert_every_row_once(&mut session)
            .with_context(|| format!("after {statement}"))?;
    }
    // Copies meet the next statement: nobody waits until one is done.
    for _ in 0..3 {
        for statement in [
            "ALTER TABLE busy ALTER COLUMN embedding TYPE vector(32) USING embedding - embedding + embedding;",
            "VACUUM FULL busy",
            "ALTER TABLE busy DROP COLUMN volatile; ALTER TABLE busy ADD COLUMN volatile float8 DEFAULT random();",
            "REINDEX INDEX CONCURRENTLY busy_embedding_idx",
        ] {
            amid_writes(&mut session, &writers, statement)?;
        }
    }
    let writes = writers.finish()?;
    let blocked = watch.finish()?;
    println!("{writes} writes; {blocked:?}");
    ensure!(
        blocked.longest < BLOCKED_MAX,
        "somebody waited for a session of ours: {blocked:?}"
    );
    ensure!(blocked.looks > 200, "{blocked:?} is no watch");
    items.assert_equals_heap(&cluster, 500)?;
    let recall = items.recall_at_10(&mut session, 50)?;
    ensure!(recall >= 0.98, "recall@10 is {recall}");
    let verified = Verified::all(&mut session, &items.index())?;
    ensure!(
        verified.len() >= REPLICAS && verified.iter().all(Verified::is_equal),
        "{verified:?}"
    );
    session.batch_execute("DROP TABLE busy")?;
    Ok(())
}

/// Every writer has written before, and waits or writes meanwhile and after.
fn amid_writes(session: &mut Session, writers: &Writers, statement: &str) -> Result<()> {
    writers.go_on()?;
    match statement.strip_suffix(';') {
        None => session.batch_execute(statement),
        Some(inside) => {
            session.batch_execute(&format!("BEGIN; {inside}; SELECT pg_sleep(0.03); COMMIT"))
        }
    }
    .with_context(|| statement.to_owned())?;
    writers.go_on().with_context(|| statement.to_owned())
}

/// Sessions that change rows of their own until they are stopped. None of them fails.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Vec<Arc<AtomicU64>>,
    /// Held for reading by who writes.
    turn: Arc<RwLock<()>>,
    workers: Vec<JoinHandle<Result<()>>>,
}

impl Writers {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut writers = Self {
            stop: Arc::default(),
            written: Vec::new(),
            turn: Arc::default(),
            workers: Vec::new(),
        };
        for own in 0..WRITERS {
            let mut session = cluster.session()?;
            let (stop, turn) = (writers.stop.clone(), writers.turn.clone());
            let written = Arc::new(AtomicU64::new(0));
            writers.written.push(written.clone());
            writers.workers.push(std::thread::spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let turn = turn.read().expect("nobody panicked");
                    let sql = change(own, n);
                    session.batch_execute(&sql).with_context(|| sql)?;
                    drop(turn);
                    written.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(WRITE_PAUSE);
                }
                Ok(())
            }));
        }
        Ok(writers)
    }

    /// Waits until each of them has written some more.
    fn go_on(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        for written in &self.written {
            let target = written.load(Ordering::SeqCst) + 4;
            while written.load(Ordering::SeqCst) < target {
                let ended = self.workers.iter().any(JoinHandle::is_finished);
                ensure!(!ended, "a writer ended");
                ensure!(Instant::now() < deadline, "writers do not go on");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        for worker in std::mem::take(&mut self.workers) {
            worker.join().expect("a writer panicked")?;
        }
        Ok(self.written.iter().map(|n| n.load(Ordering::SeqCst)).sum())
    }
}

impl Drop for Writers {
    /// What a writer failed with says more than that the test did.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            if let Ok(Err(error)) = worker.join() {
                eprintln!("a write failed: {error:#}");
            }
        }
    }
}

/// Of the rows whose ids leave `own` when divided by the writers' number. No two rows are
/// given the same vector: order is compared.
fn change(own: i64, n: i64) -> String {
    let id = (n * 37 % (ROWS / WRITERS) + 1) * WRITERS + own;
    let vector = literal(&clustered_vector(
        10_000_000 + n * WRITERS + own,
        DIMENSIONS,
    ));
    match n % 6 {
        0 => format!(
            "INSERT INTO busy (id, label, embedding) VALUES ({}, 1, '{vector}')",
            100_000 + n * WRITERS + own
        ),
        1 => format!("DELETE FROM busy WHERE id = {id}"),
        2 => format!("UPDATE busy SET embedding = '{vector}' WHERE id = {id}"),
        3 => format!("UPDATE busy SET id = id + 1000000 WHERE id = {id}"),
        _ => format!("UPDATE busy SET label = label + 1 WHERE id = {id}"),
    }
}

/// Watches for sessions that wait for one of ours.
struct Blocked {
    stop: Arc<AtomicBool>,
    longest_ms: Arc<AtomicU64>,
    worker: JoinHandle<Result<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    looks: u64,
    longest: Duration,
    /// What the one of ours was at.
    blocker: String,
}

impl Blocked {
    fn watch(cluster: &Cluster) -> Result<Self> {
        let mut session = cluster.session()?;
        let stop = Arc::new(AtomicBool::new(false));
        let longest_ms = Arc::new(AtomicU64::new(0));
        let (stopped, told) = (stop.clone(), longest_ms.clone());
        let worker = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut waiting: BTreeMap<i32, Instant> = BTreeMap::new();
            while !stopped.load(Ordering::SeqCst) {
                let now = Instant::now();
                let found = session.query(
                    "SELECT w.pid, min(left(b.query, 200)) FROM pg_stat_activity w
                      CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) p
                       JOIN pg_stat_activity b ON b.pid = p
                      WHERE w.wait_event_type = 'Lock'
                        AND NOT (w.application_name = 'ruvector-consumer' OR w.backend_type LIKE 'ruvector%')
                        AND (b.application_name = 'ruvector-consumer' OR b.backend_type LIKE 'ruvector%')
                      GROUP BY w.pid",
                    &[],
                )?;
                let found: BTreeMap<i32, String> =
                    found.iter().map(|row| (row.get(0), row.get(1))).collect();
                waiting.retain(|pid, _| found.contains_key(pid));
                for (pid, query) in found {
                    let since = *waiting.entry(pid).or_insert(now);
                    if now - since > seen.longest {
                        seen.longest = now - since;
                        seen.blocker = query;
                    }
                }
                told.store(seen.longest.as_millis() as u64, Ordering::SeqCst);
                seen.looks += 1;
                std::thread::sleep(Duration::from_millis(15));
            }
            Ok(seen)
        });
        Ok(Self {
            stop,
            longest_ms,
            worker,
        })
    }

    fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::SeqCst);
        self.worker.join().expect("the watch panicked")
    }
}

/// A watch that could not see anything would never complain.
fn the_watch_sees_a_session_of_ours_that_blocks(cluster: &Cluster, watch: &Blocked) -> Result<()> {
    let (mut ours, mut theirs) = (cluster.session()?, cluster.session()?);
    ours.batch_execute(
        "SET application_name = 'ruvector-consumer'; DROP TABLE IF EXISTS stood_in_the_way;
         CREATE TABLE stood_in_the_way()",
    )?;
    ours.batch_execute("BEGIN; LOCK TABLE stood_in_the_way")?;
    std::thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| theirs.batch_execute("DROP TABLE stood_in_the_way"));
        let deadline = Instant::now() + BLOCKED_MAX / 2;
        while watch.longest_ms.load(Ordering::SeqCst) < 30 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        ours.batch_execute("COMMIT")?;
        Ok(waiting.join().expect("no panic")?)
    })?;
    let seen = watch.longest_ms.load(Ordering::SeqCst);
    ensure!(seen >= 30, "the watch saw {seen} ms");
    Ok(())
}
