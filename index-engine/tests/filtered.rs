//! What a filtered search promises: every visible matching row exactly once, the nearest
//! first, however few match and wherever they lie.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::HashSet;

use index_engine::{
    CodeBits, ColumnType, Comparison, Cursor, Filter, IndexParams, Metric, PartitionIndex,
    Representation, Strategy, Value, VectorId,
};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;
use world::{Random, drain};

fn index(dimensions: usize, columns: &[ColumnType]) -> PartitionIndex {
    let params = IndexParams {
        metric: Metric::L2,
        dimensions,
        m: 12,
        ef_construction: 60,
        representation: match dimensions {
            COMPACT_DIMENSIONS => Representation::Compact(CodeBits::Four),
            _ => Representation::default(),
        },
        ..IndexParams::default()
    };
    PartitionIndex::with_columns(params, columns, None).unwrap()
}

fn at_least(column: usize, value: i64) -> Filter {
    Filter::compare(column, Comparison::GreaterOrEqual, Value::Int(value))
}

fn below(column: usize, value: i64) -> Filter {
    Filter::compare(column, Comparison::Less, Value::Int(value))
}

fn rank(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2));
    squares.sum()
}

/// Clusters of rows with three attributes: a random rank, the rank of the distance from
/// the first row, and the rank along a direction.
struct Field {
    index: PartitionIndex,
    rows: Vec<Vec<f32>>,
    attributes: Vec<[i64; 3]>,
    random: Random,
}

impl Field {
    fn new(rows: usize, dimensions: usize) -> Self {
        let mut random = Random(11);
        let mut vector =
            |scale: f32| -> Vec<f32> { (0..dimensions).map(|_| scale * random.normal()).collect() };
        let centres: Vec<_> = (0..24).map(|_| vector(0.8)).collect();
        let rows: Vec<Vec<f32>> = (0..rows)
            .map(|row| {
                let own = vector(1.0);
                let centre = &centres[row % centres.len()];
                own.iter().zip(centre).map(|(x, c)| x + c).collect()
            })
            .collect();
        let direction = vector(1.0);
        let ranked = |score: &dyn Fn(usize) -> f64| -> Vec<i64> {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.sort_by(|a, b| score(*a).total_cmp(&score(*b)));
            let mut ranks = vec![0; rows.len()];
            (0..).zip(order).for_each(|(rank, row)| ranks[row] = rank);
            ranks
        };
        let far = ranked(&|row| rank(&rows[row], &rows[0]));
        let along = |row: usize| -> f64 {
            let products = rows[row]
                .iter()
                .zip(&direction)
                .map(|(x, y)| f64::from(x * y));
            products.sum()
        };
        let along = ranked(&along);
        let shuffled = ranked(&|row| Random(row as u64).next() as f64);
        let index = index(dimensions, &[ColumnType::Int; 3]);
        let mut attributes = Vec::new();
        for (row, vector) in rows.iter().enumerate() {
            let values = [shuffled[row], far[row], along[row]];
            let id = index.insert_with(vector, row as u64, &values.map(Value::Int), |_| {});
            assert_eq!(id.unwrap(), VectorId(row as u32));
            attributes.push(values);
        }
        Self {
            index,
            rows,
            attributes,
            random,
        }
    }

    /// Near a row that has a low value of the attribute.
    fn query(&mut self, column: usize) -> Vec<f32> {
        let low = self.random.next() as i64 % (self.rows.len() as i64 / 20);
        let row = self
            .attributes
            .iter()
            .position(|values| values[column] == low.abs());
        let row = self.rows[row.unwrap()].clone();
        row.iter().map(|x| x + 0.3 * self.random.normal()).collect()
    }

    /// Recall of some first pages, by distance, and how rows were found.
    fn recall(
        &mut self,
        (ef, rows): (usize, usize),
        column: usize,
        matches: impl Fn(i64) -> bool,
        filter: &Filter,
    ) -> (f64, Vec<Strategy>) {
        const QUERIES: usize = 10;
        let (mut found, mut wanted) = (0, 0);
        let mut strategies = Vec::new();
        for _ in 0..QUERIES {
            let query = self.query(column);
            let matching =
                (0..self.rows.len()).filter(|row| matches(self.attributes[*row][column]));
            let mut truth: Vec<f64> = matching.map(|row| rank(&self.rows[row], &query)).collect();
            truth.sort_by(f64::total_cmp);
            truth.truncate(rows);
            let Some(worst) = truth.last() else { continue };
            wanted += truth.len();
            let mut cursor = self
                .index
                .cursor_where(&query, ef, u64::MAX, false, filter)
                .unwrap();
            let hits = cursor.next_page(&self.index, rows).hits;
            assert_eq!(hits.len(), truth.len());
            for (VectorId(id), distance) in hits {
                assert!(matches(self.attributes[id as usize][column]));
                found += usize::from(distance.powi(2) <= worst * (1.0 + 1e-5));
            }
            strategies.extend(cursor.strategy());
        }
        (found as f64 / wanted as f64, strategies)
    }
}

