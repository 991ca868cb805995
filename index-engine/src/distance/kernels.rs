//! The functions that rank two stored vectors, one for each metric, element and
//! instruction set.

use super::{Lane, bits, floats, halves, sparse};
use crate::params::{Element, Metric};

/// May be called only on a processor with the features that it was compiled for.
#[allow(unsafe_code)]
pub(super) type Function = unsafe fn(&[Lane], &[Lane]) -> f32;

/// The rank of two prepared vectors. Made only by [`Kernel::available`], for a
/// processor that has what the function needs.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "names a kernel in test failures")
    )]
    pub(crate) name: &'static str,
    rank: Function,
}

impl Kernel {
    /// The best one here.
    pub(crate) fn detect(metric: Metric, element: Element) -> Self {
        Self::available(metric, element)[0]
    }

    /// All that run here, the best first. At least one.
    ///
    /// # Panics
    /// If the element has no such distance.
    pub(crate) fn available(metric: Metric, element: Element) -> Vec<Self> {
        let functions = match element {
            Element::F32 => floats::available(metric),
            Element::F16 => halves::available(metric),
            Element::Sparse => sparse::available(metric),
            Element::Bit => bits::available(metric),
        };
        let kernel = |(name, rank)| Self { name, rank };
        functions.into_iter().map(kernel).collect()
    }

    /// NaN where there is none.
    #[inline]
    pub(crate) fn rank(&self, a: &[Lane], b: &[Lane]) -> f32 {
        // SAFETY: `available` lists a kernel only where its features were detected.
        #[allow(unsafe_code)]
        unsafe {
            (self.rank)(a, b)
        }
    }
}

