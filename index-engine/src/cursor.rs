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

use crate::codes::{CoarseQuery, Lookup};
use crate::distance::Lane;
use crate::filter::{Predicate, Rounds, Scene, Strategy};
use crate::hnsw::{
    Aim, Beam, Candidate, CoarseSight, CoarseWalk, Codes, Eligible, Hnsw, Sight, Visited, Walk,
};
use crate::params::{Effort, PAGE_ROWS_MAX};
use crate::partition_index::{PartitionIndex, VectorId};
use crate::readers::Reader;
use crate::tail::TailPart;

/// What a search has found next. A hit is a vector and its distance; a group's names the
/// partition too.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<Hit = (VectorId, f64)> {
    /// Nearest first, with the distance of the SQL operator.
    pub hits: Vec<Hit>,
    /// No later hit is nearer, as far as the search knows: exactly so for the
    /// tail and exact searches, probably so for the graph. Infinity when exhausted.
    pub bound: f64,
    /// Every visible row has been returned, by this page or an earlier one.
    pub exhausted: bool,
    /// Rows of the tail scanned for this page (the first one scans them all).
    pub tail_rows: usize,
    /// Distances computed for this page: of vectors, and of their sketches or own codes; not
    /// what codes of neighbours estimate.
    pub distances: usize,
    /// Hits may bear the distance that their codes say, and be ordered by it: that of
    /// [`Effort::Fast`] over [`Compact`](crate::Representation::Compact). `bound` is then
    /// what no later hit is nearer than, by its true distance or the one reported.
    pub approximate: bool,
    /// Of these, vectors read to rank rows that codes of
    /// [`Compact`](crate::Representation::Compact) had found.
    pub originals: usize,
    /// For this page the search began again by exact distances: sketches told it nothing, as
    /// where rows have drifted far away from the first. Once a search at most.
    pub restarted: bool,
}

/// A search in progress. Belongs to the index that opened it.
pub struct Cursor {
    target: Box<[Lane]>,
    query: Query,
    ef: usize,
    snapshot_xmin: u64,
    effort: Effort,
    /// What was born before is found by the walk; nothing if it is zero.
    linked: u64,
    /// What was born before this and not linked; empty once scanned.
    tail: TailPart,
    visited: Visited,
    walk: AnyWalk,
    /// Which rows are asked for; all if there is none.
    filter: Option<Predicate>,
    /// Exactly scanned rows, of the tail and of the sweep.
    scanned: BinaryHeap<Reverse<Candidate>>,
    started: bool,
    /// The walk has gone on, and what sketches told it has been judged.
    judged: bool,
    /// It has begun again by exact distances, and no page has told so.
    restarted: bool,
    swept: bool,
    bound: f64,
    _reader: Reader,
}

/// The rows of a search: in the graph, or of the tail.
#[derive(Clone, Copy)]
struct Rows<'a> {
    index: &'a PartitionIndex,
    born_before: u64,
    snapshot_xmin: u64,
    filter: Option<&'a Predicate>,
}

impl Eligible for Rows<'_> {
    fn prefetch(&self, id: u32) {
        self.index.lives.prefetch(id);
        if self.filter.is_some() {
            self.index.columns.prefetch(id);
        }
    }

    fn is_eligible(&self, id: u32) -> bool {
        let matches = |filter| self.index.columns.matches(filter, id);
        self.is_linked_row(id) && self.filter.is_none_or(matches)
    }

    fn is_linked_row(&self, id: u32) -> bool {
        let lives = &self.index.lives;
        lives.is_visible_before(id, self.born_before, self.snapshot_xmin)
    }
}

/// The query as the index's codes take it.
enum Query {
    Plain,
    Coded(Lookup),
    Coarse(CoarseQuery),
}

impl Query {
    /// What is searched for in an index, by what it is ranked with.
    fn aim<'a>(&'a self, hnsw: &'a Hnsw, lanes: &'a [Lane]) -> Aim<'a> {
        let codes = match (self, &hnsw.coding, &hnsw.compact) {
            (Self::Coded(lookup), Some(coding), _) => Codes::OfNeighbours(coding, lookup),
            (Self::Coarse(query), _, Some(compact)) => Codes::OfVectors(compact, query),
            _ => Codes::None,
        };
        Aim { hnsw, lanes, codes }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Coded(lookup) => lookup.memory_bytes(),
            Self::Coarse(query) => query.memory_bytes(),
        }
    }
}

