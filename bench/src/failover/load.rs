//! Searches at a fixed rate, whatever becomes of the ones before. A latency counts
//! from when the search was due, so that one that had to wait for a slow one
//! before it on its connection counts that wait too.

use super::table::Table;
use crate::percentile::percentile;
use anyhow::{Context, Result, ensure};
use integration_tests::{Session, clustered_vector};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const SEARCHES_PER_SECOND: u32 = 100;
const CONNECTIONS: u32 = 8;
/// Queries are vectors that no row has.
const PROBES_FROM: i64 = 50_000_000;
const PROBES: i64 = 200;
const LIMIT: usize = 10;
const FAILURES_MAX: usize = 10_000;

pub type Window = Range<Instant>;

pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Result<Record>>>,
}

#[derive(Default)]
pub struct Record {
    /// When each answered search was due, and how long after that it was answered.
    answered: Vec<(Instant, Duration)>,
    pub failed: Vec<String>,
    pub fallbacks: usize,
}

#[derive(Clone, Copy)]
pub struct Percentiles {
    pub samples: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Load {
    pub fn start(dsn: &str, table: &Table) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let mut workers = Vec::new();
        for number in 0..CONNECTIONS {
            let session = Session::open(dsn)?;
            let (table, stop) = (table.clone(), stop.clone());
            workers.push(std::thread::spawn(move || {
                search(session, &table, started, number, &stop)
            }));
        }
        Ok(Self { stop, workers })
    }

    pub fn finish(self) -> Result<Record> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Record::default();
        for worker in self.workers {
            let record = worker.join().expect("a worker of the load panicked")?;
            all.answered.extend(record.answered);
            all.failed.extend(record.failed);
            all.fallbacks += record.fallbacks;
        }
        Ok(all)
    }
}

fn search(
    mut session: Session,
    table: &Table,
    started: Instant,
    number: u32,
    stop: &AtomicBool,
) -> Result<Record> {
    let statement = session.prepare(&format!(
        "SELECT id FROM {} ORDER BY embedding <-> $1::real[]::vector LIMIT {LIMIT}",
        table.name
    ))?;
    let probes: Vec<Vec<f32>> = (0..PROBES)
        .map(|i| clustered_vector(PROBES_FROM + i, table.dimensions))
        .collect();
    let mut record = Record::default();
    for (turn, probe) in (number..)
        .step_by(CONNECTIONS as usize)
        .zip(probes.iter().cycle())
    {
        let due = started + Duration::from_secs(1) * turn / SEARCHES_PER_SECOND;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match session.query(&statement, &[probe]) {
            Ok(rows) if rows.len() == LIMIT => record.answered.push((due, due.elapsed())),
            Ok(rows) => record
                .failed
                .push(format!("{} rows of {LIMIT}", rows.len())),
            Err(error) => {
                let error = anyhow::Error::from(error);
                record.failed.push(format!("{error:#}"));
            }
        }
        ensure!(record.failed.len() < FAILURES_MAX, "nothing but failures");
    }
    let sql = format!(
        "SELECT coalesce(last_fallback_reason, '') FROM ruvector_index_status('{}')",
        table.index()
    );
    // A session remembers its last fallback, however many there were.
    record.fallbacks += usize::from(!session.value(&sql)?.is_empty());
    Ok(record)
}

impl Record {
    pub fn searches(&self) -> usize {
        self.answered.len() + self.failed.len()
    }

    /// Of the searches that were due within the windows and were answered.
    pub fn percentiles(&self, windows: &[Window]) -> Result<Percentiles> {
        let is_within = |due: &Instant| windows.iter().any(|window| window.contains(due));
        let mut latencies: Vec<Duration> = self
            .answered
            .iter()
            .filter(|(due, _)| is_within(due))
            .map(|(_, latency)| *latency)
            .collect();
        let max = latencies.iter().max().copied();
        Ok(Percentiles {
            samples: latencies.len(),
            max: max.context("no search was due in the windows")?,
            p50: percentile(&mut latencies, 50),
            p99: percentile(&mut latencies, 99),
        })
    }
}
