//! A table is filled while it is written to: its ranges go on after any death,
//! under snapshots that are held for a second, and what comes out is the heap.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use cluster_core::row_key::RowKey;
use integration_tests::{
    Cluster, DirectSearch, Items, Session, Shape, assert_replicas_hold, clustered_vector, literal,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Such a vector lies out of line: an UPDATE of another column does not carry it.
const DIMENSIONS: usize = 600;
const ROWS: i64 = 8_000;
const TWO: Shape = Shape {
    nodes: 2,
    coordinators: 1,
    replicas: 2,
};
const PACE_BYTES: u64 = 1 << 20;
/// Of each of two tables, filled within ten seconds at that pace.
const PACED_ROWS: i64 = 2_200;
/// As slow as may be.
const SLOW: &str = "backfill_bytes_per_second_max = 1048576\ndemote_after_ms = 120000";
const SHORT_SNAPSHOTS: &str = "backfill_snapshot_seconds_max = 1";
/// Longer than any copy here takes: who must not wait is let through.
const LONG_SNAPSHOTS: &str = "backfill_snapshot_seconds_max = 300";
const LEASES: &str = "leases.ttl_ms = 3000\nleases.renew_every_ms = 500";
const READY_WITHIN: Duration = Duration::from_secs(240);

fn cluster(name: &str, snapshots: &str) -> Result<Cluster> {
    let consumer = format!("{SLOW}\n{snapshots}");
    let settings = [
        ("COORDINATOR_SETTINGS", LEASES),
        ("CONSUMER_SETTINGS", &consumer),
    ];
    let cluster = Cluster::start_with(name, TWO, &settings)?;
    cluster.wire()?.wait_for_nodes(2)?;
    Ok(cluster)
}

/// A table of full blocks: an UPDATE moves its row to another one.
fn table(session: &mut Session, name: &str, rows: i64) -> Result<Items> {
    let seed = Items::create(session, &format!("{name}_seed"), rows, DIMENSIONS)?;
    session.batch_execute(&format!(
        "CREATE TABLE {name}(id bigint PRIMARY KEY, label int, embedding vector({DIMENSIONS}),
                             pad text DEFAULT repeat('x', 500));
         INSERT INTO {name}(id, label, embedding) SELECT id, label, embedding FROM {seed} ORDER BY id;
         DROP TABLE {seed}; ANALYZE {name}",
        seed = seed.name
    ))?;
    Ok(Items {
        name: name.to_owned(),
        dimensions: DIMENSIONS,
    })
}

fn create_index(session: &mut Session, items: &Items) -> Result<()> {
    Ok(session.batch_execute(&format!(
        "CREATE INDEX {} ON {} USING ruhnsw (embedding vector_l2_ops)",
        items.index(),
        items.name
    ))?)
}

/// How far a backfill is, as `ctl collections` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    is_ready: bool,
    blocks: u64,
    rows: u64,
    snapshots: u64,
}

fn standing(cluster: &Cluster, items: &Items) -> Result<Option<Standing>> {
    let all = cluster.ctl("collections")?;
    let rows = all.as_array().context("a list")?;
    let Some(line) = rows
        .iter()
        .find(|row| row["index"] == items.index().as_str())
    else {
        return Ok(None);
    };
    let number = |name: &str| line[name].as_u64().unwrap_or(0);
    ensure!(line["state"] != "failed", "{line}");
    Ok(Some(Standing {
        is_ready: line["state"] == "ready",
        blocks: number("blocks_copied"),
        rows: number("rows_copied"),
        snapshots: number("backfill_snapshots"),
    }))
}

fn wait_for(
    cluster: &Cluster,
    items: &Items,
    what: &str,
    is_so: impl Fn(&Standing) -> bool,
) -> Result<Standing> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let seen = standing(cluster, items)?;
        if let Some(seen) = seen.filter(&is_so) {
            println!("{what}: {seen:?}");
            return Ok(seen);
        }
        ensure!(Instant::now() < deadline, "not {what}, but {seen:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Changes of every kind, until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Result<u64>>,
}

