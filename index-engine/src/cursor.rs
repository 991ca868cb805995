//! One search, page by page, until nothing is left.
//!
//! The visible rows fall into two parts that a cursor fixes when it opens: those
//! born before `linked`, which the graph's walk finds, and the tail of those born
//! later, scanned exactly on the first page. What the walk cannot reach is swept,
//! exactly, once it has nothing more. Each row belongs to one part and comes out
//! once. Vectors inserted or folded meanwhile serve the walk as waypoints, never as
//! hits. While a cursor is open, no slot that it can come to is used again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::codes::Lookup;
use crate::distance::Lane;
use crate::hnsw::{Beam, Candidate, Eligible, Sight, Visited, Walk};
use crate::params::PAGE_ROWS_MAX;
use crate::partition_index::{PartitionIndex, VectorId};
use crate::readers::Reader;
use crate::tail::TailPart;

#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Nearest first, with the distance of the SQL operator.
    pub hits: Vec<(VectorId, f64)>,
    /// No later hit is nearer, as far as the search knows: exactly so for the
    /// tail and exact searches, probably so for the graph. Infinity when exhausted.
    pub bound: f64,
    /// Every visible row has been returned, by this page or an earlier one.
    pub exhausted: bool,
    /// Rows of the tail scanned for this page (the first one scans them all).
    pub tail_rows: usize,
    /// Distances computed for this page.
    pub distances: usize,
}

/// A search in progress. Belongs to the index that opened it.
pub struct Cursor {
    target: Box<[Lane]>,
    /// For an index with codes.
    lookup: Option<Lookup>,
    ef: usize,
    snapshot_xmin: u64,
    exact: bool,
    /// What was born before is found by the walk; nothing if it is zero.
    linked: u64,
    /// What was born before this and not linked; empty once scanned.
    tail: TailPart,
    visited: Visited,
    walk: AnyWalk,
    /// Exactly scanned rows, of the tail and of the sweep.
    scanned: BinaryHeap<Reverse<Candidate>>,
    started: bool,
    swept: bool,
    bound: f64,
    _reader: Reader,
}

/// The rows of a search in the graph.
struct Rows<'a> {
    index: &'a PartitionIndex,
    linked: u64,
    snapshot_xmin: u64,
}

impl Eligible for Rows<'_> {
    fn prefetch(&self, id: u32) {
        self.index.lives.prefetch(id);
    }

    fn is_eligible(&self, id: u32) -> bool {
        let lives = &self.index.lives;
        lives.is_visible_before(id, self.linked, self.snapshot_xmin)
    }
}

/// How the graph is searched.
enum AnyWalk {
    Exact(Walk),
    Coded(Beam),
}

impl AnyWalk {
    fn start_giving(&mut self) {
        if let Self::Exact(walk) = self {
            walk.start_giving();
        }
    }

    fn finish_giving(&mut self) {
        if let Self::Exact(walk) = self {
            walk.finish_giving();
        }
    }

    fn peek(&self) -> Option<Candidate> {
        match self {
            Self::Exact(walk) => walk.peek(),
            Self::Coded(beam) => beam.peek(),
        }
    }

    fn pop(&mut self) -> Option<Candidate> {
        match self {
            Self::Exact(walk) => walk.pop(),
            Self::Coded(beam) => beam.pop(),
        }
    }

    fn nearest_pending(&self) -> Option<Candidate> {
        match self {
            Self::Exact(walk) => walk.nearest_pending(),
            Self::Coded(beam) => beam.nearest_pending(),
        }
    }

    fn is_spent(&self) -> bool {
        match self {
            Self::Exact(walk) => walk.is_spent(),
            Self::Coded(beam) => beam.is_spent(),
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Exact(walk) => walk.memory_bytes(),
            Self::Coded(beam) => beam.memory_bytes(),
        }
    }
}

impl Cursor {
    pub(crate) fn new(
        target: Box<[Lane]>,
        has_codes: bool,
        visited: Visited,
        (ef, exact): (usize, bool),
        snapshot_xmin: u64,
        tail: TailPart,
        reader: Reader,
    ) -> Self {
        let linked = if exact { 0 } else { tail.births().start };
        Self {
            lookup: has_codes.then(|| Lookup::new(&target)),
            target,
            ef,
            snapshot_xmin,
            exact,
            linked,
            tail,
            visited,
            walk: if has_codes {
                AnyWalk::Coded(Beam::default())
            } else {
                AnyWalk::Exact(Walk::default())
            },
            scanned: BinaryHeap::new(),
            started: false,
            swept: linked == 0,
            bound: f64::NEG_INFINITY,
            _reader: reader,
        }
    }

