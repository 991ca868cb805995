//! Rows come, go, fold, leave the graph and are searched for, all at the same time.
#![allow(clippy::unwrap_used)]

mod owned;
mod world;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use index_engine::params::CodeBits;
use index_engine::{
    Cursor, Element, IndexParams, Metric, PartitionIndex, Representation, VectorId,
};
use owned::{Owned, WIDE};
use world::Random;

/// Rows held at a time, and how often all of them are replaced.
const ROWS: usize = 1_500;
const ROUNDS: usize = 4;
/// One row in so many stays for ever.
const KEPT_ONE_IN: usize = 5;

/// A row's vector follows from its number. One in seven equals an earlier one.
fn vector(row: usize, dimensions: usize) -> Vec<f32> {
    let seed = if row.is_multiple_of(7) { row % 70 } else { row };
    let mut random = Random(seed as u64);
    (0..dimensions).map(|_| random.normal()).collect()
}

struct Churn {
    index: PartitionIndex,
    dimensions: usize,
    /// The row of each id, told before a search can return it.
    row_of: Vec<AtomicUsize>,
    inserted: AtomicUsize,
    is_removed: Vec<AtomicBool>,
    is_done: AtomicBool,
}

impl Churn {
    fn replace_all_rows(&self) {
        let mut random = Random(1);
        let mut held: Vec<(usize, VectorId)> = Vec::new();
        for row in 0..ROWS * (ROUNDS + 1) {
            if row >= ROWS {
                let (gone, id) = held.swap_remove(random.next() as usize % held.len());
                self.is_removed[gone].store(true, Ordering::SeqCst);
                self.index.remove(id);
            }
            let name = |id: VectorId| self.row_of[id.0 as usize].store(row, Ordering::SeqCst);
            let vector = vector(row, self.dimensions);
            let id = self.index.insert_named(&vector, random.next(), name);
            self.inserted.store(row + 1, Ordering::SeqCst);
            if row >= ROWS || !row.is_multiple_of(KEPT_ONE_IN) {
                held.push((row, id.unwrap()));
            }
            while self.index.tail_len() > 200 || self.index.removed_len() > ROWS / 4 {
                std::thread::yield_now();
            }
        }
        self.is_done.store(true, Ordering::SeqCst);
    }

    fn work(&self, step: impl Fn() -> usize) {
        while !self.is_done.load(Ordering::SeqCst) || step() > 0 {
            if step() == 0 {
                std::thread::yield_now();
            }
        }
    }

    fn change_widths(&self) {
        let mut random = Random(8);
        while !self.is_done.load(Ordering::SeqCst) {
            let block = random.next() as u32 % self.index.blocks().max(1);
            let bits = CodeBits::ALL[random.next() as usize % 4];
            // The first block may not be there yet.
            let _ = self.index.recode(block, bits);
            std::thread::yield_now();
        }
    }

    fn search(&self, seed: u64) {
        let mut random = Random(seed);
        while !self.is_done.load(Ordering::SeqCst) {
            let query: Vec<f32> = (0..self.dimensions).map(|_| random.normal()).collect();
            let gone: Vec<bool> = self.is_removed[..self.inserted.load(Ordering::SeqCst)]
                .iter()
                .map(|removed| removed.load(Ordering::SeqCst))
                .collect();
            let exact = random.next().is_multiple_of(16);
            let mut cursor = self.index.cursor(&query, 20, u64::MAX, exact).unwrap();
            let upto = self.inserted.load(Ordering::SeqCst) + 1;
            if random.next().is_multiple_of(4) {
                self.check_page(&mut cursor, &query, &gone, upto, &mut HashSet::new());
                continue;
            }
            let mut found = HashSet::new();
            while !self.check_page(&mut cursor, &query, &gone, upto, &mut found) {}
            let kept = (0..gone.len().min(ROWS)).filter(|row| row.is_multiple_of(KEPT_ONE_IN));
            for row in kept {
                assert!(found.contains(&row), "row {row} is missing");
            }
        }
    }

    /// Every hit is a row that was there when the cursor opened, with its distance.
    fn check_page(
        &self,
        cursor: &mut Cursor,
        query: &[f32],
        gone: &[bool],
        upto: usize,
        found: &mut HashSet<usize>,
    ) -> bool {
        let page = cursor.next_page(&self.index, 300);
        for (id, distance) in page.hits {
            let row = self.row_of[id.0 as usize].load(Ordering::SeqCst);
            assert!(row < upto, "row {row} of {upto} came later");
            assert!(
                !gone.get(row).is_some_and(|gone| *gone),
                "row {row} was gone"
            );
            assert!(found.insert(row), "row {row} came twice");
            let vector = vector(row, self.dimensions);
            let squares = vector
                .iter()
                .zip(query)
                .map(|(x, y)| f64::from(x - y).powi(2));
            let exact = squares.sum::<f64>().sqrt();
            assert!(
                (distance - exact).abs() < 1e-3,
                "row {row}: {distance} for {exact}"
            );
        }
        page.exhausted
    }
}

