//! A vector's code: a few bits a dimension.
//!
//! A code holds for each dimension of a rotated vector `v` which of `2^bits` even steps
//! about zero it is in, and with it comes a step of its own, such that the vector `s` that
//! it says has `<s, v> = |v|^2`. Then `<q, s>` errs by `<q - v, s - v>`: no more for a `v` of
//! another length or far from zero than for any, and less the nearer the query is. That is
//! RaBitQ's estimator for one bit (Gao & Long, arXiv:2405.12497) and its extension for more
//! (Gao et al., arXiv:2409.09913), with a step searched among few instead of all.
//!
//! Nothing is trained: a code knows its own vector and the fixed rotation, so it is as good
//! for the last vector as for the first, whatever came between them. Equal vectors have equal
//! codes of a width.

use std::cell::UnsafeCell;

use super::coarse_query::CoarseQuery;
use crate::arena::{AsBytes, ZeroIsValid, copy_cell};
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
#[derive(Clone, Copy, PartialEq)]
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

/// A stored code. It stays what it is, though its node may have another one by now.
#[derive(Clone, Copy)]
pub(super) struct Code<'a> {
    pub(super) bits: CodeBits,
    pub(super) factors: Factors,
    pub(super) bytes: &'a [u8],
}

impl<'a> Code<'a> {
    /// The code in a row of words.
    ///
    /// # Safety
    /// The row was written by [`write`], and nobody writes to it while the code is used.
    #[inline]
    #[allow(unsafe_code)]
    pub(super) unsafe fn of_row(bits: CodeBits, row: &'a [UnsafeCell<Word>]) -> Self {
        let at: *const u8 = UnsafeCell::raw_get(row.as_ptr()).cast();
        // SAFETY: factors come first and the code's bytes follow them, as many as are left;
        // words are aligned as factors are. At rest by the contract.
        unsafe {
            let bytes = at.add(size_of::<Factors>());
            Self {
                bits,
                factors: *at.cast::<Factors>(),
                bytes: std::slice::from_raw_parts(bytes, size_of_val(row) - size_of::<Factors>()),
            }
        }
    }

    /// The rank of the code's vector, to within `doubt`.
    #[inline]
    pub(super) fn rank(self, metric: Metric, query: &CoarseQuery) -> f32 {
        let dot = query.dot(self.bits, self.bytes, self.factors.step);
        let rank = match metric {
            Metric::L2 => query.squares + self.factors.squares - 2.0 * dot,
            // Codes are made for no other metrics than these three.
            _ => -dot,
        };
        if rank.is_nan() { f32::INFINITY } else { rank }
    }

    /// What that rank errs by at most, as good as surely: by `2 <q - v, s - v>`, and by
    /// what is rounded off the query.
    #[inline]
    pub(super) fn doubt(
        self,
        metric: Metric,
        dimensions: usize,
        query: &CoarseQuery,
        rank: f32,
    ) -> f32 {
        let factors = self.factors;
        let (squared, twice) = match metric {
            Metric::L2 => (rank, 2.0),
            _ => (query.squares + factors.squares + 2.0 * rank, 1.0),
        };
        let error = factors.error / (dimensions as f32).sqrt();
        let said = factors.squares.sqrt().hypot(factors.error);
        let rounded = query.fine_step / 12f32.sqrt() * said;
        // The distance is itself said by the rank, which may be too low by the doubt:
        // `r^2 = rank + n e r` of n deviations, solved for r.
        let half = 0.5 * DEVIATIONS * 2.0 * error;
        let distance = half + (squared.max(0.0) + half * half).sqrt();
        let doubt = DEVIATIONS * twice * (error * distance).hypot(rounded);
        if doubt.is_nan() { f32::INFINITY } else { doubt }
    }
}

/// Words of a code with its factors.
pub(super) fn row_words(dimensions: usize, bits: CodeBits) -> usize {
    (size_of::<Factors>() + code_bytes(dimensions, bits)) / size_of::<Word>()
}

/// Encodes a rotated vector into a row of so many words.
///
/// # Safety
/// Nobody else reads or writes the row.
#[allow(unsafe_code)]
pub(super) unsafe fn write(bits: CodeBits, vector: &[Lane], row: &[UnsafeCell<Word>]) {
    let (factors, code) = encode(Lane::view(vector), bits);
    assert_eq!(
        size_of_val(row),
        size_of::<Factors>() + code.len(),
        "a row of codes of {bits:?} bits"
    );
    let at: *mut u8 = UnsafeCell::raw_get(row.as_ptr()).cast();
    // SAFETY: as many bytes as were compared, nobody else's by the contract. Words are
    // aligned as factors are.
    unsafe {
        at.cast::<Factors>().write(factors);
        let to = at.add(size_of::<Factors>());
        std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
    }
}

/// Whole chunks, of which each holds `16 * 8 / bits` dimensions.
fn code_bytes(dimensions: usize, bits: CodeBits) -> usize {
    let chunk_dimensions = CHUNK_BYTES * 8 / bits.count();
    dimensions.div_ceil(chunk_dimensions) * CHUNK_BYTES
}

/// Byte `i` of chunk `c` holds the dimensions `16 k + i` of the chunk's, the first of them
/// in its lowest bits.
pub(super) fn encode(vector: &[f32], bits: CodeBits) -> (Factors, Vec<u8>) {
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
