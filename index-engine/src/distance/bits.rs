//! Ranks of bit vectors: counts, exact.

use super::Lane;
use super::kernels::{Function, available};
use crate::params::Metric;

/// Words of a lane.
const WORDS: usize = 8;

#[inline(always)]
fn count<const N: usize>(a: &[Lane], b: &[Lane], words: impl Fn(u64, u64) -> [u64; N]) -> [u32; N] {
    assert_eq!(a.len(), b.len(), "vectors of one index have one length");
    let (a, b): (&[u64], &[u64]) = (Lane::view(a), Lane::view(b));
    let mut counts = [[0u64; WORDS]; N];
    for (x, y) in a
        .as_chunks::<WORDS>()
        .0
        .iter()
        .zip(b.as_chunks::<WORDS>().0)
    {
        for i in 0..WORDS {
            let words = words(x[i], y[i]);
            for n in 0..N {
                // At most 64,000 together: a check would only keep the compiler from
                // counting eight at a time.
                counts[n][i] = counts[n][i].wrapping_add(u64::from(words[n].count_ones()));
            }
        }
    }
    counts.map(|counts| counts.into_iter().fold(0, u64::wrapping_add) as u32)
}

/// pgvector's definition, to within half of f32's last place: what two do not share of
/// what they have together, and one where they share nothing.
#[inline(always)]
fn jaccard_of([both, either]: [u32; 2]) -> f32 {
    if both == 0 {
        return 1.0;
    }
    (either - both) as f32 / either as f32
}

macro_rules! functions {
    ($($features:literal)?) => {
        use super::{Lane, count, jaccard_of};

        $(#[target_feature(enable = $features)])?
        pub(super) fn hamming(a: &[Lane], b: &[Lane]) -> f32 {
            let [differ] = count(a, b, |x, y| [x ^ y]);
            differ as f32
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn jaccard(a: &[Lane], b: &[Lane]) -> f32 {
            jaccard_of(count(a, b, |x, y| [x & y, x | y]))
        }
    };
}

mod portable {
    functions!();
}

#[cfg(target_arch = "x86_64")]
mod popcnt {
    functions!("popcnt");
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Lane, count};

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn hamming(a: &[Lane], b: &[Lane]) -> f32 {
        let [differ] = count(a, b, |x, y| [x ^ y]);
        differ as f32
    }
}

/// By intrinsics: of the body above the compiler counts one of two metrics word by word.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Lane, jaccard_of};
    use std::arch::x86_64::*;

    /// Lanes that are counted side by side, so that an addition need not wait for the last.
    const UNROLL: usize = 4;

    #[target_feature(enable = "avx512f,avx512vpopcntdq")]
    pub(super) fn hamming(a: &[Lane], b: &[Lane]) -> f32 {
        let [differ] = count(a, b, |x, y| [_mm512_xor_si512(x, y)]);
        differ as f32
    }

    #[target_feature(enable = "avx512f,avx512vpopcntdq")]
    pub(super) fn jaccard(a: &[Lane], b: &[Lane]) -> f32 {
        jaccard_of(count(a, b, |x, y| {
            [_mm512_and_si512(x, y), _mm512_or_si512(x, y)]
        }))
    }

    #[target_feature(enable = "avx512f,avx512vpopcntdq")]
    #[inline]
    fn count<const N: usize>(
        a: &[Lane],
        b: &[Lane],
        bits: impl Fn(__m512i, __m512i) -> [__m512i; N],
    ) -> [u32; N] {
        assert_eq!(a.len(), b.len(), "vectors of one index have one length");
        let mut counts = [[_mm512_setzero_si512(); N]; UNROLL];
        let add = |counts: &mut [__m512i; N], a: &Lane, b: &Lane| {
            for (count, bits) in counts.iter_mut().zip(bits(register(a), register(b))) {
                *count = _mm512_add_epi64(*count, _mm512_popcnt_epi64(bits));
            }
        };
        let (a_blocks, a_rest) = a.as_chunks::<UNROLL>();
        let (b_blocks, b_rest) = b.as_chunks::<UNROLL>();
        for (a, b) in a_blocks.iter().zip(b_blocks) {
            for k in 0..UNROLL {
                add(&mut counts[k], &a[k], &b[k]);
            }
        }
        for (a, b) in a_rest.iter().zip(b_rest) {
            add(&mut counts[0], a, b);
        }
        std::array::from_fn(|n| {
            let [a, b, c, d] = counts.map(|counts| counts[n]);
            let sum = _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d));
            _mm512_reduce_add_epi64(sum) as u32
        })
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn register(lane: &Lane) -> __m512i {
        // SAFETY: 64 bytes.
        #[allow(unsafe_code)]
        unsafe {
            _mm512_loadu_si512(lane.0.as_ptr().cast())
        }
    }
}

