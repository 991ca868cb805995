//! One search over inverted lists, page by page, until nothing is left.
//!
//! The first page scans the lists nearest to the query, `probes` of them. A later page
//! scans further lists, as far as it takes to have as many rows in sight again: so
//! pages cost what they give. Within what was scanned the order is exact, and in the
//! end every list has been scanned.
//!
//! How near a row of a list can be at all follows from the list's radius, its rows'
//! greatest distance from the centroid. An exact search gives a row out when no list
//! that it has not scanned can hold a nearer one, and scans no more than it takes.
//!
//! A row belongs to the search if it was inserted before. Whether it is visible is
//! looked up when it is given out: most rows in sight never are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::lists::Lists;
use crate::cursor::Page;
use crate::distance::{Lane, Scorer};
use crate::hnsw::Candidate;
use crate::life::Lives;
use crate::params::{Element, Metric, PAGE_ROWS_MAX};
use crate::partition_index::VectorId;

/// What rounding may do to a distance, a radius and what they bound, as a part of their
/// sum: kernels agree with a wide sum to 1e-5 of its terms.
const ROUNDING: f32 = 4e-5;

/// The rows of a search.
pub(super) struct Rows {
    pub(super) lists: Arc<Lists>,
    pub(super) lives: Arc<Lives>,
    pub(super) scorer: Scorer,
    pub(super) metric: Metric,
    /// Ids from here on came later.
    pub(super) upto: u32,
    pub(super) snapshot_xmin: u64,
}

/// A search in progress. Keeps the lists that it was opened on.
pub struct IvfCursor {
    rows: Rows,
    target: Box<[Lane]>,
    probes: usize,
    exact: bool,
    /// Lists not scanned yet: by their centroid's nearness, or in an exact search by
    /// the rank that none of their rows is below.
    ahead: BinaryHeap<Reverse<Candidate>>,
    /// Rows scanned and not given out.
    scanned: BinaryHeap<Reverse<Candidate>>,
    /// How many rows the first page had in sight.
    in_sight: usize,
    is_opened: bool,
    bound: f64,
}

impl IvfCursor {
    pub(super) fn new(rows: Rows, target: Box<[Lane]>, probes: usize, exact: bool) -> Self {
        let lists = 0..rows.lists.len() as u32;
        let ahead: Vec<_> = match (&rows.lists.centroids, exact) {
            (Some(centroids), false) => {
                let scores = centroids.scores(&target);
                let list = |list: u32| Candidate::new(scores[list as usize], list);
                lists.map(list).map(Reverse).collect()
            }
            _ => {
                let list = |list| Candidate::new(rows.floor(list, &target), list);
                lists.map(list).map(Reverse).collect()
            }
        };
        Self {
            rows,
            target,
            probes,
            exact,
            ahead: BinaryHeap::from(ahead),
            scanned: BinaryHeap::new(),
            in_sight: 0,
            is_opened: false,
            bound: f64::NEG_INFINITY,
        }
    }

    /// The next `rows` hits (from 1 to [`PAGE_ROWS_MAX`]); fewer only when exhausted.
    pub fn next_page(&mut self, rows: usize) -> Page {
        let rows = rows.clamp(1, PAGE_ROWS_MAX);
        let mut distances = 0;
        if !self.exact {
            self.look_ahead(rows, &mut distances);
        }
        let mut found: Vec<Candidate> = Vec::with_capacity(rows);
        while found.len() < rows {
            match self.next() {
                Some(row) if self.rows.is_visible(row) => found.push(row),
                Some(_) => {}
                None if self.ahead.is_empty() => break,
                None => self.probe(&mut distances),
            }
        }
        // A list that was scanned for the last rows may hold nearer ones.
        found.sort_unstable();
        let scorer = self.rows.scorer;
        let hit = |c: Candidate| (VectorId(c.id()), scorer.distance(c.rank()));
        let hits: Vec<_> = found.into_iter().map(hit).collect();
        let exhausted = self.ahead.is_empty() && self.scanned.is_empty();
        self.bound = self.bound_after(hits.last().map(|hit| hit.1), exhausted);
        Page {
            hits,
            bound: self.bound,
            exhausted,
            tail_rows: 0,
            distances,
            approximate: false,
            originals: 0,
            restarted: false,
        }
    }

