//! Sums over lanes, compiled once per instruction set and chosen when an index is made.
//!
//! Vectors come as whole lanes, padded with zeros, which add nothing to a sum: kernels
//! have no remainder loop. The bodies are plain Rust with independent accumulators.

use super::Lane;

/// Lanes summed side by side, so that an addition need not wait for the last.
const UNROLL: usize = 4;

#[inline(always)]
fn sum_lanes<const FUSED: bool>(
    a: &[Lane],
    b: &[Lane],
    term: impl Fn(f32, f32) -> (f32, f32) + Copy,
) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of one index have one length");
    let mut sums = [[0f32; Lane::WIDTH]; UNROLL];
    let add = |sum: &mut [f32; Lane::WIDTH], x: &Lane, y: &Lane| {
        for (sum, (x, y)) in sum.iter_mut().zip(x.0.iter().zip(&y.0)) {
            let (p, q) = term(*x, *y);
            *sum = if FUSED {
                p.mul_add(q, *sum)
            } else {
                p * q + *sum
            };
        }
    };
    let (a_blocks, a_rest) = a.as_chunks::<UNROLL>();
    let (b_blocks, b_rest) = b.as_chunks::<UNROLL>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for k in 0..UNROLL {
            add(&mut sums[k], &x[k], &y[k]);
        }
    }
    // Into one fixed sum: an index known only at run time would put all on the stack.
    for (x, y) in a_rest.iter().zip(b_rest) {
        add(&mut sums[0], x, y);
    }
    let mut total = [0f32; Lane::WIDTH];
    for i in 0..Lane::WIDTH {
        total[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    }
    // By halves: sixteen additions in a row would each wait for the one before.
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            total[i] += total[i + half];
        }
    }
    total[0]
}

#[inline(always)]
fn l2_squared_body<const FUSED: bool>(a: &[Lane], b: &[Lane]) -> f32 {
    sum_lanes::<FUSED>(a, b, |x, y| (x - y, x - y))
}

#[inline(always)]
fn dot_body<const FUSED: bool>(a: &[Lane], b: &[Lane]) -> f32 {
    sum_lanes::<FUSED>(a, b, |x, y| (x, y))
}

/// Compiled for what every processor of the target has.
mod portable {
    use super::Lane;

    const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

    pub(super) fn l2_squared(a: &[Lane], b: &[Lane]) -> f32 {
        super::l2_squared_body::<FUSED>(a, b)
    }

    pub(super) fn dot(a: &[Lane], b: &[Lane]) -> f32 {
        super::dot_body::<FUSED>(a, b)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lane;

    #[target_feature(enable = "avx512f")]
    pub(super) fn l2_squared_avx512(a: &[Lane], b: &[Lane]) -> f32 {
        super::l2_squared_body::<true>(a, b)
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn dot_avx512(a: &[Lane], b: &[Lane]) -> f32 {
        super::dot_body::<true>(a, b)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn l2_squared_avx2(a: &[Lane], b: &[Lane]) -> f32 {
        super::l2_squared_body::<true>(a, b)
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn dot_avx2(a: &[Lane], b: &[Lane]) -> f32 {
        super::dot_body::<true>(a, b)
    }
}

/// May be called only on a processor with the features that it was compiled for.
#[allow(unsafe_code)]
type Kernel = unsafe fn(&[Lane], &[Lane]) -> f32;

/// The kernels for this processor. Made only by [`Kernels::detect`] and, for
/// tests, [`Kernels::available`]: holding one proves that its features exist.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "names a kernel in test failures")
    )]
    pub(crate) name: &'static str,
    l2_squared: Kernel,
    dot: Kernel,
}

impl Kernels {
    pub(crate) fn detect() -> Self {
        Self::available()[0]
    }

    /// All that run here, the best first.
    pub(crate) fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                found.push(Self {
                    name: "avx512f",
                    l2_squared: x86::l2_squared_avx512,
                    dot: x86::dot_avx512,
                });
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self {
                    name: "avx2+fma",
                    l2_squared: x86::l2_squared_avx2,
                    dot: x86::dot_avx2,
                });
            }
        }
        found.push(Self {
            name: "portable",
            l2_squared: portable::l2_squared,
            dot: portable::dot,
        });
        found
    }

    #[inline]
    pub(crate) fn l2_squared(&self, a: &[Lane], b: &[Lane]) -> f32 {
        // SAFETY: `available` lists a kernel only where its features were detected.
        #[allow(unsafe_code)]
        unsafe {
            (self.l2_squared)(a, b)
        }
    }

    #[inline]
    pub(crate) fn dot(&self, a: &[Lane], b: &[Lane]) -> f32 {
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe {
            (self.dot)(a, b)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simsimd::SpatialSimilarity;

    fn pairs() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        let element = -100.0f32..100.0;
        (1usize..200).prop_flat_map(move |n| {
            let vector = prop::collection::vec(element.clone(), n);
            (vector.clone(), vector)
        })
    }

    proptest! {
        #[test]
        fn every_kernel_agrees_with_a_plain_f64_sum((a, b) in pairs()) {
            let wide = a.iter().zip(&b).map(|(x, y)| (f64::from(*x), f64::from(*y)));
            let l2: f64 = wide.clone().map(|(x, y)| (x - y) * (x - y)).sum();
            let dot: f64 = wide.clone().map(|(x, y)| x * y).sum();
            let size: f64 = wide.map(|(x, y)| (x * y).abs()).sum();
            let (x, y) = (Lane::pack(&a), Lane::pack(&b));
            for kernels in Kernels::available() {
                let got = f64::from(kernels.l2_squared(&x, &y));
                prop_assert!((got - l2).abs() <= 1e-5 * l2, "{} {got} {l2}", kernels.name);
                let got = f64::from(kernels.dot(&x, &y));
                prop_assert!((got - dot).abs() <= 1e-5 * size, "{} {got} {dot}", kernels.name);
            }
            let oracle = f32::l2sq(&a, &b).unwrap();
            prop_assert!((oracle - l2).abs() <= 1e-4 * l2.max(1.0), "simsimd {oracle} {l2}");
        }
    }
}