/// Of functions by name those that run on this processor, and the portable one last.
macro_rules! available {
    (
        $([$name:literal: $($feature:tt),+] $function:expr;)*
        $(neon $neon:expr;)?
        portable $portable:expr
    ) => {{
        let mut found: Vec<(&'static str, $crate::distance::kernels::Function)> = Vec::new();
        $(
            #[cfg(target_arch = "x86_64")]
            if $(is_x86_feature_detected!($feature))&&+ {
                found.push(($name, $function));
            }
        )*
        $(
            #[cfg(target_arch = "aarch64")]
            if std::arch::is_aarch64_feature_detected!("neon") {
                found.push(("neon", $neon));
            }
        )?
        found.extend([("portable", $portable as _)]);
        found
    }};
}
pub(super) use available;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::Half;
    use proptest::prelude::*;
    use simsimd::{BinarySimilarity, SpatialSimilarity, f16};

    fn pairs(most: f32) -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        (1usize..200).prop_flat_map(move |n| {
            let vector = prop::collection::vec(-most..most, n);
            (vector.clone(), vector)
        })
    }

    /// A rank by a plain sum, and how large the terms are that it is the sum of.
    fn plainly(metric: Metric, a: &[f32], b: &[f32]) -> (f64, f64) {
        let sum = |term: fn(f64, f64) -> f64| -> f64 {
            let pairs = a.iter().zip(b);
            pairs.map(|(x, y)| term(f64::from(*x), f64::from(*y))).sum()
        };
        let dot = (sum(|x, y| x * y), sum(|x, y| (x * y).abs()));
        match metric {
            Metric::L2 => [sum(|x, y| (x - y) * (x - y)); 2].into(),
            Metric::L1 => [sum(|x, y| (x - y).abs()); 2].into(),
            Metric::InnerProduct => (-dot.0, dot.1),
            Metric::Cosine => {
                let norms = (sum(|x, _| x * x) * sum(|_, y| y * y)).sqrt();
                (-dot.0 / norms, dot.1 / norms)
            }
            Metric::Hamming | Metric::Jaccard => unreachable!("of bits"),
        }
    }

    /// What f32 sums of up to a few hundred terms may err by, as a share of the terms.
    const SHARE: f64 = 1e-5;

    fn agree(metric: Metric, element: Element, (a, b): (&[Lane], &[Lane]), exact: (f64, f64)) {
        for kernel in Kernel::available(metric, element) {
            for (a, b) in [(a, b), (b, a)] {
                let got = f64::from(kernel.rank(a, b));
                let error = (got - exact.0).abs();
                let name = kernel.name;
                assert!(
                    error <= SHARE * exact.1,
                    "{element} {metric:?} {name}: {got} for {exact:?}"
                );
            }
        }
    }

    const OF_FLOATS: [Metric; 4] = [Metric::L2, Metric::InnerProduct, Metric::L1, Metric::Cosine];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn kernels_of_floats_agree_with_a_plain_sum((a, b) in pairs(100.0)) {
            let lanes = (&*Lane::pack(&a), &*Lane::pack(&b));
            for metric in &OF_FLOATS[..3] {
                agree(*metric, Element::F32, lanes, plainly(*metric, &a, &b));
            }
            let l2 = plainly(Metric::L2, &a, &b).0;
            let oracle = f32::l2sq(&a, &b).unwrap();
            prop_assert!((oracle - l2).abs() <= 1e-4 * l2.max(1.0), "simsimd {oracle} {l2}");
        }

        /// Down to subnormal halves.
        #[test]
        fn kernels_of_halves_agree_with_a_plain_sum(
            (a, b) in prop_oneof![pairs(60_000.0), pairs(1.0), pairs(1e-5)],
        ) {
            let halves = |v: &[f32]| v.iter().map(|x| Half::from_f32(*x)).collect::<Vec<_>>();
            let (x, y) = (halves(&a), halves(&b));
            let floats = |v: &[Half]| v.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            let (a, b) = (floats(&x), floats(&y));
            let lanes = (&*Lane::pack_halves(&x), &*Lane::pack_halves(&y));
            for metric in OF_FLOATS {
                let exact = plainly(metric, &a, &b);
                prop_assume!(exact.0.is_finite());
                agree(metric, Element::F16, lanes, exact);
            }
            let theirs = |v: &[Half]| v.iter().map(|x| f16(x.0)).collect::<Vec<_>>();
            let (x, y) = (theirs(&x), theirs(&y));
            let (l2, _) = plainly(Metric::L2, &a, &b);
            let oracle = f16::l2sq(&x, &y).unwrap();
            prop_assert!((oracle - l2).abs() <= 1e-4 * l2, "simsimd {oracle} {l2}");
        }

        #[test]
        fn kernels_of_bits_count_exactly(
            (a, b) in (1usize..300).prop_flat_map(|n| {
                let bytes = prop::collection::vec(any::<u8>(), n);
                (bytes.clone(), prop_oneof![bytes, prop::collection::vec(Just(0u8), n)])
            }),
        ) {
            let count = |bits: fn(u8, u8) -> u8| -> u32 {
                a.iter().zip(&b).map(|(x, y)| bits(*x, *y).count_ones()).sum()
            };
            let (both, either) = (count(|x, y| x & y), count(|x, y| x | y));
            let jaccard = match both {
                0 => 1.0,
                _ => 1.0 - f64::from(both) / f64::from(either),
            };
            let (x, y) = (Lane::pack_bits(&a), Lane::pack_bits(&b));
            for kernel in Kernel::available(Metric::Hamming, Element::Bit) {
                prop_assert_eq!(kernel.rank(&x, &y), count(|x, y| x ^ y) as f32, "{}", kernel.name);
            }
            for kernel in Kernel::available(Metric::Jaccard, Element::Bit) {
                let error = f64::from(kernel.rank(&x, &y)) - jaccard;
                prop_assert!(error.abs() <= 1e-7 * jaccard, "{}: {error}", kernel.name);
            }
            prop_assert_eq!(u8::hamming(&a, &b).unwrap(), f64::from(count(|x, y| x ^ y)));
            if both > 0 {
                let error = u8::jaccard(&a, &b).unwrap() - jaccard;
                prop_assert!(error.abs() <= 1e-4, "simsimd {error}");
            }
        }

        #[test]
        fn kernels_of_sparse_vectors_agree_with_those_of_dense_ones(
            (a, b) in pairs(100.0),
            mask in prop::collection::vec((0u8..4, 0u8..4), 200),
            stretch in prop::sample::select(vec![1u32, 5_000_000]),
        ) {
            let thin = |v: &[f32], keep: &dyn Fn(usize) -> bool| -> Vec<f32> {
                let value = |(i, x): (usize, &f32)| if keep(i) { *x } else { 0.0 };
                v.iter().enumerate().map(value).collect()
            };
            let (a, b) = (thin(&a, &|i| mask[i].0 == 0), thin(&b, &|i| mask[i].1 < 2));
            let pack = |v: &[f32]| {
                let held = v.iter().enumerate().filter(|(_, x)| **x != 0.0);
                let (indices, values): (Vec<u32>, Vec<f32>) =
                    held.map(|(i, x)| (i as u32 * stretch, *x)).unzip();
                Lane::pack_sparse(&indices, &values)
            };
            let lanes = (&*pack(&a), &*pack(&b));
            for metric in &OF_FLOATS[..3] {
                agree(*metric, Element::Sparse, lanes, plainly(*metric, &a, &b));
            }
        }
    }

    #[test]
    fn counts_of_long_vectors_fit() {
        let (all, none) = (vec![u8::MAX; 100_000], vec![0; 100_000]);
        let (all, none) = (Lane::pack_bits(&all), Lane::pack_bits(&none));
        for kernel in Kernel::available(Metric::Hamming, Element::Bit) {
            assert_eq!(kernel.rank(&all, &none), 800_000.0, "{}", kernel.name);
        }
        for kernel in Kernel::available(Metric::Jaccard, Element::Bit) {
            assert_eq!(kernel.rank(&all, &all), 0.0, "{}", kernel.name);
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[test]
    fn neon_is_the_best_where_it_has_a_form_of_its_own() {
        for (metric, element) in [
            (Metric::L2, Element::F16),
            (Metric::Hamming, Element::Bit),
            (Metric::Jaccard, Element::Bit),
        ] {
            assert_eq!(Kernel::detect(metric, element).name, "neon");
        }
    }

    #[test]
    fn equal_vectors_have_equal_ranks_whatever_their_place() {
        let vector: Vec<f32> = (0..333).map(|i| (i as f32 * 0.7).sin()).collect();
        let halves: Vec<Half> = vector.iter().map(|x| Half::from_f32(*x)).collect();
        let indices: Vec<u32> = (0..333).map(|i| i * 3).collect();
        let bytes: Vec<u8> = (0..99u8).collect();
        for (element, lanes) in [
            (Element::F32, Lane::pack(&vector)),
            (Element::F16, Lane::pack_halves(&halves)),
            (Element::Sparse, Lane::pack_sparse(&indices, &vector)),
        ] {
            for metric in OF_FLOATS {
                let kernel = Kernel::detect(metric, element);
                let own = kernel.rank(&lanes, &lanes);
                assert_eq!(own, kernel.rank(&lanes, &lanes.clone()));
                let is_difference = matches!(metric, Metric::L2 | Metric::L1);
                assert_eq!(own == 0.0, is_difference, "{element} {metric:?} {own}");
                assert!(
                    metric != Metric::Cosine || (own + 1.0).abs() < 1e-6 || element != Element::F16
                );
            }
        }
        let lanes = Lane::pack_bits(&bytes);
        for metric in [Metric::Hamming, Metric::Jaccard] {
            assert_eq!(
                Kernel::detect(metric, Element::Bit).rank(&lanes, &lanes),
                0.0
            );
        }
    }
}
