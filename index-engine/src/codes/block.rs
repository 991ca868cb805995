//! What is stored for a node: ids, factors and codes of its neighbours.
//!
//! With `r = v - c`, the residual of a neighbour `v` from its node `c`, the code
//! is the signs of `r`, and for a query `q` RaBitQ's estimator gives
//! `<r, q - c> = k <sign(r), q - c>` with `k = |r|^2 / sum |r_i|`. Everything that
//! does not depend on the query is folded into two factors, so that
//! `rank(q, v) = rank(q, c) + add + scale <sign(r), q>`, approximately, where `q` and
//! the `c` of `<sign(r), c>` are counted from the origin.
//!
//! A batch of 32 slots is laid out for the scan: ids, `add`s, `scale`s, then for
//! each group of four dimensions sixteen bytes whose low halves are the signs of
//! the slots 0 to 15, and whose high halves those of 16 to 31.
//!
//! Readers take no lock. While a writer fills a slot, a reader may see the code of
//! one neighbour with the id of another: a wrong estimate, of a vector that is
//! there. What is returned is ranked exactly, so no more is asked.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::lookup::Lookup;
use super::{BATCH, Line};
use crate::arena::{Segments, prefetch};
use crate::distance::Lane;
use crate::params::Metric;

/// Dimensions whose signs share half a byte.
pub(super) const GROUP: usize = 4;
const IDS: usize = 0;
const ADDS: usize = IDS + BATCH * size_of::<u32>();
const SCALES: usize = ADDS + BATCH * size_of::<f32>();
pub(super) const SIGNS: usize = SCALES + BATCH * size_of::<f32>();

/// An estimate's standard deviation, divided by its scale and by the distance of the
/// query from the node. With `a = sum |r_i| / (|r| sqrt d)`, for rotated vectors nearly
/// `sqrt(2 / pi)`, RaBitQ's estimator of `<r, x>` deviates by
/// `|r| |x| sqrt((1 - a^2) / (a^2 d))`, and `k = |r| / (a sqrt d)`: so by
/// `k |x| sqrt(1 - a^2)`.
const DEVIATION: f32 = 0.603;

/// Beside the id of a link that is not given up. Ids have 28 bits.
const HELD: u32 = 1 << 31;

#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub(crate) slot: usize,
    pub(crate) neighbour: u32,
    pub(crate) is_held: bool,
}

/// A neighbour as its node sees it.
struct Code {
    add: f32,
    scale: f32,
    /// Four signs a byte.
    signs: Vec<u8>,
}

pub(crate) struct Blocks {
    lines: Segments<UnsafeCell<Line>>,
    dimensions: usize,
    slots: usize,
    metric: Metric,
}

// SAFETY: ids, factors and signs are written through atomics only, and read
// through atomics or, by the scan, through volatile loads whose result may be any
// bytes at all (see `lookup`).
#[allow(unsafe_code)]
unsafe impl Sync for Blocks {}

impl Blocks {
    /// `dimensions` is a multiple of 16.
    pub(crate) fn new(metric: Metric, dimensions: usize, slots: usize) -> Self {
        assert!(
            dimensions.is_multiple_of(Lane::WIDTH),
            "{dimensions} dimensions"
        );
        let batches = slots.div_ceil(BATCH);
        Self {
            lines: Segments::new(batches * batch_lines(dimensions)),
            dimensions,
            slots,
            metric,
        }
    }

    /// Makes room for a node that nobody can reach yet, without links.
    pub(crate) fn reserve(&self, node: u32) {
        self.lines.ensure(node);
        for slot in 0..self.slots.next_multiple_of(BATCH) {
            self.word(node, slot, IDS).store(0, Ordering::Relaxed);
            self.word(node, slot, ADDS)
                .store(f32::INFINITY.to_bits(), Ordering::Relaxed);
        }
    }

    /// The blocks' memory. A linked node's is written to under its lock.
    pub(crate) fn lines(&self) -> &Segments<UnsafeCell<Line>> {
        &self.lines
    }

    /// In a copy of a block, frees the slots of some nodes.
    pub(crate) fn leave_out(&self, block: &mut [u8], is_out: impl Fn(u32) -> bool) {
        for batch in block.chunks_exact_mut(batch_lines(self.dimensions) * Line::BYTES) {
            let (ids, rest) = batch.split_at_mut(ADDS);
            let adds = rest.as_chunks_mut::<4>().0;
            for (id, add) in ids.as_chunks_mut::<4>().0.iter_mut().zip(adds) {
                let neighbour = (u32::from_ne_bytes(*id) & !HELD).checked_sub(1);
                if neighbour.is_some_and(&is_out) {
                    *id = [0; 4];
                    *add = f32::INFINITY.to_ne_bytes();
                }
            }
        }
    }

