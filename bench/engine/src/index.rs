//! An index over a data set's rows, whose ids are the rows' numbers.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail, ensure};
use index_engine::{CodeBits, IndexParams, Metric, PartitionIndex, Representation};

use crate::clock::{Clock, Elapsed};
use crate::npy::Matrix;
use crate::options::Options;

pub const M: usize = 16;
/// What the quickstart builds with is less (64), what peers are built with more (200).
pub const EF_CONSTRUCTION: usize = 100;

/// Takes `m`, `ef_construction`, and `representation`: `default`, `plain`, `coded`, or `compact1`,
/// `compact2`, `compact4` or `compact8`.
pub fn params(metric: Metric, dimensions: usize, options: &mut Options) -> Result<IndexParams> {
    let name: String = options.take("representation", "default".to_owned())?;
    let representation = match name.as_str() {
        "default" => Representation::default(),
        "plain" => Representation::Plain,
        "coded" => Representation::Coded,
        "compact1" => Representation::Compact(CodeBits::One),
        "compact2" => Representation::Compact(CodeBits::Two),
        "compact4" => Representation::Compact(CodeBits::Four),
        "compact8" => Representation::Compact(CodeBits::Eight),
        other => bail!("no representation is called {other}"),
    };
    Ok(IndexParams {
        metric,
        dimensions,
        m: options.take("m", M)?,
        ef_construction: options.take("ef_construction", EF_CONSTRUCTION)?,
        representation,
        ..IndexParams::default()
    })
}

/// A hash of the row's number, as the level in the graph wants it.
pub fn level_hash(row: usize) -> u64 {
    (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Inserts all rows and folds them: one thread inserts and then folds, the others fold
/// from the start.
pub fn build(
    params: IndexParams,
    base: &Matrix<f32>,
    threads: usize,
) -> Result<(PartitionIndex, Elapsed)> {
    ensure!(threads > 0, "no thread to build with");
    let index = PartitionIndex::new(params)?;
    let inserted = AtomicBool::new(false);
    let began = Clock::now();
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                // In this order: a row inserted before the last look is folded.
                while !inserted.load(Ordering::Acquire) {
                    if index.fold(usize::MAX) == 0 {
                        std::thread::yield_now();
                    }
                }
                index.fold(usize::MAX);
            });
        }
        let result = insert_all(&index, base);
        inserted.store(true, Ordering::Release);
        index.fold(usize::MAX);
        result
    })?;
    let elapsed = began.elapsed();
    ensure!(index.tail_len() == 0, "rows are left in the tail");
    Ok((index, elapsed))
}

fn insert_all(index: &PartitionIndex, base: &Matrix<f32>) -> Result<()> {
    for (row, vector) in base.rows().enumerate() {
        let id = index.insert(vector, level_hash(row))?;
        assert_eq!(id.0 as usize, row, "ids are the numbers of rows");
    }
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Rows that lie on no line and have no equals.
    pub fn scattered(rows: usize, columns: usize, seed: u64) -> Matrix<f32> {
        let mut state = seed;
        let mut matrix = Matrix::empty(columns, rows);
        for _ in 0..rows {
            let row: Vec<f32> = (0..columns)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005);
                    state = state.wrapping_add(1_442_695_040_888_963_407);
                    (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
                })
                .collect();
            matrix.push(&row);
        }
        matrix
    }

    pub fn small(columns: usize) -> IndexParams {
        IndexParams {
            metric: Metric::L2,
            dimensions: columns,
            m: 8,
            ef_construction: 40,
            ..IndexParams::default()
        }
    }

    #[test]
    fn every_row_is_folded_whatever_the_threads() {
        let base = scattered(700, 8, 1);
        for threads in [1, 3] {
            let (index, _) = build(small(8), &base, threads).unwrap();
            assert_eq!((index.total_len(), index.tail_len()), (700, 0));
        }
        assert!(build(small(8), &base, 0).is_err());
    }
}