/// Below 32 dimensions by exact distances, from there on by codes of neighbours, and here
/// by codes of the vectors themselves.
const COMPACT_DIMENSIONS: usize = 96;

/// Below 32 dimensions by exact distances, from there on by codes.
#[test]
fn recall_holds_at_every_selectivity_wherever_the_rows_lie() {
    const ROWS: usize = 7_000;
    for dimensions in [24, COMPACT_DIMENSIONS, 128] {
        let mut field = Field::new(ROWS, dimensions);
        field.index.fold(usize::MAX);
        let mut used = HashSet::new();
        for percent in [90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.1, 0.05] {
            let count = (ROWS as f64 * percent / 100.0).ceil() as i64;
            let rest = ROWS as i64 - count;
            for column in 0..3 {
                let (near, near_by) = field.recall(
                    (40, 10),
                    column,
                    |value| value < count,
                    &below(column, count),
                );
                let (far, far_by) = field.recall(
                    (40, 10),
                    column,
                    |value| value >= rest,
                    &at_least(column, rest),
                );
                used.extend(near_by.into_iter().chain(far_by));
                for recall in [near, far] {
                    assert!(
                        recall >= 0.95,
                        "{dimensions} dimensions, {percent} %, column {column}: {near} {far}"
                    );
                }
            }
        }
        assert!(
            used.contains(&Strategy::PreFilter) && used.contains(&Strategy::PostFilter),
            "{used:?}"
        );
    }
}

/// With a small effort hopping pays among few rows already.
#[test]
fn rows_are_found_through_rows_that_do_not_match() {
    const ROWS: i64 = 20_000;
    for (dimensions, one_in) in [(24, 8), (128, 16)] {
        let mut field = Field::new(ROWS as usize, dimensions);
        field.index.fold(usize::MAX);
        let count = ROWS / one_in;
        let filter = below(0, count);
        let (recall, found_by) = field.recall((8, 3), 0, |value| value < count, &filter);
        let hops = found_by.iter().filter(|by| **by == Strategy::Traversal);
        let hops = hops.count();
        assert!(hops >= 3, "{dimensions} dimensions: {found_by:?}");
        assert!(recall >= 0.9, "{dimensions} dimensions: recall {recall}");
    }
}

/// Most that is ranked on the way is not looked at: a nearer row took its place.
#[test]
fn a_search_around_the_query_counts_all_that_it_ranks() {
    for dimensions in [24, COMPACT_DIMENSIONS, 128] {
        let mut field = Field::new(3_000, dimensions);
        field.index.fold(usize::MAX);
        let (query, filter) = (field.query(0), at_least(0, 300));
        let mut cursor = field
            .index
            .cursor_where(&query, 12, u64::MAX, false, &filter)
            .unwrap();
        let page = cursor.next_page(&field.index, 10);
        let found_by = cursor.strategy();
        assert_eq!(found_by, Some(Strategy::PostFilter), "{dimensions}");
        let (ranked, looked_at) = (page.distances, cursor.considered());
        assert!(
            ranked >= 2 * looked_at,
            "{dimensions}: {ranked} for {looked_at}"
        );
    }
}

#[test]
fn a_filter_of_few_rows_costs_as_much_as_they_are() {
    for dimensions in [24, COMPACT_DIMENSIONS, 128] {
        let mut field = Field::new(3_000, dimensions);
        field.index.fold(usize::MAX);
        let query = field.query(0);
        let filter = below(0, 50);
        let mut cursor = field
            .index
            .cursor_where(&query, 40, u64::MAX, false, &filter)
            .unwrap();
        let page = cursor.next_page(&field.index, 10);
        assert_eq!(page.hits.len(), 10);
        assert!(page.distances <= 100, "{} distances", page.distances);
        assert_eq!(cursor.strategy(), Some(Strategy::PreFilter));
        assert!(
            (50..=600).contains(&cursor.considered()),
            "{}",
            cursor.considered()
        );
    }
}

