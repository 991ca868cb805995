//! Recall, queries and folded rows per second on Fashion-MNIST (60,000 x 784).
//!
//! `cargo run --release -p index-engine --example fashion_mnist -- [m] [ef_construction] [threads] [queries] [metric]`
//! reads Debian's `dataset-fashion-mnist` through `gzip`.

use std::collections::HashSet;
use std::process::Command;

use index_engine::{IndexError, IndexParams, Metric, PartitionIndex, VectorId};

const FOLDER: &str = "/usr/share/datasets/fashion-mnist";
const PIXELS: usize = 784;
/// Bytes before the pixels in an IDX3 file.
const HEADER: usize = 16;

fn images(file: &str) -> std::io::Result<Vec<Vec<f32>>> {
    let path = format!("{FOLDER}/{file}-images-idx3-ubyte.gz");
    let bytes = Command::new("gzip").args(["-dc", &path]).output()?.stdout;
    let pixels = bytes.get(HEADER..).unwrap_or_default();
    let image = |p: &[u8]| p.iter().map(|x| f32::from(*x)).collect();
    Ok(pixels.chunks_exact(PIXELS).map(image).collect())
}

/// CPU time of the process, so that a busy machine does not blur a figure; with
/// several threads the wall clock as well.
#[derive(Clone, Copy)]
struct Clock(f64, std::time::Instant);

impl Clock {
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> = stat.split_whitespace().collect();
        let ticks = |n: usize| -> f64 { fields.get(n).map_or(0.0, |f| f.parse().unwrap_or(0.0)) };
        Self((ticks(13) + ticks(14)) / 100.0, std::time::Instant::now())
    }

    fn cpu_seconds(self) -> f64 {
        Self::now().0 - self.0
    }

    fn wall_seconds(self) -> f64 {
        self.1.elapsed().as_secs_f64()
    }
}

fn nearest(
    index: &PartitionIndex,
    query: &[f32],
    ef: usize,
    exact: bool,
) -> Result<(Vec<(VectorId, f64)>, usize), IndexError> {
    let page = index
        .cursor(query, ef, u64::MAX, exact)?
        .next_page(index, 10);
    Ok((page.hits, page.distances))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |n: usize, default: usize| {
        std::env::args()
            .nth(n)
            .and_then(|a| a.parse().ok())
            .unwrap_or(default)
    };
    let (m, ef_construction) = (argument(1, 16), argument(2, 64));
    let (threads, queries) = (argument(3, 1), argument(4, 1_000));
    let metric = match std::env::args().nth(5).as_deref() {
        Some("cosine") => Metric::Cosine,
        Some("inner_product") => Metric::InnerProduct,
        _ => Metric::L2,
    };
    let (train, test) = (images("train")?, images("t10k")?);
    let index = PartitionIndex::new(IndexParams {
        metric,
        dimensions: PIXELS,
        m,
        ef_construction,
        ..IndexParams::default()
    })?;

    let started = Clock::now();
    for (i, image) in train.iter().enumerate() {
        index.insert(image, i as u64)?;
    }
    let rate = |n: usize, since: Clock| n as f64 / since.cpu_seconds();
    println!(
        "tail insert: {:.0} rows per CPU second",
        rate(train.len(), started)
    );

    let test = &test[..queries.min(test.len())];
    let started = Clock::now();
    let truth = test
        .iter()
        .map(|query| Ok(nearest(&index, query, 1, true)?.0))
        .collect::<Result<Vec<_>, IndexError>>()?;
    println!(
        "exact: {:.1} queries per CPU second",
        rate(test.len(), started)
    );

    let started = Clock::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| index.fold(usize::MAX));
        }
    });
    println!(
        "fold, {threads} threads, m {m}, ef_construction {ef_construction}: {:.0} rows per CPU second, {:.0} per second, {} MB",
        rate(train.len(), started),
        train.len() as f64 / started.wall_seconds(),
        index.memory_bytes() / 1_000_000
    );

    for ef in [10, 20, 40, 100, 200] {
        let started = Clock::now();
        let (mut found, mut distances) = (0, 0);
        for (query, truth) in test.iter().zip(&truth) {
            let (hits, computed) = nearest(&index, query, ef, false)?;
            let ids: HashSet<_> = truth.iter().map(|h| h.0).collect();
            found += hits.iter().filter(|h| ids.contains(&h.0)).count();
            distances += computed;
        }
        println!(
            "ef {ef}: recall@10 {:.4}, {:.0} queries per CPU second, {} distances",
            found as f64 / (10 * test.len()) as f64,
            rate(test.len(), started),
            distances / test.len()
        );
    }
    Ok(())
}
