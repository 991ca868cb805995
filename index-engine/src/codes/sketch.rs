//! A byte a dimension for each node: its rank to within a small fraction of what
//! distances vary by, for a quarter of the memory traffic.
//!
//! With `s` what the bytes say of a vector `v`, `|q - v|^2` is answered as
//! `|q - s|^2 - |v - s|^2`. The error is `2 <q - s, s - v>`: it shrinks with the
//! distance itself, however far from zero the vectors lie, and a query for its own
//! vector meets nearly nothing. (`|q|^2 + |v|^2 - 2 <q, s>` would err by `<q, s - v>`.)
//! All of them are counted from the origin, so that bytes are as fine as the vectors vary.

use std::cell::UnsafeCell;

use super::Line;
use super::lookup::Lookup;
use crate::arena::{Segments, prefetch_rows};
use crate::params::Metric;

/// What a sketch's bytes are worth.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Factors {
    /// Of the byte 0, and of one more.
    least: f32,
    step: f32,
    /// `|v|^2`; but for L2 counted from zero.
    squares: f32,
    /// `|s|^2 - |v - s|^2 - |v|^2`; but for L2 what `|v|^2` is from the origin and not
    /// from zero.
    correction: f32,
}

pub(crate) struct Sketches {
    lines: Segments<UnsafeCell<Line>>,
    metric: Metric,
}

// SAFETY: a sketch is written before its node can be reached, and never while it can.
#[allow(unsafe_code)]
unsafe impl Sync for Sketches {}

impl Sketches {
    pub(crate) fn new(metric: Metric, dimensions: usize) -> Self {
        Self {
            lines: Segments::new(lines(dimensions)),
            metric,
        }
    }

    /// The sketches' memory. Of a linked node nobody writes to it.
    pub(crate) fn lines(&self) -> &Segments<UnsafeCell<Line>> {
        &self.lines
    }

    /// Makes room. One writer at a time.
    pub(crate) fn reserve(&self, node: u32) {
        self.lines.ensure(node);
    }

    /// Describes the vector of a node that nobody can reach yet. Once, by who links it.
    pub(crate) fn write(&self, node: u32, vector: &[f32], origin: &[f32]) {
        let counted = || vector.iter().zip(origin).map(|(x, o)| x - o);
        let (least, most) =
            counted().fold((0f32, 0f32), |(least, most), x| (least.min(x), most.max(x)));
        let step = (most - least) / 255.0;
        let per_step = if step > 0.0 { 1.0 / step } else { 0.0 };
        let at = self.at(node);
        let bytes = at.wrapping_add(size_of::<Factors>());
        let (mut squares, mut correction) = (0f32, 0f32);
        for (i, x) in counted().enumerate() {
            let byte = ((x - least) * per_step + 0.5) as u8;
            let said = f32::from(byte).mul_add(step, least);
            squares += x * x;
            // (s^2 - x^2) - (x - s)^2
            correction += 2.0 * x * (said - x);
            // SAFETY: within the node's lines; nobody can reach the node yet.
            #[allow(unsafe_code)]
            unsafe {
                bytes.add(i).write(byte);
            }
        }
        if self.metric != Metric::L2 {
            // What makes an inner product of a squared distance: lengths from zero.
            let whole = vector.iter().map(|x| x * x).sum::<f32>();
            correction += squares - whole;
            squares = whole;
        }
        // SAFETY: as above, and a row of lines is aligned beyond the factors.
        #[allow(unsafe_code)]
        unsafe {
            at.cast::<Factors>().write(Factors {
                least,
                step,
                squares,
                correction,
            });
        }
    }

    /// The node's rank, nearly.
    #[inline]
    pub(crate) fn rank(&self, node: u32, lookup: &Lookup) -> f32 {
        let at = self.at(node);
        // SAFETY: the row's factors, written before the node was published, and the
        // byte a dimension that follows them.
        #[allow(unsafe_code)]
        let (factors, dot) = unsafe {
            let dot = lookup.dot8(at.add(size_of::<Factors>()));
            (*at.cast::<Factors>(), dot)
        };
        let dot = factors.least * lookup.sum + factors.step * dot;
        let rank = match self.metric {
            Metric::L2 => lookup.squares + factors.squares + factors.correction - 2.0 * dot,
            _ => 0.5 * (factors.correction + (lookup.squares - lookup.whole)) - dot,
        };
        if rank.is_nan() { f32::INFINITY } else { rank }
    }

    /// The distance of the query from a node of this rank.
    #[inline]
    pub(crate) fn distance(&self, node: u32, lookup: &Lookup, rank: f32) -> f32 {
        let squared = match self.metric {
            Metric::L2 => rank,
            _ => lookup.whole + self.factors(node).squares + 2.0 * rank,
        };
        squared.max(0.0).sqrt()
    }