fn pages(cursor: &mut Cursor, index: &PartitionIndex, rows: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = drain(cursor, index, rows)
        .iter()
        .map(|hit| hit.0.0)
        .collect();
    ids.sort_unstable();
    ids
}

/// Small efforts, so that all ways come to their turn among few rows.
#[test]
fn pages_to_exhaustion_return_every_matching_row_once() {
    for dimensions in [6, COMPACT_DIMENSIONS, 128] {
        for folded in [0, 900, usize::MAX] {
            let mut field = Field::new(1_500, dimensions);
            field.index.fold(folded);
            for id in (0..1_500).filter(|id| id % 6 == 1) {
                field.index.remove(VectorId(id));
            }
            for id in (0..1_500).filter(|id| id % 6 == 2) {
                field.index.end(VectorId(id), 50);
            }
            for (column, least) in [
                (0, 0),
                (0, 300),
                (1, 1_100),
                (2, 700),
                (0, 1_490),
                (1, 1_500),
            ] {
                for (page, ef, xmin) in [(1, 1, u64::MAX), (7, 3, 20), (400, 40, 51)] {
                    let query = field.query(column);
                    let filter = at_least(column, least);
                    let open = |exact| field.index.cursor_where(&query, ef, xmin, exact, &filter);
                    let visible = |id: &u32| match id % 6 {
                        1 => false,
                        2 => xmin <= 50,
                        _ => true,
                    };
                    let matching = |id: &u32| field.attributes[*id as usize][column] >= least;
                    let all = (0..1_500).filter(visible).filter(matching);
                    let all: Vec<u32> = all.collect();
                    for exact in [false, true] {
                        let found = pages(&mut open(exact).unwrap(), &field.index, page);
                        assert_eq!(found, all, "{dimensions} {folded} {column} {least} {page}");
                    }
                }
            }
        }
    }
}

#[test]
fn copies_of_a_vector_differ_by_their_attributes() {
    for dimensions in [4, COMPACT_DIMENSIONS, 128] {
        let index = index(dimensions, &[ColumnType::Bytes, ColumnType::Bool]);
        for row in 0..2_000u32 {
            let mut vector = vec![0.0; dimensions];
            vector[0] = (row / 40) as f32;
            let name = (row % 40).to_string().into_bytes();
            let values = [Value::Bytes(name.into()), Value::Bool(row % 3 == 0)];
            index
                .insert_with(&vector, u64::from(row), &values, |_| {})
                .unwrap();
        }
        index.fold(usize::MAX);
        let mut query = vec![0.0; dimensions];
        query[0] = 20.2;
        let name = Filter::equal(0, Value::Bytes((*b"17").into()));
        let mut cursor = index
            .cursor_where(&query, 10, u64::MAX, false, &name)
            .unwrap();
        let page = cursor.next_page(&index, 3);
        let ids: Vec<u32> = page.hits.iter().map(|hit| hit.0.0).collect();
        assert_eq!(ids, [817, 857, 777]);
        let odd = Filter::Not(Box::new(Filter::equal(1, Value::Bool(true))));
        let mut cursor = index
            .cursor_where(&query, 4, u64::MAX, false, &odd)
            .unwrap();
        let found = pages(&mut cursor, &index, 5);
        assert_eq!(
            found,
            (0..2_000).filter(|id| id % 3 != 0).collect::<Vec<_>>()
        );
    }
}

