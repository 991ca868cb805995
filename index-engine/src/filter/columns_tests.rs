//! Every condition against the plain logic of three values.

use super::*;
use proptest::prelude::*;
use std::cmp::Ordering as Order;

const TYPES: [ColumnType; 4] = [
    ColumnType::Int,
    ColumnType::Float,
    ColumnType::Bool,
    ColumnType::Bytes,
];

/// Few values each, the awkward ones among them.
fn value(column: usize) -> BoxedStrategy<Value> {
    let known = match TYPES[column] {
        ColumnType::Int => {
            prop::sample::select(vec![i64::MIN, -1, 0, (1 << 53), (1 << 53) + 1, i64::MAX])
                .prop_map(Value::Int)
                .boxed()
        }
        ColumnType::Float => prop::sample::select(vec![
            f64::NEG_INFINITY,
            -1.5,
            -0.0,
            0.0,
            2.0,
            f64::INFINITY,
            f64::NAN,
            -f64::NAN,
        ])
        .prop_map(Value::Float)
        .boxed(),
        ColumnType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        ColumnType::Bytes => prop::sample::select(vec!["", "a", "aa", "b", "\u{e9}"])
            .prop_map(|text| Value::Bytes(text.as_bytes().into()))
            .boxed(),
    };
    prop_oneof![1 => Just(Value::Null), 5 => known].boxed()
}

fn row() -> impl Strategy<Value = Vec<Value>> {
    (value(0), value(1), value(2), value(3)).prop_map(|(a, b, c, d)| vec![a, b, c, d])
}

fn condition() -> impl Strategy<Value = Filter> {
    use Comparison::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let comparisons = vec![Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual];
    let leaf = (0usize..4).prop_flat_map(move |column| {
        let is = prop::sample::select(comparisons.clone());
        prop_oneof![
            4 => (is, value(column)).prop_map(move |(is, value)| Filter::compare(column, is, value)),
            1 => (value(column), value(column)).prop_map(move |(a, b)| Filter::between(column, a, b)),
            2 => prop::collection::vec(value(column), 0..4).prop_map(move |values| Filter::In { column, values }),
            1 => Just(Filter::IsNull { column }),
            1 => Just(Filter::is_not_null(column)),
        ]
    });
    leaf.prop_recursive(4, 24, 4, |part| {
        prop_oneof![
            prop::collection::vec(part.clone(), 0..4).prop_map(Filter::All),
            prop::collection::vec(part.clone(), 0..4).prop_map(Filter::Any),
            part.prop_map(|part| Filter::Not(Box::new(part))),
        ]
    })
}

/// As PostgreSQL compares; unknown if one of them is NULL.
fn order(a: &Value, b: &Value) -> Option<Order> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => Some(match (a.is_nan(), b.is_nan()) {
            (false, false) => a.partial_cmp(b).expect("neither is NaN"),
            (a, b) => a.cmp(&b),
        }),
        _ => None,
    }
}

fn truth(filter: &Filter, row: &[Value]) -> Option<bool> {
    match filter {
        Filter::Compare { column, is, value } => {
            order(&row[*column], value).map(|order| match is {
                Comparison::Equal => order.is_eq(),
                Comparison::NotEqual => order.is_ne(),
                Comparison::Less => order.is_lt(),
                Comparison::LessOrEqual => order.is_le(),
                Comparison::Greater => order.is_gt(),
                Comparison::GreaterOrEqual => order.is_ge(),
            })
        }
        Filter::In { column, values } => {
            let equal = |value| order(&row[*column], value).map(Order::is_eq);
            either(values.iter().map(equal))
        }
        Filter::IsNull { column } => Some(row[*column] == Value::Null),
        Filter::Any(parts) => either(parts.iter().map(|part| truth(part, row))),
        Filter::All(parts) => {
            either(parts.iter().map(|part| truth(part, row).map(|t| !t))).map(|t| !t)
        }
        Filter::Not(part) => truth(part, row).map(|t| !t),
    }
}

fn either(parts: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let parts: Vec<Option<bool>> = parts.collect();
    if parts.contains(&Some(true)) {
        return Some(true);
    }
    (!parts.contains(&None)).then_some(false)
}

