//! What an index refuses, and how it says so.
#![allow(clippy::unwrap_used)]

use index_engine::{Element, Half, IndexError, IndexParams, Metric, PartitionIndex, Vector};

fn params() -> IndexParams {
    IndexParams {
        metric: Metric::L2,
        dimensions: 3,
        ..IndexParams::default()
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

fn index(metric: Metric, element: Element, dimensions: usize) -> PartitionIndex {
    PartitionIndex::new(IndexParams {
        metric,
        element,
        dimensions,
        ..IndexParams::default()
    })
    .unwrap()
}

fn refused(index: &PartitionIndex, vector: Vector<'_>) -> IndexError {
    let of_query = index.cursor(vector, 10, 0, false).err().unwrap();
    let error = index.insert(vector, 0).unwrap_err();
    assert_eq!(of_query.to_string(), error.to_string());
    assert_eq!(index.total_len(), 0);
    error
}

#[test]
fn distances_that_pgvector_has_not_are_refused() {
    use Element::{Bit, F16, F32, Sparse};
    for metric in [
        Metric::L2,
        Metric::Cosine,
        Metric::InnerProduct,
        Metric::L1,
        Metric::Hamming,
        Metric::Jaccard,
    ] {
        for element in [F32, F16, Sparse, Bit] {
            let params = IndexParams {
                metric,
                element,
                dimensions: 8,
                ..IndexParams::default()
            };
            let of_bits = matches!(metric, Metric::Hamming | Metric::Jaccard);
            let result = PartitionIndex::new(params);
            if of_bits == (element == Bit) {
                assert!(result.is_ok());
                continue;
            }
            let error = result.err().unwrap();
            assert_eq!(error, IndexError::NoSuchDistance { element, metric });
            let expected = format!("the type {element} has no distance {metric}");
            assert_eq!(error.to_string(), expected);
        }
    }
}

#[test]
fn each_element_has_its_limit_of_dimensions() {
    for (element, metric, most) in [
        (Element::F32, Metric::L1, 16_000),
        (Element::F16, Metric::L2, 16_000),
        (Element::Bit, Metric::Hamming, 64_000),
        (Element::Sparse, Metric::Cosine, 1_000_000_000),
    ] {
        for (dimensions, is_good) in [(0, false), (1, true), (most, true), (most + 1, false)] {
            let params = IndexParams {
                metric,
                element,
                dimensions,
                ..IndexParams::default()
            };
            let made = PartitionIndex::new(params);
            assert_eq!(made.is_ok(), is_good, "{element} {dimensions}");
        }
    }
}

#[test]
fn a_vector_of_another_type_is_refused() {
    let index = index(Metric::L2, Element::F16, 2);
    let error = refused(&index, Vector::F32(&[1.0, 2.0]));
    assert_eq!(
        error.to_string(),
        "expected a vector of type halfvec, not vector"
    );
}

#[test]
fn halves_that_are_not_finite_are_refused() {
    let index = index(Metric::Cosine, Element::F16, 2);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 65_520.0] {
        let vector = [Half::from_f32(1.0), Half::from_f32(value)];
        let error = refused(&index, (&vector[..]).into());
        assert!(matches!(error, IndexError::NotFinite { position: 1, .. }));
    }
    let short = [Half::from_f32(1.0)];
    let error = refused(&index, (&short[..]).into());
    assert_eq!(error.to_string(), "expected 2 dimensions, not 1");
}

#[test]
fn sparse_vectors_out_of_order_are_refused() {
    let index = index(Metric::L2, Element::Sparse, 100);
    let refuse = |indices: &[u32], values: &[f32]| {
        let vector = Vector::Sparse {
            dimensions: 100,
            indices,
            values,
        };
        refused(&index, vector).to_string()
    };
    for (indices, values, expected) in [
        (
            &[1, 2][..],
            &[1.0][..],
            "a sparse vector has 2 indices for 1 values",
        ),
        (
            &[5, 3],
            &[1.0, 2.0],
            "index 1 of a sparse vector is not above the one before it",
        ),
        (
            &[3, 3],
            &[1.0, 2.0],
            "index 1 of a sparse vector is not above the one before it",
        ),
        (
            &[3, 100],
            &[1.0, 2.0],
            "index 1 of a sparse vector is 100, must be below 100",
        ),
        (
            &[3, 4],
            &[1.0, 0.0],
            "value 1 of a sparse vector is zero: leave it out",
        ),
        (
            &[3, 4],
            &[-0.0, 1.0],
            "value 0 of a sparse vector is zero: leave it out",
        ),
        (
            &[3, 4],
            &[1.0, f32::NAN],
            "element 1 of the vector is NaN: NaN and infinity are not allowed",
        ),
    ] {
        assert_eq!(refuse(indices, values), expected);
    }
    let other = Vector::Sparse {
        dimensions: 99,
        indices: &[],
        values: &[],
    };
    assert_eq!(
        refused(&index, other).to_string(),
        "expected 100 dimensions, not 99"
    );
}

#[test]
fn a_sparse_vector_has_its_limit_of_elements() {
    let index = index(Metric::InnerProduct, Element::Sparse, 1_000_000_000);
    let indices: Vec<u32> = (0..16_001).map(|i| i * 60_000).collect();
    let values = vec![1.0; indices.len()];
    let vector = |count: usize| Vector::Sparse {
        dimensions: 1_000_000_000,
        indices: &indices[..count],
        values: &values[..count],
    };
    let error = refused(&index, vector(16_001));
    assert_eq!(
        error.to_string(),
        "non-zero elements is 16001, must be between 0 and 16000"
    );
    // The longest and the shortest, side by side.
    for count in [16_000, 0, 16_000, 1, 15_000] {
        index.insert(vector(count), count as u64).unwrap();
    }
    index.fold(usize::MAX);
    let mut cursor = index.cursor(vector(16_000), 10, 0, false).unwrap();
    let found: Vec<f64> = cursor
        .next_page(&index, 10)
        .hits
        .iter()
        .map(|h| h.1)
        .collect();
    assert_eq!(found, [-16_000.0, -16_000.0, -15_000.0, -1.0, 0.0]);
}

#[test]
fn bits_of_another_length_are_refused() {
    let index = index(Metric::Hamming, Element::Bit, 12);
    let refuse = |len, bytes: &[u8]| refused(&index, Vector::Bits { len, bytes }).to_string();
    assert_eq!(refuse(11, &[0, 0]), "expected 12 dimensions, not 11");
    assert_eq!(refuse(12, &[0]), "12 bits take 2 bytes, not 1");
    assert_eq!(refuse(12, &[0, 0, 0]), "12 bits take 2 bytes, not 3");
    assert_eq!(
        refuse(12, &[0xFF, 0xF8]),
        "the last byte has bits set beyond the 12 of the vector"
    );
    let full = Vector::Bits {
        len: 12,
        bytes: &[0xFF, 0xF0],
    };
    assert!(index.insert(full, 0).is_ok());
}
