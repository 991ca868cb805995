//! What part of a search's time its kernels are: the rest is the walk, waiting and upkeep.
//!
//! Counted first: of how many nodes the searches scanned codes, and how many vectors they
//! ranked by sketch and exactly. Then, round by round in turn with the searches, just as
//! many calls of each kernel over the same index: of nodes and rows at random, which have
//! all been asked of the memory in time, a node while the one before is scanned, a group of
//! `ahead` rows while the group before is ranked. A search could not do better where it goes to
//! memory, for what it reads next depends on what it has read. It does better where queries
//! come by the same nodes again and find them in a cache, which rows at random do not; so a
//! part may exceed one. The tables are those of one query and stay in the first cache, as
//! in a search. What a query is prepared by (rotation, tables) is a kernel too, measured
//! over the queries themselves; the ratio is given without it as well. Searches by exact
//! distances alone (`representation=plain`) have one kernel; the compact representation lends none.
//!
//! Processor time, one thread, a page of ten; medians over the rounds after the first, which
//! warms up, of a ratio too: a round's kernels by the same round's searches. One JSON line
//! for each `ef`, in microseconds and calls a search; then the ratios. Each names its data.
//!
//! Options: `ef=10,20,50,100`, `rows=ALL`, `queries=1000`, `rounds=7`, `ahead=8`,
//! `threads=2` (of the build), `m`, `ef_construction`, `representation`.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Error, Result, ensure};
use index_engine::accesses::BLOCK_VECTORS;
use index_engine::measuring::{ByCodes, Kernels, Prepared};
use index_engine::{PartitionIndex, Representation};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::data::DataSet;
use crate::index;
use crate::npy::Matrix;
use crate::options::Options;
use crate::search::{self, Asked};
use crate::statistics::{median, recall};

/// Rows that a search asks for.
const ROWS: usize = 10;
const EFS: [usize; 4] = [10, 20, 50, 100];

/// How the kernels are run.
struct Wanted {
    rounds: usize,
    ahead: usize,
}

/// Calls of each kernel by all searches together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Calls {
    scans: usize,
    sketches: usize,
    vectors: usize,
}

/// Processor seconds of all searches of one round, and of the kernels alone.
#[derive(Debug, Clone, Copy, Default)]
struct Seconds {
    search: f64,
    preparation: f64,
    scans: f64,
    sketches: f64,
    vectors: f64,
}

pub fn run(folder: &Path, options: &mut Options) -> Result<()> {
    let data = DataSet::open(folder, options.take("queries", 1_000)?)?;
    let rows_max = options.take("rows", usize::MAX)?;
    let threads = options.take("threads", 2)?;
    let efs = options.take_list("ef", &EFS)?;
    let wanted = Wanted {
        rounds: options.take("rounds", 7)?,
        ahead: options.take("ahead", 8)?,
    };
    let params = index::params(data.metric, data.queries.columns(), options)?;
    options.finish()?;
    ensure!(
        wanted.rounds > 0 && wanted.ahead > 0,
        "rounds and ahead are 1 at least"
    );
    ensure!(
        !matches!(params.representation, Representation::Compact(_)),
        "the compact representation lends no kernels"
    );
    let base = data.base(rows_max)?;
    let (index, _) = index::build(params, &base, threads)?;
    drop(base);
    let nearest = search::exact(&index, &data.queries, ROWS, threads)?;
    let kernels = Kernels::open(&index).map_err(Error::msg)?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut ratios = serde_json::Map::new();
    for ef in efs {
        let mut line = one_ef(&index, &kernels, &data.queries, &nearest, ef, &wanted)?;
        line["data"] = json!(name);
        println!("{line}");
        ratios.insert(ef.to_string(), line["ratio"].clone());
    }
    println!(
        "{}",
        json!({
            "data": name,
            "rows": index.total_len(),
            "kernels_over_search_by_ef": ratios,
        })
    );
    Ok(())
}

fn one_ef(
    index: &PartitionIndex,
    kernels: &Kernels<'_>,
    queries: &Matrix<f32>,
    nearest: &[Vec<u32>],
    ef: usize,
    wanted: &Wanted,
) -> Result<Value> {
    let asked = Asked { ef, rows: ROWS };
    let (calls, found) = counted(index, queries, asked)?;
    let found = found.iter().map(Vec::as_slice);
    let reached = recall(found, nearest.iter().map(Vec::as_slice), ROWS).mean;
    let rounds: Vec<Seconds> = (0..=wanted.rounds as u64)
        .map(|number| {
            round(
                index,
                kernels,
                queries,
                asked,
                calls,
                (number, wanted.ahead),
            )
        })
        .collect::<Result<_>>()?;
    Ok(line((ef, reached), calls, queries.len(), &rounds[1..]))
}

