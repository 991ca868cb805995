//! What the consumer holds in memory while a transaction of a million rows passes.

use super::{Scale, rows};
use anyhow::Result;
use integration_tests::Cluster;
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::time::Instant;

const DIMENSIONS: usize = 128;
const MIB: f64 = (1 << 20) as f64;

pub fn run(cluster: &Cluster, scale: Scale) -> Result<Value> {
    let rows = scale.of(100_000, 1_000_000);
    let mut source = Client::connect(cluster.dsn(), NoTls)?;
    source.batch_execute(
        "SET ruvector.on_unavailable = error; SET enable_seqscan = off; SET ruvector.search_timeout_ms = 600000",
    )?;
    rows::create_indexed(&mut source, "bench_large", DIMENSIONS)?;
    let mib = || anyhow::Ok(cluster.peak_memory_bytes("consumer-1")? as f64 / MIB);
    let before = mib()?;
    rows::copy(&mut source, "bench_large", 1..rows + 1, DIMENSIONS)?;
    let committed = Instant::now();
    let query = rows::literal(1, DIMENSIONS);
    source.query_one(
        &format!("SELECT id FROM bench_large ORDER BY embedding <-> '{query}' LIMIT 1"),
        &[],
    )?;
    let took = committed.elapsed().as_secs_f64();
    let peak = mib()?;
    println!(
        "one transaction of {rows} rows of {DIMENSIONS} dimensions: consumer {peak:.0} MiB at its peak (goal <= 512; before: {before:.0}), searchable after {took:.1} s"
    );
    source.batch_execute("DROP TABLE bench_large")?;
    Ok(json!({
        "rows": rows,
        "dimensions": DIMENSIONS,
        "peak_mib": peak,
        "peak_before_mib": before,
        "searchable_s": took,
        "goal_mib": 512,
    }))
}
