//! Rows that lie far from zero, as raw features do, are found as well by codes as by
//! exact distances.
#![allow(clippy::unwrap_used)]

use index_engine::{IndexParams, Metric, PartitionIndex, Representation};

const ROWS: u64 = 2_000;

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

/// recall@10 of fifty queries among forty clusters about `offset` in every dimension.
fn recall(metric: Metric, dimensions: usize, representation: Representation, offset: f32) -> f64 {
    let index = PartitionIndex::new(IndexParams {
        metric,
        dimensions,
        m: 16,
        ef_construction: 64,
        representation,
        ..IndexParams::default()
    })
    .unwrap();
    let mut random = Random(7);
    let mut centre = || (0..dimensions).map(|_| 2.0 * random.normal()).collect();
    let centres: Vec<Vec<f32>> = (0..40).map(|_| centre()).collect();
    let mut vector = || -> Vec<f32> {
        let centre = &centres[random.next() as usize % centres.len()];
        centre
            .iter()
            .map(|c| offset + c + random.normal())
            .collect()
    };
    for row in 0..ROWS {
        index.insert(&vector(), row).unwrap();
    }
    index.fold(usize::MAX);
    let mut found = 0;
    for _ in 0..50 {
        let query = vector();
        let page = |exact| {
            let mut cursor = index.cursor(&query, 40, u64::MAX, exact).unwrap();
            let hits = cursor.next_page(&index, 10).hits;
            hits.into_iter().map(|hit| hit.0).collect::<Vec<_>>()
        };
        let exact = page(true);
        found += page(false).iter().filter(|id| exact.contains(id)).count();
    }
    f64::from(found as u32) / 500.0
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
        let plain = recall(metric, dimensions, Representation::Plain, offset);
        let coded = recall(metric, dimensions, Representation::Coded, offset);
        assert!(
            coded >= plain - 0.02 && coded > 0.95,
            "{metric:?} at {offset}, {dimensions} dimensions: {coded}, by distances {plain}"
        );
    }
}
