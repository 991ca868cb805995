//! What searches notice of inserts and deletions in the same process.
//!
//! One client searches without pause, in phases: alone, then beside a thread that
//! inserts and removes rows at a given rate while another folds, and takes removed rows out
//! of the graph. What is inserted was held back from the build. One JSON line a round, then the medians over the rounds.
//!
//! Options: `rate=1000` inserts and `removals=100` a second, `repair=1` (0: removed rows stay
//! in the graph, to compare), `seconds=5` a phase,
//! `rounds=5`, `ef=100`, `k=10`, `threads=2` for the build, `queries=2000`, `m`,
//! `ef_construction`, `representation`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use index_engine::{PartitionIndex, VectorId};
use serde::Serialize;
use serde_json::json;

use crate::data::DataSet;
use crate::index::{self, level_hash};
use crate::npy::Matrix;
use crate::options::Options;
use crate::search::{self, Asked, Latency};
use crate::statistics::median;

/// A folding thread that found nothing looks again after this long.
const FOLD_PAUSE: Duration = Duration::from_micros(500);
/// Rows a folding thread takes before it looks whether to stop.
const FOLD_ROWS: usize = 16;
/// Rows that repair looks at in between: most are not chosen anew.
const REPAIR_ROWS: usize = 64;
/// Prime, and no divisor of a number of rows that anyone builds.
const REMOVAL_STEP: usize = 7_919;

#[derive(Debug, Default, Serialize)]
struct Written {
    inserts_per_s: f64,
    removals: usize,
    tail_rows_max: usize,
    /// Looked at to take removed ones out.
    repair_rows: usize,
    /// In the graph still, at the end.
    removed_left: usize,
}

pub fn run(folder: &Path, options: &mut Options) -> Result<()> {
    let data = DataSet::open(folder, options.take("queries", 2_000)?)?;
    let inserts_per_s = options.take("rate", 1_000.0)?;
    let removals_per_s = options.take("removals", 100.0)?;
    let repairs = options.take("repair", 1u8)? != 0;
    let seconds: f64 = options.take("seconds", 5.0)?;
    let rounds: usize = options.take("rounds", 5)?;
    let asked = Asked {
        ef: options.take("ef", 100)?,
        rows: options.take("k", 10)?,
    };
    let threads = options.take("threads", 2)?;
    let params = index::params(data.metric, data.queries.columns(), options)?;
    options.finish()?;
    ensure!(rounds > 0 && inserts_per_s > 0.0, "nothing to measure");

    let all = data.base(usize::MAX)?;
    let wanted = (inserts_per_s * seconds * rounds as f64).ceil() as usize;
    let (built, later) = split(&all, all.len() - wanted.min(all.len() / 2));
    drop(all);
    let mut writer = Writer {
        inserts_per_s,
        removals_per_s,
        repairs,
        rows: later,
        inserted: 0,
        removable: built.len(),
        removed: 0,
    };
    let (index, _) = index::build(params, &built, threads)?;
    drop(built);

    let duration = Duration::try_from_secs_f64(seconds)?;
    let queries = &data.queries;
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let alone = search::concurrently(&index, queries, asked, 1, duration)?;
        let (beside, written) = beside_writes(&index, queries, asked, duration, &mut writer)?;
        index.fold(usize::MAX);
        println!(
            "{}",
            json!({ "round": round, "alone": alone, "beside": beside, "written": written })
        );
        idle.push(alone.p99_us);
        busy.push(beside.p99_us);
    }
    println!(
        "{}",
        json!({
            "p99_us_alone": median(&idle),
            "p99_us_beside": median(&busy),
            "ratio": median(&busy) / median(&idle),
        })
    );
    Ok(())
}

/// The first rows, to build, and the others.
fn split(all: &Matrix<f32>, built: usize) -> (Matrix<f32>, Matrix<f32>) {
    let mut first = Matrix::empty(all.columns(), built);
    let mut rest = Matrix::empty(all.columns(), all.len() - built);
    for (number, row) in all.rows().enumerate() {
        let part = if number < built {
            &mut first
        } else {
            &mut rest
        };
        part.push(row);
    }
    (first, rest)
}

/// Searches for so long beside the writer and a thread that folds.
fn beside_writes(
    index: &PartitionIndex,
    queries: &Matrix<f32>,
    asked: Asked,
    duration: Duration,
    writer: &mut Writer,
) -> Result<(Latency, Written)> {
    let stop = AtomicBool::new(false);
    let repairs = writer.repairs;
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.write(index, &stop));
        let folding = scope.spawn(|| fold_and_repair(index, repairs, &stop));
        let latency = search::concurrently(index, queries, asked, 1, duration);
        stop.store(true, Ordering::Relaxed);
        let written = writing.join().map_err(|_| anyhow!("the writer panicked"))?;
        let repair_rows = folding.join().map_err(|_| anyhow!("folding panicked"))?;
        let written = Written {
            repair_rows,
            removed_left: index.removed_len(),
            ..written?
        };
        Ok((latency?, written))
    })
}