#[test]
fn searches_see_rows_as_they_are_while_slots_are_used_again() {
    // Walked by exact distances, by codes of the vectors, and by codes of neighbours.
    for (dimensions, representation) in [
        (10, Representation::Plain),
        (48, Representation::Compact(CodeBits::Eight)),
        (128, Representation::Coded),
    ] {
        let params = IndexParams {
            metric: Metric::L2,
            dimensions,
            m: 6,
            ef_construction: 32,
            representation,
            ..IndexParams::default()
        };
        let rows = ROWS * (ROUNDS + 1);
        let churn = Churn {
            index: PartitionIndex::new(params).unwrap(),
            dimensions,
            row_of: (0..rows).map(|_| AtomicUsize::new(usize::MAX)).collect(),
            inserted: AtomicUsize::new(0),
            is_removed: (0..rows).map(|_| AtomicBool::new(false)).collect(),
            is_done: AtomicBool::new(false),
        };
        let churn = &churn;
        std::thread::scope(|scope| {
            scope.spawn(|| churn.replace_all_rows());
            for seed in 0..2 {
                scope.spawn(|| churn.work(|| churn.index.fold(20)));
                scope.spawn(|| churn.work(|| churn.index.repair(50)));
                scope.spawn(move || churn.search(seed));
            }
            if matches!(representation, Representation::Compact(_)) {
                scope.spawn(|| churn.change_widths());
            }
        });
        let index = &churn.index;
        while index.fold(100) + index.repair(100) > 0 {}
        let (slots, held) = (index.slots_len(), index.total_len());
        assert!(held <= ROWS + ROWS / 50, "{held} of {ROWS} rows held");
        // Fewer by far than were inserted, however late repair gets its turns.
        let inserted = rows;
        assert!(
            slots < inserted * 3 / 4,
            "{slots} slots for {ROWS} rows of {inserted}"
        );
    }
}

/// Rows of a few clusters; each row is a place of its own.
fn clustered(random: &mut Random, rows: usize, dimensions: usize) -> Vec<Vec<f32>> {
    let mut centre = Random(4);
    let centres: Vec<Vec<f32>> = (0..30)
        .map(|_| (0..dimensions).map(|_| 2.0 * centre.normal()).collect())
        .collect();
    let mut row = || {
        let centre = &centres[random.next() as usize % centres.len()];
        centre.iter().map(|x| x + random.normal()).collect()
    };
    (0..rows).map(|_| row()).collect()
}

/// The share of the nearest ten that a search finds, by their distances.
fn recall(index: &PartitionIndex, queries: &[Owned], ef: usize) -> f64 {
    let nearest = |query: &Owned, exact: bool| {
        let mut cursor = index.cursor(query.borrow(), ef, u64::MAX, exact).unwrap();
        cursor.next_page(index, 10).hits
    };
    let mut found = 0;
    for query in queries {
        let worst = nearest(query, true)[9].1 + 1e-6;
        let hits = nearest(query, false);
        found += hits.iter().filter(|hit| hit.1 <= worst).count();
    }
    found as f64 / (queries.len() * 10) as f64
}

#[test]
fn an_index_finds_as_much_after_all_of_it_was_replaced_twice() {
    const HELD: usize = 2_000;
    use Representation::{Coded, Compact, Plain};
    const EFS: [usize; 3] = [20, 40, 100];
    // A point is wanted. Of inner products of sparse vectors more is lost (4.4, 1.6 and 0.6
    // points, bench/RESULTS.md): a known miss, which must not grow.
    const WANTED: [f64; 3] = [0.01; 3];
    const MISSED: [f64; 3] = [0.047, 0.019, 0.009];
    for (element, metric, dimensions, representation, losses) in [
        (Element::F32, Metric::L2, 24, Plain, WANTED),
        (
            Element::F32,
            Metric::L2,
            128,
            Compact(CodeBits::Eight),
            WANTED,
        ),
        (Element::F32, Metric::L2, 128, Coded, WANTED),
        (Element::F32, Metric::L1, 24, Plain, WANTED),
        (Element::Bit, Metric::Hamming, 128, Plain, WANTED),
        (Element::Bit, Metric::Jaccard, 128, Plain, WANTED),
        (Element::Sparse, Metric::L2, 128, Plain, WANTED),
        (Element::Sparse, Metric::Cosine, 128, Plain, WANTED),
        (Element::F32, Metric::InnerProduct, 128, Plain, WANTED),
        (Element::Sparse, Metric::InnerProduct, 128, Plain, MISSED),
    ] {
        let params = IndexParams {
            metric,
            element,
            dimensions: match element {
                Element::Sparse => WIDE,
                _ => dimensions,
            },
            m: 8,
            ef_construction: 60,
            representation,
        };
        let mut random = Random(9);
        let mut made = |rows| -> Vec<Owned> {
            let rows = clustered(&mut random, rows, dimensions);
            rows.iter().map(|row| Owned::of(element, row)).collect()
        };
        let (rows, queries) = (made(3 * HELD), made(200));
        let churned = PartitionIndex::new(params.clone()).unwrap();
        let (mut old, mut new): (Vec<VectorId>, Vec<VectorId>) = Default::default();
        for (number, row) in rows.iter().enumerate() {
            if number.is_multiple_of(HELD) {
                old = std::mem::take(&mut new);
            }
            if !old.is_empty() {
                churned.remove(old.swap_remove(random.next() as usize % old.len()));
            }
            new.push(churned.insert(row.borrow(), random.next()).unwrap());
            if number % 60 == 59 {
                churned.fold(usize::MAX);
                while churned.repair(100) > 0 {}
            }
        }
        let fresh = PartitionIndex::new(params).unwrap();
        for row in &rows[2 * HELD..] {
            fresh.insert(row.borrow(), random.next()).unwrap();
        }
        for index in [&fresh, &churned] {
            index.fold(usize::MAX);
            while index.repair(100) > 0 {}
        }
        assert!(churned.slots_len() <= HELD + HELD / 10);
        for (ef, loss) in EFS.into_iter().zip(losses) {
            let (before, after) = (recall(&fresh, &queries, ef), recall(&churned, &queries, ef));
            println!("{element} {metric:?} {representation:?}, ef {ef}: {after} for {before}");
            assert!(
                after >= before - loss,
                "{element} {metric:?} {representation:?}, ef {ef}: {after} for {before}"
            );
        }
    }
}
