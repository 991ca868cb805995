//! Rows that lie far from zero, as raw features do, or come to lie far from where the first
//! lay, are found as well by codes as by exact distances.
#![allow(clippy::unwrap_used)]

use index_engine::checkpoint::Loading;
use index_engine::{
    ColumnType, Comparison, Filter, IndexParams, Metric, PartitionIndex, Representation, Value,
    VectorId,
};

const ROWS: u64 = 2_000;
/// Rows that codes count from the midst of, for they are folded before others come.
const FIRST: u64 = 64;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.0 >> 33
    }

    /// A sum of uniform numbers: near enough to a normal one.
    fn normal(&mut self) -> f32 {
        let unit = |random: &mut Self| random.next() as f32 / (1u64 << 31) as f32 - 0.5;
        (0..12).map(|_| unit(self)).sum()
    }
}

/// Forty clusters, their middles two of their spreads apart in every dimension.
struct Clusters {
    random: Random,
    centres: Vec<Vec<f32>>,
}

impl Clusters {
    fn new(dimensions: usize) -> Self {
        let mut random = Random(7);
        let mut centre = || (0..dimensions).map(|_| 2.0 * random.normal()).collect();
        let centres = (0..40).map(|_| centre()).collect();
        Self { random, centres }
    }

    /// About `offset` in every dimension.
    fn vector(&mut self, offset: f32) -> Vec<f32> {
        let centre = &self.centres[self.random.next() as usize % self.centres.len()];
        let near = |c: &f32| offset + c + self.random.normal();
        centre.iter().map(near).collect()
    }
}

fn index(metric: Metric, dimensions: usize, representation: Representation) -> PartitionIndex {
    PartitionIndex::new(IndexParams {
        metric,
        dimensions,
        m: 16,
        ef_construction: 64,
        representation,
        ..IndexParams::default()
    })
    .unwrap()
}

/// Of fifty queries.
struct Answers {
    /// At 10.
    recall: f64,
    /// That one takes.
    distances: usize,
    restarted: usize,
}

/// Fifty queries about `offset`.
fn answers_at(index: &PartitionIndex, clusters: &mut Clusters, offset: f32) -> Answers {
    let (mut found, mut distances, mut restarted) = (0, 0, 0);
    for _ in 0..50 {
        let query = clusters.vector(offset);
        let mut page = |exact| {
            let mut cursor = index.cursor(&query, 40, u64::MAX, exact).unwrap();
            let page = cursor.next_page(index, 10);
            distances += if exact { 0 } else { page.distances };
            restarted += usize::from(page.restarted);
            page.hits
                .into_iter()
                .map(|hit| hit.0)
                .collect::<Vec<VectorId>>()
        };
        let exact = page(true);
        found += page(false).iter().filter(|id| exact.contains(id)).count();
    }
    Answers {
        recall: f64::from(found as u32) / 500.0,
        distances: distances / 50,
        restarted,
    }
}

/// recall@10 of rows and queries about `offset`, and distances that one takes.
fn recall(
    metric: Metric,
    dimensions: usize,
    representation: Representation,
    offset: f32,
) -> (f64, usize) {
    let index = index(metric, dimensions, representation);
    let mut clusters = Clusters::new(dimensions);
    for row in 0..ROWS {
        index.insert(&clusters.vector(offset), row).unwrap();
    }
    index.fold(usize::MAX);
    let answers = answers_at(&index, &mut clusters, offset);
    (answers.recall, answers.distances)
}

#[test]
fn rows_far_from_zero_are_found_as_well_by_codes_as_by_distances() {
    for (metric, dimensions, offset) in [
        (Metric::L2, 128, 0.0),
        (Metric::L2, 128, 100.0),
        (Metric::L2, 128, 1_000.0),
        (Metric::L2, 32, 1_000.0),
        (Metric::Cosine, 128, 0.0),
        (Metric::Cosine, 128, 100.0),
        (Metric::Cosine, 32, 100.0),
        (Metric::InnerProduct, 128, 100.0),
        (Metric::InnerProduct, 32, 100.0),
    ] {
        let (plain, all) = recall(metric, dimensions, Representation::Plain, offset);
        let (coded, few) = recall(metric, dimensions, Representation::Coded, offset);
        assert!(
            coded >= plain - 0.02 && coded > 0.95,
            "{metric:?} at {offset}, {dimensions} dimensions: {coded}, by distances {plain}"
        );
        // By sketches, that is: who begins again ranks as many by distance beside.
        assert!(3 * few < 2 * all, "{few} distances of {all}");
    }
}

fn written_and_loaded(index: &PartitionIndex) -> PartitionIndex {
    let mut bytes = Vec::new();
    let checkpoint = index.checkpoint();
    checkpoint.write(index, &mut bytes).unwrap();
    let loading = Loading::open(&bytes[..], None).unwrap();
    loading.read(&bytes[..]).unwrap();
    loading.finish().unwrap()
}