#[test]
fn attributes_come_along_and_default_to_null() {
    let types = [ColumnType::Int, ColumnType::Bytes];
    let (one, other) = (index(4, &types), index(4, &types));
    let values = [Value::Int(7), Value::Bytes((*b"seven").into())];
    let with = one.insert_with(&[1.0; 4], 1, &values, |_| {}).unwrap();
    let without = one.insert(&[2.0; 4], 2).unwrap();
    assert_eq!(one.attributes(with), values);
    assert_eq!(one.attributes(without), [Value::Null, Value::Null]);
    let moved = other.insert_from(&one, with, 1).unwrap();
    assert_eq!(other.attributes(moved), values);
    assert!(one.insert_with(&[1.0; 4], 1, &values[..1], |_| {}).is_err());
    let swapped = [Value::Bytes((*b"x").into()), Value::Int(1)];
    assert!(one.insert_with(&[1.0; 4], 1, &swapped, |_| {}).is_err());
    assert_eq!(one.total_len(), 2, "what is refused is not there");
    let plain = index(4, &[]);
    plain.insert(&[1.0; 4], 1).unwrap();
    assert!(plain.attributes(VectorId(0)).is_empty());
    let found = |filter: &Filter| {
        let mut cursor = plain
            .cursor_where(&[0.0; 4], 10, u64::MAX, false, filter)
            .unwrap();
        pages(&mut cursor, &plain, 10)
    };
    for folded in [0, 1] {
        plain.fold(folded);
        assert_eq!(found(&Filter::All(Vec::new())), [0]);
        assert!(found(&Filter::Any(Vec::new())).is_empty());
    }
    assert!(
        plain
            .cursor_where(&[0.0; 4], 10, 0, false, &Filter::IsNull { column: 0 })
            .is_err()
    );
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u8, Option<i64>),
    End(prop::sample::Index, u64),
    Remove(prop::sample::Index),
    Fold(usize),
    Open {
        xmin: u64,
        ef: usize,
        least: i64,
        null: bool,
    },
    Page(prop::sample::Index, usize),
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    let xid = 1u64..20;
    prop_oneof![
        12 => (0u8..6, prop::option::of(0i64..8)).prop_map(|(x, value)| Step::Insert(x, value)),
        2 => (any::<prop::sample::Index>(), xid.clone()).prop_map(|(id, xid)| Step::End(id, xid)),
        2 => any::<prop::sample::Index>().prop_map(Step::Remove),
        3 => (1usize..60).prop_map(Step::Fold),
        1 => (prop_oneof![Just(u64::MAX), xid], 1usize..5, 0i64..9, any::<bool>())
            .prop_map(|(xmin, ef, least, null)| Step::Open { xmin, ef, least, null }),
        2 => (any::<prop::sample::Index>(), 1usize..9).prop_map(|(cursor, rows)| Step::Page(cursor, rows)),
    ]
}

/// The attribute, the xid that ended it (`u64::MAX` while current), and the vector.
type Model = Vec<(Option<i64>, u64, Vec<f32>)>;

struct Open {
    cursor: Cursor,
    query: Vec<f32>,
    xmin: u64,
    upto: usize,
    least: i64,
    null: bool,
    returned: HashSet<u32>,
}

impl Open {
    fn wants(&self, (value, ended, _): &(Option<i64>, u64, Vec<f32>)) -> bool {
        let matches = value.map_or(self.null, |value| value >= self.least);
        matches && *ended != 0 && self.xmin <= *ended
    }

    fn page(&mut self, index: &PartitionIndex, rows: &Model, wanted: usize) -> bool {
        let page = self.cursor.next_page(index, wanted);
        assert!(page.hits.windows(2).all(|w| w[0].1 <= w[1].1));
        for (VectorId(id), distance) in &page.hits {
            let row = &rows[*id as usize];
            assert!((*id as usize) < self.upto && self.wants(row), "{id}");
            let expected = rank(&row.2, &self.query).sqrt();
            let is_right = (distance - expected).abs() < 1e-4;
            assert!(is_right, "{id}: {distance} for {expected}");
            assert!(self.returned.insert(*id), "{id} came twice");
        }
        assert!(page.exhausted || page.hits.len() == wanted);
        if page.exhausted {
            for (id, row) in (0u32..).zip(&rows[..self.upto]) {
                assert!(
                    !self.wants(row) || self.returned.contains(&id),
                    "{id} is missing"
                );
            }
        }
        page.exhausted
    }
}

