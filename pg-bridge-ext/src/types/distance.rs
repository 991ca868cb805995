//! Distances, as pgvector defines them: sums in `float4`, the rest in `float8`.
//!
//! Sixteen running sums let the compiler use vector registers; on x86-64 the
//! same loop is also compiled for AVX2. Both add in the same order, so that a
//! distance does not depend on the machine.

use super::vector::check_same;
use crate::error::{float8, sql_functions};

const LANES: usize = 16;

macro_rules! summed {
    ($(#[$doc:meta])* $name:ident, $wide:ident, $portable:ident, $sums:literal, |$x:ident, $y:ident| $terms:expr) => {
        #[inline(always)]
        fn $portable(a: &[f32], b: &[f32]) -> [f32; $sums] {
            let mut lanes = [[0f32; LANES]; $sums];
            let (a_whole, a_rest) = a.as_chunks::<LANES>();
            let (b_whole, b_rest) = b.as_chunks::<LANES>();
            for (left, right) in a_whole.iter().zip(b_whole) {
                for lane in 0..LANES {
                    let ($x, $y) = (left[lane], right[lane]);
                    let terms: [f32; $sums] = $terms;
                    for sum in 0..$sums {
                        lanes[sum][lane] += terms[sum];
                    }
                }
            }
            for (lane, (&$x, &$y)) in a_rest.iter().zip(b_rest).enumerate() {
                let terms: [f32; $sums] = $terms;
                for sum in 0..$sums {
                    lanes[sum][lane] += terms[sum];
                }
            }
            lanes.map(|lanes| lanes.iter().sum())
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2")]
        fn $wide(a: &[f32], b: &[f32]) -> [f32; $sums] {
            $portable(a, b)
        }

        $(#[$doc])*
        fn $name(a: &[f32], b: &[f32]) -> [f32; $sums] {
            #[cfg(target_arch = "x86_64")]
            if std::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has it.
                return unsafe { $wide(a, b) };
            }
            $portable(a, b)
        }
    };
}

summed!(squares, squares_wide, squares_portable, 1, |x, y| [
    (x - y) * (x - y)
]);
summed!(dots, dots_wide, dots_portable, 1, |x, y| [x * y]);
summed!(cosines, cosines_wide, cosines_portable, 3, |x, y| [
    x * y,
    x * x,
    y * y
]);
summed!(taxi, taxi_wide, taxi_portable, 1, |x, y| [(x - y).abs()]);

pub fn l2_squared(a: &[f32], b: &[f32]) -> f64 {
    f64::from(squares(a, b)[0])
}

pub fn l2(a: &[f32], b: &[f32]) -> f64 {
    l2_squared(a, b).sqrt()
}

pub fn inner_product(a: &[f32], b: &[f32]) -> f64 {
    f64::from(dots(a, b)[0])
}

pub fn l1(a: &[f32], b: &[f32]) -> f64 {
    f64::from(taxi(a, b)[0])
}

/// NaN when either has no direction.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let [dot, norm_a, norm_b] = cosines(a, b);
    let similarity = f64::from(dot) / (f64::from(norm_a) * f64::from(norm_b)).sqrt();
    1.0 - similarity.clamp(-1.0, 1.0)
}

pub fn norm(a: &[f32]) -> f64 {
    a.iter()
        .map(|&x| f64::from(x) * f64::from(x))
        .sum::<f64>()
        .sqrt()
}

macro_rules! distance_functions {
    ($($info:ident for $name:ident = $distance:expr;)*) => {
        sql_functions! { $(
            $info for $name(call) {
                let (a, b) = (call.vector(0), call.vector(1));
                check_same(a, b);
                let distance: fn(&[f32], &[f32]) -> f64 = $distance;
                float8(distance(a, b))
            }
        )* }
    };
}

distance_functions! {
    pg_finfo_ruvector_l2_distance for ruvector_l2_distance = l2;
    pg_finfo_ruvector_vector_l2_squared_distance for ruvector_vector_l2_squared_distance = l2_squared;
    pg_finfo_ruvector_inner_product for ruvector_inner_product = inner_product;
    pg_finfo_ruvector_vector_negative_inner_product for ruvector_vector_negative_inner_product =
        |a, b| -inner_product(a, b);
    pg_finfo_ruvector_cosine_distance for ruvector_cosine_distance = cosine;
    pg_finfo_ruvector_l1_distance for ruvector_l1_distance = l1;
    pg_finfo_ruvector_vector_spherical_distance for ruvector_vector_spherical_distance =
        |a, b| inner_product(a, b).clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
}

sql_functions! {
    pg_finfo_ruvector_vector_dims for ruvector_vector_dims(call) {
        pgrx::pg_sys::Datum::from(call.vector(0).len() as i32)
    }

    pg_finfo_ruvector_vector_norm for ruvector_vector_norm(call) {
        float8(norm(call.vector(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wide_and_the_portable_sum_agree_to_the_bit() {
        let a: Vec<f32> = (0..77).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..77).map(|i| (i as f32 * 0.7).cos()).collect();
        assert_eq!(squares(&a, &b), squares_portable(&a, &b));
        assert_eq!(cosines(&a, &b), cosines_portable(&a, &b));
        assert_eq!(l2(&[3.0, 0.0], &[0.0, 4.0]), 5.0);
        assert!(cosine(&[0.0], &[1.0]).is_nan());
    }
}
