//! What a search over several partitions promises: what one index of all rows does.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashSet;

use index_engine::group::{GroupCursor, GroupHit};
use index_engine::{Effort, IndexParams, Metric, PartitionIndex, VectorId};
use world::Random;

const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];
const EF: usize = 60;

/// The same rows in one index and in several partitions.
struct Split {
    whole: PartitionIndex,
    parts: Vec<PartitionIndex>,
    /// Of each partition's vectors the id in the whole.
    ids: Vec<Vec<u32>>,
    random: Random,
    centres: Vec<Vec<f32>>,
}

impl Split {
    /// `part_of` says where a row goes, by its number and its centre's.
    fn new(
        (metric, dimensions): (Metric, usize),
        rows: usize,
        parts: usize,
        part_of: impl Fn(usize, usize) -> usize,
    ) -> Self {
        let params = IndexParams {
            metric,
            dimensions,
            m: 12,
            ef_construction: 60,
            ..IndexParams::default()
        };
        let mut random = Random(3);
        let mut centre = || (0..dimensions).map(|_| 2.0 * random.normal()).collect();
        let centres: Vec<Vec<f32>> = (0..30).map(|_| centre()).collect();
        let new = || PartitionIndex::new(params.clone()).unwrap();
        let mut split = Self {
            whole: new(),
            parts: (0..parts).map(|_| new()).collect(),
            ids: vec![Vec::new(); parts],
            random,
            centres,
        };
        for row in 0..rows {
            let (centre, vector) = split.vector();
            let hash = split.random.next();
            let id = split.whole.insert(&vector, hash).unwrap();
            let part = part_of(row, centre);
            split.parts[part].insert(&vector, hash).unwrap();
            split.ids[part].push(id.0);
        }
        let indexes = split.parts.iter().chain([&split.whole]);
        for index in indexes {
            // The last rows stay in the tail.
            index.fold(index.total_len() * 9 / 10);
        }
        split
    }

    fn vector(&mut self) -> (usize, Vec<f32>) {
        let at = self.random.next() as usize % self.centres.len();
        let centre = self.centres[at].clone();
        let vector = centre.iter().map(|x| x + self.random.normal()).collect();
        (at, vector)
    }

    fn open(&self, query: &[f32], effort: Effort) -> GroupCursor<'_> {
        let parts: Vec<&PartitionIndex> = self.parts.iter().collect();
        GroupCursor::open(&parts, query.into(), EF, u64::MAX, effort).unwrap()
    }

    fn id(&self, hit: &GroupHit) -> u32 {
        self.ids[hit.partition][hit.id.0 as usize]
    }

    /// Recall@10 of the whole and of the partitions together, and the distances each took.
    fn compare(&mut self, queries: usize) -> [(f64, usize); 2] {
        let mut figures = [(0.0, 0); 2];
        for _ in 0..queries {
            let query = self.vector().1;
            let page = |effort| {
                let mut cursor = self.whole.cursor(&query, EF, u64::MAX, effort).unwrap();
                cursor.next_page(&self.whole, 10)
            };
            let truth = page(Effort::Exact);
            let worst = truth.hits[9].1 + 1e-6;
            let whole = page(Effort::Balanced);
            let group = self.open(&query, Effort::Balanced).next_page(10);
            let found = whole.hits.iter().filter(|hit| hit.1 <= worst).count();
            figures[0].0 += found as f64 / (10 * queries) as f64;
            figures[0].1 += whole.distances / queries;
            let found = group
                .hits
                .iter()
                .filter(|hit| hit.distance <= worst)
                .count();
            figures[1].0 += found as f64 / (10 * queries) as f64;
            figures[1].1 += group.distances / queries;
        }
        figures
    }
}

fn drain(cursor: &mut GroupCursor<'_>, rows: usize) -> Vec<GroupHit> {
    let mut hits = Vec::new();
    loop {
        let page = cursor.next_page(rows);
        assert!(page.hits.windows(2).all(|w| w[0].distance <= w[1].distance));
        assert!(page.hits.len() == rows || page.exhausted);
        hits.extend(page.hits);
        if page.exhausted {
            assert_eq!(page.bound, f64::INFINITY);
            let after = cursor.next_page(rows);
            assert!(after.exhausted && after.hits.is_empty());
            return hits;
        }
    }
}

