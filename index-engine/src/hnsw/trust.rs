//! Whether sketches tell near from far.
//!
//! They count from a point that was in the midst of the first vectors, and they are as fine
//! as vectors are far from it. Where the data has drifted away from it by some hundred times
//! its spread, they err by more than the distances of neighbours differ: a search by them
//! would pass what is near, and nobody would see it.
//!
//! So whoever links a node compares the ranks that sketches give to its nearest with the
//! exact ones, and links it by exact distances where they are of no use. Once that is so for
//! one in eight of the nodes linked lately, searches go by exact distances too, over the same
//! links: as slow and as good as without codes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Candidate, Coding, Hnsw};
use crate::codes::Lookup;
use crate::distance::Lane;

/// So many of a node's nearest are compared; most are ranked exactly anyway.
const COMPARED: usize = 12;
/// Sketches are of no use where they err, on the average, by more than this part of what the
/// ranks of those differ by. Of Fashion-MNIST, word vectors and noise 99 of 100 nodes have
/// 0.02 at most; of clusters thirty times their spread from the origin half have more than
/// 0.12, and searches at ef 40 find 0.996 of the nearest ten for 0.999; a hundred times, 0.71
/// and 0.87.
const ERROR_MAX: f32 = 0.25;
/// Ranks that differ by next to nothing of the distance itself are as good as equal, and
/// there is nothing to tell.
const ERROR_OF_DISTANCE: f32 = 1.0 / 256.0;
/// What is remembered of nodes linked lately, give or take a half.
const REMEMBERED: u64 = 1_024;
/// Less tells nothing.
const REMEMBERED_MIN: u64 = 32;
/// Of a checkpoint's nodes so many are asked.
const ASKED: usize = 64;

/// How many nodes were linked lately, and above that of how many sketches told nothing.
#[derive(Default)]
pub(crate) struct Trust(AtomicU64);

impl Trust {
    fn record(&self, is_told: bool) {
        let add = |counts: u64| {
            let (linked, untold) = (counts & 0xFFFF_FFFF, counts >> 32);
            let (linked, untold) = (linked + 1, untold + u64::from(!is_told));
            Some(match linked {
                REMEMBERED => ((untold / 2) << 32) | (linked / 2),
                _ => (untold << 32) | linked,
            })
        };
        // Only counts: whoever reads them needs nothing else to be there.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    pub(crate) fn holds(&self) -> bool {
        let counts = self.0.load(Ordering::Relaxed);
        let (linked, untold) = (counts & 0xFFFF_FFFF, counts >> 32);
        linked < REMEMBERED_MIN || untold * 8 <= linked
    }
}

impl Hnsw {
    /// The codes, as long as they are worth going by.
    pub(crate) fn trusted(&self) -> Option<&Coding> {
        self.coding.as_ref().filter(|coding| coding.trust.holds())
    }

    /// Those near a new node on level 0, in order.
    pub(super) fn nearest_on_base(
        &self,
        coding: &Coding,
        target: &[Lane],
        lookup: &Lookup,
        starts: &[Candidate],
    ) -> Vec<Candidate> {
        let by_distance = || self.nearest_on(target, 0, starts, self.ef_construction);
        let is_trusted = coding.trust.holds();
        let nearest = match is_trusted {
            true => self.nearest_by_codes(coding, target, lookup, starts),
            false => by_distance(),
        };
        let compared = nearest.iter().take(COMPARED).map(|c| c.id());
        let is_told = self.is_told(coding, (target, lookup), compared);
        coding.trust.record(is_told);
        match is_trusted && !is_told {
            true => by_distance(),
            false => nearest,
        }
    }

    /// Do sketches tell the ranks of these nodes?
    fn is_told(
        &self,
        coding: &Coding,
        (target, lookup): (&[Lane], &Lookup),
        nodes: impl Iterator<Item = u32>,
    ) -> bool {
        let (mut count, mut error, mut squared) = (0f32, 0f32, 0f32);
        let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
        for id in nodes {
            let exact = self.candidate(target, id).rank();
            let distance = coding.sketches.distance(id, lookup, exact);
            error += (coding.sketches.rank(id, lookup) - exact).abs();
            squared += distance * distance;
            least = least.min(exact);
            most = most.max(exact);
            count += 1.0;
        }
        // Too few, or numbers too large: nothing speaks against them.
        let bound = (ERROR_MAX * (most - least)).max(ERROR_OF_DISTANCE * squared / count);
        count < 2.0 || bound.is_nan() || error / count <= bound
    }

    /// What linking has learnt is not in a checkpoint: asks some of the nodes, each about its
    /// links.
    pub(crate) fn weigh_sketches(&self) {
        let Some(coding) = &self.coding else { return };
        let rows = self.vectors.len() as usize;
        for id in (0..rows as u32).step_by(rows.div_ceil(ASKED).max(1)) {
            let target = self.vectors.get(id);
            let links = self.links_on(id, 0);
            if links.len() > 1 {
                let lookup = self.lookup(coding, target);
                let is_told = self.is_told(coding, (target, &lookup), links.into_iter());
                coding.trust.record(is_told);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_one_in_eight_and_comes_back() {
        let trust = Trust::default();
        assert!(trust.holds());
        (0..31).for_each(|_| trust.record(false));
        assert!(trust.holds(), "too few to tell");
        trust.record(false);
        assert!(!trust.holds());
        (0..300).for_each(|_| trust.record(true));
        assert!(trust.holds());
        (0..100_000).for_each(|_| trust.record(true));
        let mut misses = 0;
        while trust.holds() {
            trust.record(false);
            misses += 1;
        }
        assert!((60..=160).contains(&misses), "{misses}");
    }
}
