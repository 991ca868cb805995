//! Rows of one list together in memory, appended beside readers.
//!
//! A list is a chain of blocks of 32 rows: a search streams through memory, and a
//! list that grows moves nothing. Readers take no lock: a list's length is published
//! after the row that it counts. Nothing is ever taken out; retraining makes new lists.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::centroids::Centroids;
use crate::arena::{Segments, prefetch_row};
use crate::distance::{Lane, Scorer};
use crate::params::{Element, Metric};

const BLOCK_ROWS: usize = 32;
/// Lines of the next block that are asked for while one is scanned.
const LINES_AHEAD: usize = 16;
/// Rows of no more lines are asked for some rows ahead: the memory system has hardly
/// seen where a stream goes when it ends. On longer rows searches took a third longer.
const SHORT_ROW_LINES: usize = 16;
/// So many.
const SHORT_ROWS_AHEAD: usize = 4;

/// Of all lists: what the rule of retraining looks at.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Fit {
    pub(super) rows: usize,
    /// Of each row to its list's centroid, summed up.
    pub(super) distance: f64,
}

impl Fit {
    pub(super) fn mean(&self) -> f64 {
        self.distance / self.rows.max(1) as f64
    }
}

/// One list as readers see it.
struct Chain {
    /// `block + 1`, zero while the list is empty.
    head: AtomicU32,
    /// Published rows.
    len: AtomicU32,
    /// No row is farther from the centroid, as the bits of a float.
    radius: AtomicU32,
}

/// What only appending needs.
struct Writer {
    blocks: u32,
    /// Last block of each list.
    tails: Box<[u32]>,
    fit: Fit,
}

pub(super) struct Lists {
    /// `None`: one list of everything, before there is enough to train on.
    pub(super) centroids: Option<Arc<Centroids>>,
    width: usize,
    chains: Box<[Chain]>,
    vectors: Segments<UnsafeCell<Lane>>,
    /// For each block the next one of its list (`block + 1`, zero ends), then ids.
    heads: Segments<AtomicU32>,
    euclid: Scorer,
    writer: Mutex<Writer>,
}

// SAFETY: a row's lanes are written once, by one writer at a time (`writer`), before
// the length that counts the row is published by a release store; they are read only
// below a length that was read by an acquire load.
#[allow(unsafe_code)]
unsafe impl Sync for Lists {}