    /// The next `rows` hits (from 1 to [`PAGE_ROWS_MAX`]); fewer only when exhausted.
    ///
    /// # Panics
    /// If `index` is not the one that opened the cursor.
    pub fn next_page(&mut self, index: &PartitionIndex, rows: usize) -> Page {
        assert!(
            self.visited.is_of(&index.hnsw.visited),
            "a cursor pages over the index that opened it"
        );
        let rows = rows.clamp(1, PAGE_ROWS_MAX);
        let mut found: Vec<Candidate> = Vec::with_capacity(rows);
        let mut distances = 0;
        let mut tail_rows = 0;
        if !self.started {
            self.started = true;
            tail_rows = self.scan_first(index);
            distances += tail_rows;
        }
        loop {
            let more = self.advance(index, rows, &mut distances);
            let used = self.emit(index, rows, &mut found);
            if found.len() == rows || (used == 0 && !more) {
                break;
            }
        }
        found.sort_unstable();
        let scorer = &index.hnsw.scorer;
        let hits: Vec<_> = found
            .into_iter()
            .map(|c| (VectorId(c.id()), scorer.distance(c.rank())))
            .collect();
        let exhausted = self.swept && self.walk.is_spent() && self.scanned.is_empty();
        self.bound = if exhausted {
            f64::INFINITY
        } else {
            let scanned = self.scanned.peek().map(|r| r.0);
            let next = self.walk.nearest_pending().into_iter().chain(scanned).min();
            match (next, hits.last()) {
                (Some(next), _) => scorer.distance(next.rank()),
                (None, Some((_, last))) => self.bound.max(*last),
                (None, None) => self.bound,
            }
        };
        Page {
            hits,
            bound: self.bound,
            exhausted,
            tail_rows,
            distances,
        }
    }

    /// What an open cursor costs: it remembers what it met. Grows with paging, at
    /// most to about forty bytes per vector of the index.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&*self.target)
            + self.visited.memory_bytes()
            + self.lookup.as_ref().map_or(0, Lookup::memory_bytes)
            + self.walk.memory_bytes()
            + self.tail.memory_bytes()
            + self.scanned.capacity() * size_of::<Candidate>()
    }

    /// Brings the nearest rows within reach: walks on, and sweeps once the walk has
    /// met all that it can. False if there is no more to meet.
    fn advance(&mut self, index: &PartitionIndex, rows: usize, distances: &mut usize) -> bool {
        if self.linked == 0 {
            return false;
        }
        let (linked, snapshot_xmin) = (self.linked, self.snapshot_xmin);
        let width = self.ef.max(rows);
        let eligible = Rows {
            index,
            linked,
            snapshot_xmin,
        };
        let (hnsw, visited) = (&index.hnsw, &mut self.visited);
        let more = match (&mut self.walk, &hnsw.coding, &self.lookup) {
            (AnyWalk::Coded(beam), Some(coding), Some(lookup)) => {
                let mut sight = Sight {
                    hnsw,
                    coding,
                    lanes: &self.target,
                    lookup,
                    eligible,
                    visited,
                    distances,
                };
                beam.advance(&mut sight, rows, width)
            }
            (AnyWalk::Coded(_), ..) => unreachable!("a beam is made beside a lookup"),
            (AnyWalk::Exact(walk), ..) => {
                let eligible = |id| eligible.is_eligible(id);
                walk.advance(hnsw, &self.target, width, visited, eligible, distances)
            }
        };
        if !more && !self.swept {
            self.swept = true;
            *distances += self.sweep(index);
        }
        more
    }

    /// Ranks the tail, or for an exact search everything.
    fn scan_first(&mut self, index: &PartitionIndex) -> usize {
        let tail = std::mem::take(&mut self.tail);
        let born_before = tail.births().end;
        if self.exact {
            let slots = 0..index.hnsw.vectors.len();
            return self.scan(index, slots, born_before, false);
        }
        self.scan(index, tail.slots(), born_before, false)
    }

    /// Ranks the linked rows that the walk has not met.
    fn sweep(&mut self, index: &PartitionIndex) -> usize {
        let slots = 0..index.hnsw.vectors.len();
        self.scan(index, slots, self.linked, true)
    }

    /// Ranks visible rows exactly; on a sweep only those not met by the walk.
    fn scan(
        &mut self,
        index: &PartitionIndex,
        slots: impl Iterator<Item = u32>,
        born_before: u64,
        sweep: bool,
    ) -> usize {
        let mut scanned = std::mem::take(&mut self.scanned).into_vec();
        let before = scanned.len();
        let (lives, snapshot_xmin) = (&index.lives, self.snapshot_xmin);
        for id in slots {
            if lives.is_visible_before(id, born_before, snapshot_xmin)
                && (!sweep || self.visited.insert(id))
            {
                scanned.push(Reverse(index.hnsw.candidate(&self.target, id)));
            }
        }
        let ranked = scanned.len() - before;
        self.scanned = BinaryHeap::from(scanned);
        ranked
    }

    /// Merges the walk's rows with the scanned ones into `found`, nearest first.
    /// Stops where the walk has to go on. Returns how many it used up, including
    /// those that have lost their visibility since they were met.
    fn emit(&mut self, index: &PartitionIndex, rows: usize, found: &mut Vec<Candidate>) -> usize {
        let mut used = 0;
        self.walk.start_giving();
        while found.len() < rows {
            let scanned = self.scanned.peek().map(|r| r.0);
            let next = match (self.walk.peek(), scanned) {
                (Some(walked), scanned) if scanned.is_none_or(|s| walked < s) => self.walk.pop(),
                (None, _) if !self.walk.is_spent() => None,
                _ => self.scanned.pop().map(|r| r.0),
            };
            let Some(next) = next else { break };
            used += 1;
            if index.lives.is_visible(next.id(), self.snapshot_xmin) {
                found.push(next);
            }
        }
        self.walk.finish_giving();
        used
    }
}
