//! A partition beside the plain list of what was put into it.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashSet;

use index_engine::checkpoint::{CheckpointError, Loading};
use index_engine::{Cursor, IndexParams, Metric, PartitionIndex, Representation, VectorId};

/// SplitMix64: a test run repeats itself.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// Roughly normal, mean 0, deviation 1.
    pub fn normal(&mut self) -> f32 {
        let unit = |x: u64| (x >> 40) as f32 / (1u64 << 24) as f32;
        (0..12).map(|_| unit(self.next())).sum::<f32>() - 6.0
    }
}

/// A checkpoint of the index.
pub fn written(index: &PartitionIndex) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = index.checkpoint().write(index, &mut bytes).unwrap();
    assert_eq!(length, bytes.len() as u64);
    bytes
}

/// What a checkpoint holds, read by so many threads.
pub fn loaded(bytes: &[u8], threads: usize) -> Result<PartitionIndex, CheckpointError> {
    let loading = Loading::open(bytes, None)?;
    if threads == 1 {
        loading.read(bytes)?;
        return loading.finish();
    }
    std::thread::scope(|scope| {
        let read = || scope.spawn(|| loading.read(bytes));
        let running: Vec<_> = (0..threads).map(|_| read()).collect();
        running.into_iter().try_for_each(|t| t.join().unwrap())
    })?;
    loading.finish()
}

pub struct World {
    pub index: PartitionIndex,
    pub rows: Vec<Vec<f32>>,
    pub removed: HashSet<u32>,
    pub metric: Metric,
    pub random: Random,
    dimensions: usize,
    centres: Vec<Vec<f32>>,
}

impl World {
    pub fn new(metric: Metric, dimensions: usize, m: usize, ef_construction: usize) -> Self {
        let by_dimensions = Representation::default();
        Self::of(metric, dimensions, m, ef_construction, by_dimensions)
    }

    pub fn of(
        metric: Metric,
        dimensions: usize,
        m: usize,
        ef_construction: usize,
        representation: Representation,
    ) -> Self {
        let params = IndexParams {
            metric,
            dimensions,
            m,
            ef_construction,
            representation,
            ..IndexParams::default()
        };
        Self {
            index: PartitionIndex::new(params).unwrap(),
            rows: Vec::new(),
            removed: HashSet::new(),
            metric,
            random: Random(7),
            dimensions,
            centres: Vec::new(),
        }
    }

    /// `add`, padded with zeros to the world's dimensions.
    pub fn add_padded(&mut self, mut vector: Vec<f32>) -> u32 {
        vector.resize(self.dimensions, 0.0);
        self.add(vector)
    }

    pub fn add(&mut self, vector: Vec<f32>) -> u32 {
        let id = self.index.insert(&vector, self.random.next()).unwrap();
        assert_eq!(
            id.0 as usize,
            self.rows.len(),
            "ids are dense and ascending"
        );
        self.rows.push(vector);
        id.0
    }

    pub fn add_clustered(&mut self, rows: usize, clusters: usize) {
        while self.centres.len() < clusters {
            let centre = (0..self.dimensions).map(|_| 2.0 * self.random.normal());
            let centre = centre.collect();
            self.centres.push(centre);
        }
        for _ in 0..rows {
            let vector = self.query();
            self.add(vector);
        }
    }

    /// A vector of the same kind as `add_clustered` adds.
    pub fn query(&mut self) -> Vec<f32> {
        let pick = self.random.next() as usize % self.centres.len().max(1);
        let Some(centre) = self.centres.get(pick).cloned() else {
            return (0..self.dimensions).map(|_| self.random.normal()).collect();
        };
        centre.iter().map(|x| x + self.random.normal()).collect()
    }

    pub fn remove(&mut self, id: u32) {
        self.index.remove(VectorId(id));
        self.removed.insert(id);
    }

    pub fn distance(&self, id: impl Into<Id>, query: &[f32]) -> f64 {
        let row = &self.rows[id.into().0 as usize];
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum()
        };
        match self.metric {
            Metric::L2 => {
                let difference: Vec<f32> = row.iter().zip(query).map(|(x, y)| x - y).collect();
                dot(&difference, &difference).sqrt()
            }
            Metric::InnerProduct => -dot(row, query),
            Metric::Cosine => {
                let norms = dot(row, row).sqrt() * dot(query, query).sqrt();
                1.0 - dot(row, query) / norms
            }
            other => unreachable!("no {other:?} in this world"),
        }
    }

    pub fn brute_force(&self, query: &[f32], k: usize, _xmin: u64) -> Vec<u32> {
        let mut all: Vec<(f64, u32)> = (0..self.rows.len() as u32)
            .filter(|id| !self.removed.contains(id))
            .map(|id| (self.distance(id, query), id))
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all.into_iter().take(k).map(|(_, id)| id).collect()
    }

    /// The share of the true `k` nearest (by distance, so that ties count) found.
    pub fn recall(&mut self, queries: usize, k: usize, ef: usize) -> f64 {
        let mut found = 0;
        for _ in 0..queries {
            let query = self.query();
            let truth = self.brute_force(&query, k, u64::MAX);
            let worst = self.distance(*truth.last().unwrap(), &query) + 1e-6;
            let mut cursor = self.index.cursor(&query, ef, u64::MAX, false).unwrap();
            let hits = cursor.next_page(&self.index, k).hits;
            found += hits
                .iter()
                .filter(|h| self.distance(h.0, &query) <= worst)
                .count();
        }
        found as f64 / (queries * k) as f64
    }
}

pub struct Id(u32);

impl From<u32> for Id {
    fn from(id: u32) -> Self {
        Id(id)
    }
}

impl From<VectorId> for Id {
    fn from(id: VectorId) -> Self {
        Id(id.0)
    }
}

/// All pages of a new cursor.
pub fn collect(
    index: &PartitionIndex,
    query: &[f32],
    ef: usize,
    snapshot_xmin: u64,
    page_rows: usize,
) -> Vec<(VectorId, f64)> {
    let mut cursor = index.cursor(query, ef, snapshot_xmin, false).unwrap();
    drain(&mut cursor, index, page_rows)
}

/// The remaining pages: sorted within each, no id twice, full until exhausted.
pub fn drain(
    cursor: &mut Cursor,
    index: &PartitionIndex,
    page_rows: usize,
) -> Vec<(VectorId, f64)> {
    let mut hits = Vec::new();
    let mut seen = HashSet::new();
    loop {
        let page = cursor.next_page(index, page_rows);
        assert!(page.hits.windows(2).all(|w| w[0].1 <= w[1].1));
        assert!(page.hits.len() == page_rows || page.exhausted);
        assert!(
            page.hits.iter().all(|h| seen.insert(h.0)),
            "an id came twice"
        );
        hits.extend(page.hits);
        if page.exhausted {
            assert_eq!(page.bound, f64::INFINITY);
            let after = cursor.next_page(index, page_rows);
            assert!(after.exhausted && after.hits.is_empty());
            return hits;
        }
    }
}
