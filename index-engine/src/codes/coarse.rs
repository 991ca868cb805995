//! A few bits a dimension for each node: what is kept of a vector in memory where the
//! vector itself lies elsewhere.
//!
//! A code holds for each dimension of a rotated vector `v` which of `2^bits` even steps
//! about zero it is in, and with it comes a step of its own, such that the vector `s` that
//! it says has `<s, v> = |v|^2`. Then `<q, s>` errs by `<q - v, s - v>`: no more for a `v` of
//! another length or far from zero than for any, and less the nearer the query is. That is
//! RaBitQ's estimator for one bit (Gao & Long, arXiv:2405.12497) and its extension for more
//! (Gao et al., arXiv:2409.09913), with a step searched among few instead of all.
//!
//! Nothing is trained: a code knows its own vector and the fixed rotation, so it is as good
//! for the last vector as for the first, whatever came between them.

use std::cell::UnsafeCell;

use super::coarse_query::CoarseQuery;
use crate::arena::{AsBytes, Segments, ZeroIsValid, copy_cell, prefetch_row};
use crate::distance::Lane;
use crate::params::{CodeBits, Metric};

/// What is rounded deviates from the truth by `|q - v| |s - v| / sqrt d`; so many
/// deviations are as good as never exceeded.
const DEVIATIONS: f32 = 3.0;
/// Widths of a step that are tried, in those that are best for a normal distribution.
const STEPS_TRIED: [f32; 6] = [0.8, 0.9, 1.0, 1.12, 1.25, 1.5];
/// Bytes that are read at a time.
pub(super) const CHUNK_BYTES: usize = 16;

/// What a code is worth. Four bytes each: codes lie without gaps.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Factors {
    /// Between two values next to each other.
    pub(super) step: f32,
    /// `|v|^2`
    pub(super) squares: f32,
    /// `|s - v|`
    pub(super) error: f32,
}

#[derive(Clone, Copy, PartialEq)]
#[repr(transparent)]
pub(crate) struct Word(u32);

// SAFETY: an integer in a cell.
#[allow(unsafe_code)]
unsafe impl ZeroIsValid for UnsafeCell<Word> {}

// SAFETY: as above; any bytes are an integer.
#[allow(unsafe_code)]
unsafe impl AsBytes for UnsafeCell<Word> {
    unsafe fn copy(&self, into: &mut [u8]) {
        // SAFETY: nobody writes to it, by the contract; a word is bytes.
        unsafe { copy_cell(self, into) };
    }
}

pub(crate) struct Coarse {
    words: Segments<UnsafeCell<Word>>,
    bits: CodeBits,
    dimensions: usize,
    metric: Metric,
}

// SAFETY: a code is written while nobody reads it: before its vector is published, and again
// only when its slot is another vector's, which no reader is left by then to come to.
#[allow(unsafe_code)]
unsafe impl Sync for Coarse {}

impl Coarse {
    /// `dimensions` is a multiple of 16.
    pub(crate) fn new(metric: Metric, dimensions: usize, bits: CodeBits) -> Self {
        let bytes = size_of::<Factors>() + code_bytes(dimensions, bits);
        Self {
            words: Segments::new(bytes / size_of::<Word>()),
            bits,
            dimensions,
            metric,
        }
    }

    /// The codes' memory. Of a published node nobody writes to it.
    pub(crate) fn words(&self) -> &Segments<UnsafeCell<Word>> {
        &self.words
    }

