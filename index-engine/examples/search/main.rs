//! Build time, memory, recall and queries per second of one search thread, on a data
//! set or on noise.
//!
//! `cargo run --release -p index-engine --example search -- FOLDER|noise:ROWSxDIMENSIONS [element=f32|f16] [m=16] [ef_construction=100] [representation=default|plain|coded|compact1|compact2|compact4|compact8] [file=PATH] [effort=balanced,fast] [rows=ALL] [threads=1] [queries=2000] [rounds=5] [ef=10,14,20,…] [order=given|near] [cold=SHARE:BITS]`
//! FOLDER holds `base.npy`, `query.npy` (f32, C order), `gt_ids.npy` (exact nearest,
//! i32 or i64) and `meta.json` with its metric, "l2" or another for cosine. Noise and halves are
//! compared with the exact search of the engine, and every row is looked for by its own
//! vector.
//!
//! `file` names where the vectors are mapped from, one file a piece, unlinked at once; without
//! it they are in memory. `rows` takes the first of a data set only, and compares with the
//! exact search of the engine.
//!
//! `cold` gives that share of the blocks of rows, the last, codes of so many bits once the
//! index is built, in a compact representation; then the queries are also measured apart whose
//! nearest row lies in one of the others. `order=near` puts rows near each other into one block.
//!
//! A round searches all queries at every `ef`; what is printed is the median over the
//! rounds, in queries per second of the thread's CPU time and of the wall clock.

#![allow(clippy::print_stdout)]

mod arguments;
mod mapped;
mod mixture;
mod npy;
mod row;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mapped::Files;
use mixture::Cold;
use row::Row;

use arguments::Arguments;
use index_engine::{
    CodeBits, Effort, Element, IndexParams, Metric, PartitionIndex, Representation, Vector,
};

/// Rows that a search asks for when speed is measured.
const ROWS: usize = 10;

struct Data {
    metric: Metric,
    base: Vec<Row>,
    queries: Vec<Row>,
    /// The nearest hundred of each query; empty where the engine is to say it.
    truth: Vec<Vec<u32>>,
}

impl Data {
    /// Of all its rows, or the first `rows`: then the engine is to say what is nearest.
    fn of_folder(
        folder: &Path,
        element: Element,
        queries: usize,
        rows: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let base = npy::Array::read(&folder.join("base.npy"))?;
        let query = npy::Array::read(&folder.join("query.npy"))?;
        let truth = npy::Array::read(&folder.join("gt_ids.npy"))?;
        let meta = std::fs::read_to_string(folder.join("meta.json"))?;
        let metric = match meta.contains("\"l2\"") {
            true => Metric::L2,
            false => Metric::Cosine,
        };
        let queries = queries.min(query.len());
        let known = if rows < base.len() { 0 } else { queries };
        let rows = rows.min(base.len());
        Ok(Self {
            metric,
            base: (0..rows)
                .map(|row| Row::of(base.floats(row), element))
                .collect(),
            queries: (0..queries)
                .map(|q| Row::of(query.floats(q), element))
                .collect(),
            truth: match element {
                Element::F32 => (0..known).map(|q| truth.ids(q, 100)).collect(),
                _ => Vec::new(),
            },
        })
    }

    /// Sums of three uniform numbers, near enough to a normal distribution.
    fn of_noise(rows: usize, dimensions: usize, element: Element, queries: usize) -> Self {
        let mut state = 7u64;
        let mut unit = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let mut vectors = |count: usize| -> Vec<Row> {
            let mut vector = || {
                let values = (0..dimensions).map(|_| unit() + unit() + unit());
                Row::of(values.collect(), element)
            };
            (0..count).map(|_| vector()).collect()
        };
        Self {
            metric: Metric::L2,
            base: vectors(rows),
            queries: vectors(queries),
            truth: Vec::new(),
        }
    }

    fn open(
        name: &str,
        element: Element,
        queries: usize,
        rows: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let Some(size) = name.strip_prefix("noise:") else {
            return Self::of_folder(Path::new(name), element, queries, rows);
        };
        let (rows, dimensions) = size.split_once('x').ok_or("want noise:ROWSxDIMENSIONS")?;
        Ok(Self::of_noise(
            rows.parse()?,
            dimensions.parse()?,
            element,
            queries,
        ))
    }
}

