//! How many small transactions a second come through: one row each, all of them committed
//! while the consumer is stopped, so that whoever makes them does not set the pace.
//!
//! The consumer's start, until it streams, is part of the time.

use super::{Scale, rows};
use anyhow::Result;
use integration_tests::Cluster;
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::time::Instant;

const DIMENSIONS: usize = 16;
const CONSUMER: &str = "consumer-1";

pub fn run(cluster: &Cluster, scale: Scale) -> Result<Value> {
    let transactions: i64 = scale.of(50_000, 200_000);
    let mut source = Client::connect(cluster.dsn(), NoTls)?;
    source.batch_execute(
        "SET ruvector.on_unavailable = error; SET enable_seqscan = off; SET ruvector.search_timeout_ms = 300000;
         SET synchronous_commit = off",
    )?;
    rows::create_indexed(&mut source, "bench_small", DIMENSIONS)?;
    cluster.make(&["stop", &format!("PROC={CONSUMER}")])?;
    let query = rows::literal(1, DIMENSIONS);
    let rest = ",1".repeat(DIMENSIONS - 1);
    source.batch_execute(&format!(
        "DO $$ BEGIN FOR i IN 1..{transactions} LOOP
           INSERT INTO bench_small VALUES (i, ('[' || i || '{rest}]')::vector); COMMIT;
         END LOOP; END $$"
    ))?;
    let began = Instant::now();
    cluster.restart(CONSUMER)?;
    source.batch_execute("SET ruvector.read_consistency = strong")?;
    source.query_one(
        &format!("SELECT id FROM bench_small ORDER BY embedding <-> '{query}' LIMIT 1"),
        &[],
    )?;
    let took = began.elapsed().as_secs_f64();
    let per_second = transactions as f64 / took;
    println!(
        "{transactions} transactions of one row: searchable {took:.1} s after the consumer's start, {per_second:.0} a second (goal >= 10,000)"
    );
    source.batch_execute("DROP TABLE bench_small")?;
    Ok(json!({
        "transactions": transactions,
        "searchable_s": took,
        "transactions_per_s": per_second.round(),
        "goal_per_s": 10_000,
    }))
}
