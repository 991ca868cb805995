//! Ranks of f16 vectors, which are stored as they came: sums are of f32, of which each
//! half is one exactly.

use super::Lane;
use super::kernels::{Function, available};
use crate::params::Metric;

macro_rules! functions {
    ($load:expr, $fused:expr $(, $features:literal)?) => {
        use super::{Lane, halves, minus_cosine};
        use crate::distance::sums::{difference, product, products, square, sum, WIDTH};
        use crate::half::Half;

        $(#[target_feature(enable = $features)])?
        pub(super) fn l2_squared(a: &[Lane], b: &[Lane]) -> f32 {
            sum(halves(a), halves(b), $load, square::<{ $fused }>)
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn minus_product(a: &[Lane], b: &[Lane]) -> f32 {
            -sum(halves(a), halves(b), $load, product::<{ $fused }>)
        }

        /// Of vectors of any length: made unit vectors of halves they would be rounded.
        $(#[target_feature(enable = $features)])?
        pub(super) fn cosine(a: &[Lane], b: &[Lane]) -> f32 {
            minus_cosine(products::<_, { $fused }>(halves(a), halves(b), $load))
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn l1(a: &[Lane], b: &[Lane]) -> f32 {
            sum(halves(a), halves(b), $load, difference)
        }
    };
}

#[inline(always)]
fn halves(lanes: &[Lane]) -> &[crate::half::Half] {
    Lane::view(lanes)
}

/// NaN for a zero vector.
#[inline(always)]
fn minus_cosine([xy, xx, yy]: [f32; 3]) -> f32 {
    (-f64::from(xy) / (f64::from(xx) * f64::from(yy)).sqrt()) as f32
}

mod portable {
    functions!(
        |x: &[Half; WIDTH]| x.map(Half::finite_to_f32),
        cfg!(any(target_arch = "aarch64", target_feature = "fma"))
    );
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx2 {
    use std::arch::x86_64::*;

    functions!(
        |x: &[Half; WIDTH]| {
            // SAFETY: sixteen halves; and two registers of eight floats are sixteen.
            unsafe {
                let (low, high) = (x.as_ptr().cast(), x.as_ptr().add(8).cast());
                let low = _mm256_cvtph_ps(_mm_loadu_si128(low));
                let high = _mm256_cvtph_ps(_mm_loadu_si128(high));
                std::mem::transmute::<[__m256; 2], [f32; WIDTH]>([low, high])
            }
        },
        true,
        "avx2,fma,f16c"
    );
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod avx512 {
    use std::arch::x86_64::*;

    functions!(
        |x: &[Half; WIDTH]| {
            // SAFETY: sixteen halves, and as many floats.
            unsafe {
                let halves = _mm256_loadu_si256(x.as_ptr().cast());
                std::mem::transmute::<__m512, [f32; WIDTH]>(_mm512_cvtph_ps(halves))
            }
        },
        true,
        "avx512f"
    );
}

#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod neon {
    use std::arch::aarch64::*;

    functions!(
        |x: &[Half; WIDTH]| {
            let at = x.as_ptr().cast::<u16>();
            // SAFETY: sixteen halves; and four registers of four floats are sixteen.
            unsafe {
                let a = vreinterpretq_f16_u16(vld1q_u16(at));
                let b = vreinterpretq_f16_u16(vld1q_u16(at.add(8)));
                let low = [vcvt_f32_f16(vget_low_f16(a)), vcvt_high_f32_f16(a)];
                let high = [vcvt_f32_f16(vget_low_f16(b)), vcvt_high_f32_f16(b)];
                std::mem::transmute::<[[float32x4_t; 2]; 2], [f32; WIDTH]>([low, high])
            }
        },
        true,
        "neon"
    );
}

pub(super) fn available(metric: Metric) -> Vec<(&'static str, Function)> {
    macro_rules! of {
        ($function:ident) => {
            available! {
                ["avx512f": "avx512f"] avx512::$function;
                ["avx2+fma+f16c": "avx2", "fma", "f16c"] avx2::$function;
                neon neon::$function;
                portable portable::$function
            }
        };
    }
    match metric {
        Metric::L2 => of!(l2_squared),
        Metric::InnerProduct => of!(minus_product),
        Metric::Cosine => of!(cosine),
        Metric::L1 => of!(l1),
        Metric::Hamming | Metric::Jaccard => unreachable!("halves have no {metric:?} distance"),
    }
}
