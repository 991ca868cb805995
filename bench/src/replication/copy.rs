//! A committed COPY until it is searchable and until it is folded, beside the time that a
//! subscription of Postgres takes to have the same rows in a plain table.
//!
//! Both are counted from the COPY's commit, for neither begins before. They take turns,
//! each with a table that the other does not follow; the server decodes each transaction
//! for both, which each then has beside it.

use super::{Scale, median, rows};
use anyhow::{Result, ensure};
use integration_tests::Cluster;
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const GIVE_UP_AFTER: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Times {
    searchable_s: Vec<f64>,
    folded_s: Vec<f64>,
    subscriber_s: Vec<f64>,
}

pub fn run(cluster: &Cluster, subscriber: &str, scale: Scale) -> Result<Value> {
    let mut found = Vec::new();
    for (dimensions, rows) in scale.of(
        [(128, 20_000), (768, 5_000)],
        [(128, 100_000), (768, 20_000)],
    ) {
        found.push(one(cluster, subscriber, 3, dimensions, rows)?);
    }
    Ok(found.into())
}

fn one(
    cluster: &Cluster,
    subscriber: &str,
    rounds: usize,
    dimensions: usize,
    rows: i64,
) -> Result<Value> {
    let mut source = Client::connect(cluster.dsn(), NoTls)?;
    let mut target = Client::connect(subscriber, NoTls)?;
    source.batch_execute(
        "SET ruvector.on_unavailable = error; SET enable_seqscan = off; SET ruvector.search_timeout_ms = 300000;
         DROP PUBLICATION IF EXISTS path_bench",
    )?;
    rows::create_indexed(&mut source, "bench_searched", dimensions)?;
    rows::create(&mut source, "bench_subscribed", dimensions)?;
    rows::create(&mut target, "bench_subscribed", dimensions)?;
    subscribe(cluster, &mut source, &mut target)?;
    let mut times = Times::default();
    for round in 0..rounds as i64 {
        let ids = round * rows..(round + 1) * rows;
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                let committed = copied(&mut source, "bench_searched", ids.clone(), dimensions)?;
                searchable(&mut source, dimensions)?;
                times.searchable_s.push(committed.elapsed().as_secs_f64());
                let fold = "SELECT ruvector_wait_for_index('bench_searched_idx', 600, true)";
                source.batch_execute(fold)?;
                times.folded_s.push(committed.elapsed().as_secs_f64());
            } else {
                let committed = copied(&mut source, "bench_subscribed", ids.clone(), dimensions)?;
                subscribed(&mut target, ids.end - 1)?;
                times.subscriber_s.push(committed.elapsed().as_secs_f64());
            }
        }
    }
    target.batch_execute("DROP SUBSCRIPTION path_bench")?;
    source.batch_execute(
        "DROP PUBLICATION path_bench; DROP TABLE bench_searched; DROP TABLE bench_subscribed",
    )?;
    Ok(told(dimensions, rows, &times))
}

fn subscribe(cluster: &Cluster, source: &mut Client, target: &mut Client) -> Result<()> {
    source.batch_execute("CREATE PUBLICATION path_bench FOR TABLE bench_subscribed")?;
    let dsn = cluster.dsn();
    target.batch_execute(&format!(
        "CREATE SUBSCRIPTION path_bench CONNECTION '{dsn}' PUBLICATION path_bench \
         WITH (copy_data = false, binary = true)"
    ))?;
    source.batch_execute("INSERT INTO bench_subscribed VALUES (-1, NULL)")?;
    subscribed(target, -1)
}

fn copied(
    source: &mut Client,
    table: &str,
    ids: std::ops::Range<i64>,
    dimensions: usize,
) -> Result<Instant> {
    rows::copy(source, table, ids, dimensions)?;
    Ok(Instant::now())
}

/// Returns once this session's own commit is part of what a search sees.
fn searchable(source: &mut Client, dimensions: usize) -> Result<()> {
    let query = rows::literal(1, dimensions);
    let search = format!("SELECT id FROM bench_searched ORDER BY embedding <-> '{query}' LIMIT 1");
    let found = source.query_one(&search, &[])?.get::<_, i64>(0);
    ensure!(found == 1, "found {found}");
    Ok(())
}

/// The subscription commits all of a transaction's rows at once.
fn subscribed(target: &mut Client, last: i64) -> Result<()> {
    let deadline = Instant::now() + GIVE_UP_AFTER;
    let statement = target.prepare("SELECT FROM bench_subscribed WHERE id = $1")?;
    while target.query_opt(&statement, &[&last])?.is_none() {
        ensure!(Instant::now() < deadline, "row {last} is not subscribed");
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn told(dimensions: usize, rows: i64, times: &Times) -> Value {
    let (searchable, folded) = (median(&times.searchable_s), median(&times.folded_s));
    let subscriber = median(&times.subscriber_s);
    let ratio = searchable / subscriber;
    let per_second = |seconds: f64| (rows as f64 / seconds).round();
    println!(
        "{rows} rows of {dimensions} dimensions by one COPY, from its commit, medians of {}:",
        times.searchable_s.len()
    );
    for (what, seconds) in [
        ("searchable", searchable),
        ("folded", folded),
        ("in a subscriber's table", subscriber),
    ] {
        println!(
            "  {what:<24}{seconds:>8.2} s {:>10.0} rows/s",
            per_second(seconds)
        );
    }
    println!("  searchable by subscriber{ratio:>8.2}   (goal <= 1.5)");
    json!({
        "dimensions": dimensions,
        "rows": rows,
        "rounds": times.searchable_s.len(),
        "searchable_s": searchable,
        "folded_s": folded,
        "subscriber_s": subscriber,
        "searchable_rows_per_s": per_second(searchable),
        "folded_rows_per_s": per_second(folded),
        "subscriber_rows_per_s": per_second(subscriber),
        "searchable_by_subscriber": ratio,
        "goal": 1.5,
    })
}
