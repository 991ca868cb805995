//! As many dimensions as a vector may have: rows are found as exactly as of few.
#![allow(clippy::unwrap_used)]

mod owned;
mod world;

use index_engine::params::DIMENSIONS_MAX;
use index_engine::{
    CodeBits, Element, IndexParams, Metric, PartitionIndex, Representation, VectorId,
};
use owned::{Owned, distance};
use world::Random;

const ROWS: usize = 300;
const QUERIES: usize = 20;
/// Directions in which rows differ much. In the others it is little, as of an embedding: of
/// noise in so many all rows are about as far from each other.
const DIRECTIONS: usize = 12;

fn vectors(count: usize, random: &mut Random) -> Vec<Vec<f32>> {
    let mut direction = Random(4);
    let directions: Vec<Vec<f32>> = (0..DIRECTIONS)
        .map(|_| (0..DIMENSIONS_MAX).map(|_| direction.normal()).collect())
        .collect();
    let mut vector = || {
        let shares: Vec<f32> = (0..DIRECTIONS).map(|_| random.normal()).collect();
        let value = |i: usize| {
            let along = directions
                .iter()
                .zip(&shares)
                .map(|(d, share)| share * d[i]);
            let noise = (random.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            along.sum::<f32>() + noise
        };
        (0..DIMENSIONS_MAX).map(value).collect()
    };
    (0..count).map(|_| vector()).collect()
}

#[test]
fn sixteen_thousand_dimensions_are_searched_as_few_are() {
    let mut random = Random(3);
    let (rows, queries) = (vectors(ROWS, &mut random), vectors(QUERIES, &mut random));
    for (element, metric, representation, floor) in [
        (Element::F32, Metric::L2, Representation::Plain, 0.98),
        (Element::F32, Metric::L2, Representation::Coded, 0.98),
        (Element::F32, Metric::Cosine, Representation::Coded, 0.98),
        (
            Element::F32,
            Metric::L2,
            Representation::Compact(CodeBits::Eight),
            0.98,
        ),
        (Element::F16, Metric::L2, Representation::Coded, 0.96),
        (Element::F16, Metric::L1, Representation::Plain, 0.96),
    ] {
        let name = format!("{element} {metric:?} {representation:?}");
        let made = |of: &[Vec<f32>]| -> Vec<Owned> {
            of.iter().map(|vector| Owned::of(element, vector)).collect()
        };
        let (rows, queries) = (made(&rows), made(&queries));
        let index = PartitionIndex::new(IndexParams {
            metric,
            element,
            dimensions: DIMENSIONS_MAX,
            m: 8,
            ef_construction: 40,
            representation,
        })
        .unwrap();
        for (number, row) in rows.iter().enumerate() {
            index.insert(row.borrow(), number as u64 * 77).unwrap();
        }
        index.fold(usize::MAX);
        let nearest = |vector: &Owned, wanted| {
            let cursor = index.cursor(vector.borrow(), 40, u64::MAX, false);
            cursor.unwrap().next_page(&index, wanted).hits
        };
        let dense: Vec<Vec<f64>> = rows.iter().map(Owned::dense).collect();
        let mut found = 0;
        for query in &queries {
            let query_dense = query.dense();
            let far = |row: usize| distance(metric, &dense[row], &query_dense);
            let mut all: Vec<f64> = (0..ROWS).map(far).collect();
            all.sort_by(f64::total_cmp);
            for (VectorId(id), distance) in nearest(query, 10) {
                let expected = far(id as usize);
                let is_right = (distance - expected).abs() <= 1e-4 * expected.abs();
                assert!(is_right, "{name}: {distance} for {expected}");
                found += usize::from(expected <= all[9]);
            }
        }
        let recall = found as f64 / (10 * QUERIES) as f64;
        println!("{name}: recall {recall}");
        assert!(recall >= floor, "{name}: recall {recall}");
        let is_lost = |(id, row): &(u32, &Owned)| nearest(row, 1)[0].0 != VectorId(*id);
        let lost = (0..).zip(&rows).filter(is_lost).count();
        assert_eq!(lost, 0, "{name}: rows not found by their own vector");
    }
}
