//! Columns whose checksums are right and that say what cannot be.

use super::CheckpointError;
use super::tests::Bytes;
use crate::{ColumnType, Filter, IndexParams, PartitionIndex, Value, VectorId};

const TYPES: [ColumnType; 4] = [
    ColumnType::Int,
    ColumnType::Float,
    ColumnType::Bool,
    ColumnType::Bytes,
];
/// Words of a row's cells.
const ROW: usize = 2 * (1 + TYPES.len());
const REMOVED: usize = 4;

/// Strings "s0" to "s9", numbered as they are ordered; that of a removed row is gone.
fn index() -> PartitionIndex {
    let params = IndexParams {
        dimensions: 2,
        m: 3,
        ef_construction: 8,
        ..IndexParams::default()
    };
    let index = PartitionIndex::with_columns(params, &TYPES, None).expect("good parameters");
    for row in 0..10u8 {
        let attributes = [
            Value::Int(i64::from(row) - 5),
            Value::Float(f64::from(row)),
            Value::Bool(row % 2 == 0),
            Value::Bytes([b's', b'0' + row].into()),
        ];
        let vector = [f32::from(row), 1.0];
        index
            .insert_with(&vector, u64::from(row), &attributes, |_| {})
            .expect("a good row");
    }
    index.remove(VectorId(REMOVED as u32));
    index
}

/// What is said of words of a section that were changed; nothing if the index is taken.
fn said(section: &str, words: &[(usize, u32)]) -> Option<&'static str> {
    let mut bytes = Bytes::of(&index());
    for (word, value) in words {
        let at = match section {
            "header" => *word,
            _ => bytes.at(section, *word),
        };
        bytes.set(at, *value);
    }
    match bytes.load() {
        Err(CheckpointError::Corrupt { section, .. }) => Some(section),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

/// A value of 64 bits as two words from there on.
fn long(word: usize, value: u64) -> [(usize, u32); 2] {
    let [low, high] = match u16::from_ne_bytes([1, 0]) {
        1 => [value as u32, (value >> 32) as u32],
        _ => [(value >> 32) as u32, value as u32],
    };
    [(word, low), (word + 1, high)]
}

#[test]
fn with_right_checksums_what_is_unchanged_is_taken() {
    let index = Bytes::of(&index()).load().expect("as written");
    assert_eq!(index.columns(), TYPES);
    let last = Value::Bytes(b"s9"[..].into());
    assert_eq!(index.attributes(VectorId(9))[3], last);
    let mut cursor = index
        .cursor_where(&[0.0; 2], 8, u64::MAX, false, &Filter::equal(3, last))
        .expect("a good filter");
    assert_eq!(cursor.next_page(&index, 10).hits.len(), 1);
}

#[test]
fn columns_that_no_index_has_are_refused() {
    let columns = 96;
    let column = |number: usize, field: usize| columns + 4 + 12 * number + 4 * field;
    for (at, word) in [
        (80, 1), // Rows by width, of no codes.
        (columns, 0),
        (columns, 3),
        (columns, 5),
        (columns, 32),
        (columns, u32::MAX),
        (column(0, 0), 4),
        (column(3, 0), 0), // Strings of integers.
        (column(0, 1), 1),
        (column(0, 2), 1),
        (column(3, 1), 8),
        (column(3, 1), u32::MAX),
        (column(3, 2), 0),
        (column(3, 2), 2),
        (column(3, 2), u32::MAX),
    ] {
        assert_eq!(
            said("header", &[(at, word)]),
            Some("header"),
            "{word} at {at}"
        );
    }
}

#[test]
fn values_that_are_not_of_their_type_are_refused() {
    let minus_zero = !(1u64 << 63);
    for (row, column, value) in [
        (0, 0, 1 << 4),  // NULL in a fifth column,
        (0, 0, 1 << 63), // and the mark of those that are listed.
        (REMOVED, 0, 1 << 30),
        (0, 2, minus_zero),
        (0, 2, u64::MAX - 1), // Another NaN.
        (9, 3, 2),
        (9, 4, 10),
        (9, 4, REMOVED as u64),
        (REMOVED, 4, (1 << 56) - (1 << 32)),
        (REMOVED, 4, u64::MAX),
        (REMOVED, 3, 2),
    ] {
        let words = long(row * ROW + 2 * column, value);
        assert_eq!(
            said("cells", &words),
            Some("cells"),
            "{value} at {row}, {column}"
        );
    }
    // What may be: NULL whatever the key, NaN, another string, a string that is gone.
    for (row, column, value) in [(9, 0, 8), (0, 2, u64::MAX), (9, 4, 3), (REMOVED, 4, 77)] {
        let words = long(row * ROW + 2 * column, value);
        assert_eq!(said("cells", &words), None, "{value} at {row}, {column}");
    }
}

#[test]
fn a_string_that_no_row_has_is_not_kept() {
    let mut bytes = Bytes::of(&index());
    for (word, value) in long(9 * ROW + 8, 3) {
        let at = bytes.at("cells", word);
        bytes.set(at, value);
    }
    let index = bytes.load().expect("the last row has another's string");
    let strings = 100 + 3 * 12 + 4;
    assert_eq!(Bytes::of(&index).word(strings), 8);
}

#[test]
fn strings_that_are_not_apart_in_order_and_within_their_bytes_are_refused() {
    // Key and end of each: nine strings of two bytes, which fill a line.
    for (word, value, section) in [
        (0, 1, "dictionary"),                     // A key twice,
        (0, (1 << 56) - (1 << 32), "dictionary"), // one that leaves none,
        (0, u64::MAX, "dictionary"),              // or would turn over.
        (2, 3, "strings"),                        // The second is "1",
        (2, 100, "dictionary"),                   // or ends before it begins,
        (34, 1_025, "dictionary"),                // or the last beyond the bytes.
        (34, u64::MAX, "dictionary"),
        (34, 1 << 40, "dictionary"),
    ] {
        let refused = said("dictionary", &long(word, value));
        assert_eq!(refused, Some(section), "{value} at {word}");
    }
    // "s0s1" as "s1s0" and as "s1s1".
    for bytes in [*b"s1s0", *b"s1s1"] {
        let word = u32::from_ne_bytes(bytes);
        assert_eq!(said("strings", &[(0, word)]), Some("strings"));
    }
}

#[test]
fn zeros_to_the_end_of_the_line_may_be_of_the_last_string() {
    assert_eq!(said("dictionary", &long(34, 1_024)), None);
}

#[test]
fn a_string_is_no_longer_than_an_attribute_may_be() {
    let params = IndexParams {
        dimensions: 1,
        ..IndexParams::default()
    };
    let index =
        PartitionIndex::with_columns(params, &[ColumnType::Bytes], None).expect("good parameters");
    for first in [1, 2] {
        let mut bytes = vec![first; crate::filter::VALUE_BYTES_MAX];
        bytes[0] = first;
        index
            .insert_with(&[1.0], 1, &[Value::Bytes(bytes.into())], |_| {})
            .expect("as long as it may be");
    }
    assert!(Bytes::of(&index).load().is_ok());
    // Of the first, so that the second is too long, or it; of the second, so that lines are
    // left over.
    for (string, end) in [(0, 8_191), (0, 8_193), (1, 8_202)] {
        let mut bytes = Bytes::of(&index);
        for (word, value) in long(4 * string + 2, end) {
            let at = bytes.at("dictionary", word);
            bytes.set(at, value);
        }
        let refused = bytes.load().err();
        let Some(CheckpointError::Corrupt { section, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(section, "dictionary");
    }
}