    /// What the node's rank errs by at most, as good as surely: three deviations of
    /// `2 <q - s, s - v>` and of what is rounded off the query, `2 <dq, v>`.
    #[inline]
    pub(crate) fn doubt(&self, node: u32, lookup: &Lookup, rank: f32) -> f32 {
        const DEVIATIONS: f32 = 3.0;
        let factors = self.factors(node);
        let of_sketch = factors.step * self.distance(node, lookup, rank);
        let of_query = lookup.fine_step * factors.squares.sqrt();
        let twice = match self.metric {
            Metric::L2 => 2.0,
            _ => 1.0,
        };
        // A number rounded to whole steps deviates by a step / sqrt 12.
        DEVIATIONS * twice * of_sketch.hypot(of_query) / 12f32.sqrt()
    }

    /// Is the node's vector zero?
    pub(crate) fn is_zero(&self, node: u32) -> bool {
        self.factors(node).squares == 0.0
    }

    #[inline]
    pub(crate) fn prefetch(&self, nodes: &[u32]) {
        prefetch_rows(nodes, |node| self.lines.row(node));
    }

    #[inline]
    fn factors(&self, node: u32) -> Factors {
        // SAFETY: the row's first bytes, written before the node was published.
        #[allow(unsafe_code)]
        unsafe {
            *self.at(node).cast::<Factors>()
        }
    }

    #[inline]
    fn at(&self, node: u32) -> *mut u8 {
        UnsafeCell::raw_get(self.lines.row(node).as_ptr()).cast()
    }
}

/// Factors, then a byte a dimension.
fn lines(dimensions: usize) -> usize {
    (size_of::<Factors>() + dimensions).div_ceil(Line::BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distance::{Lane, Scorer};
    use crate::params::Element;

    /// Noise about a point `offset` from zero in every dimension.
    fn vectors(count: usize, dimensions: usize, offset: f32) -> Vec<Vec<f32>> {
        let mut state = 5u64;
        let mut unit = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let mut element = |i: usize| {
            let centre = if i.is_multiple_of(2) { offset } else { -offset };
            centre + unit() + unit() + unit()
        };
        (0..count)
            .map(|_| (0..dimensions).map(&mut element).collect())
            .collect()
    }

    #[test]
    fn sketches_rank_well_however_far_from_zero() {
        for metric in [Metric::L2, Metric::Cosine, Metric::InnerProduct] {
            for (dimensions, offset, is_counted_from_zero) in [
                (128, 0.0, true),
                (128, 50.0, true),
                (784, 50.0, true),
                (128, 0.0, false),
                (784, 50.0, false),
            ] {
                let sketches = Sketches::new(metric, dimensions);
                let all = vectors(20, dimensions, offset);
                let origin = match is_counted_from_zero {
                    true => vec![0.0; dimensions],
                    false => all[5].clone(),
                };
                for (node, vector) in all.iter().enumerate() {
                    sketches.reserve(node as u32);
                    sketches.write(node as u32, vector, &origin);
                }
                let query = Lane::pack(&all[0]);
                let lookup = Lookup::from(&Lane::pack(&origin), &query);
                // What distances vary by: in L2 twice what they do elsewhere.
                let spread = dimensions as f32 * if metric == Metric::L2 { 2.0 } else { 1.0 };
                for (node, vector) in all.iter().enumerate() {
                    let exact = Scorer::new(metric, Element::F32).rank(&query, &Lane::pack(vector));
                    let rank = sketches.rank(node as u32, &lookup);
                    let error = rank - exact;
                    let doubt = sketches.doubt(node as u32, &lookup, rank);
                    assert!(
                        error.abs() <= doubt + 1e-3 * spread,
                        "{metric:?} {dimensions} {offset} {node}: {error} beyond {doubt}"
                    );
                    let allowed = spread * if node == 0 { 0.03 } else { 0.1 };
                    assert!(
                        error.abs() < allowed,
                        "{metric:?} {dimensions} {offset} {node}: {error} beyond {allowed}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_distance_follows_from_the_rank() {
        let all = vectors(3, 128, 0.0);
        let query = Lane::pack(&all[0]);
        let expected = Scorer::new(Metric::L2, Element::F32)
            .rank(&query, &Lane::pack(&all[1]))
            .sqrt();
        for metric in [Metric::L2, Metric::InnerProduct] {
            let sketches = Sketches::new(metric, 128);
            let origin = &all[2];
            sketches.reserve(0);
            sketches.write(0, &all[1], origin);
            let rank = Scorer::new(metric, Element::F32).rank(&query, &Lane::pack(&all[1]));
            let lookup = Lookup::from(&Lane::pack(origin), &query);
            let got = sketches.distance(0, &lookup, rank);
            assert!((got - expected).abs() < 1e-3 * expected, "{got} {expected}");
        }
    }
}
