//! A filtered search of the linked rows, in rounds.
//!
//! Each round meets more of the rows that match than the one before, and the last meets
//! all: so paging ends with every row given out, whatever the rounds before have found. A
//! round begins anew and is at least twice as wide, so the rounds together cost little
//! more than the last.

use std::cmp::Reverse;

use roaring::RoaringBitmap;

use super::plan::{Choice, Known, Strategy, choose};
use super::{Columns, Predicate};
use crate::hnsw::{Aim, Candidate, Codes, Eligible, Nodes, Ranked, Visited};

/// What looking at a node costs with codes, in ranks by sketch: its block is scanned, and
/// the sketches of some of its neighbours are looked at. Measured on Fashion-MNIST, `m = 16`.
const PER_CODED_NODE: f64 = 7.5;
/// And without: most of its neighbours are ranked.
const PER_PLAIN_NODE: f64 = 14.0;
/// Rows and others that are ranked to tell whether rows lie farther from the query.
const SAMPLE: usize = 32;
/// How much farther they may lie for hopping, in deviations of the others' ranks.
const FARTHER_MAX: f32 = 0.5;
/// Rows ranked at a time.
const BATCH: usize = 16;

/// What a round may ask and change.
pub(crate) struct Scene<'a, E> {
    pub(crate) aim: Aim<'a>,
    pub(crate) columns: &'a Columns,
    pub(crate) predicate: &'a Predicate,
    /// Whether a row is of this search and matches.
    pub(crate) eligible: E,
    /// Rows that have been met.
    pub(crate) met: &'a mut Visited,
    pub(crate) distances: &'a mut usize,
}

pub(crate) struct Rounds {
    rows: Ranked,
    /// That match, about.
    matching: f64,
    given: usize,
    /// All rows are met.
    is_complete: bool,
    looked_at: usize,
    matched: usize,
    spent: f64,
    may_hop: bool,
    considered: usize,
    strategy: Option<Strategy>,
    /// The nodes of the last round: where the next one starts.
    nearest: Vec<Candidate>,
    /// Rows that may match, once a round has listed them.
    listed: Option<RoaringBitmap>,
}

impl Rounds {
    pub(crate) fn new(matching: u64) -> Self {
        Self {
            rows: Ranked::default(),
            matching: matching as f64,
            given: 0,
            is_complete: false,
            looked_at: 0,
            matched: 0,
            spent: 0.0,
            may_hop: true,
            considered: 0,
            strategy: None,
            nearest: Vec::new(),
            listed: None,
        }
    }

    /// As it was before the first round.
    pub(crate) fn afresh(&self) -> Self {
        Self {
            matching: self.matching,
            ..Self::new(0)
        }
    }

    /// The first round is the last.
    pub(crate) fn list_at_once(&mut self) {
        self.matching = 0.0;
    }

    /// The last round's.
    pub(crate) fn strategy(&self) -> Option<Strategy> {
        self.strategy
    }

    /// Rows looked at so far, matching or not.
    pub(crate) fn considered(&self) -> usize {
        self.considered
    }

    /// Brings `rows` at hand if there are as many: false when all have been met and are.
    pub(crate) fn advance(
        &mut self,
        scene: &mut Scene<'_, impl Eligible>,
        rows: usize,
        width: usize,
    ) -> bool {
        // Those behind the wanted ones show that the round was wide enough.
        let wanted = (rows + rows / 2).max(width / 2);
        while !self.is_complete && self.rows.len() < wanted {
            let choice = choose(&Known {
                matching: self.matching,
                rows: f64::from(scene.aim.hnsw.vectors.len()),
                wanted: self.given + wanted,
                width,
                looked_at: self.looked_at,
                matched: self.matched,
                spent: self.spent,
                per_node: match scene.aim.codes {
                    Codes::OfNeighbours(..) => PER_CODED_NODE,
                    Codes::OfVectors(..) | Codes::None => PER_PLAIN_NODE,
                },
                may_hop: self.may_hop,
            });
            self.spent += choice.cost;
            self.strategy = Some(choice.strategy);
            match choice.strategy {
                Strategy::PreFilter => self.rank_all(scene),
                Strategy::PostFilter => self.look_around(scene, choice),
                Strategy::Traversal => self.hop(scene, choice),
            }
        }
        self.rows.refine(scene.aim, rows, width, scene.distances);
        !(self.is_complete && self.rows.rough_len() == 0)
    }

    fn look_around(&mut self, scene: &mut Scene<'_, impl Eligible>, choice: Choice) {
        let starts = std::mem::take(&mut self.nearest);
        let nearest = scene.aim.nearest(&starts, choice.width, scene.distances);
        self.considered += nearest.len();
        self.looked_at = nearest.len().max(choice.width);
        self.matched = self.offer(scene, &nearest);
        self.nearest = nearest;
    }

