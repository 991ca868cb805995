//! A fixed random rotation, applied to every vector before it is stored.
//!
//! Distances and inner products do not change under it; one-bit codes become
//! good whatever the data looks like, for a rotated residual has no favourite
//! axis (RaBitQ, Gao & Long, arXiv:2405.12497). Rotating costs `O(d log d)`:
//! rounds of sign flips, Walsh-Hadamard transforms of the largest power of two at
//! either end, and a butterfly between the halves, so that any multiple of 16
//! dimensions will do.
//!
//! The signs come from a constant seed: equal vectors of two indexes of the same
//! dimensions are stored as equal bytes.

use crate::seeded::next;

const ROUNDS: usize = 4;
const SEED: u64 = 0x5275_5665_6374_6F72;
/// Dimensions are padded with zeros to a multiple of this.
const MULTIPLE: usize = 16;
/// Elements of one AVX register.
const SMALL: usize = 8;

pub(crate) struct Rotation {
    dimensions: usize,
    /// One factor a dimension and round: the sign, and what keeps lengths.
    factors: Box<[f32]>,
}

impl Rotation {
    pub(crate) fn new(dimensions: usize) -> Self {
        let padded = dimensions.next_multiple_of(MULTIPLE);
        let block = largest_power(padded);
        let mut state = SEED;
        let mut factors = Vec::with_capacity(ROUNDS * padded);
        for round in 0..ROUNDS {
            let transformed = range_of(round, padded, block);
            for i in 0..padded {
                let sign = if next(&mut state) >> 63 == 0 {
                    1.0
                } else {
                    -1.0
                };
                let halves = if padded == block { 1.0 } else { 0.5f32.sqrt() };
                let scale = match transformed.contains(&i) {
                    true => 1.0 / (block as f32).sqrt(),
                    false => 1.0,
                };
                factors.push(sign * halves * scale);
            }
        }
        Self {
            dimensions: padded,
            factors: factors.into(),
        }
    }

    /// Dimensions of what `apply` answers: the next multiple of 16.
    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The vector, padded and rotated.
    pub(crate) fn apply(&self, vector: &[f32]) -> Vec<f32> {
        let mut values = vec![0.0; self.dimensions];
        values[..vector.len()].copy_from_slice(vector);
        self.rotate(&mut values);
        values
    }