impl Writer {
    fn start(cluster: &Cluster, items: &Items) -> Result<Self> {
        let mut session = cluster.session()?;
        let (stop, items) = (Arc::new(AtomicBool::new(false)), items.clone());
        let stopped = stop.clone();
        let worker = std::thread::spawn(move || {
            let mut n: i64 = 0;
            while !stopped.load(Ordering::SeqCst) {
                write(&mut session, &items, n)?;
                n += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(n as u64)
        });
        Ok(Self { stop, worker })
    }

    fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.worker.join().expect("the writer panicked")
    }
}

fn write(session: &mut Session, items: &Items, n: i64) -> Result<()> {
    let name = &items.name;
    // Scattered over the table, so that rows go from ranges to come to those done.
    let id = (n * 7_919) % ROWS + 1;
    let vector = |id| literal(&clustered_vector(id, DIMENSIONS));
    let sql = match n % 10 {
        0 => format!("DELETE FROM {name} WHERE id = {id}"),
        1 => format!(
            "INSERT INTO {name} VALUES ({}, 0, '{}')",
            3_000_000 + n,
            vector(3_000_000 + n)
        ),
        2 => format!("UPDATE {name} SET id = id + 1000000 WHERE id = {id}"),
        3 => format!(
            "UPDATE {name} SET embedding = '{}' WHERE id = {id}",
            vector(n + 17)
        ),
        4 => format!("UPDATE {name} SET embedding = NULL WHERE id = {id}"),
        _ => format!("UPDATE {name} SET label = label + 1 WHERE id BETWEEN {id} AND {id} + 20"),
    };
    session.batch_execute(&sql).with_context(|| sql)
}

fn oldest_snapshot_seconds(session: &mut Session) -> Result<f64> {
    let seconds = session.value(
        "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)
           FROM pg_stat_activity
          WHERE application_name = 'ruvector-consumer' AND backend_xmin IS NOT NULL
            AND backend_type = 'client backend'",
    )?;
    Ok(seconds.parse()?)
}

/// The longest that a transaction of the consumer was seen to last.
struct Watch {
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Result<f64>>,
}

impl Watch {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut session = cluster.session()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let worker = std::thread::spawn(move || {
            let mut longest: f64 = 0.0;
            while !stopped.load(Ordering::SeqCst) {
                longest = longest.max(oldest_snapshot_seconds(&mut session)?);
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(longest)
        });
        Ok(Self { stop, worker })
    }

    fn finish(self) -> Result<f64> {
        self.stop.store(true, Ordering::SeqCst);
        self.worker.join().expect("the watch panicked")
    }
}

/// Every replica holds the heap's rows with the heap's vectors.
fn assert_whole(cluster: &Cluster, items: &Items) -> Result<()> {
    let mut session = cluster.session()?;
    session.wait_for(&items.index(), false)?;
    session.batch_execute("SET ruvector.read_consistency = strong")?;
    items.assert_every_row_once(&mut session)?;
    let query = clustered_vector(7, DIMENSIONS);
    let end = session.value("SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")?;
    session.batch_execute("SET enable_indexscan = off; SET enable_seqscan = on")?;
    let heap = session.query(
        &format!(
            "SELECT id, embedding <-> '{}' FROM {} WHERE embedding IS NOT NULL",
            literal(&query),
            items.name
        ),
        &[],
    )?;
    let heap: BTreeMap<Vec<u8>, f64> = heap
        .iter()
        .map(|row| {
            let id: i64 = row.get(0);
            let key = RowKey::from_columns([id.to_be_bytes().as_slice()]).unwrap();
            (key.as_bytes().to_vec(), row.get(1))
        })
        .collect();
    ensure!(heap.len() > 1_000, "{} rows are no test", heap.len());
    let wire = cluster.wire()?;
    let search = DirectSearch::new(wire.map()?, &items.index(), query)?;
    assert_replicas_hold(&wire, &search, end.parse()?, &heap)
}

