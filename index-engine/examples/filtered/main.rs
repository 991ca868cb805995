//! Filtered searches: how rows were found, recall and queries per second at every
//! selectivity, for filters that have nothing to do with the query, that ask for what is
//! near it, and that ask for what is far from it.
//!
//! `cargo run --release -p index-engine --example filtered -- FOLDER [m=16] [ef_construction=100] [threads=1] [ef=40] [queries=12] [rounds=3] [rows=ALL] [percent=90,75,…] [modes=random,ball near,…] [json=FILE]`
//! FOLDER holds `base.npy`, `query.npy` (f32, C order) and `meta.json` with its metric,
//! "l2" or another for cosine.
//!
//! The attributes are ranks among all rows: one random, and for each of eight queries (the
//! *poles*) the rank of the distance from it and the rank along the line to another pole.
//! The queries asked are those nearest to a pole, `queries` each. So `ball near` asks for the
//! rows nearest to the query's pole and `ball far` for all but the rows near it, `side
//! near` for the rows on the pole's side of a plane and `side far` for those on the other.
//!
//! Speed is in queries per second of the thread's CPU time, the median over the rounds;
//! the ratios compare with the same searches without a filter, and with ranking all rows
//! that match. Recall is compared with an exact search; where fewer than ten match, with
//! those.
//!
//! `json=FILE` writes the same to a file that `bench/peers/plot_filtered.py` draws: of one
//! JSON object a line, first the searches without a filter, then each row of the table.

#![allow(clippy::print_stdout)]

#[path = "../search/arguments.rs"]
mod arguments;
#[allow(dead_code)]
#[path = "../search/npy.rs"]
mod npy;
mod report;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use arguments::Arguments;
use index_engine::{
    ColumnType, Comparison, Cursor, Filter, IndexParams, Metric, PartitionIndex, Value,
};
use report::{Filtered, Report, Whole};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ROWS: usize = 10;
const POLES: usize = 8;
/// Rows of a page of an exact search that ranks all.
const ALL_ROWS: usize = 10_000;

struct Query {
    vector: Vec<f32>,
    pole: usize,
    /// All rows, the nearest first.
    order: Vec<u32>,
}

/// Which rows a filter asks for, seen from the query.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    /// Its attribute: the first of one a pole, or one for all.
    column: usize,
    a_pole: bool,
    /// It asks for low ranks.
    low: bool,
}

const MODES: [Mode; 5] = [
    mode("random", 0, false, true),
    mode("ball near", 1, true, true),
    mode("ball far", 1, true, false),
    mode("side near", 1 + POLES, true, true),
    mode("side far", 1 + POLES, true, false),
];

const fn mode(name: &'static str, column: usize, a_pole: bool, low: bool) -> Mode {
    Mode {
        name,
        column,
        a_pole,
        low,
    }
}

impl Mode {
    fn column(self, query: &Query) -> usize {
        self.column + if self.a_pole { query.pole } else { 0 }
    }

    fn filter(self, query: &Query, rows: usize, matching: usize) -> Filter {
        let column = self.column(query);
        if self.low {
            Filter::compare(column, Comparison::Less, Value::Int(matching as i64))
        } else {
            let least = Value::Int((rows - matching) as i64);
            Filter::compare(column, Comparison::GreaterOrEqual, least)
        }
    }

    fn matches(self, rank: u32, rows: usize, matching: usize) -> bool {
        if self.low {
            (rank as usize) < matching
        } else {
            rank as usize >= rows - matching
        }
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

fn ranks(scores: &[f64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]));
    let mut ranks = vec![0; scores.len()];
    (0..)
        .zip(order)
        .for_each(|(rank, row)| ranks[row as usize] = rank);
    ranks
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum()
}