/// Seconds of this thread's CPU time, and of the wall clock.
#[derive(Clone, Copy)]
struct Clock(f64, Instant);

impl Clock {
    fn now() -> Self {
        // The system adds up a thread's time when it is scheduled, or at ticks.
        std::thread::yield_now();
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let ns = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
        Self(ns.unwrap_or(0.0) / 1e9, Instant::now())
    }

    fn elapsed(self) -> [f64; 2] {
        [Self::now().0 - self.0, self.1.elapsed().as_secs_f64()]
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn search(
    index: &PartitionIndex,
    query: &Row,
    (ef, rows): (usize, usize),
    effort: Effort,
) -> Result<(Vec<u32>, usize, usize), Box<dyn Error>> {
    let mut cursor = index.cursor(query, ef, u64::MAX, effort)?;
    let page = cursor.next_page(index, rows);
    Ok((
        page.hits.iter().map(|hit| hit.0.0).collect(),
        page.distances,
        page.originals,
    ))
}

/// Shares of the nearest `rows` that were found: the mean, and what all but a twentieth
/// of the queries reach.
fn recall(found: &[Vec<u32>], truth: &[Vec<u32>], rows: usize) -> (f64, f64) {
    let share = |(found, truth): (&Vec<u32>, &Vec<u32>)| {
        let truth = &truth[..rows];
        let hits = found.iter().take(rows).filter(|id| truth.contains(id));
        hits.count() as f64 / rows as f64
    };
    let mut shares: Vec<f64> = found.iter().zip(truth).map(share).collect();
    shares.sort_by(f64::total_cmp);
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    (mean, shares[shares.len() / 20])
}

/// Queries per second at a recall, from points of rising effort: between two of them
/// on a straight line of the logarithm.
fn at_recall(points: &[(f64, f64)], target: f64) -> Option<f64> {
    if points.first().is_some_and(|first| first.0 >= target) {
        return points.first().map(|first| first.1);
    }
    let pair = points
        .windows(2)
        .find(|pair| pair[0].0 < target && target <= pair[1].0)?;
    let part = (target - pair[0].0) / (pair[1].0 - pair[0].0);
    Some((pair[0].1.ln() * (1.0 - part) + pair[1].1.ln() * part).exp())
}

fn build(
    data: &Data,
    params: IndexParams,
    threads: usize,
    file: Option<&str>,
) -> Result<PartitionIndex, Box<dyn Error>> {
    let index = match file {
        Some(path) => PartitionIndex::with_backing(params, Arc::new(Files::new(path)))?,
        None => PartitionIndex::new(params)?,
    };
    let began = Clock::now();
    for (row, vector) in data.base.iter().enumerate() {
        index.insert(vector, (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))?;
    }
    let [inserted, _] = began.elapsed();
    let began = Instant::now();
    let spent: f64 = std::thread::scope(|scope| {
        let work = || {
            let clock = Clock::now();
            index.fold(usize::MAX);
            clock.elapsed()[0]
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|t| t.join().unwrap_or(0.0)).sum()
    });
    println!(
        "build: {:.2} s, {spent:.2} CPU s and {inserted:.2} for insertion; {:.0} bytes of memory a row",
        began.elapsed().as_secs_f64(),
        index.memory_bytes() as f64 / data.base.len() as f64
    );
    Ok(index)
}

fn representation(name: &str) -> Result<Representation, String> {
    match name {
        "default" => Ok(Representation::default()),
        "plain" => Ok(Representation::Plain),
        "coded" => Ok(Representation::Coded),
        "compact1" => Ok(Representation::Compact(CodeBits::One)),
        "compact2" => Ok(Representation::Compact(CodeBits::Two)),
        "compact4" => Ok(Representation::Compact(CodeBits::Four)),
        "compact8" => Ok(Representation::Compact(CodeBits::Eight)),
        other => Err(format!("no representation is called {other}")),
    }
}

/// Recall and speed of one effort at every width.
fn measure(
    index: &PartitionIndex,
    queries: &[Row],
    truth: &[Vec<u32>],
    widths: &[usize],
    rounds: usize,
    effort: Effort,
) -> Result<(), Box<dyn Error>> {
    let mut times = vec![Vec::new(); widths.len()];
    for _ in 0..rounds {
        for (times, ef) in times.iter_mut().zip(widths) {
            let clock = Clock::now();
            for query in queries {
                search(index, query, (*ef, ROWS), effort)?;
            }
            times.push(clock.elapsed());
        }
    }
    let mut points = Vec::new();
    for (times, ef) in times.iter().zip(widths) {
        let (mut found, mut hundred) = (Vec::new(), Vec::new());
        let (mut distances, mut originals) = (0, 0);
        for query in queries {
            let (ids, ranked, read) = search(index, query, (*ef, ROWS), effort)?;
            distances += ranked;
            originals += read;
            found.push(ids);
            hundred.push(search(index, query, (*ef, 100), effort)?.0);
        }
        let [cpu, wall] =
            [0, 1].map(|clock| queries.len() as f64 / median(times.iter().map(|t| t[clock])));
        let (ten, worst) = recall(&found, truth, ROWS);
        points.push((ten, cpu));
        println!(
            "ef {ef}: recall@1 {:.4}, @10 {ten:.4} (all but 5 %: {worst:.1}), @100 {:.4}; {cpu:.0} queries a CPU second, {wall:.0} a second; {} distances, {:.1} vectors read",
            recall(&found, truth, 1).0,
            recall(&hundred, truth, 100).0,
            distances / queries.len(),
            originals as f64 / queries.len() as f64
        );
    }
    for target in [0.95, 0.99] {
        if let Some(rate) = at_recall(&points, target) {
            println!("recall@10 {target}: {rate:.0} queries a CPU second");
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::given();
    let value = |name: &str, default: &str| arguments.value(name, default);
    let queries = value("queries", "2000").parse()?;
    let rows = value("rows", "4294967295").parse()?;
    let element = match value("element", "f32").as_str() {
        "f32" => Element::F32,
        "f16" => Element::F16,
        other => return Err(format!("no element is called {other}").into()),
    };
    let name = arguments.first().ok_or("want a data set")?;
    let mut data = Data::open(name, element, queries, rows)?;
    match value("order", "given").as_str() {
        "given" => {}
        "near" => mixture::put_near_together(&mut data),
        other => return Err(format!("no order is called {other}").into()),
    }
    let params = IndexParams {
        metric: data.metric,
        element,
        dimensions: Vector::from(&data.base[0]).dimensions(),
        m: value("m", "16").parse()?,
        ef_construction: value("ef_construction", "100").parse()?,
        representation: representation(&value("representation", "default"))?,
    };
    let file = value("file", "");
    let file = (!file.is_empty()).then_some(file.as_str());
    let index = build(&data, params, value("threads", "1").parse()?, file)?;
    let mut truth = data.truth.clone();
    if truth.is_empty() {
        for query in &data.queries {
            truth.push(search(&index, query, (1, 100), Effort::Exact)?.0);
        }
        for ef in if name.starts_with("noise:") {
            vec![40, 100, 200]
        } else {
            Vec::new()
        } {
            let mut lost = 0;
            for (row, vector) in data.base.iter().enumerate() {
                lost += usize::from(
                    search(&index, vector, (ef, 1), Effort::Balanced)?.0 != [row as u32],
                );
            }
            println!("ef {ef}: {lost} rows not found by their own vector");
        }
    }
    let cold = value("cold", "");
    let hot = match cold.as_str() {
        "" => None,
        cold => Some(Cold::parse(cold)?.apply(&index)?),
    };
    let widths = value("ef", "10,14,20,30,50,100,200");
    let widths: Vec<usize> = widths
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let rounds: usize = value("rounds", "5").parse()?;
    for name in value("effort", "balanced").split(',') {
        let effort = match name {
            "balanced" => Effort::Balanced,
            "fast" => Effort::Fast,
            other => return Err(format!("no effort is called {other}").into()),
        };
        println!("{name}:");
        measure(&index, &data.queries, &truth, &widths, rounds, effort)?;
        if let Some(hot) = hot {
            let (queries, truth) = mixture::of_hot_blocks(&data.queries, &truth, hot);
            println!("{name}, {} queries of hot blocks:", queries.len());
            if !queries.is_empty() {
                measure(&index, &queries, &truth, &widths, rounds, effort)?;
            }
        }
    }
    Ok(())
}
