//! For processors with AVX2: sixteen bytes of two groups in a register.

use super::*;
use crate::arena::to_second_cache;
use std::arch::x86_64::*;

pub(super) static KERNELS: Kernels = Kernels {
    name: "avx2+fma",
    make,
    scan,
    dot8,
};

pub(super) fn is_here() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Each adds at most 63 to a sum of sixteen bits.
const HALVES_MAX: usize = 1024;

#[target_feature(enable = "avx2,fma")]
fn make(query: &[Lane]) -> Lookup {
    // Closures take the features of the function around them.
    Lookup::of(query, &KERNELS, |query, table| fill(query, table))
}

/// Sixteen sums of a group in one register.
#[target_feature(enable = "avx2")]
pub(super) fn fill(query: &[Fine], table: &mut [Line]) {
    let with = |t: u32| {
        let mask: [i16; 16] = std::array::from_fn(|signs| -((signs >> t & 1) as i16));
        // SAFETY: sixteen numbers.
        #[allow(unsafe_code)]
        unsafe {
            _mm256_loadu_si256(mask.as_ptr().cast())
        }
    };
    let masks = [with(0), with(1), with(2), with(3)];
    let half = 1i16 << (TABLE_BITS - 1);
    let sums = |group: &[i16; GROUP]| {
        let mut sum = half;
        for q in group {
            sum -= (*q).min(0);
        }
        let mut sums = _mm256_set1_epi16(sum);
        for (q, mask) in group.iter().zip(masks) {
            sums = _mm256_add_epi16(sums, _mm256_and_si256(_mm256_set1_epi16(*q), mask));
        }
        _mm256_srli_epi16::<{ TABLE_BITS as i32 }>(sums)
    };
    for (fine, line) in query.iter().zip(table) {
        let groups = fine.0.as_chunks::<GROUP>().0;
        for (pair, bytes) in groups
            .as_chunks::<2>()
            .0
            .iter()
            .zip(line.0.as_chunks_mut::<32>().0)
        {
            let packed = _mm256_packus_epi16(sums(&pair[0]), sums(&pair[1]));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
            // SAFETY: 32 bytes.
            #[allow(unsafe_code)]
            unsafe {
                _mm256_storeu_si256(bytes.as_mut_ptr().cast(), ordered);
            }
        }
    }
}

/// # Safety
/// `bytes` points to sixteen for each of `fine`.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
unsafe fn dot8(bytes: *const u8, fine: &[Fine]) -> i32 {
    let mut sums = [_mm256_setzero_si256(); 4];
    let product = |i: usize, fine: &Fine| {
        // SAFETY: within both by the contract.
        let (q, v) = unsafe {
            (
                _mm256_load_si256(std::ptr::from_ref(fine).cast()),
                _mm_loadu_si128(bytes.add(i * Lane::WIDTH).cast()),
            )
        };
        _mm256_madd_epi16(q, _mm256_cvtepu8_epi16(v))
    };
    let (fours, rest) = fine.as_chunks::<4>();
    for (i, four) in fours.iter().enumerate() {
        for j in 0..4 {
            sums[j] = _mm256_add_epi32(sums[j], product(4 * i + j, &four[j]));
        }
    }
    for (j, fine) in rest.iter().enumerate() {
        sums[0] = _mm256_add_epi32(sums[0], product(4 * fours.len() + j, fine));
    }
    let sum = _mm256_add_epi32(
        _mm256_add_epi32(sums[0], sums[1]),
        _mm256_add_epi32(sums[2], sums[3]),
    );
    let half = _mm_add_epi32(
        _mm256_castsi256_si128(sum),
        _mm256_extracti128_si256::<1>(sum),
    );
    let pair = _mm_add_epi32(half, _mm_shuffle_epi32::<0b01_00_11_10>(half));
    _mm_cvtsi128_si32(_mm_add_epi32(
        pair,
        _mm_shuffle_epi32::<0b10_11_00_01>(pair),
    ))
}