    /// No row that is yet to come is nearer than this, certainly: also where a page's
    /// bound knows of the scanned lists only. Looks at every list that is not scanned.
    pub fn certain_bound(&self) -> f64 {
        let floor = |list: &Reverse<Candidate>| match self.exact {
            true => list.0.rank(),
            false => self.rows.floor(list.0.id(), &self.target),
        };
        let scanned = self.scanned.peek().map(|row| row.0.rank());
        let ranks = self.ahead.iter().map(floor).chain(scanned);
        match ranks.min_by(f32::total_cmp) {
            Some(rank) => self.rows.scorer.distance(rank),
            None => f64::INFINITY,
        }
    }

    /// What an open cursor costs beside the lists, which it keeps.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + size_of_val(&*self.target)
            + (self.ahead.capacity() + self.scanned.capacity()) * size_of::<Candidate>()
    }

    /// Scans as many lists as a page is to choose its rows from.
    fn look_ahead(&mut self, rows: usize, distances: &mut usize) {
        let mut found = Vec::new();
        if !self.is_opened {
            for _ in 0..self.probes {
                self.scan_next(&mut found);
            }
            self.is_opened = true;
            self.in_sight = found.len();
        }
        while self.scanned.len() + found.len() < self.in_sight.max(rows) {
            if !self.scan_next(&mut found) {
                break;
            }
        }
        self.keep(found, distances);
    }

    fn probe(&mut self, distances: &mut usize) {
        let mut found = Vec::new();
        self.scan_next(&mut found);
        self.keep(found, distances);
    }

    fn keep(&mut self, found: Vec<Reverse<Candidate>>, distances: &mut usize) {
        *distances += found.len();
        self.scanned.append(&mut BinaryHeap::from(found));
    }

    /// The nearest row in sight; of an exact search only if none can be nearer.
    fn next(&mut self) -> Option<Candidate> {
        let row = self.scanned.peek()?.0;
        let floor = self.ahead.peek().filter(|_| self.exact);
        match floor {
            Some(list) if list.0.rank() <= row.rank() => None,
            _ => self.scanned.pop().map(|row| row.0),
        }
    }

    /// Ranks the rows of the list that is next; false if there is none.
    fn scan_next(&mut self, found: &mut Vec<Reverse<Candidate>>) -> bool {
        let Some(Reverse(list)) = self.ahead.pop() else {
            return false;
        };
        let Rows {
            lists,
            scorer,
            upto,
            ..
        } = &self.rows;
        let (list, target) = (list.id(), &*self.target);
        let len = lists.rows_of(list);
        found.reserve(len as usize);
        lists.scan(list, 0, len, |_, id, row| {
            if id < *upto {
                found.push(Reverse(Candidate::new(scorer.rank(target, row), id)));
            }
        });
        true
    }

    fn bound_after(&self, last: Option<f64>, exhausted: bool) -> f64 {
        if exhausted {
            return f64::INFINITY;
        }
        if self.exact {
            return self.certain_bound();
        }
        match self.scanned.peek() {
            Some(row) => self.rows.scorer.distance(row.0.rank()),
            None => last.map_or(self.bound, |last| self.bound.max(last)),
        }
    }
}

impl Rows {
    fn is_visible(&self, row: Candidate) -> bool {
        self.lives.is_visible(row.id(), self.snapshot_xmin)
    }

    /// No row of the list ranks below: a row is within the radius `r` of its list's
    /// centroid `c`. So `|q - x| >= |q - c| - r`, and `<q, x> <= <q, c> + |q| r`.
    fn floor(&self, list: u32, target: &[Lane]) -> f32 {
        let (Some(centroids), radius) = (&self.lists.centroids, self.lists.radius(list)) else {
            return f32::NEG_INFINITY;
        };
        let centroid = centroids.point(list);
        let euclid = Scorer::new(Metric::L2, Element::F32);
        let zero = vec![Lane([0.0; Lane::WIDTH]); target.len()];
        let length = |vector: &[Lane]| euclid.rank(vector, &zero).sqrt();
        let floor = match self.metric {
            Metric::Cosine | Metric::InnerProduct => {
                // By products whatever the metric: a centroid may be zero, a hit of it not.
                let product = Scorer::new(Metric::InnerProduct, Element::F32);
                let rank = product.rank(target, centroid);
                let reach = length(target) * radius;
                let size = length(target) * (length(centroid) + radius);
                rank - reach - ROUNDING * size
            }
            // In L1 no two vectors are nearer than in L2.
            metric => {
                let distance = euclid.rank(target, centroid).sqrt();
                let least = distance - radius - ROUNDING * (distance + radius);
                match metric {
                    Metric::L2 => least.max(0.0) * least.max(0.0),
                    _ => least.max(0.0),
                }
            }
        };
        match floor.is_nan() {
            true => f32::NEG_INFINITY,
            false => floor,
        }
    }
}
