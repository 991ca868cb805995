//! What SQL costs: the search through SQL, an empty call by the same route (same
//! session, same parameter, no search), and the same search in this process.
//! The three alternate, so that noise meets all of them.

use crate::percentile::{micros, percentile};
use anyhow::{Result, ensure};
use cluster_core::row_key::RowKey;
use index_engine::{IndexParams, Metric, PartitionIndex};
use postgres::{Client, NoTls};
use std::time::{Duration, Instant};

const QUERIES: usize = 2_000;
const EF_SEARCH: usize = 100;

pub fn run(dsn: &str) -> Result<()> {
    let mut session = Client::connect(dsn, NoTls)?;
    session.batch_execute("SET ruvector.on_unavailable = error; SET enable_seqscan = off")?;
    let rows = session.query("SELECT id, embedding::real[] FROM items ORDER BY id", &[])?;
    ensure!(
        !rows.is_empty(),
        "table items is empty: make quickstart fills it"
    );
    let rows: Vec<(i64, Vec<f32>)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let index = build(&rows)?;
    let search = session
        .prepare("SELECT id FROM items ORDER BY embedding <-> $1::real[]::vector LIMIT 10")?;
    let empty = session.prepare("SELECT 1 WHERE $1::real[]::vector IS NOT NULL")?;
    let mut times: [Vec<Duration>; 3] = Default::default();
    for i in 0..QUERIES {
        let query = &rows[i * 7_919 % rows.len()].1;
        let started = Instant::now();
        session.query(&search, &[query])?;
        times[0].push(started.elapsed());
        let started = Instant::now();
        session.query(&empty, &[query])?;
        times[1].push(started.elapsed());
        let started = Instant::now();
        let mut cursor = index.cursor(query, EF_SEARCH, u64::MAX, false)?;
        let page = cursor.next_page(&index, 10);
        times[2].push(started.elapsed());
        ensure!(
            page.hits.len() == 10,
            "in-process search found {} rows",
            page.hits.len()
        );
    }
    let [search, empty, engine] = times.map(|mut t| micros(percentile(&mut t, 50)));
    println!("p50 of {QUERIES} queries over {} rows, µs:", rows.len());
    println!("  search through SQL              {search:>8.0}");
    println!("  empty call by the same route    {empty:>8.0}");
    println!("  search in this process          {engine:>8.0}");
    println!("  SQL path beyond the empty call  {:>8.0}", search - empty);
    println!("  SQL path beyond the search      {:>8.0}", search - engine);
    println!(
        "  beyond both                     {:>8.0}",
        search - empty - engine
    );
    Ok(())
}

/// One index over all rows, with the parameters of the SQL index's defaults.
fn build(rows: &[(i64, Vec<f32>)]) -> Result<PartitionIndex> {
    let index = PartitionIndex::new(IndexParams {
        metric: Metric::L2,
        dimensions: rows[0].1.len(),
        ..IndexParams::default()
    })?;
    for (id, vector) in rows {
        let key = RowKey::from_columns([id.to_be_bytes().as_slice()])?;
        index.insert(vector, key.level_hash())?;
    }
    while index.fold(1_000) > 0 {}
    Ok(index)
}
