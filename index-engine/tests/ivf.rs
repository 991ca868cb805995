//! What inverted lists promise: every visible row exactly once, exact within what was
//! scanned, found beside a training that goes on.
#![allow(clippy::unwrap_used)]

mod world;

use std::sync::atomic::{AtomicBool, Ordering};

use index_engine::ivf::{Due, IvfCursor, IvfIndex, IvfParams, PROBES_DEFAULT};
use index_engine::{IndexError, Metric, VectorId};
use world::Random;

const METRICS: [Metric; 4] = [Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L1];

/// An index beside its rows, which lie around centres.
struct Lists {
    index: IvfIndex,
    rows: Vec<Vec<f32>>,
    random: Random,
    centres: Vec<Vec<f32>>,
    /// How far rows lie from them.
    spread: f32,
}

impl Lists {
    fn new(metric: Metric, dimensions: usize, lists: Option<usize>, centres: usize) -> Self {
        let mut random = Random(7);
        let mut centre = || (0..dimensions).map(|_| 2.0 * random.normal()).collect();
        let centres = (0..centres).map(|_| centre()).collect();
        let params = IvfParams {
            metric,
            dimensions,
            lists,
        };
        Self {
            index: IvfIndex::new(params).unwrap(),
            rows: Vec::new(),
            random,
            centres,
            spread: 1.0,
        }
    }

    fn vector(&mut self) -> Vec<f32> {
        let centre = self.random.next() as usize % self.centres.len();
        let centre = self.centres[centre].clone();
        let mut near = |x| x + self.spread * self.random.normal();
        centre.into_iter().map(&mut near).collect()
    }

    fn add(&mut self, rows: usize) {
        for _ in 0..rows {
            let vector = self.vector();
            let id = self.index.insert(&vector).unwrap();
            assert_eq!(id.0 as usize, self.rows.len());
            self.rows.push(vector);
        }
    }

    fn train(&self) {
        while self.index.train(100, 5) > 0 {}
        assert_eq!(self.index.due(), None);
    }

    fn distance(&self, id: u32, query: &[f32]) -> f64 {
        let row = &self.rows[id as usize];
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
            products.sum()
        };
        match self.index.params().metric {
            Metric::L2 => {
                let difference: Vec<f32> = row.iter().zip(query).map(|(x, y)| x - y).collect();
                dot(&difference, &difference).sqrt()
            }
            Metric::InnerProduct => -dot(row, query),
            Metric::L1 => {
                let differences = row.iter().zip(query).map(|(x, y)| f64::from(x - y).abs());
                differences.sum()
            }
            Metric::Cosine => {
                1.0 - dot(row, query) / (dot(row, row).sqrt() * dot(query, query).sqrt())
            }
            Metric::Hamming | Metric::Jaccard => unreachable!("of bits"),
        }
    }

    /// All rows, nearest first.
    fn sorted(&self, query: &[f32]) -> Vec<(f64, u32)> {
        let ids = 0..self.rows.len() as u32;
        let mut all: Vec<_> = ids.map(|id| (self.distance(id, query), id)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all
    }

    fn cursor(&self, query: &[f32], probes: usize, exact: bool) -> IvfCursor {
        self.index.cursor(query, probes, u64::MAX, exact).unwrap()
    }

    fn recall(&mut self, queries: usize, probes: usize) -> f64 {
        let mut found = 0;
        for _ in 0..queries {
            let query = self.vector();
            let worst = self.sorted(&query)[9].0 + 1e-6;
            let hits = self.cursor(&query, probes, false).next_page(10).hits;
            let near = |hit: &&(VectorId, f64)| self.distance(hit.0.0, &query) <= worst;
            found += hits.iter().filter(near).count();
        }
        found as f64 / (queries * 10) as f64
    }
}

/// All pages: sorted within each, full until exhausted.
fn drain(cursor: &mut IvfCursor, rows: usize) -> Vec<(VectorId, f64)> {
    let mut hits = Vec::new();
    loop {
        let page = cursor.next_page(rows);
        assert!(page.hits.windows(2).all(|w| w[0].1 <= w[1].1));
        assert!(page.hits.len() == rows || page.exhausted);
        hits.extend(page.hits);
        if page.exhausted {
            assert_eq!(page.bound, f64::INFINITY);
            assert_eq!(cursor.certain_bound(), f64::INFINITY);
            let after = cursor.next_page(rows);
            assert!(after.exhausted && after.hits.is_empty());
            return hits;
        }
    }
}

