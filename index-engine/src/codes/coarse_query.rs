//! A query against codes of a few bits a dimension, of whatever width.

use super::code::{CHUNK_BYTES, Code};
use crate::distance::Lane;
use crate::params::CodeBits;

pub(crate) struct CoarseQuery {
    /// In sixteen bits an element, padded with zeros to what whole chunks of a code of any
    /// width hold.
    fine: Box<[Fine]>,
    /// What one of `fine` is worth.
    pub(super) fine_step: f32,
    sum: f32,
    pub(super) squares: f32,
    /// Of the codes' mixture, when the query was made.
    pub(super) steps: u64,
}

/// Sixteen elements.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Fine([i16; Lane::WIDTH]);

impl CoarseQuery {
    /// For a rotated vector.
    pub(super) fn new(vector: &[Lane], steps: u64) -> Self {
        let values: &[f32] = Lane::view(vector);
        let most = values.iter().fold(0f32, |most, x| most.max(x.abs()));
        // Sums of products with bytes stay within 31 bits.
        let limit = (i32::MAX as f32 / (256.0 * values.len() as f32)).min(16_000.0);
        let per = if most > 0.0 && most.is_finite() {
            limit / most
        } else {
            0.0
        };
        let mut fine = Self::zeros(vector.len());
        for (fine, lane) in fine.iter_mut().zip(vector) {
            *fine = Fine(lane.0.map(|x| (x * per).round_ties_even() as i16));
        }
        Self {
            fine,
            fine_step: most / limit,
            sum: values.iter().sum(),
            squares: values.iter().map(|x| x * x).sum(),
            steps,
        }
    }

    /// What a code says of so many lanes, in half steps.
    pub(super) fn of_code(code: Code<'_>, lanes: usize) -> Self {
        let width = code.bits.count();
        let (values, parts) = (1i16 << width, 8 / width);
        let mask = (values - 1) as u8;
        let mut fine = Self::zeros(lanes);
        let chunks = code.bytes.as_chunks::<CHUNK_BYTES>().0;
        for (chunk, lanes) in chunks.iter().zip(fine.chunks_mut(parts)) {
            for (part, lane) in lanes.iter_mut().enumerate() {
                let value = |byte: u8| i16::from(byte >> (part * width) & mask);
                *lane = Fine(chunk.map(|byte| 2 * value(byte) + 1 - values));
            }
        }
        // A chunk's last bytes may say nothing.
        fine[lanes..].fill(Fine([0; Lane::WIDTH]));
        let halves: i32 = fine.iter().flat_map(|lane| lane.0).map(i32::from).sum();
        let half_step = 0.5 * code.factors.step;
        Self {
            fine,
            fine_step: half_step,
            sum: half_step * halves as f32,
            squares: code.factors.squares,
            steps: 0,
        }
    }

    fn zeros(lanes: usize) -> Box<[Fine]> {
        const PARTS_MAX: usize = 8;
        vec![Fine([0; Lane::WIDTH]); lanes.next_multiple_of(PARTS_MAX)].into()
    }

    /// The inner product with what a code of this width and step says.
    #[inline]
    pub(super) fn dot(&self, bits: CodeBits, code: &[u8], step: f32) -> f32 {
        let middle = 0.5 * (1 << bits.count()) as f32;
        let sum = self.sum_of_products(bits, code) as f32 * self.fine_step;
        step * (sum + (0.5 - middle) * self.sum)
    }

    #[inline]
    fn sum_of_products(&self, bits: CodeBits, code: &[u8]) -> i32 {
        // Behind what the code's chunks hold there are zeros only.
        let fine = &self.fine[..code.len() / CHUNK_BYTES * (8 / bits.count())];
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if special::is_here() {
            // SAFETY: the feature was detected, and `fine` is as long as the code asks.
            #[allow(unsafe_code)]
            return unsafe {
                match bits {
                    CodeBits::One => special::products::<1, 8>(code, fine),
                    CodeBits::Two => special::products::<2, 4>(code, fine),
                    CodeBits::Four => special::products::<4, 2>(code, fine),
                    CodeBits::Eight => special::products::<8, 1>(code, fine),
                }
            };
        }
        products_portable(bits, code, fine)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.fine)
    }
}