    /// Makes room for a node that nobody can reach yet, and encodes its vector.
    pub(crate) fn write(&self, node: u32, vector: &[Lane]) {
        self.words.ensure(node);
        let (factors, code) = encode(Lane::view(vector), self.bits);
        let at = self.at(node);
        // SAFETY: the node's own words, as many as its factors and code take; nobody can
        // reach the node yet. Words are aligned as factors are.
        #[allow(unsafe_code)]
        unsafe {
            at.cast::<Factors>().write(factors);
            let to = at.add(size_of::<Factors>());
            std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
    }

    /// What queries for a prepared vector are ranked by.
    pub(crate) fn query(&self, vector: &[Lane]) -> CoarseQuery {
        CoarseQuery::new(vector, self.bits)
    }

    /// The node as its own code says it, as a query.
    pub(crate) fn query_of(&self, node: u32) -> CoarseQuery {
        let lanes = self.dimensions / Lane::WIDTH;
        CoarseQuery::of_code(self.factors(node), self.code(node), lanes, self.bits)
    }

    /// The node's rank, to within `doubt`.
    #[inline]
    pub(crate) fn rank(&self, node: u32, query: &CoarseQuery) -> f32 {
        let factors = self.factors(node);
        let dot = query.dot(self.code(node), factors.step);
        let rank = match self.metric {
            Metric::L2 => query.squares + factors.squares - 2.0 * dot,
            // Codes are made for no other metrics than these three.
            _ => -dot,
        };
        if rank.is_nan() { f32::INFINITY } else { rank }
    }

    /// What the node's rank errs by at most, as good as surely: by `2 <q - v, s - v>`, and
    /// by what is rounded off the query.
    #[inline]
    pub(crate) fn doubt(&self, node: u32, query: &CoarseQuery, rank: f32) -> f32 {
        let factors = self.factors(node);
        let (squared, twice) = match self.metric {
            Metric::L2 => (rank, 2.0),
            _ => (query.squares + factors.squares + 2.0 * rank, 1.0),
        };
        let error = factors.error / (self.dimensions as f32).sqrt();
        let said = factors.squares.sqrt().hypot(factors.error);
        let rounded = query.fine_step / 12f32.sqrt() * said;
        // The distance is itself said by the rank, which may be too low by the doubt:
        // `r^2 = rank + n e r` of n deviations, solved for r.
        let half = 0.5 * DEVIATIONS * 2.0 * error;
        let distance = half + (squared.max(0.0) + half * half).sqrt();
        let doubt = DEVIATIONS * twice * (error * distance).hypot(rounded);
        if doubt.is_nan() { f32::INFINITY } else { doubt }
    }

    /// Is the vector zero?
    pub(crate) fn is_zero(&self, node: u32) -> bool {
        self.factors(node).squares == 0.0
    }

    /// Do the codes say the same? Equal vectors have equal codes.
    pub(crate) fn are_equal(&self, a: u32, b: u32) -> bool {
        let (x, y) = (self.factors(a), self.factors(b));
        x.squares == y.squares && x.step == y.step && self.code(a) == self.code(b)
    }

    /// Asks the memory system for the codes.
    #[inline]
    pub(crate) fn prefetch(&self, nodes: &[u32]) {
        const LINE_WORDS: usize = 16;
        for node in nodes {
            let row = self.words.row(*node);
            // Rows begin anywhere in a line, and may end in one more.
            for line in row.chunks(LINE_WORDS) {
                prefetch_row(&line[..1]);
            }
            prefetch_row(&row[row.len() - 1..]);
        }
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
    fn code(&self, node: u32) -> &[u8] {
        let bytes = self.words.row(node).len() * size_of::<Word>() - size_of::<Factors>();
        // SAFETY: what follows the factors within the row, not written any more.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts(self.at(node).add(size_of::<Factors>()), bytes)
        }
    }

    #[inline]
    fn at(&self, node: u32) -> *mut u8 {
        UnsafeCell::raw_get(self.words.row(node).as_ptr()).cast()
    }
}

/// Whole chunks, of which each holds `16 * 8 / bits` dimensions.
fn code_bytes(dimensions: usize, bits: CodeBits) -> usize {
    let chunk_dimensions = CHUNK_BYTES * 8 / bits.count();
    dimensions.div_ceil(chunk_dimensions) * CHUNK_BYTES
}

/// Byte `i` of chunk `c` holds the dimensions `16 k + i` of the chunk's, the first of them
/// in its lowest bits.
fn encode(vector: &[f32], bits: CodeBits) -> (Factors, Vec<u8>) {
    let dimensions = vector.len();
    let squares: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let mut code = vec![0u8; code_bytes(dimensions, bits)];
    let deviation = (squares / dimensions as f64).sqrt() as f32;
    if deviation == 0.0 || !deviation.is_finite() {
        let factors = Factors {
            step: 0.0,
            squares: squares as f32,
            error: deviation * (dimensions as f32).sqrt(),
        };
        return (factors, code);
    }
    let values = 1u32 << bits.count();
    let middle = values as f32 / 2.0;
    let value =
        |x: f32, per_step: f32| (x * per_step + middle).clamp(0.0, values as f32 - 1.0) as u8;
    // <s, v> and |s|^2 of a step one.
    let fit = |per_step: f32| {
        let (mut dot, mut own) = (0f32, 0f32);
        for x in vector {
            let said = f32::from(value(*x, per_step)) + 0.5 - middle;
            dot += said * x;
            own += said * said;
        }
        (f64::from(dot), f64::from(own))
    };
    let best_width = deviation * normal_step(bits);
    let mut best = (0f32, 0f64, 1f64);
    for tried in STEPS_TRIED {
        let per_step = 1.0 / (best_width * tried);
        let (dot, own) = fit(per_step);
        if dot * dot * best.2 > best.1 * best.1 * own {
            best = (per_step, dot, own);
        }
        if bits == CodeBits::One {
            break;
        }
    }
    let (per_step, dot, own) = best;
    for (i, x) in vector.iter().enumerate() {
        let lane = i / Lane::WIDTH;
        let (chunk, part) = (lane / (8 / bits.count()), lane % (8 / bits.count()));
        let byte = chunk * CHUNK_BYTES + i % Lane::WIDTH;
        code[byte] |= value(*x, per_step) << (part * bits.count());
    }
    let step = if dot > 0.0 { squares / dot } else { 0.0 };
    let factors = Factors {
        step: step as f32,
        squares: squares as f32,
        error: (step * step * own - squares).max(0.0).sqrt() as f32,
    };
    (factors, code)
}

/// The even step that says a normal variable of deviation one best (Max, 1960).
fn normal_step(bits: CodeBits) -> f32 {
    match bits {
        CodeBits::One => 1.596,
        CodeBits::Two => 0.9957,
        CodeBits::Four => 0.3352,
        CodeBits::Eight => 0.0308,
    }
}

#[cfg(test)]
#[path = "coarse_tests.rs"]
mod tests;
