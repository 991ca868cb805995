//! Recall and queries per second on a data set of `.npy` files.
//!
//! `cargo run --release -p index-engine --example recall -- FOLDER [m] [ef_construction] [threads] [queries]`
//! FOLDER holds `base.npy`, `query.npy` (f32, C order), `gt_ids.npy` (exact nearest,
//! i32 or i64) and `meta.json` with its metric, "l2" or "cos".

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use index_engine::{IndexParams, Metric, PartitionIndex};

struct Array {
    columns: usize,
    width: usize,
    bytes: Vec<u8>,
    start: usize,
}

impl Array {
    fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let bytes = std::fs::read(path)?;
        let head = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        let text = std::str::from_utf8(&bytes[10..10 + head])?;
        let shape = text.split("'shape': (").nth(1).ok_or("no shape")?;
        let shape = shape.split(')').next().ok_or("no shape")?;
        let columns = shape
            .split(',')
            .nth(1)
            .ok_or("no columns")?
            .trim()
            .parse()?;
        let width = if text.contains("8'") { 8 } else { 4 };
        Ok(Self {
            columns,
            width,
            start: 10 + head,
            bytes,
        })
    }

    fn row(&self, row: usize) -> &[u8] {
        let bytes = self.columns * self.width;
        &self.bytes[self.start + row * bytes..][..bytes]
    }

    fn len(&self) -> usize {
        (self.bytes.len() - self.start) / (self.columns * self.width)
    }

    fn floats(&self, row: usize) -> Vec<f32> {
        let (parts, _) = self.row(row).as_chunks::<4>();
        parts.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn ids(&self, row: usize, count: usize) -> Vec<u32> {
        let parts = self.row(row).chunks_exact(self.width).take(count);
        parts
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }
}

/// CPU time of this thread in seconds.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns: f64 = text
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0.0);
    ns / 1e9
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |n: usize, default: usize| {
        arguments
            .get(n)
            .and_then(|a| a.parse().ok())
            .unwrap_or(default)
    };
    let folder = Path::new(arguments.get(1).ok_or("want a folder")?);
    let (m, ef_construction) = (number(2, 16), number(3, 200));
    let (threads, queries) = (number(4, 2), number(5, 2_000));
    let metric = match std::fs::read_to_string(folder.join("meta.json"))?.contains("\"l2\"") {
        true => Metric::L2,
        false => Metric::Cosine,
    };
    let base = Array::read(&folder.join("base.npy"))?;
    let query = Array::read(&folder.join("query.npy"))?;
    let truth = Array::read(&folder.join("gt_ids.npy"))?;
    let index = PartitionIndex::new(IndexParams {
        metric,
        dimensions: base.columns,
        m,
        ef_construction,
    })?;
    for row in 0..base.len() {
        index.insert(
            &base.floats(row),
            (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        )?;
    }
    let began = Instant::now();
    let spent: f64 = std::thread::scope(|scope| {
        let work = || {
            let before = cpu();
            index.fold(usize::MAX);
            cpu() - before
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|t| t.join().unwrap_or(0.0)).sum()
    });
    println!(
        "build: {:.1} s, {spent:.1} CPU s, {} MB",
        began.elapsed().as_secs_f64(),
        index.memory_bytes() >> 20
    );
    let queries = queries.min(query.len());
    let vectors: Vec<Vec<f32>> = (0..queries).map(|q| query.floats(q)).collect();
    for ef in [10, 14, 20, 30, 50, 100, 200] {
        let mut best = f64::INFINITY;
        let (mut found, mut distances) = (0, 0);
        for round in 0..5 {
            let before = cpu();
            let mut pages = Vec::with_capacity(queries);
            for vector in &vectors {
                let mut cursor = index.cursor(vector, ef, u64::MAX, false)?;
                pages.push(cursor.next_page(&index, 10));
            }
            best = best.min(cpu() - before);
            if round > 0 {
                continue;
            }
            for (q, page) in pages.iter().enumerate() {
                let truth = truth.ids(q, 10);
                found += page.hits.iter().filter(|h| truth.contains(&h.0.0)).count();
                distances += page.distances;
            }
        }
        println!(
            "ef {ef}: recall@10 {:.4}, {:.0} QPS, {:.1} us, {} distances",
            found as f64 / (10 * queries) as f64,
            queries as f64 / best,
            best / queries as f64 * 1e6,
            distances / queries
        );
    }
    Ok(())
}
