//! For processors with NEON, which is every one of 64 bits: sixteen bytes of a group in a
//! register.

use super::super::neon::Products;
use super::*;
use crate::arena::to_second_cache;
use std::arch::aarch64::*;

pub(super) static KERNELS: Kernels = Kernels {
    name: "neon",
    make,
    scan,
    dot8,
};

pub(super) fn is_here() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

/// Groups of a line: so many bytes of the table fit into one.
const GROUPS: usize = Line::BYTES / 16;
/// Each adds at most 252 to a sum of sixteen bits.
const LINES_MAX: usize = 256;

#[target_feature(enable = "neon")]
fn make(query: &[Lane]) -> Lookup {
    // Closures take the features of the function around them.
    Lookup::of(query, &KERNELS, |query, table| fill(query, table))
}

/// Sixteen sums of a group in two registers, of which the second has the last element in all.
#[target_feature(enable = "neon")]
fn fill(query: &[Fine], table: &mut [Line]) {
    let with = |t: u32| {
        let bits: [i16; 8] = std::array::from_fn(|signs| (signs >> t & 1) as i16);
        // SAFETY: eight numbers.
        #[allow(unsafe_code)]
        unsafe {
            vld1q_s16(bits.as_ptr())
        }
    };
    let bits = [with(0), with(1), with(2)];
    let half = 1i16 << (TABLE_BITS - 1);
    for (fine, line) in query.iter().zip(table) {
        let groups = fine.0.as_chunks::<GROUP>().0;
        for (group, bytes) in groups.iter().zip(line.0.as_chunks_mut::<16>().0) {
            let mut sum = half;
            for q in group {
                sum -= (*q).min(0);
            }
            let mut sums = vdupq_n_s16(sum);
            for (bits, q) in bits.iter().zip(group) {
                sums = vmlaq_n_s16(sums, *bits, *q);
            }
            let last = vaddq_s16(sums, vdupq_n_s16(group[GROUP - 1]));
            let low = vshrn_n_u16::<{ TABLE_BITS as i32 }>(vreinterpretq_u16_s16(sums));
            let all = vshrn_high_n_u16::<{ TABLE_BITS as i32 }>(low, vreinterpretq_u16_s16(last));
            // SAFETY: sixteen bytes.
            #[allow(unsafe_code)]
            unsafe {
                vst1q_u8(bytes.as_mut_ptr(), all);
            }
        }
    }
}

/// # Safety
/// `bytes` points to sixteen for each of `fine`.
#[target_feature(enable = "neon")]
#[allow(unsafe_code)]
unsafe fn dot8(bytes: *const u8, fine: &[Fine]) -> i32 {
    // SAFETY: within the bytes by the contract.
    let bytes = |i: usize| unsafe { vld1q_u8(bytes.add(i * Lane::WIDTH)) };
    let (mut even, mut odd) = (Products::zero(), Products::zero());
    let (pairs, rest) = fine.as_chunks::<2>();
    for (i, [first, second]) in pairs.iter().enumerate() {
        even.add(&first.0, bytes(2 * i));
        odd.add(&second.0, bytes(2 * i + 1));
    }
    for fine in rest {
        even.add(&fine.0, bytes(2 * pairs.len()));
    }
    even.total(odd)
}

/// # Safety
/// As [`Lookup::scan`].
#[target_feature(enable = "neon")]
#[allow(unsafe_code)]
unsafe fn scan(
    batch: *const u8,
    ahead: *const u8,
    lookup: &Lookup,
    rank: f32,
    margin: f32,
    threshold: f32,
    estimates: &mut [f32; BATCH],
) -> u32 {
    let low_half = vdupq_n_u8(0xF);
    let table = lookup.table.as_ptr().cast::<uint8x16_t>();
    // SAFETY: the batch's signs, aligned.
    let signs = unsafe { batch.add(SIGNS).cast::<uint8x16_t>() };
    // Between the sums, not before them: a burst would be waited for.
    let ask_for = |line: usize| to_second_cache(ahead.wrapping_add(line * Line::BYTES));
    // The bytes that a line's groups add, for the first sixteen slots and the others.
    let looked_up = |line: usize| {
        ask_for(SIGNS / Line::BYTES + line);
        let (mut low, mut high) = (vdupq_n_u8(0), vdupq_n_u8(0));
        for group in GROUPS * line..GROUPS * (line + 1) {
            // SAFETY: `line` is below the table's lines; the batch has as many.
            let (bytes, signs) =
                unsafe { (table.add(group).read(), signs.add(group).read_volatile()) };
            low = vaddq_u8(low, vqtbl1q_u8(bytes, vandq_u8(signs, low_half)));
            high = vaddq_u8(high, vqtbl1q_u8(bytes, vshrq_n_u8::<4>(signs)));
        }
        (low, high)
    };
    for line in 0..SIGNS / Line::BYTES {
        ask_for(line);
    }
    let lines = lookup.table.len();
    // In the order of the slots.
    let mut wide = [vdupq_n_u32(0); BATCH / 4];
    let mut from = 0;
    while from < lines {
        let end = lines.min(from + LINES_MAX);
        let mut sums = [vdupq_n_u16(0); BATCH / 8];
        for line in from..end {
            let (low, high) = looked_up(line);
            sums = [
                vaddw_u8(sums[0], vget_low_u8(low)),
                vaddw_high_u8(sums[1], low),
                vaddw_u8(sums[2], vget_low_u8(high)),
                vaddw_high_u8(sums[3], high),
            ];
        }
        from = end;
        for (wide, sums) in wide.as_chunks_mut::<2>().0.iter_mut().zip(sums) {
            wide[0] = vaddw_u16(wide[0], vget_low_u16(sums));
            wide[1] = vaddw_high_u16(wide[1], sums);
        }
    }
    let (step, offset) = (vdupq_n_f32(lookup.step), vdupq_n_f32(lookup.offset));
    let (rank, margin) = (vdupq_n_f32(rank), vdupq_n_f32(margin));
    let threshold = vdupq_n_f32(threshold);
    let mut near = 0;
    for (four, sums) in wide.into_iter().enumerate() {
        // SAFETY: of the batch's factors, four each.
        let (add, scale) = unsafe {
            let factors = batch.add(BATCH * 4).cast::<float32x4_t>().add(four);
            (
                factors.read_volatile(),
                factors.add(BATCH / 4).read_volatile(),
            )
        };
        let along = vfmaq_f32(offset, vcvtq_f32_u32(sums), step);
        let estimate = vfmaq_f32(vaddq_f32(rank, add), scale, along);
        let least = vfmaq_f32(estimate, scale, margin);
        near |= bits(vcltq_f32(least, threshold)) << (4 * four);
        // SAFETY: four of the estimates.
        unsafe {
            vst1q_f32(estimates.as_mut_ptr().add(4 * four), estimate);
        }
    }
    near
}

/// Of each element, which is all ones or zero, a bit.
#[target_feature(enable = "neon")]
#[inline]
fn bits(mask: uint32x4_t) -> u32 {
    let bits = [1u32, 2, 4, 8];
    // SAFETY: four numbers.
    #[allow(unsafe_code)]
    let bits = unsafe { vld1q_u32(bits.as_ptr()) };
    vaddvq_u32(vandq_u32(mask, bits))
}