/// How the graph is searched.
enum AnyWalk {
    Exact(Walk),
    Coded(Beam),
    Filtered(Rounds),
    Coarse(CoarseWalk),
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
            Self::Filtered(rounds) => rounds.peek(),
            Self::Coarse(walk) => walk.peek(),
        }
    }

    fn pop(&mut self) -> Option<Candidate> {
        match self {
            Self::Exact(walk) => walk.pop(),
            Self::Coded(beam) => beam.pop(),
            Self::Coarse(walk) => walk.pop(),
            Self::Filtered(rounds) => rounds.pop(),
        }
    }

    /// The rank that no row is below which was met and not given out, as far as is known.
    fn least_pending(&self, aim: Aim<'_>) -> Option<f32> {
        match self {
            Self::Exact(walk) => walk.nearest_pending().map(Candidate::rank),
            Self::Coded(beam) => beam.nearest_pending().map(Candidate::rank),
            Self::Coarse(walk) => walk.least_pending(aim),
            Self::Filtered(rounds) => rounds.least_pending(aim),
        }
    }

    /// Whether sketches told the nearest rows from others, where they were gone by.
    fn is_told(&self) -> bool {
        match self {
            Self::Coded(beam) => beam.is_told(),
            Self::Filtered(rounds) => rounds.is_told(),
            Self::Exact(_) | Self::Coarse(_) => true,
        }
    }

    /// Vectors read so far to rank what codes had found.
    fn originals(&self) -> usize {
        match self {
            Self::Exact(_) | Self::Coded(_) => 0,
            Self::Coarse(walk) => walk.originals(),
            Self::Filtered(rounds) => rounds.originals(),
        }
    }

    fn is_spent(&self) -> bool {
        match self {
            Self::Exact(walk) => walk.is_spent(),
            Self::Coded(beam) => beam.is_spent(),
            Self::Filtered(rounds) => rounds.is_spent(),
            Self::Coarse(walk) => walk.is_spent(),
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Exact(walk) => walk.memory_bytes(),
            Self::Coded(beam) => beam.memory_bytes(),
            Self::Filtered(rounds) => rounds.memory_bytes(),
            Self::Coarse(walk) => walk.memory_bytes(),
        }
    }
}

impl Cursor {
    pub(crate) fn new(
        hnsw: &Hnsw,
        target: Box<[Lane]>,
        (ef, effort): (usize, Effort),
        snapshot_xmin: u64,
        tail: TailPart,
        reader: Reader,
    ) -> Self {
        let linked = match effort {
            Effort::Exact => 0,
            Effort::Balanced | Effort::Fast => tail.births().start,
        };
        let (query, walk) = match (&hnsw.coding, &hnsw.compact) {
            (Some(coding), _) if linked > 0 => (
                Query::Coded(hnsw.lookup(coding, &target)),
                AnyWalk::Coded(Beam::default()),
            ),
            (_, Some(compact)) if linked > 0 => (
                Query::Coarse(compact.codes.query(&hnsw.rotated(&target))),
                // By no code does a query without a distance to anything come last.
                AnyWalk::Coarse(CoarseWalk::new(
                    effort != Effort::Fast || hnsw.scorer.is_incomparable(&target),
                )),
            ),
            _ => (Query::Plain, AnyWalk::Exact(Walk::default())),
        };
        Self {
            query,
            target,
            ef,
            snapshot_xmin,
            effort,
            linked,
            tail,
            visited: hnsw.visited.take(hnsw.vectors.len()),
            walk,
            filter: None,
            scanned: BinaryHeap::new(),
            started: false,
            judged: false,
            restarted: false,
            swept: linked == 0,
            bound: f64::NEG_INFINITY,
            _reader: reader,
        }
    }

    /// Asks for matching rows only, before the first page.
    pub(crate) fn restrict(&mut self, index: &PartitionIndex, filter: Predicate) {
        if self.linked > 0 {
            let matching = index.columns.count(&filter);
            self.walk = AnyWalk::Filtered(Rounds::new(matching));
            // The last round meets what there is.
            self.swept = true;
        }
        self.filter = Some(filter);
    }

    /// A filtered search ranks all rows that match, whatever else would be quicker: what
    /// other ways are measured by. Before the first page.
    pub fn rank_all_matching(&mut self) {
        if let AnyWalk::Filtered(rounds) = &mut self.walk {
            rounds.list_at_once();
        }
    }

    /// How a filtered search found the rows that it met last; `None` without a filter, and
    /// where nothing but the tail has been looked at.
    pub fn strategy(&self) -> Option<Strategy> {
        match &self.walk {
            AnyWalk::Filtered(rounds) => rounds.strategy(),
            _ => None,
        }
    }