    /// Makes a copy of a block one without neighbours.
    pub(crate) fn empty(&self, block: &mut [u8]) {
        block.fill(0);
        for batch in block.chunks_exact_mut(batch_lines(self.dimensions) * Line::BYTES) {
            for add in batch[ADDS..SCALES].as_chunks_mut::<4>().0 {
                *add = f32::INFINITY.to_ne_bytes();
            }
        }
    }

    /// Do the slots of the node, and those that only fill its last batch, name nothing
    /// but such nodes?
    pub(crate) fn links_only(&self, node: u32, such: impl Fn(u32) -> bool) -> bool {
        (0..self.slots.next_multiple_of(BATCH)).all(|slot| {
            let word = self.word(node, slot, IDS).load(Ordering::Relaxed);
            (word & !HELD).checked_sub(1).is_none_or(&such)
        })
    }

    /// The node's links.
    pub(crate) fn links(&self, node: u32) -> impl Iterator<Item = Link> + '_ {
        (0..self.slots).filter_map(move |slot| {
            let word = self.word(node, slot, IDS).load(Ordering::Acquire);
            let neighbour = (word & !HELD).checked_sub(1)?;
            Some(Link {
                slot,
                neighbour,
                is_held: word & HELD != 0,
            })
        })
    }

    /// The neighbours, without what a writer wants to know of them.
    #[inline]
    pub(crate) fn neighbours(&self, node: u32, mut each: impl FnMut(u32)) {
        for batch in 0..self.slots.div_ceil(BATCH) {
            for id in self.ids(node, batch) {
                if let Some(id) = (id.load(Ordering::Acquire) & !HELD).checked_sub(1) {
                    each(id);
                }
            }
        }
    }

    /// A hint that `neighbours` will be asked.
    #[inline]
    pub(crate) fn prefetch_ids(&self, node: u32) {
        for batch in 0..self.slots.div_ceil(BATCH) {
            let ids = self.ids(node, batch);
            prefetch(&ids[0]);
            prefetch(&ids[Line::BYTES / size_of::<u32>()]);
        }
    }

    #[inline]
    fn ids(&self, node: u32, batch: usize) -> &[AtomicU32; BATCH] {
        // SAFETY: ids are a batch's first field, aligned to a line, and only ever used as
        // atomics; zeros are ids.
        #[allow(unsafe_code)]
        unsafe {
            &*self.batch(node, batch).add(IDS).cast()
        }
    }

    pub(crate) fn free_slot(&self, node: u32) -> Option<usize> {
        (0..self.slots).find(|slot| self.word(node, *slot, IDS).load(Ordering::Relaxed) == 0)
    }

    /// Fills a free slot. The caller holds the node's lock, or nobody can reach the node.
    pub(crate) fn put(
        &self,
        node: (u32, &[Lane]),
        slot: usize,
        neighbour: (u32, &[Lane]),
        is_held: bool,
        origin: &[Lane],
    ) {
        let (node, centre) = node;
        let code = encode(self.metric, centre, neighbour.1, origin);
        let (batch, at) = (slot / BATCH, slot % BATCH);
        let signs = self.batch(node, batch).wrapping_add(SIGNS + at % 16);
        let shift = at / 16 * GROUP;
        for (group, sign) in code.signs.iter().enumerate() {
            // SAFETY: within the batch: `group < dimensions / GROUP`, sixteen bytes each.
            #[allow(unsafe_code)]
            let byte = unsafe { AtomicU8::from_ptr(signs.wrapping_add(group * 16)) };
            let others = byte.load(Ordering::Relaxed) & !(0xF << shift);
            byte.store(others | sign << shift, Ordering::Relaxed);
        }
        let store = |field, value: f32| {
            self.word(node, slot, field)
                .store(value.to_bits(), Ordering::Relaxed)
        };
        store(SCALES, code.scale);
        store(ADDS, code.add);
        let held = if is_held { HELD } else { 0 };
        self.word(node, slot, IDS)
            .store((neighbour.0 + 1) | held, Ordering::Release);
    }

    pub(crate) fn clear(&self, node: u32, slot: usize) {
        self.word(node, slot, ADDS)
            .store(f32::INFINITY.to_bits(), Ordering::Relaxed);
        self.word(node, slot, IDS).store(0, Ordering::Release);
    }

    /// The link in the slot leads to an equal vector from now on.
    pub(crate) fn rename(&self, node: u32, slot: usize, neighbour: u32) {
        let word = self.word(node, slot, IDS);
        let held = word.load(Ordering::Relaxed) & HELD;
        word.store((neighbour + 1) | held, Ordering::Release);
    }

    pub(crate) fn set_held(&self, node: u32, slot: usize, is_held: bool) {
        let word = self.word(node, slot, IDS);
        let link = word.load(Ordering::Relaxed) & !HELD;
        let held = if is_held { HELD } else { 0 };
        word.store(link | held, Ordering::Release);
    }

    /// Gives a node of an equal vector, which nobody can reach yet, all that another has.
    /// Nobody writes to either.
    pub(crate) fn copy(&self, from: u32, to: u32) {
        let (from, to) = (self.batch(from, 0), self.batch(to, 0));
        for at in (0..self.lines.row_bytes()).step_by(size_of::<u32>()) {
            // SAFETY: aligned, within both nodes' batches, which lie in one piece.
            #[allow(unsafe_code)]
            let [from, to] = unsafe {
                [
                    AtomicU32::from_ptr(from.wrapping_add(at).cast()),
                    AtomicU32::from_ptr(to.wrapping_add(at).cast()),
                ]
            };
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Passes on the neighbours whose rank may be below `threshold`, with the estimate:
    /// it is, or goes beyond by less than what estimates deviate by at a query's
    /// distance of `doubt` from the node, whose own rank is `rank`. Meanwhile the memory
    /// system is asked for what is stored for the node `ahead`, to be scanned next.
    #[inline]
    pub(crate) fn scan(
        &self,
        (node, rank): (u32, f32),
        ahead: u32,
        lookup: &Lookup,
        doubt: f32,
        threshold: f32,
        mut each: impl FnMut(u32, f32),
    ) {
        let margin = DEVIATION * doubt;
        let mut estimates = [0f32; BATCH];
        for batch in 0..self.slots.div_ceil(BATCH) {
            let at = self.batch(node, batch);
            let ahead = self.batch(ahead, batch);
            // SAFETY: a batch of this index's dimensions, as the lookup is.
            #[allow(unsafe_code)]
            let mut near =
                unsafe { lookup.scan(at, ahead, rank, margin, threshold, &mut estimates) };
            while near != 0 {
                let i = near.trailing_zeros() as usize;
                near &= near - 1;
                // SAFETY: `i < 32`, and ids are the batch's first field.
                #[allow(unsafe_code)]
                let id = unsafe { AtomicU32::from_ptr(at.cast::<u32>().add(i)) };
                if let Some(id) = (id.load(Ordering::Acquire) & !HELD).checked_sub(1) {
                    each(id, estimates[i]);
                }
            }
        }
    }

    #[inline]
    fn batch(&self, node: u32, batch: usize) -> *mut u8 {
        let lines = self.lines.row(node);
        UnsafeCell::raw_get(&raw const lines[batch * batch_lines(self.dimensions)]).cast()
    }

    #[inline]
    fn word(&self, node: u32, slot: usize, field: usize) -> &AtomicU32 {
        assert!(slot < self.slots.next_multiple_of(BATCH), "slot {slot}");
        let at = self
            .batch(node, slot / BATCH)
            .wrapping_add(field + slot % BATCH * 4);
        // SAFETY: aligned, within the batch, and only ever used as an atomic.
        #[allow(unsafe_code)]
        unsafe {
            AtomicU32::from_ptr(at.cast())
        }
    }
}

fn batch_lines(dimensions: usize) -> usize {
    SIGNS / Line::BYTES + dimensions / GROUP * 16 / Line::BYTES
}

fn encode(metric: Metric, centre: &[Lane], neighbour: &[Lane], origin: &[Lane]) -> Code {
    let dimensions = centre.len() * Lane::WIDTH;
    let mut signs = Vec::with_capacity(dimensions / GROUP);
    // |r|^2, sum |r_i|, <sign(r), c - origin>, <c, r>
    let (mut squares, mut length, mut along, mut inner) =
        ([0f32; 16], [0f32; 16], [0f32; 16], [0f32; 16]);
    for ((c, v), o) in centre.iter().zip(neighbour).zip(origin) {
        let mut bits = 0u16;
        for i in 0..Lane::WIDTH {
            let r = v.0[i] - c.0[i];
            let is_positive = r >= 0.0;
            bits |= u16::from(is_positive) << i;
            squares[i] += r * r;
            length[i] += r.abs();
            let counted = c.0[i] - o.0[i];
            along[i] += if is_positive { counted } else { -counted };
            inner[i] += c.0[i] * r;
        }
        signs.extend((0..4).map(|group| (bits >> (group * GROUP) & 0xF) as u8));
    }
    let sum = |parts: [f32; 16]| parts.iter().sum::<f32>();
    let (squares, length, along, inner) = (sum(squares), sum(length), sum(along), sum(inner));
    let k = if length > 0.0 { squares / length } else { 0.0 };
    let (add, scale) = match metric {
        Metric::L2 => (squares + 2.0 * k * along, -2.0 * k),
        _ => (k * along - inner, -k),
    };
    Code { add, scale, signs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distance::Scorer;
    use crate::params::Element;
    use proptest::prelude::*;

    /// Deterministic noise around a centre.
    fn vectors(count: usize, dimensions: usize, seed: u64) -> Vec<Box<[Lane]>> {
        let mut state = seed;
        let mut normal = || {
            let sum: f32 = (0..12)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 40) as f32 / (1u64 << 24) as f32
                })
                .sum();
            sum - 6.0
        };
        let centre: Vec<f32> = (0..dimensions).map(|_| 3.0 * normal()).collect();
        (0..count)
            .map(|_| {
                let vector: Vec<f32> = centre.iter().map(|c| c + normal()).collect();
                Lane::pack(&vector)
            })
            .collect()
    }

    const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

        #[test]
        fn codes_estimate_the_rank_as_well_as_they_tell(
            seed in any::<u64>(),
            lanes in prop::sample::select(vec![8usize, 9, 48, 49, 300]),
            slots in prop::sample::select(vec![4usize, 32, 40]),
            metric in prop::sample::select(METRICS.to_vec()),
        ) {
            let dimensions = lanes * Lane::WIDTH;
            let all = vectors(slots + 2, dimensions, seed);
            let (query, centre, neighbours) = (&all[0], &all[1], &all[2..]);
            // One of the vectors, or zero.
            let origin = match seed % 2 {
                0 => Lane::pack(&vec![0.0; dimensions]),
                _ => all[2].clone(),
            };
            let origin = &*origin;
            let blocks = Blocks::new(metric, dimensions, slots);
            blocks.reserve(0);
            for (slot, neighbour) in neighbours.iter().enumerate() {
                let neighbour = (slot as u32, &**neighbour);
                blocks.put((0, centre), slot, neighbour, slot % 3 == 0, origin);
            }
            let scorer = Scorer::new(metric, Element::F32);
            let lookup = Lookup::from(origin, query);
            // What distances vary by here: some of the squared size of the noise.
            let spread = dimensions as f32 * if metric == Metric::L2 { 2.0 } else { 1.0 };
            let exact = scorer.rank(query, centre);
            let node = (0, exact);
            let mut met = Vec::new();
            blocks.scan(node, 0, &lookup, 0.0, f32::INFINITY, |id, estimate| met.push((id, estimate)));
            prop_assert_eq!(met.len(), slots);
            let mut bias = 0.0;
            for (id, estimate) in &met {
                let error = estimate - scorer.rank(query, &neighbours[*id as usize]);
                bias += error / slots as f32;
                let allowed = 8.0 * spread / (dimensions as f32).sqrt();
                prop_assert!(error.abs() < allowed, "{error} beyond {allowed}");
            }
            prop_assert!(bias.abs() < 3.0 * spread / (dimensions as f32).sqrt(), "biased by {bias}");
            // Only what is below the threshold is passed on, and no cleared slot.
            let middle = met[slots / 2].1;
            let below = met.iter().filter(|m| m.1 < middle).count();
            let mut passed = 0;
            blocks.scan(node, 0, &lookup, 0.0, middle, |_, _| passed += 1);
            prop_assert_eq!(passed, below);
            // A neighbour of a rank is passed at a threshold of that rank wherever its
            // estimate errs by less than the doubt.
            let distance = match metric {
                Metric::L2 => exact.sqrt(),
                _ => Scorer::new(Metric::L2, Element::F32).rank(query, centre).sqrt(),
            };
            let within = |deviations: f32| {
                let is_passed = |id: &u32| {
                    let own = scorer.rank(query, &neighbours[*id as usize]);
                    let mut is_passed = false;
                    blocks.scan(node, 0, &lookup, deviations * distance, own, |met, _| is_passed |= met == *id);
                    is_passed
                };
                (0..slots as u32).filter(is_passed).count() as f32 / slots as f32
            };
            prop_assert!(within(5.0) >= 0.9, "{} within five deviations", within(5.0));
            if slots >= 32 {
                prop_assert!(within(1.0) >= 0.5, "{} below one deviation", within(1.0));
                prop_assert!(within(-1.0) <= 0.5, "{} below minus one", within(-1.0));
            }
            let held = blocks.links(0).filter(|link| link.is_held).count();
            prop_assert_eq!(held, slots.div_ceil(3));
            blocks.clear(0, slots / 2);
            let mut left = 0;
            blocks.scan(node, 0, &lookup, 0.0, f32::INFINITY, |id, _| left += usize::from(id as usize != slots / 2));
            prop_assert_eq!(left, slots - 1);
            prop_assert_eq!(blocks.free_slot(0), Some(slots / 2));
        }
    }
}