/// Counts stay bytes for a line: the compiler would widen those of each register to 64 bits.
#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{Lane, jaccard_of};
    use std::arch::aarch64::*;

    /// Each adds at most 64 to a sum of sixteen bits.
    const LANES_MAX: usize = 512;

    #[target_feature(enable = "neon")]
    pub(super) fn hamming(a: &[Lane], b: &[Lane]) -> f32 {
        let [differ] = count(a, b, |x, y| [veorq_u8(x, y)]);
        differ as f32
    }

    #[target_feature(enable = "neon")]
    pub(super) fn jaccard(a: &[Lane], b: &[Lane]) -> f32 {
        jaccard_of(count(a, b, |x, y| [vandq_u8(x, y), vorrq_u8(x, y)]))
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn count<const N: usize>(
        a: &[Lane],
        b: &[Lane],
        bits: impl Fn(uint8x16_t, uint8x16_t) -> [uint8x16_t; N],
    ) -> [u32; N] {
        assert_eq!(a.len(), b.len(), "vectors of one index have one length");
        let mut counts = [0u32; N];
        for (a, b) in a.chunks(LANES_MAX).zip(b.chunks(LANES_MAX)) {
            let mut sums = [vdupq_n_u16(0); N];
            for (a, b) in a.iter().zip(b) {
                let mut bytes = [vdupq_n_u8(0); N];
                for (x, y) in registers(a).into_iter().zip(registers(b)) {
                    for (bytes, bits) in bytes.iter_mut().zip(bits(x, y)) {
                        *bytes = vaddq_u8(*bytes, vcntq_u8(bits));
                    }
                }
                for (sum, bytes) in sums.iter_mut().zip(bytes) {
                    *sum = vpadalq_u8(*sum, bytes);
                }
            }
            for (count, sum) in counts.iter_mut().zip(sums) {
                *count += vaddlvq_u16(sum);
            }
        }
        counts
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn registers(lane: &Lane) -> [uint8x16_t; 4] {
        let at = lane.0.as_ptr().cast::<u8>();
        // SAFETY: 64 bytes.
        #[allow(unsafe_code)]
        [0, 16, 32, 48].map(|i| unsafe { vld1q_u8(at.add(i)) })
    }
}

pub(super) fn available(metric: Metric) -> Vec<(&'static str, Function)> {
    match metric {
        Metric::Hamming => available! {
            ["avx512vpopcntdq": "avx512f", "avx512vpopcntdq"] avx512::hamming;
            ["avx2+popcnt": "avx2", "popcnt"] avx2::hamming;
            ["popcnt": "popcnt"] popcnt::hamming;
            neon neon::hamming;
            portable portable::hamming
        },
        // Two counts at once by AVX2's shuffles are so many instructions that fewer vectors
        // are waited for at a time: 167 ns for 109 where they come from memory.
        Metric::Jaccard => available! {
            ["avx512vpopcntdq": "avx512f", "avx512vpopcntdq"] avx512::jaccard;
            ["popcnt": "popcnt"] popcnt::jaccard;
            neon neon::jaccard;
            portable portable::jaccard
        },
        _ => unreachable!("bits have no {metric:?} distance"),
    }
}