fn run(dimensions: usize, steps: Vec<Step>) {
    let index = index(dimensions, &[ColumnType::Int]);
    let (mut rows, mut open): (Model, Vec<Open>) = (Vec::new(), Vec::new());
    let vector = |x: u8, y: usize| {
        let mut vector = vec![0.0; dimensions];
        (vector[0], vector[1]) = (f32::from(x), (y % 7) as f32);
        vector
    };
    for step in steps {
        match step {
            Step::Insert(x, value) => {
                let values = [value.map_or(Value::Null, Value::Int)];
                let hash = rows.len() as u64;
                let vector = vector(x, rows.len());
                let id = index.insert_with(&vector, hash, &values, |_| {}).unwrap();
                assert_eq!(id.0 as usize, rows.len());
                rows.push((value, u64::MAX, vector));
            }
            Step::End(id, xid) if !rows.is_empty() => {
                let id = id.index(rows.len());
                if rows[id].1 == u64::MAX {
                    index.end(VectorId(id as u32), xid);
                    rows[id].1 = xid;
                }
            }
            Step::Remove(id) if !rows.is_empty() => {
                let id = id.index(rows.len());
                index.remove(VectorId(id as u32));
                rows[id].1 = 0;
            }
            Step::Fold(most) => {
                index.fold(most);
            }
            Step::Open {
                xmin,
                ef,
                least,
                null,
            } => {
                let mut parts = vec![at_least(0, least)];
                parts.extend(null.then_some(Filter::IsNull { column: 0 }));
                let filter = Filter::Any(parts);
                let query = vector(2, 3);
                let cursor = index
                    .cursor_where(&query, ef, xmin, false, &filter)
                    .unwrap();
                let upto = rows.len();
                let returned = HashSet::new();
                open.push(Open {
                    cursor,
                    query,
                    xmin,
                    upto,
                    least,
                    null,
                    returned,
                });
            }
            Step::Page(at, wanted) if !open.is_empty() => {
                let at = at.index(open.len());
                if open[at].page(&index, &rows, wanted) {
                    open.swap_remove(at);
                }
            }
            Step::End(..) | Step::Remove(_) | Step::Page(..) => {}
        }
    }
    for mut cursor in open {
        while !cursor.page(&index, &rows, 5) {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn every_history_pages_each_matching_row_once(
        dimensions in prop::sample::select(vec![2usize, COMPACT_DIMENSIONS, 128]),
        steps in prop::collection::vec(step(), 1..500),
    ) {
        run(dimensions, steps);
    }
}

/// Conditions on one column are one set of keys however many they are: putting them together
/// one by one took six seconds for forty thousand.
#[test]
fn fifty_thousand_conditions_are_ready_at_once() {
    let params = IndexParams {
        dimensions: 2,
        ..IndexParams::default()
    };
    let index = PartitionIndex::with_columns(params, &[ColumnType::Int], None).unwrap();
    for i in 0..200i64 {
        let values = [Value::Int(i * 500)];
        index
            .insert_with(&[i as f32, 0.0], i as u64, &values, |_| {})
            .unwrap();
    }
    let terms = 0..50_000i64;
    let equal = |i| Filter::equal(0, Value::Int(i * 1_000));
    let any = Filter::Any(terms.clone().map(equal).collect());
    let none = Filter::Not(Box::new(any.clone()));
    let differs = |i| Filter::compare(0, Comparison::NotEqual, Value::Int(i * 1_000));
    let all = Filter::All(terms.map(differs).collect());
    for (filter, is_even) in [(any, true), (none, false), (all, false)] {
        let began = std::time::Instant::now();
        let mut cursor = index
            .cursor_where(&[0.0, 0.0], 10, u64::MAX, true, &filter)
            .unwrap();
        assert!(began.elapsed().as_secs() < 2, "{:?}", began.elapsed());
        // Sixteen bytes a key, and it is the cursor that keeps them.
        assert!(cursor.memory_bytes() >= 50_000 * 16);
        let page = cursor.next_page(&index, 200);
        let ids: Vec<u32> = page.hits.iter().map(|hit| hit.0.0).collect();
        let expected = (0..200u32).filter(|id| id.is_multiple_of(2) == is_even);
        assert!(ids.into_iter().eq(expected));
    }
}

/// A range of byte strings is every string in it, for each of the conditions.
#[test]
fn a_filter_of_too_many_keys_is_refused() {
    let params = IndexParams {
        dimensions: 2,
        ..IndexParams::default()
    };
    let columns = [ColumnType::Int, ColumnType::Bytes];
    let index = PartitionIndex::with_columns(params, &columns, None).unwrap();
    for i in 0..2_000i64 {
        let text = format!("{:05}", i * 791 % 2_000);
        let values = [Value::Int(i), Value::Bytes(text.as_bytes().into())];
        index.insert_with(&[0.0, 0.0], 1, &values, |_| {}).unwrap();
    }
    let filter = |terms: i64| {
        let parts = (0..terms).map(|i| {
            let text = Value::Bytes(b"01000".as_slice().into());
            Filter::All(vec![
                Filter::equal(0, Value::Int(i)),
                Filter::compare(1, Comparison::GreaterOrEqual, text),
            ])
        });
        Filter::Any(parts.collect())
    };
    let open = |terms| index.cursor_where(&[0.0, 0.0], 10, u64::MAX, true, &filter(terms));
    let cursor = open(50).unwrap();
    assert!(cursor.memory_bytes() > 50 * 500 * 16, "strings are counted");
    let refused = open(20_000).err().unwrap().to_string();
    assert!(refused.contains("keys of the filter"), "{refused}");
}