    /// Linked rows that a filtered search has looked at so far, matching or not.
    pub fn considered(&self) -> usize {
        match &self.walk {
            AnyWalk::Filtered(rounds) => rounds.considered(),
            _ => 0,
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
        let read_before = self.walk.originals();
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
            let scanned = self.scanned.peek().map(|r| r.0.rank());
            let walked = self
                .walk
                .least_pending(self.query.aim(&index.hnsw, &self.target));
            let next = walked.into_iter().chain(scanned).min_by(f32::total_cmp);
            match (next, hits.last()) {
                (Some(next), _) => scorer.distance(next),
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
            approximate: matches!(&self.walk, AnyWalk::Coarse(walk) if !walk.is_exact()),
            originals: self.walk.originals() - read_before,
            restarted: std::mem::take(&mut self.restarted),
        }
    }

    /// What an open cursor costs: it remembers what it met. Grows with paging, at
    /// most to about forty bytes per vector of the index.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&*self.target)
            + self.visited.memory_bytes()
            + self.query.memory_bytes()
            + self.walk.memory_bytes()
            + self.tail.memory_bytes()
            + self.filter.as_ref().map_or(0, Predicate::memory_bytes)
            + self.scanned.capacity() * size_of::<Candidate>()
    }

    /// Sketches were of no use: the walk begins again, by exact distances.
    fn begin_again_by_distance(&mut self, index: &PartitionIndex) {
        self.restarted = true;
        self.query = Query::Plain;
        self.walk = match &self.walk {
            AnyWalk::Filtered(rounds) => AnyWalk::Filtered(rounds.afresh()),
            _ => AnyWalk::Exact(Walk::default()),
        };
        let hnsw = &index.hnsw;
        self.visited = hnsw.visited.take(hnsw.vectors.len());
    }

    /// Brings the nearest rows within reach: walks on, and sweeps once the walk has
    /// met all that it can. False if there is no more to meet.
    fn advance(&mut self, index: &PartitionIndex, rows: usize, distances: &mut usize) -> bool {
        if self.linked == 0 {
            return false;
        }
        let width = self.ef.max(rows);
        let eligible = Rows {
            index,
            born_before: self.linked,
            snapshot_xmin: self.snapshot_xmin,
            filter: self.filter.as_ref(),
        };
        let (hnsw, visited) = (&index.hnsw, &mut self.visited);
        let aim = self.query.aim(hnsw, &self.target);
        let more = match (&mut self.walk, &self.query) {
            (AnyWalk::Coded(beam), Query::Coded(lookup)) => {
                let coding = hnsw.coding.as_ref().expect("the index has codes");
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
            (AnyWalk::Coarse(walk), Query::Coarse(_)) => {
                let mut sight = CoarseSight {
                    aim,
                    eligible,
                    visited,
                    distances,
                };
                walk.advance(&mut sight, rows, width)
            }
            (AnyWalk::Filtered(rounds), _) => {
                let Some(predicate) = &self.filter else {
                    unreachable!("rounds are made for a filter");
                };
                let mut scene = Scene {
                    aim,
                    columns: &index.columns,
                    predicate,
                    eligible,
                    met: visited,
                    distances,
                };
                rounds.advance(&mut scene, rows, width)
            }
            (AnyWalk::Coded(_) | AnyWalk::Coarse(_), _) => {
                unreachable!("a walk is made beside its query")
            }
            (AnyWalk::Exact(walk), _) => {
                let eligible = |id| eligible.is_eligible(id);
                walk.advance(hnsw, &self.target, width, visited, eligible, distances)
            }
        };
        // Before anything of the walk is given out.
        if !std::mem::replace(&mut self.judged, true) && !self.walk.is_told() {
            self.begin_again_by_distance(index);
            return self.advance(index, rows, distances);
        }
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
        if self.effort == Effort::Exact {
            let slots = 0..index.hnsw.vectors.len();
            return match &self.filter {
                Some(filter) => {
                    // What is listed and not yet published came later than the search.
                    let listed = index.columns.candidates(filter).into_iter();
                    let published = listed.take_while(|id| slots.contains(id));
                    self.scan(index, published, born_before, false)
                }
                None => self.scan(index, slots, born_before, false),
            };
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
        let rows = Rows {
            index,
            born_before,
            snapshot_xmin: self.snapshot_xmin,
            filter: self.filter.as_ref(),
        };
        for id in slots {
            if rows.is_eligible(id) && (!sweep || self.visited.insert(id)) {
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
