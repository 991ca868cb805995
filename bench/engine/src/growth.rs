//! How build time, distances a search and memory grow with the rows.
//!
//! For each number of rows, the first ones of the data set: a build with each number of
//! threads, and searches of rising `ef`, by one thread, against the exact nearest.
//! Distances are counted as a page counts them: sketches and vectors ranked, not the
//! one-bit estimates. One JSON line for each; then the growth of distances from the
//! fewest rows to the most, and what ten million rows would take on eight cores,
//! **extrapolated**: by the power law through the last two sizes, and by Amdahl's law
//! from the speed-up of two threads.
//!
//! Options: `rows=10000,100000,1000000`, `threads=1,2`, `recall=0.95`, `queries=500`,
//! `ef=10,14,20,30,50,80,120,200,400`, `m`, `ef_construction`, `representation`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use index_engine::{IndexParams, PartitionIndex};
use serde_json::{Value, json};

use crate::clock::{Elapsed, resident_bytes};
use crate::data::DataSet;
use crate::index;
use crate::npy::Matrix;
use crate::options::Options;
use crate::search::{self, Asked};
use crate::statistics::{amdahl, at_recall, power_law, recall};

/// Rows that a search asks for.
const ROWS: usize = 10;
const EFS: [usize; 9] = [10, 14, 20, 30, 50, 80, 120, 200, 400];
const EXTRAPOLATED_ROWS: f64 = 1e7;
const EXTRAPOLATED_CORES: f64 = 8.0;

struct Wanted {
    params: IndexParams,
    threads: Vec<usize>,
    efs: Vec<usize>,
    recall: f64,
}

/// One number of rows.
struct Step {
    rows: usize,
    /// Threads and what the build took.
    builds: Vec<(usize, Elapsed)>,
    /// A search at the recall; none where it was not reached.
    distances: Option<f64>,
}

pub fn run(folder: &Path, options: &mut Options) -> Result<()> {
    let data = DataSet::open(folder, options.take("queries", 500)?)?;
    let mut sizes = options.take_list("rows", &[10_000, 100_000, 1_000_000])?;
    let wanted = Wanted {
        threads: options.take_list("threads", &[1, 2])?,
        efs: options.take_list("ef", &EFS)?,
        recall: options.take("recall", 0.95)?,
        params: index::params(data.metric, data.queries.columns(), options)?,
    };
    options.finish()?;
    sizes.sort_unstable();
    sizes.dedup();
    let mut steps = Vec::new();
    for rows in sizes {
        let (step, line) = step(&data, rows, &wanted)?;
        println!("{line}");
        steps.push(step);
    }
    println!("{}", summary(&steps, wanted.recall));
    Ok(())
}

fn step(data: &DataSet, rows: usize, wanted: &Wanted) -> Result<(Step, Value)> {
    let (mut builds, mut lines, mut last) = (Vec::new(), Vec::new(), None);
    let mut resident = 0;
    for threads in &wanted.threads {
        // One index at a time.
        drop(last.take());
        let before = resident_bytes()?;
        let base = data.base(rows)?;
        ensure!(base.len() == rows, "the data set has {} rows", base.len());
        let (index, elapsed) = index::build(wanted.params.clone(), &base, *threads)?;
        drop(base);
        resident = resident_bytes()?.saturating_sub(before);
        lines.push(json!({
            "threads": threads,
            "seconds": elapsed.wall_s,
            "cpu_seconds": elapsed.cpu_s,
        }));
        builds.push((*threads, elapsed));
        last = Some(index);
    }
    let index: PartitionIndex = last.context("no number of threads to build with")?;
    let points = points_by_ef(&index, &data.queries, wanted)?;
    let distances = at_recall(&points, wanted.recall);
    let line = json!({
        "rows": rows,
        "builds": lines,
        "recall_and_distances": points,
        "distances_at_recall": distances,
        "bytes_a_row": {
            "resident": resident as f64 / rows as f64,
            "accounted": index.memory_bytes() as f64 / rows as f64,
            "vector": wanted.params.dimensions * size_of::<f32>(),
        },
    });
    let step = Step {
        rows,
        builds,
        distances,
    };
    Ok((step, line))
}

