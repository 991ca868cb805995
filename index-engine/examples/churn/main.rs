//! What is left of an index after all of its rows were replaced, again and again: recall
//! beside a fresh build of the same rows, memory, and what a removed row costs. And what
//! searches notice of repair.
//!
//! `cargo run --release -p index-engine --example churn -- FOLDER|noise:ROWSxDIMENSIONS [m=16] [ef_construction=100] [representation=default|plain|coded] [rounds=2] [batch=0.01] [queries=1000] [latency_rounds=0]`
//! FOLDER holds `base.npy`, `query.npy` (f32, C order) and `meta.json` with its metric, "l2"
//! or another for cosine. Of its rows a part of `rounds + 1` is in the index at a time; each
//! round replaces all of them, in random order, by those of the next part: a batch is
//! removed, as many are inserted and folded, and what is due is repaired, on one thread.
//!
//! With `latency_rounds` a twentieth of the rows is removed so many times; one thread
//! searches at ef 40: beside one that repairs, alone, and beside one that only keeps a core
//! busy, which tells what the system takes. Run it on a quiet machine with a core for each.

#![allow(clippy::print_stdout)]

#[path = "../search/arguments.rs"]
mod arguments;
#[path = "../search/npy.rs"]
#[allow(dead_code)]
mod npy;

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arguments::Arguments;
use index_engine::{IndexParams, Metric, PartitionIndex, Representation, VectorId};

const EFFORTS: [usize; 3] = [20, 40, 100];
const ROWS: usize = 10;

struct Data {
    metric: Metric,
    base: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
}

impl Data {
    fn open(name: &str, queries: usize) -> Result<Self, Box<dyn Error>> {
        if let Some(size) = name.strip_prefix("noise:") {
            let (rows, dimensions) = size.split_once('x').ok_or("want noise:ROWSxDIMENSIONS")?;
            let (rows, dimensions) = (rows.parse()?, dimensions.parse()?);
            let mut random = Random(7);
            let mut vector = || (0..dimensions).map(|_| random.noise()).collect();
            return Ok(Self {
                metric: Metric::L2,
                base: (0..rows).map(|_| vector()).collect(),
                queries: (0..queries).map(|_| vector()).collect(),
            });
        }
        let folder = Path::new(name);
        let base = npy::Array::read(&folder.join("base.npy"))?;
        let query = npy::Array::read(&folder.join("query.npy"))?;
        let is_l2 = std::fs::read_to_string(folder.join("meta.json"))?.contains("\"l2\"");
        Ok(Self {
            metric: if is_l2 { Metric::L2 } else { Metric::Cosine },
            base: (0..base.len()).map(|row| base.floats(row)).collect(),
            queries: (0..queries.min(query.len()))
                .map(|q| query.floats(q))
                .collect(),
        })
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }

    fn noise(&mut self) -> f32 {
        let mut unit = || (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        unit() + unit() + unit()
    }
}

/// Seconds of this thread's CPU time.
fn cpu_seconds() -> f64 {
    // The system adds up a thread's time when it is scheduled, or at ticks.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    ns.unwrap_or(0.0) / 1e9
}

fn timed(spent: &mut f64, work: impl FnOnce()) {
    let before = cpu_seconds();
    work();
    *spent += cpu_seconds() - before;
}

/// An index, and the row of each of its vectors.
struct Table<'a> {
    index: PartitionIndex,
    base: &'a [Vec<f32>],
    held: Vec<(usize, VectorId)>,
    /// Of each id.
    row_of: Vec<usize>,
    folding: f64,
    repairing: f64,
    looks: usize,
}

impl<'a> Table<'a> {
    fn new(params: IndexParams, base: &'a [Vec<f32>]) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            index: PartitionIndex::new(params)?,
            base,
            held: Vec::new(),
            row_of: Vec::new(),
            folding: 0.0,
            repairing: 0.0,
            looks: 0,
        })
    }

    fn insert(&mut self, row: usize) -> Result<(), Box<dyn Error>> {
        let hash = (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let id = self.index.insert(&self.base[row][..], hash)?;
        let at = id.0 as usize;
        self.row_of.resize(self.row_of.len().max(at + 1), 0);
        self.row_of[at] = row;
        self.held.push((row, id));
        Ok(())
    }

    fn fold(&mut self) {
        let index = &self.index;
        timed(&mut self.folding, || {
            index.fold(usize::MAX);
        });
    }

    fn repair(&mut self) {
        let (index, looks) = (&self.index, &mut self.looks);
        timed(&mut self.repairing, || {
            *looks += index.repair(usize::MAX);
        });
    }

    fn nearest(&self, query: &[f32], ef: usize, exact: bool) -> Result<Vec<usize>, Box<dyn Error>> {
        let mut cursor = self.index.cursor(query, ef, u64::MAX, exact)?;
        let hits = cursor.next_page(&self.index, ROWS).hits;
        Ok(hits
            .iter()
            .map(|hit| self.row_of[hit.0.0 as usize])
            .collect())
    }

    fn report(
        &self,
        name: &str,
        queries: &[Vec<f32>],
        truth: &[Vec<usize>],
    ) -> Result<(), Box<dyn Error>> {
        print!("{name}:");
        for ef in EFFORTS {
            let (mut found, mut spent) = (0, 0.0);
            for (query, truth) in queries.iter().zip(truth) {
                let mut rows = Ok(Vec::new());
                timed(&mut spent, || rows = self.nearest(query, ef, false));
                found += rows?.iter().filter(|row| truth.contains(row)).count();
            }
            let recall = found as f64 / (queries.len() * ROWS) as f64;
            let rate = queries.len() as f64 / spent;
            print!(" ef {ef}: recall@10 {recall:.4}, {rate:.0} queries a CPU second;");
        }
        println!(
            " {} slots, {:.0} bytes a row",
            self.index.slots_len(),
            self.index.memory_bytes() as f64 / self.held.len() as f64
        );
        Ok(())
    }
}