/// For all rows the rank of each attribute.
fn attributes(base: &npy::Array, rows: usize, poles: &[Vec<f32>], metric: Metric) -> Vec<Vec<u32>> {
    let mut scores = vec![Vec::with_capacity(rows); 1 + 2 * poles.len()];
    for row in 0..rows {
        let vector = base.floats(row);
        let size = dot(&vector, &vector).sqrt().max(f64::MIN_POSITIVE);
        scores[0].push(((row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64);
        let product = |pole: &[f32]| match metric {
            Metric::L2 => dot(&vector, pole) - dot(pole, pole) / 2.0,
            _ => dot(&vector, pole) / size / dot(pole, pole).sqrt(),
        };
        let near: Vec<f64> = poles.iter().map(|pole| product(pole)).collect();
        for pole in 0..poles.len() {
            let distance = match metric {
                Metric::L2 => size * size / 2.0 - near[pole],
                _ => -near[pole],
            };
            scores[1 + pole].push(distance);
            let opposite = near[(pole + poles.len() / 2) % poles.len()];
            scores[1 + poles.len() + pole].push(opposite - near[pole]);
        }
    }
    scores.iter().map(|scores| ranks(scores)).collect()
}

/// The queries nearest to each pole.
fn chosen(
    query: &npy::Array,
    poles: &[usize],
    a_pole: usize,
    metric: Metric,
) -> Vec<(Vec<f32>, usize)> {
    let mut chosen = Vec::new();
    for (pole, at) in poles.iter().enumerate() {
        let centre = query.floats(*at);
        let distance = |other: usize| -> f64 {
            let other = query.floats(other);
            match metric {
                Metric::L2 => dot(&other, &other) - 2.0 * dot(&other, &centre),
                _ => -dot(&other, &centre) / dot(&other, &other).sqrt(),
            }
        };
        let mut all: Vec<(f64, usize)> = (0..query.len()).map(|q| (distance(q), q)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        // The first is the pole itself.
        let near = all.into_iter().skip(1).take(a_pole);
        chosen.extend(near.map(|(_, q)| (query.floats(q), pole)));
    }
    chosen
}

fn everything(index: &PartitionIndex, query: &[f32]) -> Outcome<Vec<u32>> {
    let mut cursor = index.cursor(query, 1, u64::MAX, true)?;
    let mut order = Vec::with_capacity(index.total_len());
    loop {
        let page = cursor.next_page(index, ALL_ROWS);
        order.extend(page.hits.iter().map(|hit| hit.0.0));
        if page.exhausted {
            return Ok(order);
        }
    }
}

/// Median seconds of all queries, and how rows were found in the last round: recall, rows
/// looked at, and how often each way was the last.
struct Measured {
    seconds: f64,
    recall: f64,
    considered: usize,
    ways: BTreeMap<String, usize>,
}

fn measure<'a>(
    index: &PartitionIndex,
    rounds: usize,
    queries: &'a [Query],
    open: impl Fn(&'a Query) -> Outcome<Cursor>,
    is_wanted: impl Fn(&Query, u32) -> bool,
) -> Outcome<Measured> {
    let mut times = Vec::new();
    let mut answers = Vec::new();
    for _ in 0..rounds {
        answers.clear();
        let began = cpu_seconds();
        for query in queries {
            let mut cursor = open(query)?;
            let page = cursor.next_page(index, ROWS);
            answers.push((cursor.strategy(), cursor.considered(), page.hits));
        }
        times.push(cpu_seconds() - began);
    }
    times.sort_by(f64::total_cmp);
    let (mut found, mut wanted, mut considered) = (0, 0, 0);
    let mut ways = BTreeMap::new();
    for (query, (way, looked_at, hits)) in queries.iter().zip(answers) {
        let truth = query.order.iter().filter(|id| is_wanted(query, **id));
        let truth: Vec<u32> = truth.copied().take(ROWS).collect();
        wanted += truth.len();
        found += hits.iter().filter(|hit| truth.contains(&hit.0.0)).count();
        considered += looked_at;
        let way = way.map_or("none".to_owned(), |way| format!("{way:?}"));
        *ways.entry(way).or_insert(0) += 1;
    }
    Ok(Measured {
        seconds: times[times.len() / 2],
        recall: found as f64 / wanted.max(1) as f64,
        considered: considered / queries.len(),
        ways,
    })
}

fn main() -> Outcome<()> {
    let arguments = Arguments::given();
    let value = |name: &str, default: &str| arguments.value(name, default);
    let folder = Path::new(arguments.first().ok_or("want a data set")?);
    let meta = std::fs::read_to_string(folder.join("meta.json"))?;
    let metric = match meta.contains("\"l2\"") {
        true => Metric::L2,
        false => Metric::Cosine,
    };
    let query = npy::Array::read(&folder.join("query.npy"))?;
    let poles: Vec<usize> = (0..POLES).map(|pole| pole * query.len() / POLES).collect();
    let base = npy::Array::read(&folder.join("base.npy"))?;
    let rows = value("rows", &base.len().to_string())
        .parse::<usize>()?
        .min(base.len());
    let centres: Vec<Vec<f32>> = poles.iter().map(|at| query.floats(*at)).collect();
    let attributes = attributes(&base, rows, &centres, metric);
    let params = IndexParams {
        metric,
        dimensions: base.columns,
        m: value("m", "16").parse()?,
        ef_construction: value("ef_construction", "100").parse()?,
        ..IndexParams::default()
    };
    let columns = vec![ColumnType::Int; attributes.len()];
    let index = PartitionIndex::with_columns(params, &columns, None)?;
    let began = cpu_seconds();
    for row in 0..rows {
        let vector = base.floats(row);
        let values: Vec<Value> = attributes
            .iter()
            .map(|ranks| Value::Int(ranks[row].into()))
            .collect();
        let hash = (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        index.insert_with(&vector, hash, &values, |_| {})?;
    }
    let inserted = cpu_seconds() - began;
    drop(base);
    std::thread::scope(|scope| {
        for _ in 0..value("threads", "1").parse().unwrap_or(1) {
            scope.spawn(|| index.fold(usize::MAX));
        }
    });
    println!(
        "{rows} rows, {} columns: {inserted:.1} CPU s for insertion, {:.0} bytes a row in all",
        columns.len(),
        index.memory_bytes() as f64 / rows as f64
    );
    let mut queries = Vec::new();
    let a_pole = value("queries", "12").parse()?;
    for (vector, pole) in chosen(&query, &poles, a_pole, metric) {
        let order = everything(&index, &vector)?;
        queries.push(Query {
            vector,
            pole,
            order,
        });
    }
    let ef = value("ef", "40").parse()?;
    let rounds: usize = value("rounds", "3").parse()?;
    let open = |query: &Query| Ok(index.cursor(&query.vector, ef, u64::MAX, false)?);
    let whole = Whole {
        data: &folder.file_name().unwrap_or_default().to_string_lossy(),
        rows,
        dimensions: query.columns,
        queries: queries.len(),
        ef,
        unfiltered: measure(&index, 3 * rounds, &queries, open, |_, _| true)?,
    };
    let file = Some(value("json", "")).filter(|path| !path.is_empty());
    let mut report = Report::begin(whole, file.as_ref().map(Path::new))?;
    let percents = value("percent", "90,75,50,25,10,5,2,1,0.5,0.1,0.05,0.01");
    let modes = value("modes", "random,ball near,ball far,side near,side far");
    for mode in MODES {
        if !modes.split(',').any(|name| name == mode.name) {
            continue;
        }
        for percent in percents.split(',') {
            let percent: f64 = percent.parse()?;
            let matching = (rows as f64 * percent / 100.0).round() as usize;
            let is_wanted = |query: &Query, id: u32| {
                mode.matches(attributes[mode.column(query)][id as usize], rows, matching)
            };
            let open = |query: &Query| {
                let filter = mode.filter(query, rows, matching);
                Ok(index.cursor_where(&query.vector, ef, u64::MAX, false, &filter)?)
            };
            let ours = measure(&index, rounds, &queries, open, is_wanted)?;
            let open = |query: &Query| {
                let mut cursor = open(query)?;
                cursor.rank_all_matching();
                Ok(cursor)
            };
            let all = measure(&index, 1, &queries, open, is_wanted)?;
            report.add(&Filtered {
                filter: mode.name,
                percent,
                matching,
                ours,
                all,
            })?;
        }
    }
    Ok(())
}