impl Lists {
    /// Of vectors of `width` lanes.
    pub(super) fn new(width: usize, centroids: Option<Arc<Centroids>>) -> Self {
        let lists = centroids.as_ref().map_or(1, |c| c.len());
        let chain = |_| Chain {
            head: AtomicU32::new(0),
            len: AtomicU32::new(0),
            radius: AtomicU32::new(0),
        };
        Self {
            centroids,
            width,
            chains: (0..lists).map(chain).collect(),
            vectors: Segments::new(BLOCK_ROWS * width),
            heads: Segments::new(1 + BLOCK_ROWS),
            euclid: Scorer::new(Metric::L2, Element::F32),
            writer: Mutex::new(Writer {
                blocks: 0,
                tails: vec![0; lists].into(),
                fit: Fit::default(),
            }),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.chains.len()
    }

    /// Rows of a list that readers may see.
    pub(super) fn rows_of(&self, list: u32) -> u32 {
        self.chains[list as usize].len.load(Ordering::Acquire)
    }

    pub(super) fn rows(&self) -> usize {
        (0..self.len() as u32)
            .map(|list| self.rows_of(list) as usize)
            .sum()
    }

    /// No row of the list that was published when the caller looked is farther from its
    /// centroid, but for rounding. Infinite for the list of everything.
    pub(super) fn radius(&self, list: u32) -> f32 {
        match self.centroids {
            Some(_) => f32::from_bits(self.chains[list as usize].radius.load(Ordering::Acquire)),
            None => f32::INFINITY,
        }
    }

    /// How well the rows appended so far lie to their centroids.
    pub(super) fn fit(&self) -> Fit {
        self.writer.lock().fit
    }

    /// How much longer a search of a row's own list is than of lists of equal length.
    pub(super) fn imbalance(&self) -> f64 {
        let (mut sum, mut squares) = (0f64, 0f64);
        for list in 0..self.len() as u32 {
            let rows = f64::from(self.rows_of(list));
            sum += rows;
            squares += rows * rows;
        }
        match sum {
            0.0 => 1.0,
            _ => squares * self.len() as f64 / (sum * sum),
        }
    }

    /// The list of each vector.
    pub(super) fn nearest(&self, vectors: &[&[Lane]]) -> Vec<u32> {
        match &self.centroids {
            Some(centroids) => centroids.nearest(vectors),
            None => vec![0; vectors.len()],
        }
    }

    /// Adds a row to a list; readers see it when this returns.
    pub(super) fn append(&self, list: u32, id: u32, vector: &[Lane]) {
        assert_eq!(
            vector.len(),
            self.width,
            "vectors of one index have one length"
        );
        let centroid = self.centroids.as_ref().map(|c| c.point(list));
        let distance = centroid.map_or(0.0, |c| self.euclid.rank(vector, c).sqrt());
        let chain = &self.chains[list as usize];
        let mut writer = self.writer.lock();
        let len = chain.len.load(Ordering::Relaxed);
        let at = len as usize % BLOCK_ROWS;
        if at == 0 {
            self.add_block(&mut writer, list);
        }
        let block = writer.tails[list as usize];
        let cells = &self.vectors.row(block)[at * self.width..][..self.width];
        for (cell, lane) in cells.iter().zip(vector) {
            // SAFETY: the row is not published, and this is the only writer: its lock is held.
            #[allow(unsafe_code)]
            unsafe {
                *cell.get() = *lane;
            }
        }
        self.heads.row(block)[1 + at].store(id, Ordering::Relaxed);
        let radius = f32::from_bits(chain.radius.load(Ordering::Relaxed)).max(distance);
        chain.radius.store(radius.to_bits(), Ordering::Relaxed);
        writer.fit.rows += 1;
        writer.fit.distance += f64::from(distance);
        chain.len.store(len + 1, Ordering::Release);
    }

    fn add_block(&self, writer: &mut Writer, list: u32) {
        let block = writer.blocks;
        self.vectors.ensure(block);
        self.heads.ensure(block);
        let chain = &self.chains[list as usize];
        let before = match chain.head.load(Ordering::Relaxed) {
            0 => &chain.head,
            _ => &self.heads.row(writer.tails[list as usize])[0],
        };
        before.store(block + 1, Ordering::Release);
        writer.tails[list as usize] = block;
        writer.blocks += 1;
    }

    /// Passes on the rows `from..upto` of a list, in the order in which they came, each
    /// with its number (see [`Lists::vector`]), id and vector.
    pub(super) fn scan<'a>(
        &'a self,
        list: u32,
        from: u32,
        upto: u32,
        mut each: impl FnMut(u32, u32, &'a [Lane]),
    ) {
        let chain = &self.chains[list as usize];
        assert!(upto <= self.rows_of(list), "rows that are not published");
        let mut link = chain.head.load(Ordering::Acquire);
        let mut first = 0;
        while first < upto {
            let block = link - 1;
            let head = self.heads.row(block);
            link = head[0].load(Ordering::Acquire);
            let end = (upto - first).min(BLOCK_ROWS as u32);
            let begin = from.saturating_sub(first);
            if begin < end {
                if first + end < upto {
                    self.prefetch(link - 1);
                }
                let vectors = self.block(block, end as usize);
                for at in begin..end {
                    if self.width <= SHORT_ROW_LINES {
                        let ahead = (at as usize + SHORT_ROWS_AHEAD) * self.width;
                        prefetch_row(vectors.get(ahead..ahead + self.width).unwrap_or(&[]));
                    }
                    let vector = &vectors[at as usize * self.width..][..self.width];
                    let id = head[1 + at as usize].load(Ordering::Relaxed);
                    each(block * BLOCK_ROWS as u32 + at, id, vector);
                }
            }
            first += BLOCK_ROWS as u32;
        }
    }

    /// The vector of a row's number, as `scan` gave it.
    pub(super) fn vector(&self, number: u32) -> &[Lane] {
        let (block, at) = (number / BLOCK_ROWS as u32, number as usize % BLOCK_ROWS);
        &self.block(block, at + 1)[at * self.width..]
    }

    /// The first rows of a block, which the caller knows to be published.
    fn block(&self, block: u32, rows: usize) -> &[Lane] {
        let cells = &self.vectors.row(block)[..rows * self.width];
        // SAFETY: published rows are never written again (see `Sync`), and
        // UnsafeCell<Lane> has the layout of Lane. `scan` alone hands out numbers, of
        // rows below a length that it has read.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(cells.as_ptr().cast::<Lane>(), cells.len())
        }
    }

