//! What only the engine sees of codes of several widths.

use crate::{CodeBits, IndexParams, Metric, PartitionIndex, Recoded, Representation, VectorId};

fn index(metric: Metric) -> PartitionIndex {
    let params = IndexParams {
        metric,
        dimensions: 64,
        m: 6,
        ef_construction: 400,
        representation: Representation::Compact(CodeBits::Eight),
        ..IndexParams::default()
    };
    PartitionIndex::new(params).expect("good parameters")
}

fn vector(row: u64) -> Vec<f32> {
    let mut state = row * 0x9E37_79B9 + 1;
    let mut unit = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..64).map(|_| unit() + unit()).collect()
}

/// Lengths of cosine are all nearly one: they alone tell no copy from another row.
#[test]
fn equal_vectors_are_one_node_though_their_blocks_have_codes_of_two_widths() {
    for metric in [Metric::L2, Metric::Cosine] {
        let index = index(metric);
        for row in 0..1_500 {
            index.insert(&vector(row), row).expect("a good vector");
        }
        index.fold(usize::MAX);
        for bits in [CodeBits::One, CodeBits::Two, CodeBits::Four] {
            assert_eq!(index.recode(0, bits), Ok(Recoded::Done));
            let copies: Vec<u32> = (0..20)
                .map(|row| {
                    let copy = index.insert(&vector(row), 7).expect("a good vector");
                    copy.0
                })
                .collect();
            index.fold(usize::MAX);
            for (row, copy) in (0..).zip(copies) {
                let of_node = index.hnsw.copies_of_tests(row);
                assert!(of_node.contains(&copy), "{metric:?} {bits:?} {row}");
            }
        }
    }
}

#[test]
fn no_vector_moves_into_a_block_that_is_being_read() {
    let index = index(Metric::L2);
    for row in 0..1_500 {
        index.insert(&vector(row), row).expect("a good vector");
    }
    index.fold(usize::MAX);
    (0..1_400).for_each(|id| index.remove(VectorId(id)));
    while index.repair(usize::MAX) > 0 {}
    let kept = super::KeptSlots::new(&index, 0);
    for row in 0..400 {
        let id = index.insert(&vector(row), row).expect("a good vector");
        assert!(id.0 >= 1_024, "slot {}", id.0);
    }
    drop(kept);
    let id = index.insert(&vector(1), 1).expect("a good vector");
    assert!(id.0 < 1_024, "slot {}", id.0);
}
