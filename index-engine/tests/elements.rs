//! What a search promises, for every element and metric: beside brute force.
#![allow(clippy::unwrap_used)]

mod owned;
mod world;

use std::collections::HashSet;

use index_engine::checkpoint::Loading;
use index_engine::{
    CodeBits, Element, IndexParams, Metric, PartitionIndex, Representation, VectorId,
};
use owned::{Owned, WIDE, distance};
use world::Random;

const FLOATING: [Metric; 4] = [Metric::L2, Metric::Cosine, Metric::InnerProduct, Metric::L1];

/// Every element with its metrics. The f32 metrics of old have tests of their own.
fn kinds() -> Vec<(Element, Metric)> {
    let mut kinds = vec![
        (Element::F32, Metric::L1),
        (Element::Bit, Metric::Hamming),
        (Element::Bit, Metric::Jaccard),
    ];
    for metric in FLOATING {
        kinds.extend([(Element::F16, metric), (Element::Sparse, metric)]);
    }
    kinds
}

struct World {
    index: PartitionIndex,
    element: Element,
    metric: Metric,
    dimensions: usize,
    /// Dense, whatever the element.
    rows: Vec<Vec<f64>>,
    centres: Vec<Vec<f32>>,
    random: Random,
}

impl World {
    fn new(kind: (Element, Metric), dimensions: usize, m: usize) -> Self {
        Self::held(kind, dimensions, m, Representation::default())
    }

    fn held(
        (element, metric): (Element, Metric),
        dimensions: usize,
        m: usize,
        representation: Representation,
    ) -> Self {
        let params = IndexParams {
            metric,
            element,
            dimensions: match element {
                Element::Sparse => WIDE,
                _ => dimensions,
            },
            m,
            representation,
            ..IndexParams::default()
        };
        Self {
            index: PartitionIndex::new(params).unwrap(),
            element,
            metric,
            dimensions,
            rows: Vec::new(),
            centres: Vec::new(),
            random: Random(11),
        }
    }

    /// A vector near one of a few centres.
    fn vector(&mut self) -> Owned {
        let dimensions = self.dimensions;
        while self.centres.len() < 20 {
            let centre = (0..dimensions).map(|_| self.random.normal()).collect();
            self.centres.push(centre);
        }
        let pick = self.random.next() as usize % self.centres.len();
        let centre = self.centres[pick].clone();
        let values: Vec<f32> = centre
            .iter()
            .map(|x| x + 0.5 * self.random.normal())
            .collect();
        Owned::of(self.element, &values)
    }

    fn add(&mut self, vector: Owned) {
        let hash = self.random.next();
        let id = self.index.insert(vector.borrow(), hash).unwrap();
        assert_eq!(id.0 as usize, self.rows.len());
        self.rows.push(vector.dense());
    }

    fn add_rows(&mut self, count: usize) {
        for _ in 0..count {
            let vector = self.vector();
            self.add(vector);
        }
    }

    fn distance(&self, id: VectorId, query: &[f64]) -> f64 {
        distance(self.metric, &self.rows[id.0 as usize], query)
    }

    /// All rows by the pages of a search: each once, each at its distance.
    fn drain(&self, query: &Owned, page_rows: usize, exact: bool) -> Vec<(VectorId, f64)> {
        let mut cursor = self
            .index
            .cursor(query.borrow(), 30, u64::MAX, exact)
            .unwrap();
        let dense = query.dense();
        let (mut hits, mut seen) = (Vec::new(), HashSet::new());
        loop {
            let page = cursor.next_page(&self.index, page_rows);
            assert!(page.hits.windows(2).all(|w| w[0].1 <= w[1].1));
            assert!(page.exhausted || page.hits.len() == page_rows);
            for (id, distance) in &page.hits {
                assert!(seen.insert(id.0), "{} came twice", id.0);
                let expected = self.distance(*id, &dense);
                let error = (distance - expected).abs();
                let is_same = *distance == expected || error <= 1e-5 * expected.abs().max(1.0);
                let (element, metric) = (self.element, self.metric);
                assert!(is_same, "{element} {metric:?}: {distance} for {expected}");
            }
            hits.extend(page.hits);
            if page.exhausted {
                return hits;
            }
        }
    }

    fn recall(&mut self, queries: usize, ef: usize) -> f64 {
        const K: usize = 10;
        let mut found = 0;
        for _ in 0..queries {
            let query = self.vector();
            let dense = query.dense();
            let mut all: Vec<f64> = self
                .rows
                .iter()
                .map(|row| distance(self.metric, row, &dense))
                .collect();
            all.sort_by(f64::total_cmp);
            let mut cursor = self
                .index
                .cursor(query.borrow(), ef, u64::MAX, false)
                .unwrap();
            let hits = cursor.next_page(&self.index, K).hits;
            let is_near =
                |hit: &&(VectorId, f64)| self.distance(hit.0, &dense) <= all[K - 1] + 1e-6;
            found += hits.iter().filter(is_near).count();
        }
        found as f64 / (queries * K) as f64
    }
}

