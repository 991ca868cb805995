//! An index with attributes, written and read back: it filters as it did before.
#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use index_engine::checkpoint::{CheckpointError, Loading};
use index_engine::{
    CodeBits, ColumnType, Comparison, Filter, IndexParams, Metric, PartitionIndex, Recoded,
    Representation, Value, VectorId,
};
use world::{Random, loaded, written};

const TYPES: [ColumnType; 5] = [
    ColumnType::Int,
    ColumnType::Float,
    ColumnType::Bool,
    ColumnType::Bytes,
    ColumnType::Bytes,
];
const COMPACT: Representation = Representation::Compact(CodeBits::Eight);

fn index(
    dimensions: usize,
    representation: Representation,
    types: &[ColumnType],
) -> PartitionIndex {
    let params = IndexParams {
        metric: Metric::L2,
        dimensions,
        m: 6,
        ef_construction: 32,
        representation,
        ..IndexParams::default()
    };
    PartitionIndex::with_columns(params, types, None).unwrap()
}

fn text(text: impl Into<Vec<u8>>) -> Value {
    Value::Bytes(text.into().into())
}

/// Awkward ones among them; the fourth column shares its strings, the fifth hardly.
fn attributes(random: &mut Random) -> Vec<Value> {
    let pick = random.next();
    let floats = [f64::NAN, -0.0, 0.0, f64::NEG_INFINITY, 1.5, -2.5e300];
    let values = [
        Value::Int((pick >> 20) as i64 % 1_000 - 500),
        Value::Float(floats[(pick >> 8) as usize % 6]),
        Value::Bool(pick & 1 << 40 != 0),
        text(format!("{}", (pick >> 12) % 9).repeat((pick >> 12) as usize % 9)),
        text(
            pick.to_be_bytes()
                .repeat(1 + pick.is_multiple_of(50) as usize * 1_000),
        ),
    ];
    let mut nulls = random.next();
    let values = values.into_iter().map(|value| {
        nulls >>= 4;
        if nulls.is_multiple_of(16) {
            Value::Null
        } else {
            value
        }
    });
    values.collect()
}

/// An index beside the plain list of what is in it.
struct Rows {
    index: PartitionIndex,
    there: BTreeMap<u32, Vec<Value>>,
}

impl Rows {
    fn add(&mut self, vector: &[f32], attributes: &[Value]) -> u32 {
        let level = vector[0].to_bits().into();
        let id = self.index.insert_with(vector, level, attributes, |_| {});
        let id = id.unwrap().0;
        self.there.insert(id, attributes.to_vec());
        id
    }

    fn remove(&mut self, id: u32) {
        self.index.remove(VectorId(id));
        self.there.remove(&id);
    }

    /// Every filter finds the rows of which it is true, and each has its attributes.
    fn check(&self, random: &mut Random) {
        for (id, attributes) in &self.there {
            let stored = self.index.attributes(VectorId(*id));
            // NaN is not itself, and minus zero comes back as zero.
            let said = |values: &[Value]| format!("{values:?}").replace("-0.0", "0.0");
            assert_eq!(said(&stored), said(attributes), "{id}");
        }
        for (filter, is_true) in filters(random) {
            let rows = self.there.iter();
            let matching = rows
                .filter(|(_, values)| is_true(values))
                .map(|(id, _)| *id);
            let wanted: Vec<u32> = matching.collect();
            for exact in [true, false] {
                assert_eq!(found(&self.index, &filter, exact), wanted, "{filter:?}");
            }
        }
    }
}

/// All rows that a search comes by, each once.
fn found(index: &PartitionIndex, filter: &Filter, exact: bool) -> Vec<u32> {
    let query = vec![0.5; index.params().dimensions];
    let mut cursor = index
        .cursor_where(&query, 20, u64::MAX, exact, filter)
        .unwrap();
    let mut ids = Vec::new();
    loop {
        let page = cursor.next_page(index, 100);
        ids.extend(page.hits.iter().map(|hit| hit.0.0));
        if page.exhausted {
            ids.sort_unstable();
            return ids;
        }
    }
}

type IsTrue = Box<dyn Fn(&[Value]) -> bool>;

