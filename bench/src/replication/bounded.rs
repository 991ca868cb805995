//! What is sustained of rows that come faster than they are folded, where a tail has the
//! limit that a node has by default: apply waits for folding, and searches scan a tail that
//! is full all the time.
//!
//! As for the unbounded tail all rows are committed while the consumer is stopped.

use super::{Scale, rows};
use crate::percentile::percentile;
use anyhow::{Result, ensure};
use integration_tests::Cluster;
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const DIMENSIONS: usize = 768;
/// Of one transaction.
const ROWS: i64 = 2_000;
const TABLE: &str = "bench_bounded";
const CONSUMER: &str = "consumer-1";
const NODE: &str = "node-1";
/// What a node has of a new collection.
const PARTITIONS: f64 = 2.0;
const WAITING: &str = "ruvector_node_waiting_for_folding";
/// Of a node where nothing is set.
const DEFAULT_LIMIT: usize = 200_000;
const TAIL_ROWS_MAX: &str = "apply.tail_rows_max";
/// Until both partitions of the table are at their limit.
const FULL_WITHIN: Duration = Duration::from_secs(300);
/// Rows that may be folded while one search runs: they are there for each, so that rows wait
/// until the last one.
const ROWS_BESIDE_A_SEARCH: usize = 400;
/// For rows to come once more after the searches.
const COMES_WITHIN: Duration = Duration::from_secs(60);

/// What is measured.
struct Load {
    /// Of each tail; what a node has where nothing is set, if it is none.
    limit: Option<usize>,
    searches: usize,
    transactions: i64,
}

impl Load {
    fn of(scale: Scale) -> Self {
        let limit = scale.of(Some(2_000), None);
        let searches = scale.of(100, 1_000);
        let tails = PARTITIONS as usize * limit.unwrap_or(DEFAULT_LIMIT);
        let rows = (tails + searches * ROWS_BESIDE_A_SEARCH) as i64;
        Self {
            limit,
            searches,
            transactions: (rows + ROWS - 1) / ROWS,
        }
    }
}

/// What was changed for it is put back, whatever came of it.
pub fn run(cluster: &Cluster, scale: Scale) -> Result<Value> {
    let load = Load::of(scale);
    let former = cluster.change_settings(NODE, |text| with_limit(text, load.limit))?;
    let measured = restart(cluster).and_then(|()| measure(cluster, &load));
    // It may have been stopped, and is left alone where it runs.
    let consumer = cluster.restart(CONSUMER);
    let dropped = drop_table(cluster);
    let put_back = cluster.change_settings(NODE, |_| former);
    let restarted = restart(cluster);
    let measured = measured?;
    consumer?;
    dropped?;
    put_back?;
    restarted?;
    Ok(measured)
}

fn drop_table(cluster: &Cluster) -> Result<()> {
    let mut source = Client::connect(cluster.dsn(), NoTls)?;
    Ok(source.batch_execute(&format!("DROP TABLE IF EXISTS {TABLE}"))?)
}

/// A configuration whose tails have this limit, or the default one. It stands first: behind
/// the head of a section it would be one of that section's.
fn with_limit(text: &str, limit: Option<usize>) -> String {
    let others = text.lines().filter(|line| !line.starts_with(TAIL_ROWS_MAX));
    let limit = limit.map(|rows| format!("{TAIL_ROWS_MAX} = {rows}"));
    let others = others.map(str::to_owned);
    let lines: Vec<String> = limit.into_iter().chain(others).collect();
    lines.join("\n") + "\n"
}

fn restart(cluster: &Cluster) -> Result<()> {
    cluster.make(&["stop", &format!("PROC={NODE}")])?;
    cluster.restart(NODE)
}

