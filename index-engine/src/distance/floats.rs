//! Ranks of f32 vectors.

use super::Lane;
use super::kernels::{Function, available};
use crate::params::Metric;

macro_rules! functions {
    ($fused:expr $(, $features:literal)?) => {
        use super::{Lane, floats};
        use crate::distance::sums::{difference, product, square, sum};

        $(#[target_feature(enable = $features)])?
        pub(super) fn l2_squared(a: &[Lane], b: &[Lane]) -> f32 {
            sum(floats(a), floats(b), |x| *x, square::<{ $fused }>)
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn minus_product(a: &[Lane], b: &[Lane]) -> f32 {
            -sum(floats(a), floats(b), |x| *x, product::<{ $fused }>)
        }

        $(#[target_feature(enable = $features)])?
        pub(super) fn l1(a: &[Lane], b: &[Lane]) -> f32 {
            sum(floats(a), floats(b), |x| *x, difference)
        }
    };
}

#[inline(always)]
fn floats(lanes: &[Lane]) -> &[f32] {
    Lane::view(lanes)
}

/// Compiled for what every processor of the target has. Of 64-bit ARM that is NEON: there it
/// needs no other form.
mod portable {
    functions!(cfg!(any(target_arch = "aarch64", target_feature = "fma")));
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    functions!(true, "avx2,fma");
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    functions!(true, "avx512f");
}

pub(super) fn available(metric: Metric) -> Vec<(&'static str, Function)> {
    macro_rules! of {
        ($function:ident) => {
            available! {
                ["avx512f": "avx512f"] avx512::$function;
                ["avx2+fma": "avx2", "fma"] avx2::$function;
                portable portable::$function
            }
        };
    }
    match metric {
        Metric::L2 => of!(l2_squared),
        // Prepared vectors have length one.
        Metric::InnerProduct | Metric::Cosine => of!(minus_product),
        Metric::L1 => of!(l1),
        Metric::Hamming | Metric::Jaccard => unreachable!("floats have no {metric:?} distance"),
    }
}
