//! What an index refuses, and how it says so.
#![allow(clippy::unwrap_used)]

use index_engine::{IndexError, IndexParams, Metric, PartitionIndex, Representation};

fn params() -> IndexParams {
    IndexParams {
        metric: Metric::L2,
        dimensions: 3,
        m: 16,
        ef_construction: 64,
        representation: Representation::default(),
    }
}

#[test]
fn vectors_of_another_length_or_not_finite_are_refused() {
    let index = PartitionIndex::new(params()).unwrap();
    let wrong = IndexError::WrongDimensions {
        expected: 3,
        got: 2,
    };
    assert_eq!(wrong.to_string(), "expected 3 dimensions, not 2");
    assert_eq!(index.insert(&[1.0, 2.0], 0), Err(wrong.clone()));
    assert_eq!(index.cursor(&[1.0, 2.0], 10, 0, false).err(), Some(wrong));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = index.insert(&[0.0, bad, 0.0], 0).unwrap_err();
        assert!(matches!(error, IndexError::NotFinite { position: 1, .. }));
        assert!(index.cursor(&[bad, 0.0, 0.0], 10, 0, false).is_err());
    }
    assert_eq!(index.total_len(), 0);
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let tries: [(&str, IndexParams); 5] = [
        (
            "dimensions",
            IndexParams {
                dimensions: 0,
                ..params()
            },
        ),
        (
            "dimensions",
            IndexParams {
                dimensions: 16_001,
                ..params()
            },
        ),
        ("m", IndexParams { m: 1, ..params() }),
        ("m", IndexParams { m: 101, ..params() }),
        (
            "ef_construction",
            IndexParams {
                ef_construction: 3,
                ..params()
            },
        ),
    ];
    for (name, params) in tries {
        let error = PartitionIndex::new(params).err().unwrap().to_string();
        assert!(
            error.starts_with(name) && error.contains("must be between"),
            "{error}"
        );
    }
    let index = PartitionIndex::new(params()).unwrap();
    for ef in [0, 10_001, usize::MAX] {
        assert!(index.cursor(&[0.0; 3], ef, 0, false).is_err());
    }
}

#[test]
fn memory_is_counted() {
    let index = PartitionIndex::new(params()).unwrap();
    let empty = index.memory_bytes();
    index.insert(&[1.0, -2.0, 3.5], 0).unwrap();
    assert!(index.memory_bytes() >= empty + 64 + 128);
}

#[test]
fn a_vector_goes_from_index_to_index_bit_for_bit() {
    for dimensions in [3, 200] {
        let params = IndexParams {
            metric: Metric::Cosine,
            dimensions,
            ..params()
        };
        let query: Vec<f32> = (0..dimensions).map(|i| (i as f32).sin()).collect();
        let first = PartitionIndex::new(params.clone()).unwrap();
        let id = first.insert(&query, 7).unwrap();
        let distance = |index: &PartitionIndex| {
            let mut cursor = index.cursor(&vec![0.5; dimensions], 10, 0, false).unwrap();
            cursor.next_page(index, 1).hits[0].1.to_bits()
        };
        let expected = distance(&first);
        let second = PartitionIndex::new(params).unwrap();
        second.insert_from(&first, id, 7).unwrap();
        assert_eq!(distance(&second), expected);
    }
}

#[test]
#[should_panic(expected = "the index that opened it")]
fn a_cursor_refuses_a_foreign_index() {
    let index = PartitionIndex::new(params()).unwrap();
    let other = PartitionIndex::new(params()).unwrap();
    let mut cursor = index.cursor(&[0.0; 3], 10, 0, false).unwrap();
    cursor.next_page(&other, 10);
}
