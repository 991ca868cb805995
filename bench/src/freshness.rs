//! Commit to searchable: one session inserts at a fixed rate, another polls with
//! `eventual` reads (which wait for nothing) until it finds the row.

use crate::percentile::percentile;
use anyhow::{Context, Result, ensure};
use postgres::{Client, NoTls};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DIMENSIONS: usize = 128;
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

/// A committed row: its id and when COMMIT returned.
type Committed = (i64, Instant);

fn literal(id: i64) -> String {
    let component = |i: usize| ((id as usize * 7_919 + i * 104_729) % 1_000_003) as f32 / 1000.0;
    let text: Vec<String> = (0..DIMENSIONS).map(|i| component(i).to_string()).collect();
    format!("[{}]", text.join(","))
}

/// How fast rows are committed, and by how many sessions.
#[derive(Clone, Copy)]
pub struct Load {
    pub inserts_per_second: u32,
    pub writers: u32,
}

pub struct Found {
    pub inserted_per_second: f64,
    /// Of those rows that were looked for.
    pub lags: Vec<Duration>,
}

pub fn run(dsn: &str, seconds: u64) -> Result<()> {
    let load = Load {
        inserts_per_second: 200,
        writers: 1,
    };
    let mut found = measure(dsn, seconds, load)?;
    println!(
        "commit to searchable at {:.0} inserts/s of {DIMENSIONS} dimensions, {} samples:",
        found.inserted_per_second,
        found.lags.len()
    );
    for percent in [50, 90, 99, 100] {
        println!(
            "  p{percent:<4}{:>8.1} ms",
            percentile(&mut found.lags, percent).as_secs_f64() * 1e3
        );
    }
    Ok(())
}

pub fn measure(dsn: &str, seconds: u64, load: Load) -> Result<Found> {
    let mut session = Client::connect(dsn, NoTls)?;
    session.batch_execute(&format!(
        "DROP TABLE IF EXISTS path_bench;
         CREATE TABLE path_bench(id bigint PRIMARY KEY, embedding vector({DIMENSIONS}));
         CREATE INDEX path_bench_idx ON path_bench USING ruhnsw (embedding vector_l2_ops)"
    ))?;
    // A statement of its own: the cluster hears of the index at its commit.
    session.batch_execute("SELECT ruvector_wait_for_index('path_bench_idx', 60)")?;
    let (sender, receiver) = mpsc::channel::<Committed>();
    let reader_dsn = dsn.to_owned();
    let reader = std::thread::spawn(move || poll(&reader_dsn, receiver));
    let writers: Vec<_> = (0..load.writers)
        .map(|writer| {
            let (dsn, sender) = (dsn.to_owned(), sender.clone());
            std::thread::spawn(move || insert(&dsn, seconds, load, writer, &sender))
        })
        .collect();
    drop(sender);
    let mut inserted_per_second = 0.0;
    for writer in writers {
        inserted_per_second += writer.join().expect("writer")?;
    }
    let lags = reader.join().expect("reader")?;
    session.batch_execute("DROP TABLE path_bench")?;
    Ok(Found {
        inserted_per_second,
        lags,
    })
}

/// Inserts one writer's share of the rate; answers what was reached.
fn insert(
    dsn: &str,
    seconds: u64,
    load: Load,
    writer: u32,
    committed: &mpsc::Sender<Committed>,
) -> Result<f64> {
    let mut session = Client::connect(dsn, NoTls)?;
    let statement = session.prepare("INSERT INTO path_bench VALUES ($1, $2::text::vector)")?;
    let started = Instant::now();
    let count = seconds * u64::from(load.inserts_per_second / load.writers);
    for i in 0..count {
        let place = i as u32 * load.writers + writer;
        let due = started + Duration::from_secs(1) * place / load.inserts_per_second;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let id = i64::from(place) + 1;
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