#[test]
fn partitions_find_together_what_one_index_does_at_a_part_of_the_cost() {
    for (dimensions, metric) in [(24, Metric::L2), (128, Metric::L2), (128, Metric::Cosine)] {
        for parts in [4, 16] {
            let mut split = Split::new((metric, dimensions), 2_000, parts, |row, _| row % parts);
            let [(whole, _), (group, cost)] = split.compare(60);
            assert!(
                group >= whole - 0.01,
                "{dimensions} {metric:?} {parts}: {group} for {whole}"
            );
            let alone: usize = {
                let query = split.vector().1;
                let pages = split.parts.iter().map(|part| {
                    let mut cursor = part.cursor(&query, EF, u64::MAX, false).unwrap();
                    cursor.next_page(part, 10).distances
                });
                pages.sum()
            };
            assert!(
                cost < alone * 3 / 4,
                "{dimensions} {parts}: {cost}, {alone} each by itself"
            );
        }
    }
}

/// The near rows are all in one partition, which is not how a hash spreads them.
#[test]
fn a_partition_that_holds_all_that_is_near_gets_the_effort() {
    let mut split = Split::new((Metric::L2, 128), 2_000, 8, |_, centre| centre % 8);
    let [(whole, _), (group, _)] = split.compare(60);
    assert!(group >= whole - 0.03, "{group} for {whole}");
}

#[test]
fn pages_to_exhaustion_return_every_row_of_every_partition_once() {
    for metric in METRICS {
        for (dimensions, effort) in [
            (8, Effort::Balanced),
            (128, Effort::Balanced),
            (8, Effort::Exact),
        ] {
            for rows in [1, 23, 900] {
                // One partition is empty, and one has a single row.
                let part_of = |row: usize, _| if row == 5 { 1 } else { 2 + row % 3 };
                let split = Split::new((metric, dimensions), 700, 5, part_of);
                split.parts[2].remove(VectorId(3));
                let query = split.centres[0].clone();
                let hits = drain(&mut split.open(&query, effort), rows);
                let ids: HashSet<u32> = hits.iter().map(|hit| split.id(hit)).collect();
                assert_eq!((hits.len(), ids.len()), (699, 699));
                assert!(!ids.contains(&split.ids[2][3]));
            }
        }
    }
}

#[test]
fn an_exact_group_is_in_order_over_all_pages_and_bounded() {
    let mut split = Split::new((Metric::L2, 16), 900, 4, |row, _| row * row % 4);
    let query = split.vector().1;
    let mut cursor = split.open(&query, Effort::Exact);
    let mut whole = split.whole.cursor(&query, 1, u64::MAX, true).unwrap();
    let mut bound = f64::NEG_INFINITY;
    for _ in 0..20 {
        let page = cursor.next_page(40);
        let expected = whole.next_page(&split.whole, 40).hits;
        let distances = page.hits.iter().map(|hit| hit.distance);
        assert!(distances.eq(expected.iter().map(|hit| hit.1)));
        assert!(page.hits[0].distance >= bound);
        bound = page.bound;
    }
}

/// A group asks partitions for more than a page takes; what it holds back is not given out
/// for what it was.
#[test]
fn rows_that_went_since_they_were_found_come_on_no_later_page() {
    for effort in [Effort::Balanced, Effort::Exact] {
        let mut split = Split::new((Metric::L2, 8), 60, 3, |row, _| row % 3);
        let query = split.vector().1;
        let mut cursor = split.open(&query, effort);
        let first = cursor.next_page(5);
        assert!(first.hits.len() == 5 && !first.exhausted);
        for part in 0..3 {
            for id in 0..20 {
                match part {
                    0 => split.parts[part].remove(VectorId(id)),
                    _ if id % 2 == 0 => split.parts[part].remove(VectorId(id)),
                    _ => split.parts[part].end(VectorId(id), if id % 4 == 1 { 9 } else { 1 }),
                }
            }
        }
        assert!(
            drain(&mut cursor, 7).is_empty(),
            "{effort:?}: all are former or removed"
        );
        let mut former = GroupCursor::open(
            &split.parts.iter().collect::<Vec<_>>(),
            query.as_slice().into(),
            EF,
            5,
            effort,
        )
        .unwrap();
        let first = former.next_page(2);
        assert_eq!(first.hits.len(), 2);
        let left = drain(&mut former, 3);
        assert_eq!(left.len() + 2, 10, "{effort:?}: ended at 9, seen from 5");
    }
}

#[test]
fn a_group_of_nothing_is_exhausted_at_once() {
    let mut cursor =
        GroupCursor::open(&[], (&[0.0; 3]).into(), 5, u64::MAX, Effort::Balanced).unwrap();
    let page = cursor.next_page(10);
    assert!(page.exhausted && page.hits.is_empty() && page.bound == f64::INFINITY);
}