/// Recall and distances a search, of rising `ef` until the recall is reached.
fn points_by_ef(
    index: &PartitionIndex,
    queries: &Matrix<f32>,
    wanted: &Wanted,
) -> Result<Vec<(f64, f64)>> {
    let cores = std::thread::available_parallelism()?.get();
    let nearest = search::exact(index, queries, ROWS, cores)?;
    let mut points: Vec<(f64, f64)> = Vec::new();
    for ef in &wanted.efs {
        let asked = Asked {
            ef: *ef,
            rows: ROWS,
        };
        let pass = search::pass(index, queries, asked, 1)?;
        let found = pass.found.iter().map(Vec::as_slice);
        let reached = recall(found, nearest.iter().map(Vec::as_slice), ROWS).mean;
        points.push((reached, pass.distances as f64 / queries.len() as f64));
        if reached >= wanted.recall {
            break;
        }
    }
    Ok(points)
}

fn summary(steps: &[Step], recall: f64) -> Value {
    let ends = steps.first().zip(steps.last());
    let growth = ends.and_then(|(first, last)| Some(last.distances? / first.distances?));
    json!({
        "recall": recall,
        "distances_most_over_fewest_rows": growth,
        "extrapolated": extrapolated(steps),
    })
}

/// None without two sizes, each built by one thread and by two.
fn extrapolated(steps: &[Step]) -> Option<Value> {
    let [.., small, large] = steps else {
        return None;
    };
    let seconds = |step: &Step, threads| {
        let build = step.builds.iter().find(|(with, _)| *with == threads);
        build.map(|(_, elapsed)| elapsed.wall_s)
    };
    let point = |step: &Step| Some((step.rows as f64, seconds(step, 1)?));
    let speed_up = seconds(large, 1)? / seconds(large, 2)?;
    let one_thread = power_law(point(small)?, point(large)?, EXTRAPOLATED_ROWS);
    Some(json!({
        "rows": EXTRAPOLATED_ROWS,
        "seconds_of_one_thread": one_thread,
        "speed_up_of_two_threads_measured": speed_up,
        "cores": EXTRAPOLATED_CORES,
        "seconds": one_thread / amdahl(speed_up, EXTRAPOLATED_CORES),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step_of(rows: usize, one: f64, two: f64, distances: Option<f64>) -> Step {
        let build = |threads, wall_s| (threads, Elapsed { wall_s, cpu_s: one });
        Step {
            rows,
            builds: vec![build(1, one), build(2, two)],
            distances,
        }
    }

    #[test]
    fn the_summary_compares_the_ends_and_continues_the_last_two_sizes() {
        let steps = [
            step_of(10_000, 9.0, 9.0, Some(100.0)),
            step_of(100_000, 10.0, 5.0, Some(110.0)),
            step_of(1_000_000, 100.0, 50.0, Some(140.0)),
        ];
        let summary = summary(&steps, 0.95);
        assert_eq!(summary["distances_most_over_fewest_rows"], 1.4);
        let seconds = summary["extrapolated"]["seconds"].as_f64().unwrap();
        assert!((seconds - 1_000.0 / 8.0).abs() < 1e-6, "{seconds}");
    }

    #[test]
    fn what_was_not_measured_is_not_said() {
        let steps = [
            step_of(10, 1.0, 1.0, Some(5.0)),
            step_of(100, 9.0, 9.0, None),
        ];
        assert!(summary(&steps, 0.95)["distances_most_over_fewest_rows"].is_null());
        assert!(summary(&steps[..1], 0.95)["extrapolated"].is_null());
    }
}