fn filters(random: &mut Random) -> Vec<(Filter, IsTrue)> {
    use Comparison::{Greater, LessOrEqual};
    let least = (random.next() % 900) as i64 - 500;
    let most = least + 60;
    let shared = (random.next() % 9).to_string();
    let shared = text(shared.repeat(shared.parse().unwrap()));
    let [one, other] = [shared.clone(), shared.clone()];
    let of_text = |column: usize, is: fn(&[u8], &[u8]) -> bool, than: Value| -> IsTrue {
        Box::new(move |values| match (&values[column], &than) {
            (Value::Bytes(bytes), Value::Bytes(than)) => is(bytes, than),
            _ => false,
        })
    };
    vec![
        (
            Filter::between(0, Value::Int(least), Value::Int(most)),
            Box::new(move |v| matches!(v[0], Value::Int(n) if (least..=most).contains(&n))),
        ),
        (
            Filter::equal(1, Value::Float(0.0)),
            Box::new(|v| matches!(v[1], Value::Float(x) if x == 0.0)),
        ),
        (
            Filter::compare(1, Greater, Value::Float(f64::INFINITY)),
            Box::new(|v| matches!(v[1], Value::Float(x) if x.is_nan())),
        ),
        (
            Filter::equal(2, Value::Bool(true)),
            Box::new(|v| v[2] == Value::Bool(true)),
        ),
        (
            Filter::IsNull { column: 3 },
            Box::new(|v| v[3] == Value::Null),
        ),
        (Filter::is_not_null(4), Box::new(|v| v[4] != Value::Null)),
        (
            Filter::equal(3, shared),
            of_text(3, |bytes, than| bytes == than, one),
        ),
        (
            Filter::compare(3, Greater, other.clone()),
            of_text(3, |bytes, than| bytes > than, other),
        ),
        (
            Filter::compare(4, LessOrEqual, text([0x60])),
            of_text(4, |bytes, than| bytes <= than, text([0x60])),
        ),
    ]
}

/// Rows with copies, removed and repaired ones, slots used again, and a tail.
fn eventful(dimensions: usize, representation: Representation, random: &mut Random) -> Rows {
    let mut rows = Rows {
        index: index(dimensions, representation, &TYPES),
        there: BTreeMap::new(),
    };
    let mut last = Vec::new();
    for row in 0..1_200 {
        if row % 9 != 5 {
            last = vector(dimensions, random);
        }
        rows.add(&last, &attributes(random));
    }
    rows.index.fold(1_100);
    (0..1_000).step_by(7).for_each(|id| rows.remove(id));
    while rows.index.repair(100) > 0 {}
    for _ in 0..60 {
        rows.add(&vector(dimensions, random), &attributes(random));
    }
    assert_eq!(rows.index.slots_len(), 1_200, "slots are used again");
    (3..1_000).step_by(13).for_each(|id| rows.remove(id));
    rows
}

fn vector(dimensions: usize, random: &mut Random) -> Vec<f32> {
    (0..dimensions).map(|_| random.normal()).collect()
}

const FORMS: [(usize, Representation); 3] = [
    (12, Representation::Plain),
    (40, Representation::Coded),
    (16, COMPACT),
];

#[test]
fn a_loaded_index_filters_as_the_one_that_was_written_and_goes_on_like_it() {
    for (dimensions, representation) in FORMS {
        let mut random = Random(5);
        let mut rows = eventful(dimensions, representation, &mut random);
        rows.check(&mut random);
        let bytes = written(&rows.index);
        assert_eq!(bytes[8], 3, "the version");
        let again = loaded(&bytes, 2).unwrap();
        assert_eq!(again.columns(), TYPES);
        assert!(written(&again) == bytes, "written again as it was read");
        let seen = |index: &PartitionIndex| {
            let (total, removed) = (index.total_len(), index.removed_len());
            (total - removed, index.tail_len(), index.slots_len())
        };
        assert_eq!(seen(&again), seen(&rows.index));
        let queries: Vec<Vec<f32>> = (0..5).map(|_| vector(dimensions, &mut random)).collect();
        for (filter, _) in filters(&mut random) {
            for query in &queries {
                let page = |index: &PartitionIndex| {
                    let cursor = index.cursor_where(query, 50, u64::MAX, true, &filter);
                    cursor.unwrap().next_page(index, 30)
                };
                assert_eq!(page(&again), page(&rows.index));
            }
        }
        rows.index = again;
        rows.check(&mut random);
        // Strings go and come, old ones and new ones, in old slots and new ones.
        let gone: Vec<Vec<Value>> = rows.there.values().step_by(3).cloned().collect();
        let ids: Vec<u32> = rows.there.keys().copied().step_by(3).collect();
        ids.into_iter().for_each(|id| rows.remove(id));
        rows.index.fold(usize::MAX);
        while rows.index.repair(100) > 0 {}
        rows.check(&mut random);
        for values in gone.iter().take(200) {
            rows.add(&vector(dimensions, &mut random), values);
        }
        for _ in 0..600 {
            rows.add(&vector(dimensions, &mut random), &attributes(&mut random));
        }
        assert!(rows.index.slots_len() > 1_200);
        rows.index.fold(700);
        rows.check(&mut random);
        let bytes = written(&rows.index);
        rows.index = loaded(&bytes, 3).unwrap();
        assert!(written(&rows.index) == bytes, "and once more");
        rows.check(&mut random);
    }
}