    fn rotate(&self, values: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: the feature was detected.
            #[allow(unsafe_code)]
            if is_x86_feature_detected!("avx512f") {
                return unsafe { rotate_avx512(&self.factors, values) };
            }
            // SAFETY: as above.
            #[allow(unsafe_code)]
            if is_x86_feature_detected!("avx2") {
                return unsafe { rotate_avx2(&self.factors, values) };
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            // SAFETY: the feature was detected.
            #[allow(unsafe_code)]
            return unsafe { rotate_neon(&self.factors, values) };
        }
        rotate(&self.factors, values, small_hadamard);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn rotate_avx512(factors: &[f32], values: &mut [f32]) {
    use std::arch::x86_64::*;
    let negated = |x: __m512, which: __mmask16| {
        let signs = _mm512_maskz_set1_epi32(which, i32::MIN);
        _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), signs))
    };
    // By shuffles, as below, of two eights at a time.
    let small = |values: &mut [f32]| {
        for sixteen in values.as_chunks_mut::<16>().0 {
            // SAFETY: sixteen floats.
            #[allow(unsafe_code)]
            let x = unsafe { _mm512_loadu_ps(sixteen.as_ptr()) };
            let swapped = _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x);
            let x = _mm512_add_ps(swapped, negated(x, 0xF0F0));
            let swapped = _mm512_permute_ps::<0b01_00_11_10>(x);
            let x = _mm512_add_ps(swapped, negated(x, 0xCCCC));
            let swapped = _mm512_permute_ps::<0b10_11_00_01>(x);
            let x = _mm512_add_ps(swapped, negated(x, 0xAAAA));
            // SAFETY: sixteen floats.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_storeu_ps(sixteen.as_mut_ptr(), x);
            }
        }
    };
    rotate(factors, values, small);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn rotate_avx2(factors: &[f32], values: &mut [f32]) {
    use std::arch::x86_64::*;
    // By shuffles: the compiler finds none for these three stages.
    let small = |values: &mut [f32]| {
        let negate_high = _mm256_setr_ps(0.0, 0.0, 0.0, 0.0, -0.0, -0.0, -0.0, -0.0);
        let negate_pair = _mm256_setr_ps(0.0, 0.0, -0.0, -0.0, 0.0, 0.0, -0.0, -0.0);
        let negate_odd = _mm256_setr_ps(0.0, -0.0, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0);
        for eight in values.as_chunks_mut::<8>().0 {
            // SAFETY: eight floats.
            #[allow(unsafe_code)]
            let x = unsafe { _mm256_loadu_ps(eight.as_ptr()) };
            let x = _mm256_add_ps(
                _mm256_permute2f128_ps::<1>(x, x),
                _mm256_xor_ps(x, negate_high),
            );
            let x = _mm256_add_ps(
                _mm256_permute_ps::<0b01_00_11_10>(x),
                _mm256_xor_ps(x, negate_pair),
            );
            let x = _mm256_add_ps(
                _mm256_permute_ps::<0b10_11_00_01>(x),
                _mm256_xor_ps(x, negate_odd),
            );
            // SAFETY: eight floats.
            #[allow(unsafe_code)]
            unsafe {
                _mm256_storeu_ps(eight.as_mut_ptr(), x);
            }
        }
    };
    rotate(factors, values, small);
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn rotate_neon(factors: &[f32], values: &mut [f32]) {
    use std::arch::aarch64::*;
    // Elements are put beside those that they are added to, in both registers at once.
    let small = |values: &mut [f32]| {
        for eight in values.as_chunks_mut::<SMALL>().0 {
            let at = eight.as_mut_ptr();
            // SAFETY: eight floats.
            #[allow(unsafe_code)]
            let (x, y) = unsafe { (vld1q_f32(at), vld1q_f32(at.add(4))) };
            let (x, y) = (vaddq_f32(x, y), vsubq_f32(x, y));
            let (x, y) = (vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y));
            let (x, y) = (vtrn1q_f64(x, y), vtrn2q_f64(x, y));
            let (x, y) = (vreinterpretq_f32_f64(x), vreinterpretq_f32_f64(y));
            let (x, y) = (vaddq_f32(x, y), vsubq_f32(x, y));
            let (x, y) = (vtrn1q_f32(x, y), vtrn2q_f32(x, y));
            let (x, y) = (vaddq_f32(x, y), vsubq_f32(x, y));
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                vst1q_f32(at, vzip1q_f32(x, y));
                vst1q_f32(at.add(4), vzip2q_f32(x, y));
            }
        }
    };
    rotate(factors, values, small);
}

#[inline(always)]
fn rotate(factors: &[f32], values: &mut [f32], small: impl Fn(&mut [f32])) {
    let dimensions = values.len();
    let block = largest_power(dimensions);
    for (round, factors) in factors.chunks_exact(dimensions).enumerate() {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
        let range = range_of(round, dimensions, block);
        hadamard(&mut values[range.clone()]);
        small(&mut values[range]);
        if block < dimensions {
            let (low, high) = values.split_at_mut(dimensions / 2);
            for (x, y) in low.iter_mut().zip(high) {
                (*x, *y) = (*x + *y, *x - *y);
            }
        }
    }
}

/// Rounds take turns at the two ends.
fn range_of(round: usize, dimensions: usize, block: usize) -> std::ops::Range<usize> {
    match round % 2 {
        0 => 0..block,
        _ => dimensions - block..dimensions,
    }
}