fn sorted_ids(hits: &[(VectorId, f64)]) -> Vec<u32> {
    let mut ids: Vec<u32> = hits.iter().map(|hit| hit.0.0).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_few_lists_hold_most_of_what_is_near() {
    for metric in METRICS {
        let mut lists = Lists::new(metric, 24, None, 40);
        lists.add(5_000);
        assert_eq!(lists.index.due(), Some(Due::First));
        lists.train();
        assert_eq!(lists.index.lists_len(), 71, "the root of the rows");
        let (one, ten) = (lists.recall(100, 1), lists.recall(100, PROBES_DEFAULT));
        assert!((0.4..0.98).contains(&one), "{metric:?}: {one} by one list");
        assert!(ten >= 0.96, "{metric:?}: {ten} by ten lists");
        assert!(
            lists.recall(20, 71) >= 0.999,
            "all lists hold all that is near"
        );
    }
}

#[test]
fn ten_lists_cost_a_part_of_all() {
    let mut lists = Lists::new(Metric::L2, 24, None, 40);
    lists.add(5_000);
    let query = lists.vector();
    let before = lists.cursor(&query, 10, false).next_page(10);
    assert_eq!(before.distances, 5_000, "one list of everything");
    lists.train();
    let after = lists.cursor(&query, 10, false).next_page(10);
    assert!(after.distances < 1_500, "{} of 5,000", after.distances);
}

#[test]
fn pages_to_exhaustion_return_every_row_once() {
    for metric in METRICS {
        for (rows, added, exact) in [
            (1, 0, false),
            (900, 0, true),
            (1_500, 200, false),
            (1_500, 200, true),
        ] {
            for page in [1, 17, 2_000] {
                let mut lists = Lists::new(metric, 6, Some(30), 8);
                lists.add(rows);
                lists.train();
                lists.add(added);
                let query = lists.vector();
                let hits = drain(&mut lists.cursor(&query, 3, exact), page);
                let all: Vec<u32> = (0..(rows + added) as u32).collect();
                assert_eq!(sorted_ids(&hits), all);
                for (id, distance) in hits {
                    let expected = lists.distance(id.0, &query);
                    let slack = 1e-4 * expected.abs().max(1.0);
                    assert!(
                        (distance - expected).abs() <= slack,
                        "{distance} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn later_pages_cost_what_they_give() {
    let mut lists = Lists::new(Metric::L2, 24, None, 40);
    lists.add(5_000);
    lists.train();
    let query = lists.vector();
    let mut cursor = lists.cursor(&query, 10, false);
    let first = cursor.next_page(10).distances;
    let later: usize = (0..30).map(|_| cursor.next_page(10).distances).sum();
    // Three hundred rows more, in whole lists.
    assert!((1..=300 + 300).contains(&later), "{later} after {first}");
}

#[test]
fn an_exact_search_is_brute_force_that_skips_what_cannot_be_near() {
    for metric in METRICS {
        let mut lists = Lists::new(metric, 8, None, 60);
        lists.spread = 0.2;
        lists.add(3_000);
        lists.train();
        let mut ranked = 0;
        for _ in 0..40 {
            let query = lists.vector();
            let truth = lists.sorted(&query);
            let mut cursor = lists.cursor(&query, 1, true);
            let mut at = 0;
            for _ in 0..3 {
                let page = cursor.next_page(15);
                ranked += page.distances;
                for (id, _) in &page.hits {
                    let distance = lists.distance(id.0, &query);
                    assert!((distance - truth[at].0).abs() < 1e-4, "{metric:?} {at}");
                    at += 1;
                }
                assert!(
                    page.bound <= truth[at].0 + 1e-4,
                    "{metric:?}: {} {}",
                    page.bound,
                    truth[at].0
                );
            }
        }
        // Balls of the Euclidean distance around centroids say less of other metrics.
        let most = match metric {
            Metric::InnerProduct | Metric::L1 => 40 * 3_000,
            _ => 40 * 3_000 / 4,
        };
        assert!(ranked <= most, "{metric:?}: {ranked} ranked");
    }
}

#[test]
fn no_row_to_come_is_nearer_than_the_certain_bound() {
    for metric in METRICS {
        let mut lists = Lists::new(metric, 8, None, 60);
        lists.spread = 0.2;
        lists.add(3_000);
        lists.train();
        // What comes later moves radii.
        lists.add(500);
        let mut tells = 0;
        for _ in 0..30 {
            let query = lists.vector();
            let mut cursor = lists.cursor(&query, 2, false);
            let mut bounds = Vec::new();
            loop {
                let page = cursor.next_page(300);
                for (_, distance) in &page.hits {
                    let all = |bound: &f64| bound <= distance;
                    assert!(
                        bounds.iter().all(all),
                        "{metric:?}: {distance} after {bounds:?}"
                    );
                }
                if page.exhausted {
                    break;
                }
                bounds.push(cursor.certain_bound());
                tells += usize::from(page.hits[0].1 < cursor.certain_bound());
            }
        }
        // Balls of the Euclidean distance around centroids say less of other metrics.
        let least = match metric {
            Metric::L2 | Metric::Cosine => 30,
            _ => 0,
        };
        assert!(
            tells >= least,
            "{metric:?}: {tells} bounds that tell something"
        );
    }
}

#[test]
fn zero_vectors_come_last_in_cosine_and_once() {
    let mut lists = Lists::new(Metric::Cosine, 4, Some(10), 5);
    lists.add(1_200);
    for _ in 0..50 {
        lists.index.insert(&[0.0; 4]).unwrap();
    }
    lists.train();
    for exact in [false, true] {
        for query in [lists.vector(), vec![0.0; 4]] {
            let hits = drain(&mut lists.cursor(&query, 10, exact), 100);
            assert_eq!(sorted_ids(&hits), (0..1_250).collect::<Vec<_>>());
            assert!(hits[1_200..].iter().all(|hit| hit.1 == f64::INFINITY));
        }
    }
}

#[test]
fn few_distinct_rows_make_empty_lists_and_lose_nothing() {
    for metric in METRICS {
        let lists = Lists::new(metric, 3, Some(40), 1);
        for i in 0..2_000 {
            let vector = [(i % 3) as f32 + 1.0, (i % 2) as f32, 1.0];
            lists.index.insert(&vector).unwrap();
        }
        lists.train();
        assert_eq!(lists.index.lists_len(), 40);
        let hits = drain(&mut lists.cursor(&[1.0, 1.0, 0.0], 1, false), 70);
        assert_eq!(sorted_ids(&hits), (0..2_000).collect::<Vec<_>>());
    }
}

#[test]
fn training_gives_the_same_lists_by_any_number_of_threads() {
    let build = |threads: usize, seed: u64| {
        let mut lists = Lists::new(Metric::L2, 16, None, 30);
        lists.add(3_000);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while lists.index.due().is_some() {
                        if lists.index.train(100, seed) == 0 {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        let query = lists.vector();
        let mut cursor = lists.cursor(&query, 3, false);
        (cursor.next_page(40), cursor.certain_bound())
    };
    assert_eq!(build(1, 5), build(3, 5));
    assert_ne!(build(1, 5), build(1, 6), "the seed decides");
}

#[test]
fn lists_are_made_anew_when_rows_come_from_elsewhere() {
    let mut lists = Lists::new(Metric::L2, 16, None, 20);
    lists.add(4_000);
    lists.train();
    lists.add(900);
    assert_eq!(lists.index.due(), None, "more of the same");
    for centre in &mut lists.centres {
        for x in centre {
            *x += 30.0;
        }
    }
    lists.add(1_500);
    assert_eq!(lists.index.due(), Some(Due::Drifted));
    let query = lists.vector();
    let before = lists.cursor(&query, 5, false).next_page(10).distances;
    lists.train();
    let after = lists.cursor(&query, 5, false).next_page(10).distances;
    assert!(after * 2 < before, "{after} for {before}");
    lists.add(6_500);
    assert_eq!(lists.index.due(), Some(Due::Grown));
}

#[test]
fn training_leaves_removed_rows_behind_and_open_cursors_alone() {
    let mut lists = Lists::new(Metric::L2, 16, None, 20);
    lists.add(5_000);
    lists.train();
    let query = lists.vector();
    let mut old = lists.cursor(&query, 2, false);
    let mut seen = sorted_ids(&old.next_page(100).hits);
    let full = lists.index.memory_bytes();
    for id in 0..3_500 {
        lists.index.remove(VectorId(id));
    }
    lists.index.end(VectorId(4_000), 50);
    assert_eq!(lists.index.due(), Some(Due::Removed));
    lists.train();
    assert!(lists.index.memory_bytes() * 2 < full, "memory comes back");
    assert_eq!(
        (lists.index.total_len(), lists.index.removed_len()),
        (5_000, 3_500)
    );
    lists.index.remove(VectorId(3_600));

    let rest = drain(&mut old, 100);
    let alive = |id: &u32| *id > 3_600 || (3_500..3_600).contains(id);
    assert!(rest.iter().all(|hit| alive(&hit.0.0)));
    seen.extend(sorted_ids(&rest));
    seen.retain(alive);
    seen.sort_unstable();
    let expected: Vec<u32> = (0..5_000).filter(alive).collect();
    // The row that ended was current to the cursor's snapshot: u64::MAX sees it no more.
    let without: Vec<u32> = expected.iter().copied().filter(|id| *id != 4_000).collect();
    assert!(seen == without || seen == expected);

    let mut former = lists.index.cursor(&query, 2, 50, false).unwrap();
    assert_eq!(sorted_ids(&drain(&mut former, 90)), expected);
    assert_eq!(
        sorted_ids(&drain(&mut lists.cursor(&query, 2, true), 90)),
        without
    );
}

#[test]
fn rows_are_found_while_lists_change_places() {
    let mut lists = Lists::new(Metric::L2, 8, None, 10);
    lists.add(1_000);
    let vectors: Vec<Vec<f32>> = (0..12_000).map(|_| lists.vector()).collect();
    let lists = &lists;
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (at, vector) in vectors.iter().enumerate() {
                let id = lists.index.insert(vector).unwrap();
                assert_eq!(id.0 as usize, at + 1_000);
                if at % 16 == 0 {
                    // Searchable at once, by its own vector.
                    let page = lists.cursor(vector, 1, false).next_page(1);
                    assert_eq!(page.hits[0].1, 0.0, "{id:?}");
                }
            }
            is_done.store(true, Ordering::Release);
        });
        for seed in 0..2 {
            let is_done = &is_done;
            scope.spawn(move || {
                while !is_done.load(Ordering::Acquire) || lists.index.due().is_some() {
                    if lists.index.train(50, seed) == 0 {
                        std::thread::yield_now();
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut upto = 0;
            while upto < 13_000 {
                upto = lists.index.total_len();
                let hits = drain(
                    &mut lists.cursor(&vectors[upto % 100], 4, upto % 2 == 0),
                    1_000,
                );
                let ids = sorted_ids(&hits);
                assert!(ids.windows(2).all(|w| w[0] < w[1]), "an id came twice");
                assert!(
                    ids.len() >= upto && ids[upto - 1] == upto as u32 - 1,
                    "a row is missing"
                );
            }
        });
    });
    assert!(lists.index.lists_len() > 45, "{}", lists.index.lists_len());
}

#[test]
fn what_cannot_be_indexed_or_searched_is_refused() {
    let params = |dimensions, lists| IvfParams {
        metric: Metric::L2,
        dimensions,
        lists,
    };
    for (dimensions, lists) in [(0, None), (16_001, None), (3, Some(0)), (3, Some(32_769))] {
        let refused = IvfIndex::new(params(dimensions, lists)).err();
        assert!(matches!(refused, Some(IndexError::OutOfRange { .. })));
    }
    let bits = IvfParams {
        metric: Metric::Hamming,
        ..params(3, None)
    };
    let refused = IvfIndex::new(bits).err();
    assert!(matches!(refused, Some(IndexError::NoSuchDistance { .. })));
    let index = IvfIndex::new(params(3, None)).unwrap();
    let wrong = IndexError::WrongDimensions {
        expected: 3,
        got: 2,
    };
    assert_eq!(index.insert(&[0.0; 2]).err(), Some(wrong.clone()));
    assert_eq!(index.cursor(&[0.0; 2], 1, 0, false).err(), Some(wrong));
    assert!(index.insert(&[0.0, f32::NAN, 0.0]).is_err());
    for probes in [0, 32_769] {
        assert!(index.cursor(&[0.0; 3], probes, 0, false).is_err());
    }
    let page = index.cursor(&[0.0; 3], 1, 0, false).unwrap().next_page(5);
    assert!(page.exhausted && page.hits.is_empty());
    assert_eq!(index.train(1_000, 0), 0);
}