    fn prefetch(&self, block: u32) {
        prefetch_row(&self.heads.row(block)[..1]);
        let lanes = self.vectors.row(block);
        prefetch_row(&lanes[..LINES_AHEAD.min(lanes.len())]);
    }

    /// Bytes of blocks and centroids.
    pub(super) fn memory_bytes(&self) -> usize {
        let block =
            BLOCK_ROWS * self.width * size_of::<Lane>() + (1 + BLOCK_ROWS) * size_of::<AtomicU32>();
        self.writer.lock().blocks as usize * block
            + self.len() * (size_of::<Chain>() + size_of::<u32>())
            + self.centroids.as_ref().map_or(0, |c| c.memory_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(id: u32) -> [Lane; 2] {
        [Lane([id as f32; 16]), Lane([-(id as f32); 16])]
    }

    #[test]
    fn each_list_keeps_its_rows_in_their_order() {
        let points = vec![Lane([0.0; 16]); 2 * 3];
        let centroids = Centroids::new(
            super::super::centroids::Geometry::Euclidean,
            2,
            points.into(),
        );
        let lists = Lists::new(2, Some(Arc::new(centroids)));
        let list_of = |id: u32| if id.is_multiple_of(5) { 2 } else { 0 };
        for id in 0..1_000 {
            lists.append(list_of(id), id, &vector(id));
        }
        assert_eq!([0, 1, 2].map(|list| lists.rows_of(list)), [800, 0, 200]);
        for (list, from, upto) in [
            (0, 0, 800),
            (0, 31, 33),
            (0, 32, 32),
            (2, 64, 200),
            (1, 0, 0),
        ] {
            let ids: Vec<u32> = (0..1_000).filter(|id| list_of(*id) == list).collect();
            let mut met = Vec::new();
            lists.scan(list, from, upto, |number, id, lanes| {
                assert_eq!(lanes, vector(id));
                assert_eq!(lists.vector(number), vector(id));
                met.push(id);
            });
            assert_eq!(met, ids[from as usize..upto as usize]);
        }
        // 995 in each of 32 dimensions.
        assert!((lists.radius(2) - 995.0 * 32f32.sqrt()).abs() < 0.1);
        assert_eq!(lists.radius(1), 0.0);
        assert!((lists.imbalance() - 3.0 * 0.68).abs() < 1e-9);
        assert_eq!(lists.fit().rows, 1_000);
    }

    #[test]
    fn readers_see_whole_rows_while_one_appends() {
        let lists = Lists::new(2, None);
        std::thread::scope(|scope| {
            scope.spawn(|| (0..20_000).for_each(|id| lists.append(0, id, &vector(id))));
            scope.spawn(|| {
                let mut upto = 0;
                while upto < 20_000 {
                    upto = lists.rows_of(0);
                    let mut next = upto.saturating_sub(100);
                    lists.scan(0, next, upto, |_, id, lanes| {
                        assert!(id == next && lanes == vector(id));
                        next += 1;
                    });
                }
            });
        });
    }
}
