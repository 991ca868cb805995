//! For processors with AVX-512 and its sums of products (Ice Lake, Zen 4 and later): sixteen
//! bytes of four groups in a register.

use super::*;
use crate::arena::to_second_cache;
use std::arch::x86_64::*;

pub(super) static KERNELS: Kernels = Kernels {
    name: "avx512+vnni",
    make,
    scan,
    dot8,
};

pub(super) fn is_here() -> bool {
    avx2::is_here()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// Each adds at most 63 to a sum of sixteen bits.
const LINES_MAX: usize = 1024;
/// So many bytes of the table fit into one.
const LINES_AT_ONCE: usize = 4;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
fn make(query: &[Lane]) -> Lookup {
    Lookup::of(query, &KERNELS, |query, table| avx2::fill(query, table))
}

/// # Safety
/// `bytes` points to sixteen for each of `fine`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
#[allow(unsafe_code)]
unsafe fn dot8(bytes: *const u8, fine: &[Fine]) -> i32 {
    const PAIR: usize = 2 * Lane::WIDTH;
    let (pairs, rest) = fine.as_chunks::<2>();
    let (eights, others) = pairs.as_chunks::<4>();
    let mut sums = [_mm512_setzero_si512(); 4];
    let add = |sum: &mut __m512i, i: usize, pair: &[Fine; 2]| {
        // SAFETY: within both by the contract.
        let (q, v) = unsafe {
            (
                _mm512_loadu_si512(pair.as_ptr().cast()),
                _mm256_loadu_si256(bytes.add(i * PAIR).cast()),
            )
        };
        *sum = _mm512_dpwssd_epi32(*sum, q, _mm512_cvtepu8_epi16(v));
    };
    for (i, eight) in eights.iter().enumerate() {
        for (j, pair) in eight.iter().enumerate() {
            add(&mut sums[j], 4 * i + j, pair);
        }
    }
    for (j, pair) in others.iter().enumerate() {
        add(&mut sums[j], 4 * eights.len() + j, pair);
    }
    for last in rest {
        // SAFETY: as above.
        let (q, v) = unsafe {
            (
                _mm256_load_si256(std::ptr::from_ref(last).cast()),
                _mm_loadu_si128(bytes.add(pairs.len() * PAIR).cast()),
            )
        };
        let v = _mm512_cvtepu8_epi16(_mm256_zextsi128_si256(v));
        sums[3] = _mm512_dpwssd_epi32(sums[3], _mm512_zextsi256_si512(q), v);
    }
    _mm512_reduce_add_epi32(_mm512_add_epi32(
        _mm512_add_epi32(sums[0], sums[1]),
        _mm512_add_epi32(sums[2], sums[3]),
    ))
}

/// # Safety
/// As [`Lookup::scan`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
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
    let low_half = _mm512_set1_epi8(0xF);
    let table = lookup.table.as_ptr().cast::<__m512i>();
    // SAFETY: the batch's signs, aligned.
    let signs = unsafe { batch.add(SIGNS).cast::<__m512i>() };
    // Between the sums, not before them: a burst would be waited for.
    let ask_for = |line: usize| to_second_cache(ahead.wrapping_add(line * Line::BYTES));
    // The bytes that four groups add, for the first sixteen slots and the others.
    let looked_up = |i: usize| {
        ask_for(SIGNS / Line::BYTES + i);
        // SAFETY: `i` is below the table's lines; the batch has as many.
        let (bytes, signs) = unsafe {
            (
                _mm512_load_si512(table.add(i)),
                signs.add(i).read_volatile(),
            )
        };
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(signs), low_half);
        (
            _mm512_shuffle_epi8(bytes, _mm512_and_si512(signs, low_half)),
            _mm512_shuffle_epi8(bytes, high),
        )
    };
    for line in 0..SIGNS / Line::BYTES {
        ask_for(line);
    }
    let lines = lookup.table.len();
    let (mut first, mut others) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    let mut from = 0;
    while from < lines {
        let end = lines.min(from + LINES_MAX);
        let (mut low_sums, mut high_sums) = (Sums::zero(), Sums::zero());
        let mut i = from;
        while i + LINES_AT_ONCE <= end {
            let (mut low, mut high) = looked_up(i);
            for more in 1..LINES_AT_ONCE {
                let (more_low, more_high) = looked_up(i + more);
                low = _mm512_add_epi8(low, more_low);
                high = _mm512_add_epi8(high, more_high);
            }
            low_sums.add(low);
            high_sums.add(high);
            i += LINES_AT_ONCE;
        }
        for i in i..end {
            let (low, high) = looked_up(i);
            low_sums.add(low);
            high_sums.add(high);
        }
        from = end;
        first = _mm512_add_epi32(first, low_sums.of_slots());
        others = _mm512_add_epi32(others, high_sums.of_slots());
    }
    let (step, offset) = (_mm512_set1_ps(lookup.step), _mm512_set1_ps(lookup.offset));
    let (rank, margin) = (_mm512_set1_ps(rank), _mm512_set1_ps(margin));
    let threshold = _mm512_set1_ps(threshold);
    let mut near = 0;
    for (half, sums) in [first, others].into_iter().enumerate() {
        // SAFETY: of the batch's factors, sixteen each.
        let (add, scale) = unsafe {
            let factors = batch.add(BATCH * 4).cast::<__m512>().add(half);
            (factors.read_volatile(), factors.add(2).read_volatile())
        };
        let along = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), step, offset);
        let estimate = _mm512_fmadd_ps(scale, along, _mm512_add_ps(rank, add));
        let least = _mm512_fmadd_ps(scale, margin, estimate);
        let is_near = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(least, threshold);
        near |= u32::from(is_near) << (16 * half);
        // SAFETY: sixteen of the estimates.
        unsafe {
            _mm512_storeu_ps(estimates.as_mut_ptr().add(16 * half), estimate);
        }
    }
    near
}

/// Sums of the bytes of sixteen slots, over four groups beside each other.
#[derive(Clone, Copy)]
struct Sums {
    /// Of even slots, with the odd ones above them.
    all: __m512i,
    /// Of odd slots.
    odd: __m512i,
}

impl Sums {
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn zero() -> Self {
        let zero = _mm512_setzero_si512();
        Self {
            all: zero,
            odd: zero,
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn add(&mut self, bytes: __m512i) {
        self.all = _mm512_add_epi16(self.all, bytes);
        self.odd = _mm512_add_epi16(self.odd, _mm512_srli_epi16::<8>(bytes));
    }

    /// In the order of the slots.
    #[target_feature(enable = "avx512f,avx512bw,avx2")]
    #[inline]
    fn of_slots(self) -> __m512i {
        let even = _mm512_sub_epi16(self.all, _mm512_slli_epi16::<8>(self.odd));
        let over_groups = |sums: __m512i| {
            let wide = _mm512_add_epi32(
                _mm512_cvtepu16_epi32(_mm512_castsi512_si256(sums)),
                _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(sums)),
            );
            // Eight, and the eight of the other groups.
            _mm512_add_epi32(wide, _mm512_shuffle_i64x2::<0b01_00_11_10>(wide, wide))
        };
        let order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        _mm512_permutex2var_epi32(over_groups(even), order, over_groups(self.odd))
    }
}