fn ids(hits: &[(VectorId, f64)]) -> Vec<usize> {
    let mut ids: Vec<usize> = hits.iter().map(|hit| hit.0.0 as usize).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn every_kind_is_recalled_as_brute_force_finds_it() {
    for kind in kinds() {
        for dimensions in [40, 200] {
            let mut world = World::new(kind, dimensions, 16);
            world.add_rows(1_000);
            world.index.fold(900);
            let recall = world.recall(25, 60);
            assert!(recall >= 0.97, "{kind:?} × {dimensions}: recall {recall}");
        }
    }
}

#[test]
fn every_kind_pages_each_row_once_at_its_distance() {
    for kind in kinds() {
        for (rows, folded) in [(1, 0), (300, 0), (300, 150), (300, 300)] {
            let mut world = World::new(kind, 130, 4);
            world.add_rows(rows);
            world.index.fold(folded);
            let query = world.vector();
            for (page_rows, exact) in [(7, false), (1_000, false), (50, true)] {
                let hits = world.drain(&query, page_rows, exact);
                assert_eq!(ids(&hits), (0..rows).collect::<Vec<_>>(), "{kind:?}");
            }
        }
    }
}

#[test]
fn a_crowd_of_equal_vectors_hides_no_row() {
    for kind in kinds() {
        let mut world = World::new(kind, 60, 8);
        let crowd = world.vector();
        for i in 0..500 {
            world.add(crowd.clone());
            if i % 10 == 0 {
                world.add_rows(1);
            }
        }
        world.index.fold(usize::MAX);
        let hits = world.drain(&crowd, 100, false);
        assert_eq!(ids(&hits), (0..550).collect::<Vec<_>>(), "{kind:?}");
        let recall = world.recall(30, 60);
        assert!(recall >= 0.95, "{kind:?}: recall {recall}");
    }
}

#[test]
fn zero_vectors_come_and_where_they_have_no_distance_last() {
    for kind in kinds() {
        let mut world = World::new(kind, 50, 4);
        for i in 0..200 {
            match i % 4 {
                0 => world.add(Owned::zero(kind.0, 50)),
                _ => world.add_rows(1),
            }
        }
        for folded in [0, 100, 100] {
            world.index.fold(folded);
            let query = world.vector();
            let zero = Owned::zero(kind.0, 50);
            for query in [query, zero] {
                let hits = world.drain(&query, 25, false);
                assert_eq!(ids(&hits), (0..200).collect::<Vec<_>>(), "{kind:?}");
                if kind.1 == Metric::Cosine {
                    assert!(hits[150..].iter().all(|hit| hit.1 == f64::INFINITY));
                }
                if kind.1 == Metric::Jaccard {
                    assert!(hits[150..].iter().all(|hit| hit.1 == 1.0));
                }
            }
        }
    }
}

#[test]
fn removed_and_former_rows_are_not_seen() {
    for kind in kinds() {
        let mut world = World::new(kind, 33, 6);
        world.add_rows(400);
        world.index.fold(300);
        for id in 0..400 {
            if id % 3 == 0 {
                world.index.remove(VectorId(id));
            } else if id % 3 == 1 {
                world.index.end(VectorId(id), 7);
            }
        }
        world.index.fold(usize::MAX);
        let query = world.vector();
        let hits = world.drain(&query, 9, false);
        assert_eq!(
            ids(&hits),
            (2..400).step_by(3).collect::<Vec<_>>(),
            "{kind:?}"
        );
    }
}

#[test]
fn every_kind_goes_from_index_to_index_bit_for_bit() {
    for kind in kinds() {
        let (mut first, second) = (World::new(kind, 77, 8), World::new(kind, 77, 8));
        first.add_rows(50);
        for id in 0..50 {
            second
                .index
                .insert_from(&first.index, VectorId(id), u64::from(id))
                .unwrap();
        }
        let query = first.vector();
        let expected = first.drain(&query, 50, true);
        let mut cursor = second
            .index
            .cursor(query.borrow(), 1, u64::MAX, true)
            .unwrap();
        assert_eq!(
            cursor.next_page(&second.index, 50).hits,
            expected,
            "{kind:?}"
        );
    }
}

#[test]
fn every_kind_comes_back_from_a_checkpoint() {
    for kind in kinds() {
        let mut world = World::new(kind, 90, 6);
        world.add_rows(300);
        world.add(Owned::zero(kind.0, 90));
        world.index.fold(250);
        let mut bytes = Vec::new();
        let checkpoint = world.index.checkpoint();
        checkpoint.write(&world.index, &mut bytes).unwrap();
        let loading = Loading::open(&bytes[..], None).unwrap();
        loading.read(&bytes[..]).unwrap();
        let loaded = loading.finish().unwrap();
        let vectors = |index: &PartitionIndex| index.footprint().vectors;
        assert_eq!(vectors(&loaded), vectors(&world.index));
        let query = world.vector();
        let expected = world.drain(&query, 10, false);
        let written = std::mem::replace(&mut world.index, loaded);
        assert_eq!(world.drain(&query, 10, false), expected, "{kind:?}");
        // And goes on: rows are added to what was loaded.
        world.add_rows(50);
        world.index.fold(usize::MAX);
        let hits = world.drain(&query, 10, false);
        assert_eq!(ids(&hits), (0..351).collect::<Vec<_>>(), "{kind:?}");
        drop(written);
    }
}

#[test]
fn halves_are_held_as_floats_are() {
    for representation in [
        Representation::Plain,
        Representation::Coded,
        Representation::Compact(CodeBits::Two),
        Representation::Compact(CodeBits::Eight),
    ] {
        for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
            // Padded to whole lanes of halves, and to another length for the rotation.
            let mut world = World::held((Element::F16, metric), 145, 12, representation);
            world.add_rows(500);
            world.add(Owned::zero(Element::F16, 145));
            world.index.fold(450);
            let query = world.vector();
            let hits = world.drain(&query, 20, false);
            assert_eq!(ids(&hits), (0..501).collect::<Vec<_>>());
            let recall = world.recall(20, 60);
            assert!(recall >= 0.95, "{representation:?} {metric:?}: {recall}");
        }
    }
}