impl Seconds {
    fn on_the_way(&self) -> f64 {
        self.scans + self.sketches + self.vectors
    }
}

fn line((ef, recall): (usize, f64), calls: Calls, queries: usize, rounds: &[Seconds]) -> Value {
    let calls_a_search = |calls: usize| calls as f64 / queries as f64;
    let of_rounds = |figure: fn(&Seconds) -> f64| {
        let figures: Vec<f64> = rounds.iter().map(figure).collect();
        median(&figures)
    };
    let micros = |part| of_rounds(part) * 1e6 / queries as f64;
    json!({
        "ef": ef,
        "recall": recall,
        "search_us": micros(|s| s.search),
        "kernels_us": {
            "preparation": micros(|s| s.preparation),
            "scans": micros(|s| s.scans),
            "sketches": micros(|s| s.sketches),
            "vectors": micros(|s| s.vectors),
        },
        "calls": {
            "scans": calls_a_search(calls.scans),
            "sketches": calls_a_search(calls.sketches),
            "vectors": calls_a_search(calls.vectors),
        },
        "ratio": of_rounds(|s| (s.on_the_way() + s.preparation) / s.search),
        "ratio_without_preparation": of_rounds(|s| s.on_the_way() / s.search),
    })
}

/// Nodes whose codes all searches so far have scanned, and vectors they have read.
fn accesses(index: &PartitionIndex) -> (usize, usize) {
    let blocks = index.slots_len().div_ceil(BLOCK_VECTORS as usize) as u32;
    let all = (0..blocks).map(|block| index.accesses(block));
    all.fold((0, 0), |(expansions, originals), of| {
        let (more, read) = (of.expansions as usize, of.originals as usize);
        (expansions + more, originals + read)
    })
}

/// What all searches call, and what they find.
fn counted(
    index: &PartitionIndex,
    queries: &Matrix<f32>,
    asked: Asked,
) -> Result<(Calls, Vec<Vec<u32>>)> {
    let before = accesses(index);
    let pass = search::pass(index, queries, asked, 1)?;
    let after = accesses(index);
    let (expansions, originals) = (after.0 - before.0, after.1 - before.1);
    // Exact searches do not tell apart what they read, for they read nothing else.
    let calls = match originals {
        0 => Calls {
            scans: 0,
            sketches: 0,
            vectors: pass.distances,
        },
        vectors => Calls {
            scans: expansions,
            sketches: pass.distances - vectors,
            vectors,
        },
    };
    Ok((calls, pass.found))
}

fn round(
    index: &PartitionIndex,
    kernels: &Kernels<'_>,
    queries: &Matrix<f32>,
    asked: Asked,
    calls: Calls,
    (number, ahead): (u64, usize),
) -> Result<Seconds> {
    let search = seconds(|| {
        for query in queries.rows() {
            black_box(search::search(index, query, asked)?);
        }
        Ok(())
    })?;
    let preparation = seconds(|| {
        for query in queries.rows() {
            black_box(kernels.prepare(query)?);
        }
        Ok(())
    })?;
    let prepared = kernels.prepare(queries.row(0))?;
    let rows = |kernel, count| at_random(kernels.rows(), count, 3 * number + kernel);
    let mut measured = Seconds {
        search,
        preparation,
        ..Seconds::default()
    };
    if let Some(codes) = prepared.by_codes() {
        let nodes = rows(0, calls.scans);
        measured.scans = seconds(|| {
            scan(&codes, &nodes);
            Ok(())
        })?;
        let sketched = rows(1, calls.sketches);
        measured.sketches = seconds(|| {
            rank_by_sketch(&codes, &sketched, ahead);
            Ok(())
        })?;
    }
    let ranked = rows(2, calls.vectors);
    measured.vectors = seconds(|| {
        rank(&prepared, &ranked, ahead);
        Ok(())
    })?;
    Ok(measured)
}

fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Clock::now();
    work()?;
    Ok(began.elapsed().cpu_s)
}

fn scan(codes: &ByCodes<'_>, nodes: &[u32]) {
    let ahead = nodes.iter().skip(1).chain(nodes.last());
    for (node, ahead) in nodes.iter().zip(ahead) {
        // Nothing is as near, so what a search does with those that are is left out.
        black_box(codes.scan(*node, *ahead, f32::NEG_INFINITY));
    }
}

fn rank_by_sketch(codes: &ByCodes<'_>, rows: &[u32], ahead: usize) {
    in_groups(
        rows,
        ahead,
        |rows| codes.prefetch(rows),
        |row| codes.rank(row),
    );
}