/// # Safety
/// As [`Lookup::scan`].
#[target_feature(enable = "avx2,fma")]
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
    let low_half = _mm256_set1_epi8(0xF);
    let zero = _mm256_setzero_si256();
    let table = lookup.table.as_ptr().cast::<__m256i>();
    // SAFETY: the batch's signs, aligned.
    let signs = unsafe { batch.add(SIGNS).cast::<__m256i>() };
    // The bytes that two groups add, for the first sixteen slots and the others.
    let looked_up = |i: usize| {
        // SAFETY: `i` is below the halves of the table's lines; the batch has as many.
        let (bytes, signs) = unsafe {
            (
                _mm256_load_si256(table.add(i)),
                signs.add(i).read_volatile(),
            )
        };
        let low = _mm256_shuffle_epi8(bytes, _mm256_and_si256(signs, low_half));
        let high = _mm256_shuffle_epi8(
            bytes,
            _mm256_and_si256(_mm256_srli_epi16::<4>(signs), low_half),
        );
        (low, high)
    };
    // Between the sums, not before them: a burst would be waited for.
    let ask_for = |line: usize| to_second_cache(ahead.wrapping_add(line * Line::BYTES));
    for line in 0..SIGNS / Line::BYTES {
        ask_for(line);
    }
    let halves = 2 * lookup.table.len();
    let mut wide = [0u32; BATCH];
    let mut from = 0;
    while from < halves {
        let end = halves.min(from + HALVES_MAX);
        // Sums of sixteen bits: of even bytes with the odd ones above, and of odd bytes.
        let (mut a_low, mut b_low, mut a_high, mut b_high) = (zero, zero, zero, zero);
        let mut i = from;
        while i < end {
            // Two of a line, and as a rule two lines: four bytes fit into one.
            ask_for(SIGNS / Line::BYTES + i / 2);
            let (mut low, mut high) = looked_up(i);
            let mut add = |i| {
                let (more_low, more_high) = looked_up(i);
                low = _mm256_add_epi8(low, more_low);
                high = _mm256_add_epi8(high, more_high);
            };
            add(i + 1);
            if i + 4 <= end {
                ask_for(SIGNS / Line::BYTES + i / 2 + 1);
                add(i + 2);
                add(i + 3);
            }
            a_low = _mm256_add_epi16(a_low, low);
            b_low = _mm256_add_epi16(b_low, _mm256_srli_epi16::<8>(low));
            a_high = _mm256_add_epi16(a_high, high);
            b_high = _mm256_add_epi16(b_high, _mm256_srli_epi16::<8>(high));
            i += 4;
        }
        from = end;
        for (first, (a, b)) in [(0, (a_low, b_low)), (16, (a_high, b_high))] {
            let (mut even, mut odd) = ([0u16; 16], [0u16; 16]);
            let a = _mm256_sub_epi16(a, _mm256_slli_epi16::<8>(b));
            // SAFETY: 32 bytes each.
            unsafe {
                _mm256_storeu_si256(even.as_mut_ptr().cast(), a);
                _mm256_storeu_si256(odd.as_mut_ptr().cast(), b);
            }
            for i in 0..8 {
                wide[first + 2 * i] += u32::from(even[i]) + u32::from(even[i + 8]);
                wide[first + 2 * i + 1] += u32::from(odd[i]) + u32::from(odd[i + 8]);
            }
        }
    }
    let (step, offset) = (_mm256_set1_ps(lookup.step), _mm256_set1_ps(lookup.offset));
    let (rank, margin) = (_mm256_set1_ps(rank), _mm256_set1_ps(margin));
    let threshold = _mm256_set1_ps(threshold);
    let mut near = 0;
    for eight in 0..BATCH / 8 {
        // SAFETY: of the batch's factors and the sums, eight each.
        let (add, scale, sum) = unsafe {
            let factors = batch.add(BATCH * 4).cast::<__m256>().add(eight);
            (
                factors.read_volatile(),
                factors.add(BATCH / 8).read_volatile(),
                _mm256_loadu_si256(wide.as_ptr().cast::<__m256i>().add(eight)),
            )
        };
        let along = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), step, offset);
        let estimate = _mm256_fmadd_ps(scale, along, _mm256_add_ps(rank, add));
        let least = _mm256_fmadd_ps(scale, margin, estimate);
        let is_near = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(least, threshold));
        near |= (is_near as u32) << (8 * eight);
        // SAFETY: eight of the estimates.
        unsafe {
            _mm256_storeu_ps(estimates.as_mut_ptr().add(8 * eight), estimate);
        }
    }
    near
}
