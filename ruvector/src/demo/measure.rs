//! What searches through SQL find and cost. A session here takes an answer that
//! did not come from the cluster for an error.

use super::fashion_mnist::Images;
use super::progress_bar::ProgressBar;
use super::vector::Vector;
use super::{INDEX, TABLE, connect};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Statement};

const NEIGHBOURS: usize = 10;
const WARM_UP_QUERIES: usize = 100;

pub struct Recall {
    pub mean: f64,
    pub queries: usize,
}

pub struct Latency {
    pub p50: Duration,
    pub p99: Duration,
    pub queries: usize,
}

const STRICT: &str = "SET ruvector.on_unavailable = error; SET jit = off";
const EXACT: &str =
    "SET enable_indexscan = off; SET max_parallel_workers_per_gather = 0; SET jit = off";

fn nearest_sql() -> String {
    format!("SELECT id FROM {TABLE} ORDER BY embedding <-> $1 LIMIT {NEIGHBOURS}")
}

/// The query that EXPLAIN shows; the vector comes from a row, to stay readable.
fn example_sql() -> String {
    format!(
        "SELECT id, label FROM {TABLE}\n  ORDER BY embedding <-> (SELECT embedding FROM {TABLE} WHERE id = 42)\n  LIMIT {NEIGHBOURS}"
    )
}

/// Otherwise the figures would be those of the sequential scan.
pub async fn assert_index_is_used(client: &Client) -> anyhow::Result<()> {
    client.batch_execute(STRICT).await?;
    let plan = explain_lines(client, "EXPLAIN").await?;
    ensure!(
        plan.contains(INDEX),
        "the planner does not use {INDEX}:\n{plan}"
    );
    Ok(())
}

/// Mean share of the exact ten nearest that the index finds.
pub async fn recall_at_10(
    dsn: &str,
    client: &Client,
    queries: &Images,
    count: usize,
) -> anyhow::Result<Recall> {
    let queries: Vec<&[f32]> = queries.sample(count).collect();
    ensure!(!queries.is_empty(), "--recall-queries must be at least 1");
    client.batch_execute(STRICT).await?;
    let nearest = client.prepare(&nearest_sql()).await?;
    let exact = Exact::new(dsn).await?;
    let mut bar = ProgressBar::new("recall", "queries");
    let mut found = 0;
    let mut expected = 0;
    for (i, chunk) in queries.chunks(exact.sessions.len()).enumerate() {
        let truths = exact.nearest(chunk).await?;
        for (query, truth) in chunk.iter().zip(truths) {
            let ids = ids(client, &nearest, query).await?;
            found += truth.iter().filter(|id| ids.contains(id)).count();
            expected += truth.len();
        }
        bar.set((i * exact.sessions.len()) as u64, queries.len() as u64);
    }
    bar.finish(queries.len() as u64);
    Ok(Recall {
        mean: found as f64 / expected.max(1) as f64,
        queries: queries.len(),
    })
}

/// Sessions that scan the heap, one per core.
struct Exact {
    sessions: Vec<(Client, Statement)>,
}

impl Exact {
    async fn new(dsn: &str) -> anyhow::Result<Self> {
        let mut sessions = Vec::new();
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get().min(8)) {
            let client = connect(dsn).await?;
            client.batch_execute(EXACT).await?;
            let statement = client.prepare(&nearest_sql()).await?;
            sessions.push((client, statement));
        }
        Ok(Self { sessions })
    }

    async fn nearest(&self, queries: &[&[f32]]) -> anyhow::Result<Vec<Vec<i64>>> {
        let scans = self.sessions.iter().zip(queries);
        futures::future::try_join_all(
            scans.map(|((client, statement), query)| ids(client, statement, query)),
        )
        .await
    }
}

async fn ids(client: &Client, statement: &Statement, query: &[f32]) -> anyhow::Result<Vec<i64>> {
    let rows = client
        .query(statement, &[&Vector(query)])
        .await
        .context("a search failed")?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// One session, one query at a time, after a warm-up.
pub async fn latency(client: &Client, queries: &Images, count: usize) -> anyhow::Result<Latency> {
    client.batch_execute(STRICT).await?;
    let nearest = client.prepare(&nearest_sql()).await?;
    for query in queries.sample(WARM_UP_QUERIES) {
        ids(client, &nearest, query).await?;
    }
    let mut bar = ProgressBar::new("latency", "queries");
    let mut times = Vec::with_capacity(count);
    for query in queries.sample(count) {
        let started = Instant::now();
        let found = ids(client, &nearest, query).await?;
        times.push(started.elapsed());
        ensure!(
            found.len() == NEIGHBOURS,
            "a search found {} rows instead of {NEIGHBOURS}",
            found.len()
        );
        bar.set(times.len() as u64, count as u64);
    }
    ensure!(!times.is_empty(), "--timed-queries must be at least 1");
    bar.finish(times.len() as u64);
    times.sort_unstable();
    Ok(Latency {
        p50: percentile(&times, 50),
        p99: percentile(&times, 99),
        queries: times.len(),
    })
}

/// Nearest rank of ascending samples.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

/// The statement and its plan, executed.
pub async fn explain(client: &Client) -> anyhow::Result<String> {
    client.batch_execute(STRICT).await?;
    let plan = explain_lines(client, "EXPLAIN (ANALYZE)").await?;
    Ok(format!("EXPLAIN (ANALYZE) {};\n\n{plan}", example_sql()))
}

async fn explain_lines(client: &Client, command: &str) -> anyhow::Result<String> {
    let lines = client
        .query(&format!("{command} {}", example_sql()), &[])
        .await
        .context("EXPLAIN failed")?;
    let mut text = String::new();
    for line in &lines {
        text.push_str(&format!("  {}\n", line.get::<_, String>(0)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), Duration::from_millis(100));
        assert_eq!(percentile(&sorted, 99), Duration::from_millis(198));
        assert_eq!(percentile(&sorted[..1], 99), Duration::from_millis(1));
    }
}