    fn hop(&mut self, scene: &mut Scene<'_, impl Eligible>, choice: Choice) {
        // Once: it either finds enough, or the rows do not connect.
        self.may_hop = false;
        let candidates = self.listed(scene);
        let len = scene.aim.hnsw.vectors.len();
        let nodes = Nodes::new(len, &candidates);
        let step = candidates.len() / SAMPLE as u64;
        let sampled = (0..SAMPLE as u64).filter_map(|i| candidates.select((i * step) as u32));
        let is_row = |id: &u32| *id < len && scene.eligible.is_eligible(*id);
        let sampled: Vec<u32> = sampled.filter(is_row).collect();
        self.listed = Some(candidates);
        if are_farther(scene, &sampled, len) {
            return;
        }
        let mut starts = self.nearest.clone();
        starts.sort_unstable();
        let aim = scene.aim;
        let found = aim.nearest_among(&nodes, &starts, choice.width, scene.distances);
        self.considered += found.len();
        self.offer(scene, &found);
    }

    /// Takes the rows that the nodes stand for. Answers how many match, those met before
    /// included.
    fn offer(&mut self, scene: &mut Scene<'_, impl Eligible>, nodes: &[Candidate]) -> usize {
        for node in nodes {
            scene.eligible.prefetch(node.id());
            scene.aim.prefetch_copies(node.id());
        }
        let mut matched = 0;
        for node in nodes {
            let own = std::iter::once(node.id());
            for id in own.chain(scene.aim.copies(node.id())) {
                if scene.eligible.is_eligible(id) {
                    matched += 1;
                    if scene.met.insert(id) {
                        self.take(scene.aim, Candidate::new(node.rank(), id));
                    }
                }
            }
        }
        matched
    }

    /// What is listed later is not of this search.
    fn listed(&mut self, scene: &Scene<'_, impl Eligible>) -> RoaringBitmap {
        let listed = self.listed.take();
        listed.unwrap_or_else(|| scene.columns.candidates(scene.predicate))
    }

    fn take(&mut self, aim: Aim<'_>, row: Candidate) {
        if aim.has_codes() {
            self.rows.push_rough(aim.turn(row));
        } else {
            self.rows.push_exact(row);
        }
    }

    /// Meets every row that matches and was not met before.
    fn rank_all(&mut self, scene: &mut Scene<'_, impl Eligible>) {
        self.is_complete = true;
        self.nearest = Vec::new();
        let candidates = self.listed(scene);
        self.considered += candidates.len() as usize;
        let aim = scene.aim;
        // What is listed and not yet published came later than the search.
        let len = aim.hnsw.vectors.len();
        let no_sketches = aim.hnsw.scorer.is_incomparable(aim.lanes);
        let mut rough = Vec::with_capacity(candidates.len() as usize);
        let mut listed = candidates.iter().take_while(|id| *id < len);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            batch.extend(listed.by_ref().take(BATCH));
            if batch.is_empty() {
                break;
            }
            // Before anything is read of a listed slot: it may be the tail's, or being written.
            batch.retain(|id| scene.eligible.is_eligible(*id) && scene.met.insert(*id));
            aim.prefetch(&batch);
            *scene.distances += batch.len();
            for id in batch.drain(..) {
                if no_sketches || !aim.has_codes() || aim.is_beyond_sketches(id) {
                    self.rows.push_exact(aim.exact(id));
                } else {
                    rough.push(Reverse(aim.turn(aim.rough(id))));
                }
            }
        }
        self.rows.extend_rough(rough);
    }

    /// Whether sketches told the nearest rows from others.
    pub(crate) fn is_told(&self) -> bool {
        self.rows.is_told()
    }

    pub(crate) fn peek(&self) -> Option<Candidate> {
        self.rows.peek()
    }

    pub(crate) fn pop(&mut self) -> Option<Candidate> {
        let row = self.rows.pop()?;
        self.given += 1;
        Some(row)
    }

    pub(crate) fn least_pending(&self, aim: Aim<'_>) -> Option<f32> {
        self.rows.least_pending(aim)
    }

    pub(crate) fn originals(&self) -> usize {
        self.rows.originals()
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.is_complete && self.rows.is_empty()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let listed = self
            .listed
            .as_ref()
            .map_or(0, RoaringBitmap::serialized_size);
        self.rows.memory_bytes() + self.nearest.capacity() * size_of::<Candidate>() + listed
    }
}

/// Do these rows lie farther from the query than others do? Then the nearest of them lie
/// around a hole, and a greedy search ends at its nearest edge. Looks at rows of the search
/// only, as every other rank does: whatever else has a slot may be being written.
fn are_farther(scene: &mut Scene<'_, impl Eligible>, rows: &[u32], len: u32) -> bool {
    let step = (len / SAMPLE as u32).max(1);
    let others = (0..len).step_by(step as usize).take(SAMPLE);
    let others: Vec<u32> = others
        .filter(|id| scene.eligible.is_linked_row(*id))
        .collect();
    if rows.is_empty() || others.is_empty() {
        return false;
    }
    *scene.distances += rows.len() + others.len();
    let ranks = |ids: &[u32]| -> Vec<f32> {
        scene.aim.prefetch(ids);
        let ranks = ids.iter().map(|id| scene.aim.rough(*id).rank());
        ranks.filter(|rank| rank.is_finite()).collect()
    };
    let mean = |ranks: &[f32]| ranks.iter().sum::<f32>() / ranks.len().max(1) as f32;
    let (rows, others) = (ranks(rows), ranks(&others));
    let middle = mean(&others);
    let squares: Vec<f32> = others.iter().map(|rank| (rank - middle).powi(2)).collect();
    mean(&rows) - middle > FARTHER_MAX * mean(&squares).sqrt()
}
