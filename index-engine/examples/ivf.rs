//! Build time, recall and queries per second of inverted lists, on a data set.
//!
//! `cargo run --release -p index-engine --example ivf -- FOLDER [lists=0] [threads=1] [queries=1000] [rounds=5] [probes=1,5,10,20,50]`
//! FOLDER as for the example `search`; `lists=0` takes the root of the rows. What is printed
//! is the median over the rounds, in queries per second of the thread's CPU time.

#![allow(clippy::print_stdout)]

#[path = "search/arguments.rs"]
mod arguments;
#[path = "search/npy.rs"]
mod npy;

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use arguments::Arguments;
use index_engine::Metric;
use index_engine::ivf::{IvfIndex, IvfParams};

const ROWS: usize = 10;

struct Data {
    metric: Metric,
    base: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
    /// The ten nearest of each query.
    truth: Vec<Vec<u32>>,
}

impl Data {
    fn open(folder: &Path, queries: usize) -> Result<Self, Box<dyn Error>> {
        let base = npy::Array::read(&folder.join("base.npy"))?;
        let query = npy::Array::read(&folder.join("query.npy"))?;
        let truth = npy::Array::read(&folder.join("gt_ids.npy"))?;
        let meta = std::fs::read_to_string(folder.join("meta.json"))?;
        let queries = queries.min(query.len());
        Ok(Self {
            metric: match meta.contains("\"l2\"") {
                true => Metric::L2,
                false => Metric::Cosine,
            },
            base: (0..base.len()).map(|row| base.floats(row)).collect(),
            queries: (0..queries).map(|q| query.floats(q)).collect(),
            truth: (0..queries).map(|q| truth.ids(q, ROWS)).collect(),
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

fn build(data: &Data, lists: usize, threads: usize) -> Result<IvfIndex, Box<dyn Error>> {
    let index = IvfIndex::new(IvfParams {
        metric: data.metric,
        dimensions: data.base[0].len(),
        lists: (lists > 0).then_some(lists),
    })?;
    let began = (Instant::now(), cpu());
    for vector in &data.base {
        index.insert(vector)?;
    }
    let inserted = (began.0.elapsed().as_secs_f64(), cpu() - began.1);
    let began = Instant::now();
    let spent: f64 = std::thread::scope(|scope| {
        let work = || {
            let began = cpu();
            while index.due().is_some() {
                if index.train(4_096, 1) == 0 {
                    std::thread::yield_now();
                }
            }
            cpu() - began
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|t| t.join().unwrap_or(0.0)).sum()
    });
    println!(
        "{} lists: inserted in {:.2} s ({:.2} CPU s), trained and filled in {:.2} s by {threads} threads ({spent:.2} CPU s), {:.0} MiB",
        index.lists_len(),
        inserted.0,
        inserted.1,
        began.elapsed().as_secs_f64(),
        index.memory_bytes() as f64 / f64::from(1 << 20),
    );
    Ok(index)
}

/// Ids of the nearest, and how many distances it took.
fn search(
    index: &IvfIndex,
    query: &[f32],
    probes: usize,
    exact: bool,
) -> Result<(Vec<u32>, usize), Box<dyn Error>> {
    let page = index
        .cursor(query, probes, u64::MAX, exact)?
        .next_page(ROWS);
    let ids = page.hits.iter().map(|hit| hit.0.0).collect();
    Ok((ids, page.distances))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(
    data: &Data,
    index: &IvfIndex,
    probes: usize,
    exact: bool,
    rounds: usize,
) -> Result<(), Box<dyn Error>> {
    let (mut times, mut found, mut distances) = (Vec::new(), 0, 0);
    for round in 0..rounds {
        let began = cpu();
        for (query, truth) in data.queries.iter().zip(&data.truth) {
            let (ids, ranked) = search(index, query, probes, exact)?;
            if round == 0 {
                found += ids.iter().filter(|id| truth.contains(id)).count();
                distances += ranked;
            }
        }
        times.push(cpu() - began);
    }
    let queries = data.queries.len();
    println!(
        "{}: recall@10 {:.4}, {:.0} queries a CPU second, {} distances",
        if exact {
            "exact".to_owned()
        } else {
            format!("probes {probes}")
        },
        found as f64 / (queries * ROWS) as f64,
        queries as f64 / median(times),
        distances / queries
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::given();
    let value = |name: &str, default: &str| arguments.value(name, default);
    let folder = arguments.first().ok_or("want a data set")?;
    let data = Data::open(Path::new(folder), value("queries", "1000").parse()?)?;
    let index = build(
        &data,
        value("lists", "0").parse()?,
        value("threads", "1").parse()?,
    )?;
    let rounds = value("rounds", "5").parse()?;
    for probes in value("probes", "1,5,10,20,50").split(',') {
        report(&data, &index, probes.parse()?, false, rounds)?;
    }
    report(&data, &index, 1, true, 1)
}
