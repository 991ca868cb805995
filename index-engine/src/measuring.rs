//! The kernels of a search by themselves, to measure what part of its time they are.
//!
//! Not for searching, and no promise: whoever measures names the rows. How often a search
//! calls each kernel is counted elsewhere. The first page over codes of neighbours, unless it
//! begins again by exact distances, scans the codes of as many nodes as
//! [`Accesses`](crate::accesses::Accesses) count `expansions`, ranks as many vectors as they
//! count `originals`, and the other `distances` of that [`Page`](crate::Page) are ranks by
//! sketch. Without codes all `distances` are ranks of vectors.

use crate::codes::Lookup;
use crate::distance::Lane;
use crate::hnsw::{Coding, Hnsw};
use crate::params::IndexError;
use crate::partition_index::PartitionIndex;
use crate::readers::Reader;
use crate::vector::Vector;

/// The rows of an index, kept where they are for as long as this lives.
pub struct Kernels<'a> {
    index: &'a PartitionIndex,
    rows: u32,
    _reader: Reader,
}

impl<'a> Kernels<'a> {
    /// Refused, with the reason, unless every slot holds a current row that is linked, and
    /// the index goes by exact distances or by codes of neighbours.
    pub fn open(index: &'a PartitionIndex) -> Result<Self, &'static str> {
        // Entered first: no slot that is looked at below is written to while it is open.
        let reader = index.searches.enter();
        let linked = index.tail.part().births().start;
        let rows = index.hnsw.vectors.len();
        let is_at_rest = |id| index.lives.is_visible_before(id, linked, u64::MAX);
        if index.hnsw.compact.is_some() {
            return Err("an index of the compact representation lends no kernels");
        }
        if rows == 0 {
            return Err("an index without rows lends no kernels");
        }
        if !(0..rows).all(is_at_rest) {
            return Err("an index lends no kernels while a row is not linked, or not current");
        }
        Ok(Self {
            index,
            rows,
            _reader: reader,
        })
    }

    /// Their numbers begin at zero.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// What a search does with its query before it begins: rotation, tables.
    pub fn prepare<'q>(&self, query: impl Into<Vector<'q>>) -> Result<Prepared<'_>, IndexError> {
        let query = query.into();
        query.check(self.index.params())?;
        let hnsw = &self.index.hnsw;
        let target = hnsw.prepare(&query);
        let coding = hnsw.coding.as_ref();
        Ok(Prepared {
            hnsw,
            rows: self.rows,
            lookup: coding.map(|coding| (coding, hnsw.lookup(coding, &target))),
            target,
        })
    }
}

/// Of one query. Rows that are not there are a panic.
pub struct Prepared<'a> {
    hnsw: &'a Hnsw,
    rows: u32,
    target: Box<[Lane]>,
    lookup: Option<(&'a Coding, Lookup)>,
}

impl Prepared<'_> {
    /// Asks the memory system for vectors.
    #[inline]
    pub fn prefetch(&self, rows: &[u32]) {
        self.hnsw.vectors.prefetch_whole(rows);
    }

    /// By its vector.
    #[inline]
    pub fn rank(&self, row: u32) -> f32 {
        self.hnsw.candidate(&self.target, row).rank()
    }

    /// `None` where the index goes by exact distances.
    pub fn by_codes(&self) -> Option<ByCodes<'_>> {
        let (coding, lookup) = self.lookup.as_ref()?;
        Some(ByCodes {
            coding,
            lookup,
            rows: self.rows,
        })
    }
}

pub struct ByCodes<'a> {
    coding: &'a Coding,
    lookup: &'a Lookup,
    rows: u32,
}

impl ByCodes<'_> {
    /// Estimates all neighbours of a node, and asks for what is stored for the node `ahead`
    /// meanwhile. How many may have a rank `below`: of minus infinity, none.
    #[inline]
    pub fn scan(&self, node: u32, ahead: u32, below: f32) -> usize {
        assert!(node < self.rows, "no row {node}");
        assert!(ahead < self.rows, "no row {ahead}");
        let mut nearer = 0;
        let of = (node, 0.0);
        self.coding
            .blocks
            .scan(of, ahead, self.lookup, 0.0, below, |_, _| nearer += 1);
        nearer
    }

    /// Asks the memory system for sketches.
    #[inline]
    pub fn prefetch(&self, rows: &[u32]) {
        self.coding.sketches.prefetch(rows);
    }

    /// By its sketch.
    #[inline]
    pub fn rank(&self, row: u32) -> f32 {
        assert!(row < self.rows, "no row {row}");
        self.coding.sketches.rank(row, self.lookup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{CodeBits, IndexParams, Metric, Representation};
    use crate::partition_index::VectorId;

    const ROWS: usize = 3_000;
    const DIMENSIONS: usize = 64;

    fn vector(number: usize) -> Vec<f32> {
        let mut state = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..DIMENSIONS).map(next).collect()
    }

    fn index(representation: Representation) -> PartitionIndex {
        let params = IndexParams {
            metric: Metric::L2,
            dimensions: DIMENSIONS,
            m: 8,
            ef_construction: 40,
            representation,
            ..IndexParams::default()
        };
        let index = PartitionIndex::new(params).unwrap();
        for row in 0..ROWS {
            let hash = (row as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            index.insert(vector(row).as_slice(), hash).unwrap();
        }
        index
    }

    fn squared(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
    }

    #[test]
    fn ranks_are_of_the_rows_that_were_named() {
        for representation in [Representation::Plain, Representation::Coded] {
            let index = index(representation);
            index.fold(usize::MAX);
            let kernels = Kernels::open(&index).unwrap();
            assert_eq!(kernels.rows() as usize, ROWS);
            let query = vector(ROWS);
            let prepared = kernels.prepare(query.as_slice()).unwrap();
            let codes = prepared.by_codes();
            assert_eq!(codes.is_some(), representation == Representation::Coded);
            for row in [0u32, 7, ROWS as u32 - 1] {
                let truth = squared(&query, &vector(row as usize));
                let exact = prepared.rank(row);
                assert!((exact - truth).abs() < 1e-3 * truth, "{exact} for {truth}");
                if let Some(codes) = &codes {
                    let rough = codes.rank(row);
                    assert!((rough - truth).abs() < 0.02 * truth, "{rough} for {truth}");
                }
            }
            let Some(codes) = codes else { continue };
            for row in 0..kernels.rows() {
                let links = codes.coding.blocks.links(row).count();
                assert_eq!(codes.scan(row, 0, f32::INFINITY), links, "row {row}");
                assert_eq!(codes.scan(row, 0, f32::NEG_INFINITY), 0, "row {row}");
            }
        }
    }

    #[test]
    fn rows_that_may_be_written_to_are_not_lent() {
        let refused = |index: &PartitionIndex, why| {
            let said = Kernels::open(index).err().expect(why);
            assert!(said.contains(why), "{said}");
        };
        let coded = index(Representation::Coded);
        refused(&coded, "not linked");
        coded.fold(usize::MAX);
        assert!(Kernels::open(&coded).is_ok());
        coded.remove(VectorId(5));
        refused(&coded, "not current");
        let compact = index(Representation::Compact(CodeBits::Four));
        compact.fold(usize::MAX);
        refused(&compact, "compact");
        let params = IndexParams {
            dimensions: DIMENSIONS,
            ..IndexParams::default()
        };
        let empty = PartitionIndex::new(params).unwrap();
        refused(&empty, "without rows");
    }
}