/// Where the rows came to their end, the rate is not what is sustained. Full tails alone do
/// not tell: they sink slowly.
fn ensure_rows_still_wait(cluster: &Cluster, measured: &Counted) -> Result<()> {
    let began = Instant::now();
    loop {
        let full = cluster.metric(NODE, WAITING)?;
        let come = Counted::now(cluster)?.applied - measured.applied;
        if full == PARTITIONS && come > 0.0 {
            return Ok(());
        }
        ensure!(
            began.elapsed() < COMES_WITHIN,
            "the rows ran out before the searches were done ({full} of {PARTITIONS} tails are full, \
             {come} rows came since), so that nothing was sustained: raise ROWS_BESIDE_A_SEARCH, \
             by which their number is chosen"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the node has done, as it counts.
struct Counted {
    at: Instant,
    applied: f64,
    folded: f64,
    waited_ms: f64,
}

impl Counted {
    fn now(cluster: &Cluster) -> Result<Self> {
        let count = |name: &str| cluster.metric(NODE, &format!("ruvector_node_{name}_total"));
        Ok(Self {
            at: Instant::now(),
            applied: count("apply_rows")?,
            folded: count("folded_rows")?,
            waited_ms: count("tail_wait_milliseconds")?,
        })
    }
}

fn measure(cluster: &Cluster, load: &Load) -> Result<Value> {
    let (transactions, fewest) = (load.transactions, load.searches);
    let mut source = Client::connect(cluster.dsn(), NoTls)?;
    source.batch_execute(
        "SET ruvector.on_unavailable = error; SET enable_seqscan = off; SET ruvector.search_timeout_ms = 600000;
         SET synchronous_commit = off; SET ruvector.read_consistency = eventual",
    )?;
    rows::create_indexed(&mut source, TABLE, DIMENSIONS)?;
    cluster.make(&["stop", &format!("PROC={CONSUMER}")])?;
    for n in 0..transactions {
        rows::copy(&mut source, TABLE, n * ROWS..(n + 1) * ROWS, DIMENSIONS)?;
    }
    cluster.restart(CONSUMER)?;
    let waiting = || cluster.metric(NODE, WAITING);
    let began = Instant::now();
    while waiting()? < PARTITIONS {
        let too_long = began.elapsed() > FULL_WITHIN;
        ensure!(!too_long, "{} of {PARTITIONS} tails are full", waiting()?);
        std::thread::sleep(Duration::from_millis(50));
    }
    let full_s = began.elapsed().as_secs_f64();
    println!("  {PARTITIONS} tails are full {full_s:.1} s after the consumer's start");

    let tail = cluster.metric(NODE, "ruvector_node_tail_rows")?;
    let before = Counted::now(cluster)?;
    let mut searches = Vec::new();
    while searches.len() < fewest {
        let query = rows::literal(searches.len() as i64, DIMENSIONS);
        let search = format!("SELECT id FROM {TABLE} ORDER BY embedding <-> '{query}' LIMIT 10");
        let began = Instant::now();
        source.query(&search, &[])?;
        searches.push(began.elapsed());
    }
    let after = Counted::now(cluster)?;
    ensure_rows_still_wait(cluster, &after)?;
    let looked_s = (after.at - before.at).as_secs_f64();
    let per_s = |before: f64, after: f64| (after - before) / looked_s;
    let applied_per_s = per_s(before.applied, after.applied);
    let folded_per_s = per_s(before.folded, after.folded);
    let waited = per_s(before.waited_ms, after.waited_ms) / 1e3 / PARTITIONS;
    let [p50, p99] = [50, 99].map(|p| percentile(&mut searches, p).as_secs_f64() * 1e3);
    println!(
        "  {fewest} searches one at a time with full tails of {tail:.0} rows together: p50 {p50:.1} ms, p99 {p99:.1} ms; \
         meanwhile {applied_per_s:.0} rows/s were applied and {folded_per_s:.0} folded, for {looked_s:.0} s; \
         apply waited for {:.0} % of that",
        waited * 100.0
    );
    Ok(json!({
        "rows": transactions * ROWS,
        "dimensions": DIMENSIONS,
        "full_after_s": full_s,
        "tail_rows": tail,
        "searches": fewest,
        "search_p50_ms": p50,
        "search_p99_ms": p99,
        "looked_s": looked_s,
        "sustained_rows_per_s": applied_per_s.round(),
        "folded_rows_per_s": folded_per_s.round(),
        "waited_part": waited,
    }))
}