/// Until told to stop; returns how many rows repair looked at.
fn fold_and_repair(index: &PartitionIndex, repairs: bool, stop: &AtomicBool) -> usize {
    let mut looked_at = 0;
    while !stop.load(Ordering::Relaxed) {
        let folded = index.fold(FOLD_ROWS);
        let repaired = match repairs {
            true => index.repair(REPAIR_ROWS),
            false => 0,
        };
        looked_at += repaired;
        if folded + repaired == 0 {
            std::thread::sleep(FOLD_PAUSE);
        }
    }
    looked_at
}

/// Inserts each of its rows when it is due, and removes rows of the build.
struct Writer {
    inserts_per_s: f64,
    removals_per_s: f64,
    repairs: bool,
    rows: Matrix<f32>,
    inserted: usize,
    /// Ids below are of the build.
    removable: usize,
    removed: usize,
}

impl Writer {
    /// Until told to stop, or until no row is left.
    fn write(&mut self, index: &PartitionIndex, stop: &AtomicBool) -> Result<Written> {
        let mut written = Written::default();
        let (began, first) = (Instant::now(), self.inserted);
        while self.inserted < self.rows.len() {
            let inserted = (self.inserted - first) as f64;
            let due = began + Duration::from_secs_f64(inserted / self.inserts_per_s);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if stop.load(Ordering::Relaxed) {
                break;
            }
            index.insert(
                self.rows.row(self.inserted),
                level_hash(self.removable + self.inserted),
            )?;
            self.inserted += 1;
            let removals = (inserted + 1.0) * self.removals_per_s / self.inserts_per_s;
            while (written.removals as f64) < removals.floor() && self.removed < self.removable {
                // A prime step: far from the one before, and each once.
                let victim = self.removed * REMOVAL_STEP % self.removable;
                index.remove(VectorId(victim as u32));
                self.removed += 1;
                written.removals += 1;
            }
            written.tail_rows_max = written.tail_rows_max.max(index.tail_len());
        }
        let inserted = (self.inserted - first) as f64;
        written.inserts_per_s = inserted / began.elapsed().as_secs_f64();
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::{scattered, small};

    #[test]
    fn removed_rows_leave_the_graph_only_where_it_is_repaired() {
        for repairs in [false, true] {
            let (index, _) = index::build(small(8), &scattered(400, 8, 9), 1).unwrap();
            (0..100).for_each(|row| index.remove(VectorId(row)));
            let stop = AtomicBool::new(false);
            let looked_at = std::thread::scope(|scope| {
                let folding = scope.spawn(|| fold_and_repair(&index, repairs, &stop));
                let until = Instant::now() + Duration::from_secs(if repairs { 30 } else { 0 });
                while index.removed_len() > 10 && Instant::now() < until {
                    std::thread::sleep(FOLD_PAUSE);
                }
                stop.store(true, Ordering::Relaxed);
                folding.join().unwrap()
            });
            assert_eq!(index.removed_len() <= 10, repairs);
            assert_eq!(looked_at > 0, repairs);
        }
    }

    #[test]
    fn rows_come_in_and_go_at_the_rate_while_searches_go_on() {
        let (built, rows) = split(&scattered(900, 8, 6), 400);
        let (index, _) = index::build(small(8), &built, 1).unwrap();
        let mut writer = Writer {
            inserts_per_s: 2_000.0,
            removals_per_s: 500.0,
            repairs: false,
            rows,
            inserted: 0,
            removable: built.len(),
            removed: 0,
        };
        let asked = Asked { ef: 10, rows: 5 };
        let queries = scattered(3, 8, 7);
        let duration = Duration::from_millis(100);
        for _ in 0..2 {
            let (before, began) = (writer.inserted, Instant::now());
            let (latency, written) =
                beside_writes(&index, &queries, asked, duration, &mut writer).unwrap();
            assert!(latency.queries > 0);
            let inserted = writer.inserted - before;
            let due = 1.0 + began.elapsed().as_secs_f64() * writer.inserts_per_s;
            assert!(
                inserted > 0 && inserted as f64 <= due,
                "{inserted} of {due}"
            );
            assert_eq!(written.removals, inserted / 4);
        }
        assert_eq!(index.total_len(), 400 + writer.inserted);
        assert_eq!(index.removed_len(), writer.removed, "each once");
        index.fold(usize::MAX);
        assert_eq!(index.tail_len(), 0);
    }
}