fn percentiles(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e6;
    let shares = [0.5, 0.99, 0.999, 0.9999].map(at);
    format!(
        "p50 {:.0}, p99 {:.0}, p99.9 {:.0}, p99.99 {:.0} us of {} searches",
        shares[0],
        shares[1],
        shares[2],
        shares[3],
        times.len()
    )
}

/// Searches until told to stop.
fn latencies(table: &Table<'_>, queries: &[Vec<f32>], stop: impl Fn() -> bool) -> Vec<f64> {
    let mut times = Vec::new();
    for query in queries.iter().cycle() {
        if stop() {
            return times;
        }
        let began = Instant::now();
        let found = table.nearest(query, 40, false);
        times.push(began.elapsed().as_secs_f64());
        assert!(found.is_ok_and(|found| found.len() == ROWS));
    }
    times
}

fn measure_latency(
    table: &mut Table<'_>,
    queries: &[Vec<f32>],
    rounds: usize,
    random: &mut Random,
) -> Result<(), Box<dyn Error>> {
    let (mut alone, mut busy, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut gone = Vec::new();
        for _ in 0..table.held.len() / 20 {
            let (row, id) = table.held.swap_remove(random.below(table.held.len()));
            table.index.remove(id);
            gone.push(row);
        }
        let (shared, is_done) = (&*table, &AtomicBool::new(false));
        let began = Instant::now();
        let repaired = std::thread::scope(|scope| {
            scope.spawn(|| {
                while shared.index.repair(256) > 0 {}
                is_done.store(true, Ordering::Release);
            });
            let times = latencies(shared, queries, || is_done.load(Ordering::Acquire));
            beside.extend(times);
            began.elapsed()
        });
        let began = Instant::now();
        alone.extend(latencies(table, queries, || began.elapsed() > repaired));
        let (shared, is_done) = (&*table, &AtomicBool::new(false));
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| while !is_done.load(Ordering::Acquire) {});
            busy.extend(latencies(shared, queries, || began.elapsed() > repaired));
            is_done.store(true, Ordering::Release);
        });
        gone.into_iter().try_for_each(|row| table.insert(row))?;
        table.fold();
    }
    println!("searches alone:       {}", percentiles(alone));
    println!("beside a busy thread: {}", percentiles(busy));
    println!("beside repair:        {}", percentiles(beside));
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::given();
    let value = |name: &str, default: &str| arguments.value(name, default);
    let queries = value("queries", "1000").parse()?;
    let data = Data::open(arguments.first().ok_or("want a data set")?, queries)?;
    let params = IndexParams {
        metric: data.metric,
        dimensions: data.base[0].len(),
        m: value("m", "16").parse()?,
        ef_construction: value("ef_construction", "100").parse()?,
        representation: match value("representation", "default").as_str() {
            "default" => Representation::default(),
            "plain" => Representation::Plain,
            "coded" => Representation::Coded,
            other => return Err(format!("no representation is called {other}").into()),
        },
        ..IndexParams::default()
    };
    let rounds: usize = value("rounds", "2").parse()?;
    let share: f64 = value("batch", "0.01").parse()?;
    let part = data.base.len() / (rounds + 1);
    let mut random = Random(1);

    let mut fresh = Table::new(params.clone(), &data.base)?;
    let mut last: Vec<usize> = (rounds * part..(rounds + 1) * part).collect();
    for at in (1..part).rev() {
        last.swap(at, random.below(at + 1));
    }
    last.iter().try_for_each(|row| fresh.insert(*row))?;
    fresh.fold();
    let exact = |query: &Vec<f32>| fresh.nearest(query, 1, true);
    let truth = data.queries.iter().map(exact);
    let truth: Vec<Vec<usize>> = truth.collect::<Result<_, _>>()?;

    let mut table = Table::new(params, &data.base)?;
    (0..part).try_for_each(|row| table.insert(row))?;
    table.fold();
    let folding = table.folding;
    let batch = ((part as f64 * share) as usize).max(1);
    for round in 1..=rounds {
        let mut coming: Vec<usize> = match round == rounds {
            true => last.clone(),
            false => (round * part..(round + 1) * part).collect(),
        };
        let mut left: Vec<(usize, VectorId)> = std::mem::take(&mut table.held);
        while !left.is_empty() {
            for _ in 0..batch.min(left.len()) {
                let (_, id) = left.swap_remove(random.below(left.len()));
                table.index.remove(id);
                table.insert(coming.pop().ok_or("as many come as go")?)?;
            }
            table.fold();
            table.repair();
        }
    }
    table.repair();
    let replaced = (rounds * part) as f64;
    println!(
        "{part} rows, all replaced {rounds} times, {batch} at a time: folding {:.0} us a row (fresh {:.0}), repair {:.0} us a removed row, {:.0} looks each",
        (table.folding - folding) / replaced * 1e6,
        fresh.folding / part as f64 * 1e6,
        table.repairing / replaced * 1e6,
        table.looks as f64 / replaced
    );
    fresh.report("fresh", &data.queries, &truth)?;
    table.report("churned", &data.queries, &truth)?;
    let latency_rounds = value("latency_rounds", "0").parse()?;
    if latency_rounds > 0 {
        measure_latency(&mut table, &data.queries, latency_rounds, &mut random)?;
    }
    Ok(())
}