/// Codes count from the midst of the rows that were there when the first was linked. Where others lie far from there a search
/// sees that they tell nothing, be those few or many, the last or not, and after a restart.
#[test]
fn rows_that_drift_away_from_the_first_are_found_as_well_by_codes_as_by_distances() {
    // Of so many rows each: near the first, far, near again.
    for (metric, offset, rows) in [
        (Metric::L2, 100.0, [64, 1_936, 0]),
        (Metric::L2, 1_000.0, [64, 1_936, 0]),
        (Metric::L2, 1_000.0, [1_800, 200, 0]),
        (Metric::L2, 1_000.0, [64, 436, 1_500]),
        (Metric::Cosine, 1_000.0, [64, 1_936, 0]),
        (Metric::Cosine, 1_000.0, [64, 436, 1_500]),
        (Metric::InnerProduct, 1_000.0, [64, 1_936, 0]),
    ] {
        let recalls = [Representation::Plain, Representation::Coded].map(|representation| {
            let index = index(metric, 64, representation);
            let mut clusters = Clusters::new(64);
            let places = [0.0, offset, 0.0].into_iter().zip(rows);
            let places = places.flat_map(|(at, rows)| std::iter::repeat_n(at, rows));
            for (row, at) in (0..).zip(places) {
                if row == FIRST {
                    index.fold(usize::MAX);
                }
                index.insert(&clusters.vector(at), row).unwrap();
            }
            index.fold(usize::MAX);
            let loaded = written_and_loaded(&index);
            let of = |(index, at)| answers_at(index, &mut clusters, at).recall;
            [(&index, 0.0), (&index, offset), (&loaded, offset)].map(of)
        });
        let [plain, coded] = recalls;
        // Inner products of a query near zero with rows that are all long: not even by
        // distances are the nearest found.
        let skipped = usize::from(metric == Metric::InnerProduct);
        for (plain, coded) in plain.into_iter().zip(coded).skip(skipped) {
            assert!(
                coded >= plain - 0.03,
                "{metric:?} to {offset} of {rows:?}: {coded}, by distances {plain}; {recalls:?}"
            );
        }
    }
}

/// A table that has drifted and is indexed anew: what lies first in it is of before.
#[test]
fn codes_count_from_the_midst_of_all_rows_that_wait() {
    let index = index(Metric::L2, 64, Representation::Coded);
    let mut clusters = Clusters::new(64);
    for row in 0..ROWS {
        let at = if row < ROWS / 5 { 0.0 } else { 1_000.0 };
        index.insert(&clusters.vector(at), row).unwrap();
    }
    index.fold(usize::MAX);
    let Answers {
        recall, restarted, ..
    } = answers_at(&index, &mut clusters, 1_000.0);
    assert!(
        recall > 0.95 && restarted <= 2,
        "{recall}, {restarted} of 50"
    );
}

/// Once a search, on its first page; an exact one goes by distances from the beginning.
#[test]
fn a_search_that_begins_again_says_so() {
    let index = index(Metric::L2, 64, Representation::Coded);
    let mut clusters = Clusters::new(64);
    for row in 0..ROWS {
        let at = if row < ROWS / 2 { 0.0 } else { 1_000.0 };
        if row == FIRST {
            index.fold(usize::MAX);
        }
        index.insert(&clusters.vector(at), row).unwrap();
    }
    index.fold(usize::MAX);
    let search = |query: &[f32], exact| {
        let mut cursor = index.cursor(query, 40, u64::MAX, exact).unwrap();
        let pages = [(); 5].map(|()| cursor.next_page(&index, 10).restarted);
        assert_eq!(pages[1..], [false; 4], "on its first page");
        u32::from(pages[0])
    };
    let (mut near, mut far) = (0, 0);
    for _ in 0..50 {
        near += search(&clusters.vector(0.0), false);
        let drifted = clusters.vector(1_000.0);
        far += search(&drifted, false);
        assert_eq!(search(&drifted, true), 0);
    }
    assert!(near <= 5 && (45..=50).contains(&far), "{near} and {far}");
}

/// Filters walk by sketches too.
#[test]
fn drifted_rows_are_found_by_a_filter() {
    let params = IndexParams {
        metric: Metric::L2,
        dimensions: 64,
        representation: Representation::Coded,
        ..IndexParams::default()
    };
    let index = PartitionIndex::with_columns(params, &[ColumnType::Int], None).unwrap();
    let mut clusters = Clusters::new(64);
    for row in 0..ROWS {
        let at = if row < FIRST { 0.0 } else { 1_000.0 };
        if row == FIRST {
            index.fold(usize::MAX);
        }
        let value = [Value::Int((row % 3) as i64)];
        let vector = clusters.vector(at);
        index.insert_with(&vector, row, &value, |_| ()).unwrap();
    }
    index.fold(usize::MAX);
    let (mut found, mut restarted) = (0, 0);
    for _ in 0..50 {
        let query = clusters.vector(1_000.0);
        let filter = Filter::Compare {
            column: 0,
            is: Comparison::Equal,
            value: Value::Int(1),
        };
        let mut page = |exact: bool| {
            let mut cursor = index
                .cursor_where(&query, 40, u64::MAX, exact, &filter)
                .unwrap();
            let page = cursor.next_page(&index, 10);
            restarted += u32::from(page.restarted);
            page.hits.into_iter().map(|hit| hit.0).collect::<Vec<_>>()
        };
        let exact = page(true);
        found += page(false).iter().filter(|id| exact.contains(id)).count();
    }
    assert!(found >= 475, "{found} of 500");
    assert!((45..=50).contains(&restarted), "{restarted} of 50");
}