fn products_portable(bits: CodeBits, code: &[u8], fine: &[Fine]) -> i32 {
    let width = bits.count();
    let (parts, mask) = (8 / width, ((1u16 << width) - 1) as u8);
    let mut sum = 0;
    for (chunk, lanes) in code
        .as_chunks::<CHUNK_BYTES>()
        .0
        .iter()
        .zip(fine.chunks(parts))
    {
        for (part, lane) in lanes.iter().enumerate() {
            for (byte, q) in chunk.iter().zip(lane.0) {
                sum += i32::from(byte >> (part * width) & mask) * i32::from(q);
            }
        }
    }
    sum
}

/// By AVX2.
#[cfg(target_arch = "x86_64")]
mod special {
    use super::{CHUNK_BYTES, Fine};
    use std::arch::x86_64::*;

    pub(super) fn is_here() -> bool {
        is_x86_feature_detected!("avx2")
    }

    /// `PARTS` values of `WIDTH` bits each lie in a byte.
    ///
    /// # Safety
    /// `fine` has `PARTS` elements for each chunk of the code.
    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    pub(super) unsafe fn products<const WIDTH: i32, const PARTS: usize>(
        code: &[u8],
        fine: &[Fine],
    ) -> i32 {
        let mask = _mm_set1_epi8(((1u16 << WIDTH) - 1) as i8);
        let mut sums = [_mm256_setzero_si256(); 4];
        for (i, chunk) in code.as_chunks::<CHUNK_BYTES>().0.iter().enumerate() {
            // SAFETY: sixteen bytes.
            let mut values = unsafe { _mm_loadu_si128(chunk.as_ptr().cast()) };
            for part in 0..PARTS {
                // SAFETY: by the contract.
                let q = unsafe {
                    _mm256_load_si256(
                        std::ptr::from_ref(fine.get_unchecked(i * PARTS + part)).cast(),
                    )
                };
                let value = if PARTS == 1 {
                    values
                } else {
                    _mm_and_si128(values, mask)
                };
                let products = _mm256_madd_epi16(q, _mm256_cvtepu8_epi16(value));
                let at = if PARTS == 1 { i % 4 } else { part % 4 };
                sums[at] = _mm256_add_epi32(sums[at], products);
                if part + 1 < PARTS {
                    values = _mm_srli_epi16::<WIDTH>(values);
                }
            }
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
}

/// By NEON.
#[cfg(target_arch = "aarch64")]
mod special {
    use super::super::neon::Products;
    use super::{CHUNK_BYTES, Fine};
    use std::arch::aarch64::*;

    pub(super) fn is_here() -> bool {
        std::arch::is_aarch64_feature_detected!("neon")
    }

    /// `PARTS` values of `WIDTH` bits each lie in a byte.
    ///
    /// # Safety
    /// `fine` has `PARTS` elements for each chunk of the code.
    #[target_feature(enable = "neon")]
    #[allow(unsafe_code)]
    pub(super) unsafe fn products<const WIDTH: i32, const PARTS: usize>(
        code: &[u8],
        fine: &[Fine],
    ) -> i32 {
        let mask = vdupq_n_u8(((1u16 << WIDTH) - 1) as u8);
        let mut sums = [Products::zero(); 2];
        for (i, chunk) in code.as_chunks::<CHUNK_BYTES>().0.iter().enumerate() {
            // SAFETY: sixteen bytes.
            let mut values = unsafe { vld1q_u8(chunk.as_ptr()) };
            for part in 0..PARTS {
                // SAFETY: by the contract.
                let q = unsafe { fine.get_unchecked(i * PARTS + part) };
                sums[part % 2].add(&q.0, vandq_u8(values, mask));
                values = vshrq_n_u8::<WIDTH>(values);
            }
        }
        let [even, odd] = sums;
        even.total(odd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_sums_alike() {
        let mut state = 3u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u32
        };
        for bits in CodeBits::ALL {
            for lanes in [1, 2, 7, 8, 9, 48, 1_000] {
                let vector: Vec<f32> = (0..lanes * 16).map(|_| next() as f32 / 1e9 - 1.0).collect();
                let query = CoarseQuery::new(&Lane::pack(&vector), 0);
                let parts = 8 / bits.count();
                let bytes = (lanes as usize).div_ceil(parts) * CHUNK_BYTES;
                let code: Vec<u8> = (0..bytes).map(|_| next() as u8).collect();
                let portable = products_portable(bits, &code, &query.fine);
                let sum = query.sum_of_products(bits, &code);
                assert_eq!(sum, portable, "{bits:?} {lanes}");
            }
        }
    }
}
