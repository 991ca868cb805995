//! How long rows of 768 dimensions come faster than they are folded: durable and
//! searchable by the exact scan of a tail that only grows; what a search costs then; and
//! how fast the tail is folded once nothing comes any more.
//!
//! All rows are committed while the consumer is stopped, so that whoever writes them
//! neither sets the pace nor takes the cores. The consumer's start is part of the time.

use super::{Scale, rows};
use crate::percentile::percentile;
use anyhow::Result;
use integration_tests::Cluster;
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const DIMENSIONS: usize = 768;
/// Of one transaction.
const ROWS: i64 = 2_000;
const GOAL_PER_S: f64 = 10_000.0;
const CONSUMER: &str = "consumer-1";
const NODE: &str = "node-1";

pub fn run(cluster: &Cluster, scale: Scale) -> Result<Value> {
    let transactions: i64 = scale.of(10, 650);
    let mut source = Client::connect(cluster.dsn(), NoTls)?;
    source.batch_execute(
        "SET ruvector.on_unavailable = error; SET enable_seqscan = off; SET ruvector.search_timeout_ms = 600000;
         SET synchronous_commit = off",
    )?;
    rows::create_indexed(&mut source, "bench_tail", DIMENSIONS)?;
    cluster.make(&["stop", &format!("PROC={CONSUMER}")])?;
    for n in 0..transactions {
        let ids = n * ROWS..(n + 1) * ROWS;
        rows::copy(&mut source, "bench_tail", ids, DIMENSIONS)?;
    }
    let count = transactions * ROWS;
    let waited = || cluster.metric(NODE, "ruvector_node_tail_wait_milliseconds_total");
    let before_ms = waited()?;
    let began = Instant::now();
    cluster.restart(CONSUMER)?;
    source.batch_execute("SET ruvector.read_consistency = strong")?;
    search(&mut source, 1)?;
    let took = began.elapsed().as_secs_f64();
    let pushed_back_s = (waited()? - before_ms) / 1e3;
    let per_second = count as f64 / took;
    let tail = cluster.metric(NODE, "ruvector_node_tail_rows")?;
    println!(
        "{count} rows of {DIMENSIONS} dimensions: durable and searchable {took:.1} s after the consumer's start, \
         {per_second:.0} rows/s (goal >= 10,000 for 60 s); apply waited {pushed_back_s:.1} s for folding"
    );
    source.batch_execute("SET ruvector.read_consistency = eventual")?;
    let (mut searches, mut found, looked_s) = (Vec::new(), 0, scale.of(2, 15));
    let looking = Instant::now();
    while looking.elapsed() < Duration::from_secs(looked_s) {
        let began = Instant::now();
        found += u32::from(search(&mut source, searches.len() as i64)?);
        searches.push(began.elapsed());
    }
    let [p50, p99] = [50, 99].map(|p| percentile(&mut searches, p).as_secs_f64() * 1e3);
    let asked = searches.len();
    println!(
        "  {asked} searches with a tail of {tail:.0} rows: p50 {p50:.1} ms, p99 {p99:.1} ms; {found} found the row asked for"
    );
    let folded_per_s = folding(cluster, Duration::from_secs(scale.of(3, 30)))?;
    println!("  folded beside nothing else: {folded_per_s:.0} rows/s");
    source.batch_execute("DROP TABLE bench_tail")?;
    Ok(json!({
        "rows": count,
        "dimensions": DIMENSIONS,
        "searchable_s": took,
        "rows_per_s": per_second.round(),
        "goal_per_s": GOAL_PER_S,
        "pushed_back_s": pushed_back_s,
        "tail_rows": tail,
        "searches": asked,
        "found_row_asked_for": found,
        "search_p50_ms": p50,
        "search_p99_ms": p99,
        "folded_rows_per_s": folded_per_s.round(),
    }))
}

/// Asks for a row by its own vector, and whether that is what comes. What is folded is found
/// as a graph of noise finds it.
fn search(source: &mut Client, id: i64) -> Result<bool> {
    let query = rows::literal(id, DIMENSIONS);
    let search = format!("SELECT id FROM bench_tail ORDER BY embedding <-> '{query}' LIMIT 1");
    Ok(source.query_one(&search, &[])?.get::<_, i64>(0) == id)
}

/// Rows a second, until the tail is empty or the time is up.
fn folding(cluster: &Cluster, at_most: Duration) -> Result<f64> {
    let folded = || cluster.metric(NODE, "ruvector_node_folded_rows_total");
    let (before, began) = (folded()?, Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let took = began.elapsed();
        // The gauge follows within a second.
        let is_empty = cluster.metric(NODE, "ruvector_node_tail_rows")? == 0.0;
        if is_empty || took >= at_most {
            return Ok((folded()? - before) / took.as_secs_f64());
        }
    }
}
