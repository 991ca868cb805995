//! Recall and queries per second of one search over several partitions of a data set:
//! with the effort shared, and with every partition searched as if it were alone.
//!
//! `cargo run --release -p index-engine --example group -- FOLDER [rows=0] [partitions=1,4,16] [ef=20,50,100] [queries=1000] [rounds=3] [threads=2]`
//! FOLDER as for the example `search`; `rows` takes the first ones only, and compares with
//! exact searches. Medians over the rounds, in queries per second of the thread's CPU time.
//! The last column is what opening the searches alone takes: all that a batch of queries
//! could share.

#![allow(clippy::print_stdout)]

#[path = "search/arguments.rs"]
mod arguments;
#[allow(dead_code)]
#[path = "search/npy.rs"]
mod npy;

use std::error::Error;
use std::path::Path;

use arguments::Arguments;
use index_engine::group::GroupCursor;
use index_engine::{Effort, IndexParams, Metric, PartitionIndex};

const ROWS: usize = 10;

struct Data {
    metric: Metric,
    base: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
}

impl Data {
    fn open(folder: &Path, rows: usize, queries: usize) -> Result<Self, Box<dyn Error>> {
        let base = npy::Array::read(&folder.join("base.npy"))?;
        let query = npy::Array::read(&folder.join("query.npy"))?;
        let meta = std::fs::read_to_string(folder.join("meta.json"))?;
        let rows = if rows == 0 {
            base.len()
        } else {
            rows.min(base.len())
        };
        Ok(Self {
            metric: match meta.contains("\"l2\"") {
                true => Metric::L2,
                false => Metric::Cosine,
            },
            base: (0..rows).map(|row| base.floats(row)).collect(),
            queries: (0..queries.min(query.len()))
                .map(|q| query.floats(q))
                .collect(),
        })
    }
}

/// Seconds of this thread's CPU time.
fn cpu() -> f64 {
    // The system adds up a thread's time when it is scheduled, or at ticks.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    ns.unwrap_or(0.0) / 1e9
}

/// Rows go to partitions by a hash of their number.
fn build(
    data: &Data,
    partitions: usize,
    threads: usize,
) -> Result<Vec<PartitionIndex>, Box<dyn Error>> {
    let params = IndexParams {
        metric: data.metric,
        dimensions: data.base[0].len(),
        m: 16,
        ef_construction: 100,
        ..IndexParams::default()
    };
    let new = |_| PartitionIndex::new(params.clone());
    let indexes: Vec<_> = (0..partitions).map(new).collect::<Result<_, _>>()?;
    for (row, vector) in data.base.iter().enumerate() {
        let hash = (row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let partition = (u128::from(hash) * partitions as u128) >> 64;
        indexes[partition as usize].insert(
            vector,
            hash.rotate_left(32).wrapping_mul(0xBF58_476D_1CE4_E5B9),
        )?;
    }
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| indexes.iter().for_each(|index| while index.fold(64) > 0 {}));
        }
    });
    Ok(indexes)
}

#[derive(Clone, Copy)]
enum How {
    Shared,
    Alone,
    Opened,
}

/// The distances of the nearest, and how many were computed.
fn search(
    indexes: &[&PartitionIndex],
    query: &[f32],
    (ef, effort): (usize, Effort),
    how: How,
) -> Result<(Vec<f64>, usize), Box<dyn Error>> {
    match how {
        How::Shared => {
            let page =
                GroupCursor::open(indexes, query.into(), ef, u64::MAX, effort)?.next_page(ROWS);
            Ok((
                page.hits.iter().map(|hit| hit.distance).collect(),
                page.distances,
            ))
        }
        How::Opened => {
            GroupCursor::open(indexes, query.into(), ef, u64::MAX, effort)?;
            Ok((Vec::new(), 0))
        }
        How::Alone => {
            let (mut found, mut distances) = (Vec::new(), 0);
            for index in indexes {
                let page = index
                    .cursor(query, ef, u64::MAX, effort)?
                    .next_page(index, ROWS);
                found.extend(page.hits.iter().map(|hit| hit.1));
                distances += page.distances;
            }
            found.sort_by(f64::total_cmp);
            found.truncate(ROWS);
            Ok((found, distances))
        }
    }
}

struct Figures {
    recall: f64,
    rate: f64,
    distances: usize,
}

fn measure(
    data: &Data,
    indexes: &[&PartitionIndex],
    worst: &[f64],
    ef: usize,
    (how, rounds): (How, usize),
) -> Result<Figures, Box<dyn Error>> {
    let (mut times, mut found, mut distances) = (Vec::new(), 0, 0);
    for round in 0..rounds {
        let began = cpu();
        for (query, worst) in data.queries.iter().zip(worst) {
            let (near, ranked) = search(indexes, query, (ef, Effort::Balanced), how)?;
            if round == 0 {
                found += near.iter().filter(|distance| *distance <= worst).count();
                distances += ranked;
            }
        }
        times.push(cpu() - began);
    }
    times.sort_by(f64::total_cmp);
    let queries = data.queries.len();
    Ok(Figures {
        recall: found as f64 / (queries * ROWS) as f64,
        rate: queries as f64 / times[times.len() / 2],
        distances: distances / queries,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::given();
    let value = |name: &str, default: &str| arguments.value(name, default);
    let numbers = |name: &str, default: &str| -> Result<Vec<usize>, std::num::ParseIntError> {
        value(name, default).split(',').map(str::parse).collect()
    };
    let folder = arguments.first().ok_or("want a data set")?;
    let data = Data::open(
        Path::new(folder),
        value("rows", "0").parse()?,
        value("queries", "1000").parse()?,
    )?;
    let rounds: usize = value("rounds", "3").parse()?;
    let mut worst = Vec::new();
    for partitions in numbers("partitions", "1,4,16")? {
        let indexes = build(&data, partitions, value("threads", "2").parse()?)?;
        let indexes: Vec<&PartitionIndex> = indexes.iter().collect();
        if worst.is_empty() {
            for query in &data.queries {
                let (near, _) = search(&indexes, query, (1, Effort::Exact), How::Alone)?;
                worst.push(near[near.len() - 1] * (1.0 + 1e-9));
            }
        }
        for ef in numbers("ef", "20,50,100")? {
            let shared = measure(&data, &indexes, &worst, ef, (How::Shared, rounds))?;
            let alone = measure(&data, &indexes, &worst, ef, (How::Alone, rounds))?;
            let opened = measure(&data, &indexes, &worst, ef, (How::Opened, rounds))?;
            println!(
                "{partitions} partitions, ef {ef}: shared recall@10 {:.4}, {:.0} queries a CPU second, {} distances; each alone {:.4}, {:.0}, {}; opening {:.0} %",
                shared.recall,
                shared.rate,
                shared.distances,
                alone.recall,
                alone.rate,
                alone.distances,
                100.0 * shared.rate / opened.rate
            );
        }
    }
    Ok(())
}