#[test]
fn p2_p3_a_backfill_goes_on_after_consumer_and_node_died_and_holds_no_snapshot_for_long()
-> Result<()> {
    let cluster = cluster("backfill-deaths", SHORT_SNAPSHOTS)?;
    let mut session = cluster.session()?;
    let items = table(&mut session, "docs", ROWS)?;
    let watch = Watch::start(&cluster)?;
    create_index(&mut session, &items)?;
    let writer = Writer::start(&cluster, &items)?;
    let mut least = wait_for(&cluster, &items, "well begun", |s| s.blocks >= 60)?;
    for process in ["consumer-1", "node-2", "consumer-1"] {
        cluster.kill(process)?;
        std::thread::sleep(Duration::from_millis(500));
        cluster.restart(process)?;
        let goes_on = wait_for(&cluster, &items, "gone on", |s| {
            s.is_ready || s.snapshots > least.snapshots + 1
        })?;
        ensure!(
            goes_on.is_ready || (goes_on.blocks >= least.blocks && goes_on.rows >= least.rows),
            "after the death of {process} the copy stands at {goes_on:?}, and stood at {least:?}"
        );
        ensure!(
            !goes_on.is_ready,
            "the backfill was over before {process} died"
        );
        least = wait_for(&cluster, &items, "further", |s| {
            s.is_ready || s.blocks >= goes_on.blocks + 30
        })?;
        ensure!(
            !least.is_ready,
            "the backfill was over too soon: {goes_on:?}"
        );
    }
    wait_for(&cluster, &items, "ready", |s| s.is_ready)?;
    let longest = watch.finish()?;
    println!(
        "{} writes; the longest snapshot: {longest} s",
        writer.finish()?
    );
    ensure!(longest > 0.1, "no snapshot was seen");
    // A second, and what a busy machine takes to end it.
    ensure!(longest < 3.0, "a snapshot was held for {longest} s");
    assert_whole(&cluster, &items)?;
    cluster.finish()
}