#[test]
fn former_versions_come_back_with_their_attributes() {
    let index = index(2, Representation::Plain, &[ColumnType::Bytes]);
    for row in 0..20u8 {
        let vector = [f32::from(row), 0.0];
        index
            .insert_with(&vector, 1, &[text([row / 2])], |_| {})
            .unwrap();
    }
    (0..20)
        .step_by(2)
        .for_each(|id| index.end(VectorId(id), 70));
    let again = loaded(&written(&index), 1).unwrap();
    for xmin in [70, 71] {
        let filter = Filter::In {
            column: 0,
            values: vec![text([3]), text([8])],
        };
        let mut cursor = again
            .cursor_where(&[0.0; 2], 9, xmin, false, &filter)
            .unwrap();
        let hits = cursor.next_page(&again, 9).hits;
        let mut ids: Vec<u32> = hits.iter().map(|hit| hit.0.0).collect();
        ids.sort_unstable();
        let expected: &[u32] = if xmin == 70 {
            &[6, 7, 16, 17]
        } else {
            &[7, 17]
        };
        assert_eq!(ids, expected);
    }
    // Both rows have to go before the string does.
    again.remove(VectorId(6));
    assert_eq!(again.attributes(VectorId(7)), [text([3])]);
}

#[test]
fn a_mixture_of_widths_and_columns_come_back_together() {
    let mut rows = Rows {
        index: index(16, COMPACT, &TYPES),
        there: BTreeMap::new(),
    };
    let mut random = Random(8);
    for _ in 0..2_500 {
        rows.add(&vector(16, &mut random), &attributes(&mut random));
    }
    rows.index.fold(2_400);
    assert_eq!(rows.index.recode(1, CodeBits::One), Ok(Recoded::Done));
    assert_eq!(rows.index.recode(2, CodeBits::Four), Ok(Recoded::Done));
    let bytes = written(&rows.index);
    assert_eq!(bytes[8], 3, "the version");
    let again = loaded(&bytes, 2).unwrap();
    let widths = |index: &PartitionIndex| (0..3).map(|b| index.width(b)).collect::<Vec<_>>();
    assert_eq!(widths(&again), widths(&rows.index));
    assert!(written(&again) == bytes, "written again as it was read");
    rows.index = again;
    rows.check(&mut random);
}

#[test]
fn many_columns_and_no_rows_come_back() {
    let types: Vec<ColumnType> = TYPES.into_iter().cycle().take(31).collect();
    for types in [vec![ColumnType::Bytes; 31], types, vec![ColumnType::Float]] {
        // The most sections that there are.
        let index = index(16, COMPACT, &types);
        let empty = loaded(&written(&index), 1).unwrap();
        assert_eq!((empty.columns(), empty.slots_len()), (&types[..], 0));
        for row in 0..1_100 {
            let value = |(column, kind): (usize, &ColumnType)| match kind {
                ColumnType::Int => Value::Int(row * column as i64),
                ColumnType::Float => Value::Float(row as f64),
                ColumnType::Bool => Value::Null,
                ColumnType::Bytes => text(format!("{column} of {row}")),
            };
            let values: Vec<Value> = types.iter().enumerate().map(value).collect();
            let vector = [row as f32; 16];
            for index in [&index, &empty] {
                let id = index.insert_with(&vector, 3, &values, |_| {}).unwrap();
                assert_eq!(index.attributes(id), values);
            }
        }
        assert_eq!(index.recode(0, CodeBits::One), Ok(Recoded::Done));
        let bytes = written(&index);
        let again = loaded(&bytes, 2).unwrap();
        for id in (0..1_100).map(VectorId) {
            assert_eq!(again.attributes(id), index.attributes(id));
        }
        assert!(written(&again) == bytes);
    }
}

#[test]
fn what_is_removed_and_inserted_before_it_is_written_changes_nothing() {
    let mut random = Random(3);
    for (dimensions, representation) in FORMS {
        let mut rows = eventful(dimensions, representation, &mut random);
        let before = written(&rows.index);
        let checkpoint = rows.index.checkpoint();
        let index = &rows.index;
        // Every string goes with its rows; nothing moves into their slots yet.
        (0..1_200).for_each(|id| index.remove(VectorId(id)));
        while index.repair(100) > 0 {}
        for _ in 0..300 {
            let (vector, values) = (vector(dimensions, &mut random), attributes(&mut random));
            index.insert_with(&vector, 1, &values, |_| {}).unwrap();
        }
        let mut bytes = Vec::new();
        checkpoint.write(index, &mut bytes).unwrap();
        assert!(bytes == before);
        rows.index = loaded(&bytes, 2).unwrap();
        rows.check(&mut random);
    }
}

