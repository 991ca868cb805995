//! Searches by several threads that take the queries from one queue.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use index_engine::PartitionIndex;
use serde::Serialize;

use crate::clock::{Clock, Elapsed};
use crate::npy::Matrix;
use crate::statistics::percentile;

/// What a search asks for.
#[derive(Clone, Copy)]
pub struct Asked {
    pub ef: usize,
    pub rows: usize,
}

/// Every query once.
pub struct Pass {
    /// The ids of each query, nearest first.
    pub found: Vec<Vec<u32>>,
    /// Computed by all of them.
    pub distances: usize,
    pub elapsed: Elapsed,
}

#[derive(Debug, Serialize)]
pub struct Latency {
    pub queries: usize,
    pub qps: f64,
    pub qps_cpu: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

pub fn search(index: &PartitionIndex, query: &[f32], asked: Asked) -> Result<(Vec<u32>, usize)> {
    search_by(index, query, asked, false)
}

/// By brute force.
pub fn search_exactly(index: &PartitionIndex, query: &[f32], rows: usize) -> Result<Vec<u32>> {
    Ok(search_by(index, query, Asked { ef: 1, rows }, true)?.0)
}

fn search_by(
    index: &PartitionIndex,
    query: &[f32],
    asked: Asked,
    exact: bool,
) -> Result<(Vec<u32>, usize)> {
    let mut cursor = index.cursor(query, asked.ef, u64::MAX, exact)?;
    let page = cursor.next_page(index, asked.rows);
    let ids = page.hits.iter().map(|(id, _)| id.0).collect();
    Ok((ids, page.distances))
}

/// Runs `work` on so many threads and gathers what they return.
fn on_threads<T: Send>(threads: usize, work: impl Fn() -> Result<T> + Sync) -> Result<Vec<T>> {
    ensure!(threads > 0, "no thread to search with");
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
        running
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a search panicked"))?)
            .collect()
    })
}

/// Searches for every query once.
pub fn pass(
    index: &PartitionIndex,
    queries: &Matrix<f32>,
    asked: Asked,
    threads: usize,
) -> Result<Pass> {
    let next = AtomicUsize::new(0);
    let began = Clock::now();
    let parts = on_threads(threads, || {
        let (mut found, mut distances) = (Vec::new(), 0);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= queries.len() {
                return Ok((found, distances));
            }
            let (ids, computed) = search(index, queries.row(number), asked)?;
            found.push((number, ids));
            distances += computed;
        }
    })?;
    let elapsed = began.elapsed();
    let distances = parts.iter().map(|(_, distances)| distances).sum();
    let found = parts.into_iter().flat_map(|(found, _)| found);
    Ok(Pass {
        found: in_order(found.collect()),
        distances,
        elapsed,
    })
}

/// The exact nearest of each query.
pub fn exact(
    index: &PartitionIndex,
    queries: &Matrix<f32>,
    rows: usize,
    threads: usize,
) -> Result<Vec<Vec<u32>>> {
    let next = AtomicUsize::new(0);
    let parts = on_threads(threads, || {
        let mut found = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= queries.len() {
                return Ok(found);
            }
            found.push((number, search_exactly(index, queries.row(number), rows)?));
        }
    })?;
    Ok(in_order(parts.into_iter().flatten().collect()))
}

/// What was found, by the numbers of the queries.
fn in_order(mut found: Vec<(usize, Vec<u32>)>) -> Vec<Vec<u32>> {
    found.sort_unstable_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, ids)| ids).collect()
}

/// Keeps so many clients searching for so long, over and over the queries; each waits
/// for its answer before it asks again.
pub fn concurrently(
    index: &PartitionIndex,
    queries: &Matrix<f32>,
    asked: Asked,
    clients: usize,
    duration: Duration,
) -> Result<Latency> {
    let next = AtomicUsize::new(0);
    let began = Clock::now();
    let until = Instant::now() + duration;
    let parts = on_threads(clients, || {
        let mut times = Vec::new();
        loop {
            let sent = Instant::now();
            if sent >= until {
                return Ok(times);
            }
            let number = next.fetch_add(1, Ordering::Relaxed) % queries.len();
            search(index, queries.row(number), asked)?;
            times.push(sent.elapsed());
        }
    })?;
    let elapsed = began.elapsed();
    latency(parts.into_iter().flatten().collect(), elapsed)
}

/// Of searches that took so long each.
pub fn latency(mut times: Vec<Duration>, elapsed: Elapsed) -> Result<Latency> {
    ensure!(!times.is_empty(), "no search came to an end");
    times.sort_unstable();
    let micros = |percent| percentile(&times, percent).as_secs_f64() * 1e6;
    Ok(Latency {
        queries: times.len(),
        qps: times.len() as f64 / elapsed.wall_s,
        qps_cpu: times.len() as f64 / elapsed.cpu_s,
        p50_us: micros(50),
        p99_us: micros(99),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::build;
    use crate::index::tests::{scattered, small};

    #[test]
    fn threads_answer_every_query_in_order_as_one_does() {
        let base = scattered(500, 8, 2);
        let queries = scattered(60, 8, 3);
        let (index, _) = build(small(8), &base, 1).unwrap();
        let asked = Asked { ef: 500, rows: 10 };
        let exact = exact(&index, &queries, 10, 2).unwrap();
        for threads in [1, 3] {
            let pass = pass(&index, &queries, asked, threads).unwrap();
            assert_eq!(pass.found, exact);
            assert!(pass.distances > 0);
        }
    }

    #[test]
    fn answers_are_put_in_the_order_of_their_queries() {
        let found = vec![(2, vec![7]), (0, vec![8, 9]), (1, vec![])];
        assert_eq!(in_order(found), [vec![8, 9], vec![], vec![7]]);
    }

    #[test]
    fn clients_search_for_as_long_as_told() {
        let (index, _) = build(small(8), &scattered(200, 8, 4), 1).unwrap();
        let asked = Asked { ef: 10, rows: 5 };
        let duration = Duration::from_millis(30);
        let queries = scattered(3, 8, 5);
        let latency = concurrently(&index, &queries, asked, 4, duration).unwrap();
        assert!(latency.queries > 3, "the queries come round again");
        assert!(latency.p50_us <= latency.p99_us);
        assert!(concurrently(&index, &queries, asked, 0, duration).is_err());
    }
}
