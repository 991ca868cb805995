//! Commit to searchable: one session inserts at a fixed rate, another polls with
//! `eventual` reads (which wait for nothing) until it finds the row.

use crate::percentile::percentile;
use anyhow::{Context, Result, ensure};
use postgres::{Client, NoTls};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const INSERTS_PER_SECOND: u32 = 200;
const DIMENSIONS: usize = 128;
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// A committed row: its id and when COMMIT returned.
type Committed = (i64, Instant);

fn literal(id: i64) -> String {
    let component = |i: usize| ((id as usize * 7_919 + i * 104_729) % 1_000_003) as f32 / 1000.0;
    let text: Vec<String> = (0..DIMENSIONS).map(|i| component(i).to_string()).collect();
    format!("[{}]", text.join(","))
}

pub fn run(dsn: &str, seconds: u64) -> Result<()> {
    let mut session = Client::connect(dsn, NoTls)?;
    session.batch_execute(&format!(
        "DROP TABLE IF EXISTS path_bench;
         CREATE TABLE path_bench(id bigint PRIMARY KEY, embedding vector({DIMENSIONS}));
         CREATE INDEX path_bench_idx ON path_bench USING ruhnsw (embedding vector_l2_ops)"
    ))?;
    // A statement of its own: the cluster hears of the index at its commit.
    session.batch_execute("SELECT ruvector_wait_for_index('path_bench_idx', 60)")?;
    let (sender, receiver) = mpsc::channel::<Committed>();
    let (dsn_writer, dsn_reader) = (dsn.to_owned(), dsn.to_owned());
    let reader = std::thread::spawn(move || poll(&dsn_reader, receiver));
    let writer = std::thread::spawn(move || insert(&dsn_writer, seconds, &sender));
    let inserted = writer.join().expect("writer")?;
    let mut lags = reader.join().expect("reader")?;
    println!(
        "commit to searchable at {inserted:.0} inserts/s of {DIMENSIONS} dimensions, {} samples:",
        lags.len()
    );
    for percent in [50, 90, 99, 100] {
        println!(
            "  p{percent:<4}{:>8.1} ms",
            percentile(&mut lags, percent).as_secs_f64() * 1e3
        );
    }
    session.batch_execute("DROP TABLE path_bench")?;
    Ok(())
}

/// Inserts at the rate; answers the rate that was reached.
fn insert(dsn: &str, seconds: u64, committed: &mpsc::Sender<Committed>) -> Result<f64> {
    let mut session = Client::connect(dsn, NoTls)?;
    let statement = session.prepare("INSERT INTO path_bench VALUES ($1, $2::text::vector)")?;
    let started = Instant::now();
    let count = seconds * u64::from(INSERTS_PER_SECOND);
    for i in 0..count {
        let due = started + Duration::from_secs(1) * i as u32 / INSERTS_PER_SECOND;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let id = i as i64 + 1;
        session.execute(&statement, &[&id, &literal(id)])?;
        committed
            .send((id, Instant::now()))
            .context("the reader has stopped")?;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Takes the newest committed row each time, so that polling never queues.
fn poll(dsn: &str, committed: mpsc::Receiver<Committed>) -> Result<Vec<Duration>> {
    let mut session = Client::connect(dsn, NoTls)?;
    session.batch_execute(
        "SET ruvector.read_consistency = eventual; SET ruvector.on_unavailable = error; SET enable_seqscan = off",
    )?;
    let statement = session
        .prepare("SELECT id FROM path_bench ORDER BY embedding <-> $1::text::vector LIMIT 1")?;
    let mut lags = Vec::new();
    while let Ok(mut newest) = committed.recv() {
        while let Ok(newer) = committed.try_recv() {
            newest = newer;
        }
        let (id, at) = newest;
        let query = literal(id);
        loop {
            let found = session
                .query_opt(&statement, &[&query])?
                .map(|row| row.get::<_, i64>(0));
            if found == Some(id) {
                lags.push(at.elapsed());
                break;
            }
            ensure!(
                at.elapsed() < GIVE_UP_AFTER,
                "row {id} is not found {GIVE_UP_AFTER:?} after its commit"
            );
        }
    }
    Ok(lags)
}