/// A row's values and its vector say its number.
fn numbered(number: usize) -> ([f32; 2], [Value; 2]) {
    let values = [Value::Int(number as i64), text(format!("row {number}"))];
    ([number as f32, 1.0], values)
}

/// Returns the numbers of the rows that are there, once each has its values.
fn numbers_in(bytes: &[u8]) -> Vec<usize> {
    let index = loaded(bytes, 1).unwrap();
    let mut cursor = index.cursor(&[0.0, 1.0], 10, u64::MAX, true).unwrap();
    let hits = cursor.next_page(&index, index.slots_len()).hits;
    let number = |(id, distance): (VectorId, f64)| {
        let number = distance.round() as usize;
        let (_, values) = numbered(number);
        assert_eq!(index.attributes(id), values, "{id:?} at {distance}");
        let [_, name] = values;
        assert_eq!(found(&index, &Filter::equal(1, name), false), [id.0]);
        number
    };
    hits.into_iter().map(number).collect()
}

#[test]
fn checkpoints_taken_while_threads_insert_and_remove_have_each_row_with_its_values() {
    const THERE: usize = 200;
    let types = [ColumnType::Int, ColumnType::Bytes];
    let index = &index(2, Representation::Plain, &types);
    let (inserted, is_enough) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    let checkpoints = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut ids = std::collections::VecDeque::new();
            for number in 0.. {
                if is_enough.load(Ordering::Acquire) {
                    break;
                }
                let (vector, values) = numbered(number);
                let id = index.insert_with(&vector, 1, &values, |_| {});
                ids.push_back(id.unwrap());
                if ids.len() > THERE {
                    index.remove(ids.pop_front().unwrap());
                }
                if number % 50 == 0 {
                    index.fold(50);
                    while index.repair(100) > 0 {}
                }
                inserted.store(number, Ordering::Release);
            }
        });
        let mut checkpoints = Vec::new();
        for round in 1..=12 {
            while inserted.load(Ordering::Acquire) < round * THERE {
                std::thread::yield_now();
            }
            checkpoints.push(written(index));
        }
        is_enough.store(true, Ordering::Release);
        checkpoints
    });
    for bytes in checkpoints {
        let numbers = numbers_in(&bytes);
        assert!(
            (THERE..=THERE + 1).contains(&numbers.len()),
            "{}",
            numbers.len()
        );
        assert_eq!(numbers.len(), numbers[numbers.len() - 1] + 1 - numbers[0]);
    }
}

#[test]
fn a_row_that_is_removed_while_a_checkpoint_begins_is_in_it_with_its_values_or_not_at_all() {
    const ROWS: usize = 2_000;
    for _ in 0..40 {
        let index = &index(
            2,
            Representation::Plain,
            &[ColumnType::Int, ColumnType::Bytes],
        );
        for number in 0..ROWS {
            let (vector, values) = numbered(number);
            index.insert_with(&vector, 1, &values, |_| {}).unwrap();
        }
        let bytes = std::thread::scope(|scope| {
            scope.spawn(|| (0..ROWS as u32).for_each(|id| index.remove(VectorId(id))));
            while index.removed_len() == 0 {
                std::thread::yield_now();
            }
            written(index)
        });
        loaded(&bytes, 1).unwrap();
    }
}

#[test]
fn every_flipped_byte_and_every_cut_is_found() {
    let mut random = Random(2);
    let index = index(3, Representation::Plain, &TYPES[..4]);
    for _ in 0..30 {
        let values = &attributes(&mut random)[..4];
        let vector = vector(3, &mut random);
        index.insert_with(&vector, 1, values, |_| {}).unwrap();
    }
    index.fold(20);
    let bytes = written(&index);
    let mut flipped = bytes.clone();
    for at in 0..bytes.len() {
        flipped[at] ^= 1 << (at % 8);
        assert!(loaded(&flipped, 1).is_err(), "byte {at}");
        flipped[at] = bytes[at];
        let cut = loaded(&bytes[..at], 1);
        assert!(
            matches!(cut, Err(CheckpointError::Truncated { .. })),
            "{at}"
        );
    }
    assert!(loaded(&flipped, 1).is_ok());
}

/// What breaks off is an error of the sink's.
#[test]
fn a_sink_that_refuses_is_no_checkpoint_and_the_next_one_is() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let index = index(3, Representation::Plain, &TYPES);
    let values = attributes(&mut Random(1));
    index.insert_with(&[1.0; 3], 1, &values, |_| {}).unwrap();
    assert!(index.checkpoint().write(&index, &mut Full).is_err());
    let bytes = written(&index);
    let loading = Loading::open(&bytes[..], None).unwrap();
    assert_eq!(loading.columns(), TYPES);
    assert!(matches!(
        loading.finish(),
        Err(CheckpointError::Unread { .. })
    ));
    assert!(loaded(&bytes, 1).is_ok());
}