fn rank(prepared: &Prepared<'_>, rows: &[u32], ahead: usize) {
    in_groups(
        rows,
        ahead,
        |rows| prepared.prefetch(rows),
        |row| prepared.rank(row),
    );
}

/// Asks for a group of rows while the one before is ranked.
#[inline]
fn in_groups(rows: &[u32], ahead: usize, prefetch: impl Fn(&[u32]), rank: impl Fn(u32) -> f32) {
    let mut groups = rows.chunks(ahead).peekable();
    groups.peek().copied().into_iter().for_each(&prefetch);
    while let Some(group) = groups.next() {
        groups.peek().copied().into_iter().for_each(&prefetch);
        for row in group {
            black_box(rank(*row));
        }
    }
}

/// So many numbers below `end`, others for every seed.
fn at_random(end: u32, count: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let next = || {
        // SplitMix64 (Steele et al., OOPSLA 2014).
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ mixed >> 31) % u64::from(end)) as u32
    };
    std::iter::repeat_with(next).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::{scattered, small};
    use index_engine::{CodeBits, IndexParams};
    use std::cell::RefCell;

    fn measured(representation: Representation) -> Result<Value> {
        let (base, queries) = (scattered(900, 32, 6), scattered(40, 32, 7));
        let params = IndexParams {
            representation,
            ..small(32)
        };
        let (index, _) = index::build(params, &base, 1)?;
        let nearest = search::exact(&index, &queries, ROWS, 1)?;
        let wanted = Wanted {
            rounds: 2,
            ahead: 8,
        };
        let kernels = Kernels::open(&index).map_err(Error::msg)?;
        one_ef(&index, &kernels, &queries, &nearest, 40, &wanted)
    }

    #[test]
    fn each_representation_has_the_kernels_that_it_calls() {
        let coded = measured(Representation::Coded).unwrap();
        let calls = |kernel: &str| coded["calls"][kernel].as_f64().unwrap();
        assert!(calls("scans") >= 40.0, "{coded}");
        assert!(calls("sketches") > calls("scans"), "{coded}");
        assert!((10.0..=50.0).contains(&calls("vectors")), "{coded}");
        let plain = measured(Representation::Plain).unwrap();
        for kernel in ["scans", "sketches"] {
            assert_eq!(plain["calls"][kernel], 0.0);
            assert_eq!(plain["kernels_us"][kernel], 0.0);
        }
        assert!(
            plain["calls"]["vectors"].as_f64().unwrap() > 40.0,
            "{plain}"
        );
        for line in [coded, plain] {
            assert!(line["recall"].as_f64().unwrap() > 0.8, "{line}");
            assert!(line["ratio"].as_f64().unwrap() > 0.0, "{line}");
        }
        assert!(measured(Representation::Compact(CodeBits::Four)).is_err());
    }

    #[test]
    fn a_ratio_is_all_kernels_by_the_search_of_the_same_round() {
        let round = |search| Seconds {
            search,
            preparation: 2.0,
            scans: 5.0,
            sketches: 4.0,
            vectors: 1.0,
        };
        let calls = Calls {
            scans: 30,
            sketches: 90,
            vectors: 15,
        };
        let rounds = [round(10.0), round(20.0), round(25.0)];
        let line = line((10, 0.9), calls, 2, &rounds);
        assert_eq!(line["ratio"], 0.6);
        assert_eq!(line["ratio_without_preparation"], 0.5);
        assert_eq!(line["search_us"], 10.0 * 1e6);
        assert_eq!(line["calls"]["sketches"], 45.0);
    }

    #[test]
    fn every_row_is_asked_for_before_it_is_ranked_and_ranked_once() {
        let said = RefCell::new(Vec::new());
        let prefetch = |rows: &[u32]| said.borrow_mut().extend(rows.iter().map(|r| (*r, 'a')));
        let rank = |row| {
            said.borrow_mut().push((row, 'r'));
            0.0
        };
        in_groups(&[5, 6, 7, 8, 9], 2, prefetch, rank);
        let said = said.into_inner();
        let expected = "5a 6a 7a 8a 5r 6r 9a 7r 8r 9r";
        let as_text: Vec<String> = said
            .iter()
            .map(|(row, what)| format!("{row}{what}"))
            .collect();
        assert_eq!(as_text.join(" "), expected);
        in_groups(&[], 2, |_| panic!("no row"), |_| panic!("no row"));
    }

    #[test]
    fn rows_at_random_are_there_and_differ_by_seed() {
        let rows = at_random(10, 1_000, 1);
        assert_eq!(rows.len(), 1_000);
        for row in 0..10 {
            let times = rows.iter().filter(|r| **r == row).count();
            assert!((50..200).contains(&times), "row {row}: {times} times");
        }
        assert_ne!(rows, at_random(10, 1_000, 2));
    }
}