fn largest_power(n: usize) -> usize {
    1 << n.ilog2()
}

/// The Walsh-Hadamard transform but for its last three stages, not scaled. The
/// length is a power of two, at least 16.
#[inline(always)]
fn hadamard(values: &mut [f32]) {
    let mut half = values.len() / 2;
    // Two stages at a time: what they read and write is half of one after the other.
    while half >= 2 * SMALL {
        for block in values.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            let (a, b) = low.split_at_mut(half / 2);
            let (c, d) = high.split_at_mut(half / 2);
            for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
                let (sum, difference) = ((*a + *c, *b + *d), (*a - *c, *b - *d));
                (*a, *b) = (sum.0 + sum.1, sum.0 - sum.1);
                (*c, *d) = (difference.0 + difference.1, difference.0 - difference.1);
            }
        }
        half /= 4;
    }
    if half >= SMALL {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (x, y) in low.iter_mut().zip(high) {
                (*x, *y) = (*x + *y, *x - *y);
            }
        }
    }
}

/// The last three stages, within eight elements.
fn small_hadamard(values: &mut [f32]) {
    for eight in values.as_chunks_mut::<SMALL>().0 {
        for half in [4, 2, 1] {
            let before = *eight;
            for i in 0..SMALL {
                let other = before[i ^ half];
                eight[i] = if i & half == 0 {
                    before[i] + other
                } else {
                    other - before[i]
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, state: &mut u64) -> Vec<f32> {
        (0..n)
            .map(|_| (next(state) >> 40) as f32 / 8_388_608.0 - 1.0)
            .collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    }

    #[test]
    fn lengths_and_angles_stay() {
        let mut state = 1;
        for dimensions in [1, 64, 100, 300, 512, 768, 784, 1536, 4096] {
            let rotation = Rotation::new(dimensions);
            assert_eq!(rotation.dimensions() % 16, 0);
            let (a, b) = (
                random(dimensions, &mut state),
                random(dimensions, &mut state),
            );
            let (x, y) = (rotation.apply(&a), rotation.apply(&b));
            let scale = (dot(&a, &a) * dot(&b, &b)).sqrt();
            assert!(
                (dot(&x, &y) - dot(&a, &b)).abs() < 1e-5 * scale,
                "{dimensions}"
            );
            assert!(
                (dot(&x, &x) / dot(&a, &a) - 1.0).abs() < 1e-5,
                "{dimensions}"
            );
        }
    }

    /// Equal vectors are equal bytes, whichever machine stored them.
    #[test]
    fn every_kernel_rotates_alike_to_the_last_bit() {
        let mut state = 7;
        for dimensions in [16, 32, 48, 64, 112, 768, 784, 1_536, 16_000] {
            let rotation = Rotation::new(dimensions);
            let before = random(dimensions, &mut state);
            let bits = |rotated: Vec<f32>| rotated.into_iter().map(f32::to_bits);
            let rotated = |by: &dyn Fn(&mut [f32])| {
                let mut values = before.clone();
                by(&mut values);
                values
            };
            let plain = rotated(&|values| rotate(&rotation.factors, values, small_hadamard));
            let best = rotated(&|values| rotation.rotate(values));
            assert!(bits(best).eq(bits(plain.clone())), "{dimensions}");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the feature was detected.
                #[allow(unsafe_code)]
                let second = rotated(&|values| unsafe { rotate_avx2(&rotation.factors, values) });
                assert!(bits(second).eq(bits(plain)), "{dimensions}");
            }
        }
    }

    #[test]
    fn one_axis_is_spread_over_all() {
        for dimensions in [64, 192, 768, 784] {
            let mut axis = vec![0.0; dimensions];
            axis[dimensions / 3] = 1.0;
            let rotated = Rotation::new(dimensions).apply(&axis);
            let most = rotated.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(
                most < 5.0 / (dimensions as f32).sqrt(),
                "{dimensions}: {most}"
            );
        }
    }
}