fn same(a: &Value, b: &Value) -> bool {
    order(a, b).is_some_and(Order::is_eq) || (*a == Value::Null && *b == Value::Null)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn rows_match_where_sql_says_true(
        rows in prop::collection::vec(row(), 1..40),
        replaced in prop::collection::vec(row(), 0..5),
        filters in prop::collection::vec(condition(), 8),
    ) {
        let columns = Columns::new(&TYPES).expect("few columns");
        let mut there: Vec<Option<Vec<Value>>> = Vec::new();
        for (id, row) in (0..).zip(&rows) {
            columns.check_row(row).expect("values of the types");
            columns.write(id, row);
            there.push(Some(row.clone()));
        }
        for id in (0..rows.len()).filter(|id| id % 5 == 2) {
            columns.forget(id as u32, || ());
            columns.forget(id as u32, || ());
            there[id] = None;
        }
        // In place of a forgotten row, and of one that nobody forgot.
        for (id, row) in (2usize..rows.len()).zip(&replaced) {
            columns.write(id as u32, row);
            there[id] = Some(row.clone());
        }
        for (id, row) in (0u32..).zip(&there) {
            if let Some(row) = row {
                let stored = columns.values(id);
                prop_assert!(stored.iter().zip(row).all(|(a, b)| same(a, b)), "{stored:?} for {row:?}");
            }
        }
        for filter in &filters {
            let predicate = columns.predicate(filter).expect("a good filter");
            let candidates = columns.candidates(&predicate);
            let mut count = 0;
            for (id, row) in (0u32..).zip(&there) {
                let Some(row) = row else {
                    prop_assert!(!candidates.contains(id), "{id} is forgotten");
                    continue;
                };
                let wanted = truth(filter, row) == Some(true);
                count += u64::from(wanted);
                prop_assert_eq!(columns.matches(&predicate, id), wanted, "{:?} of {:?}", filter, row);
                prop_assert!(!wanted || candidates.contains(id), "{id} is not listed for {filter:?}");
            }
            // All are looked at where there are fewer than a sample.
            let estimate = columns.count(&predicate);
            prop_assert!(estimate >= count, "{estimate} for {count} rows of {filter:?}");
        }
    }
}

#[test]
fn counts_are_near_the_truth_at_all_selectivities() {
    const ROWS: u32 = 50_000;
    let columns = Columns::new(&[ColumnType::Int, ColumnType::Int]).expect("few columns");
    let shuffled = |id: u32| i64::from(id.wrapping_mul(2_654_435_761) % ROWS);
    for id in 0..ROWS {
        columns.write(
            id,
            &[Value::Int(shuffled(id)), Value::Int(i64::from(id % 10))],
        );
    }
    let count = |filter: &Filter| {
        let predicate = columns.predicate(filter).expect("a good filter");
        let exact = (0..ROWS)
            .filter(|id| columns.matches(&predicate, *id))
            .count();
        (columns.count(&predicate) as f64, exact as f64)
    };
    for rows in [1i64, 5, 50, 500, 5_000, 25_000, 49_999] {
        let range = Filter::between(0, Value::Int(100), Value::Int(99 + rows));
        let (estimate, exact) = count(&range);
        let off = (estimate - exact).abs();
        assert!(off <= 0.1 * exact + 64.0, "{estimate} for {exact}");
        let tenth = Filter::All(vec![range, Filter::equal(1, Value::Int(3))]);
        let (estimate, exact) = count(&tenth);
        let off = (estimate - exact).abs();
        assert!(off <= 0.9 * exact + 64.0, "{estimate} for {exact} of both");
    }
    assert_eq!(count(&Filter::equal(1, Value::Int(3))), (5_000.0, 5_000.0));
    assert_eq!(count(&Filter::All(Vec::new())), (50_000.0, 50_000.0));
    assert_eq!(count(&Filter::Any(Vec::new())).0, 0.0);
}

#[test]
fn a_string_that_no_row_has_is_forgotten() {
    let columns = Columns::new(&[ColumnType::Bytes]).expect("few columns");
    let text = |n: u32| Value::Bytes(n.to_string().as_bytes().into());
    for id in 0..1_000 {
        columns.write(id, &[text(id)]);
    }
    let full = columns.memory_bytes(0);
    for round in 1..4 {
        for id in 0..1_000 {
            columns.write(id, &[text(id + 1_000 * round)]);
        }
    }
    assert!(columns.memory_bytes(0) < 2 * full, "{full} bytes before");
    (0..1_000).for_each(|id| columns.forget(id, || ()));
    assert!(
        columns.memory_bytes(0) < full / 10,
        "{}",
        columns.memory_bytes(0)
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let columns = Columns::new(&TYPES).expect("few columns");
    assert!(Columns::new(&[ColumnType::Int; COLUMNS_MAX + 1]).is_err());
    assert!(matches!(
        columns.check_row(&[Value::Null]),
        Err(IndexError::WrongAttributes {
            expected: 4,
            got: 1
        })
    ));
    let wrong = Filter::equal(0, Value::Bool(true));
    assert!(matches!(
        columns.predicate(&wrong),
        Err(IndexError::WrongType { column: 0, .. })
    ));
    for filter in [Filter::IsNull { column: 4 }, Filter::equal(9, Value::Null)] {
        let refused = columns.predicate(&filter);
        assert!(matches!(
            refused,
            Err(IndexError::NoSuchColumn { columns: 4, .. })
        ));
    }
    let long = Value::Bytes(vec![0; VALUE_BYTES_MAX + 1].into());
    assert!(columns.predicate(&Filter::equal(3, long)).is_err());
    let deep = (0..70).fold(Filter::All(Vec::new()), |part, _| {
        Filter::Not(Box::new(part))
    });
    assert!(columns.predicate(&deep).is_err());
    let values = vec![Value::Int(1); crate::filter::FILTER_TERMS_MAX];
    assert!(
        columns
            .predicate(&Filter::In { column: 0, values })
            .is_err()
    );
}