/// Until the consumer is seen to copy from the first block: ranges that were
/// copied before are over too soon to be asked for.
fn wait_for_first_range(cluster: &Cluster, session: &mut Session, items: &Items) -> Result<()> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ruvector-consumer'
                  AND query LIKE 'COPY%ctid >= ''(0,0)''%'";
    let deadline = Instant::now() + READY_WITHIN;
    let mut looked_at = Instant::now();
    while session.value(sql)? == "0" {
        if looked_at.elapsed() > Duration::from_secs(2) {
            let seen = standing(cluster, items)?;
            ensure!(
                seen.is_none_or(|s| !s.is_ready),
                "no range was copied again"
            );
            looked_at = Instant::now();
        }
        ensure!(Instant::now() < deadline, "the backfill does not go on");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// `ruvector_index_status()`, `ruvector_replication_status` and `ctl lag` tell of a
/// backfill that is under way, and of its numbers as `ctl collections` does.
fn assert_told(
    cluster: &Cluster,
    session: &mut Session,
    items: &Items,
    before: Standing,
) -> Result<()> {
    let index = items.index();
    let is_amid = session.value(&format!(
        "SELECT state = 'building' AND backfill_rows_copied >= {rows} AND backfill_rows_estimated >= 1000
            AND backfill_blocks_copied >= {blocks} AND backfill_blocks_copied < backfill_blocks_total
            AND backfill_blocks_total >= 100 AND backfill_snapshots >= {snapshots}
          FROM ruvector_index_status('{index}')",
        rows = before.rows,
        blocks = before.blocks,
        snapshots = before.snapshots,
    ))?;
    let told = session.value(&format!(
        "SELECT s::text FROM ruvector_index_status('{index}') s"
    ))?;
    ensure!(is_amid == "t", "{told}, after {before:?}");
    let state =
        format!("SELECT state FROM ruvector_replication_status WHERE index = '{index}'::regclass");
    ensure!(session.value(&state)? == "building");
    let lag = cluster.ctl("lag")?;
    let backfills = lag[0]["progress"]["backfills"].as_array();
    let backfill = backfills
        .into_iter()
        .flatten()
        .find(|b| b["index"] == index.as_str())
        .with_context(|| format!("{index} is not in {lag}"))?;
    let number = |name: &str| backfill[name].as_u64().unwrap_or(0);
    ensure!(
        number("rows_copied") >= before.rows
            && number("blocks_copied") >= before.blocks
            && number("blocks_total") > number("blocks_copied")
            && number("snapshots") >= before.snapshots,
        "{backfill}, after {before:?}"
    );
    Ok(())
}

fn wait_for_snapshot(session: &mut Session) -> Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    while oldest_snapshot_seconds(session)? < 0.1 {
        ensure!(Instant::now() < deadline, "no snapshot is held");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// An application that waits for a lock holds up all who come behind it: neither the
/// table nor the end of a snapshot is kept from anybody, though it could last minutes.
#[test]
fn p11_whoever_waits_in_mid_backfill_gets_the_table_and_rewritten_ranges_begin_again() -> Result<()>
{
    let cluster = cluster("backfill-waited-for", LONG_SNAPSHOTS)?;
    let mut session = cluster.session()?;
    session.batch_execute("CREATE TABLE bystander(id bigint PRIMARY KEY, label int)")?;
    let items = table(&mut session, "rewritten", ROWS)?;
    create_index(&mut session, &items)?;
    let writer = Writer::start(&cluster, &items)?;
    let begun = wait_for(&cluster, &items, "well begun", |s| s.blocks >= 60)?;
    assert_told(&cluster, &mut session, &items, begun)?;
    let mut get_through = |sql: &str| -> Result<()> {
        let began = Instant::now();
        session.batch_execute(sql).with_context(|| sql.to_owned())?;
        println!("{sql}: {:?}", began.elapsed());
        let is_ready = standing(&cluster, &items)?.is_none_or(|s| s.is_ready);
        ensure!(!is_ready, "the backfill was over before {sql}");
        Ok(())
    };
    get_through("SET lock_timeout = '5s'; SET statement_timeout = '10s'")?;
    get_through("ALTER TABLE rewritten ADD COLUMN note text")?;
    // It waits for the end of older snapshots, of whatever table.
    wait_for_snapshot(&mut cluster.session()?)?;
    get_through("CREATE INDEX CONCURRENTLY ON bystander(label)")?;
    get_through("SET statement_timeout = '30s'")?;
    get_through("DELETE FROM rewritten WHERE id % 2 = 1")?;
    get_through("VACUUM FULL rewritten")?;
    wait_for_first_range(&cluster, &mut session, &items)?;
    wait_for(&cluster, &items, "ready", |s| s.is_ready)?;
    writer.finish()?;
    assert_whole(&cluster, &items)?;
    cluster.finish()
}

#[test]
fn p11_two_tables_are_filled_at_once_and_share_the_pace() -> Result<()> {
    let cluster = cluster("backfill-two", SHORT_SNAPSHOTS)?;
    let mut session = cluster.session()?;
    let tables = [
        table(&mut session, "first", PACED_ROWS)?,
        table(&mut session, "second", PACED_ROWS)?,
    ];
    let began = Instant::now();
    for items in &tables {
        create_index(&mut session, items)?;
    }
    let writers: Vec<Writer> = tables
        .iter()
        .map(|items| Writer::start(&cluster, items))
        .collect::<Result<_>>()?;
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        let both = [
            standing(&cluster, &tables[0])?,
            standing(&cluster, &tables[1])?,
        ];
        let is_amid = |s: &Option<Standing>| s.is_some_and(|s| s.rows > 0 && !s.is_ready);
        if both.iter().all(is_amid) {
            break;
        }
        ensure!(Instant::now() < deadline, "never both at once: {both:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    for items in &tables {
        wait_for(&cluster, items, "ready", |s| s.is_ready)?;
    }
    let took = began.elapsed();
    // Less what the writers took away before it was read.
    let bytes = 2 * PACED_ROWS as usize * DIMENSIONS * 4 * 9 / 10;
    let least = Duration::from_secs_f64(bytes as f64 / PACE_BYTES as f64);
    println!("both are ready after {took:?}; at one source's pace in {least:?} at least");
    ensure!(
        took >= least,
        "two tables at one source's pace take {least:?} at least, and took {took:?}"
    );
    for writer in writers {
        writer.finish()?;
    }
    for items in &tables {
        assert_whole(&cluster, items)?;
    }
    cluster.finish()
}
