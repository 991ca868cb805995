use super::*;
use crate::distance::Scorer;
use crate::params::Element;
use proptest::prelude::*;

const METRICS: [Metric; 3] = [Metric::L2, Metric::Cosine, Metric::InnerProduct];

/// Rotated vectors about a common centre, `offset` of their noise away from zero.
fn vectors(count: usize, dimensions: usize, offset: f32, seed: u64) -> Vec<Box<[Lane]>> {
    let mut state = seed;
    let mut unit = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut normal = || (0..12).map(|_| unit()).sum::<f32>() - 6.0;
    let centre: Vec<f32> = (0..dimensions).map(|_| offset * normal()).collect();
    let mut vector = || {
        let values: Vec<f32> = centre.iter().map(|c| c + normal()).collect();
        Lane::pack(&values)
    };
    (0..count).map(|_| vector()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn ranks_err_by_less_than_their_doubt(
        seed in any::<u64>(),
        lanes in prop::sample::select(vec![8usize, 13, 49, 60]),
        offset in prop::sample::select(vec![0f32, 1.0, 5.0]),
        bits in prop::sample::select(CodeBits::ALL.to_vec()),
        metric in prop::sample::select(METRICS.to_vec()),
    ) {
        let dimensions = lanes * Lane::WIDTH;
        let all = vectors(41, dimensions, offset, seed);
        let coarse = Coarse::new(metric, dimensions, bits);
        for (node, vector) in all[1..].iter().enumerate() {
            coarse.write(node as u32, vector);
        }
        let query = coarse.query(&all[0]);
        let scorer = Scorer::new(metric, Element::F32);
        let (mut within, mut doubts) = (0, 0.0);
        for (node, vector) in all[1..].iter().enumerate() {
            let exact = scorer.rank(&all[0], vector);
            let rank = coarse.rank(node as u32, &query);
            let doubt = rank - coarse.least(node as u32, &query, rank);
            within += usize::from((rank - exact).abs() <= doubt);
            doubts += doubt / 40.0;
        }
        // Three deviations, of errors that are not quite independent.
        prop_assert!(within >= 36, "{within} of 40 within their doubt");
        // A doubt is not just large: it halves with every bit, or nearly.
        let spread = dimensions as f32 * if metric == Metric::L2 { 2.0 } else { 1.0 };
        let length = (1.0 + offset * offset).sqrt();
        let most = match bits {
            // Longer centres than most, and so more doubt, come up now and then.
            CodeBits::One => 5.0,
            CodeBits::Two => 2.2,
            CodeBits::Four => 0.7,
            CodeBits::Eight => 0.1,
        };
        let allowed = most * length * spread / (dimensions as f32).sqrt() * 2.0;
        prop_assert!(doubts < allowed, "{doubts} for {allowed}");
    }

    #[test]
    fn a_code_as_a_query_ranks_as_its_vector(
        seed in any::<u64>(),
        bits in prop::sample::select(vec![CodeBits::Four, CodeBits::Eight]),
        metric in prop::sample::select(METRICS.to_vec()),
    ) {
        let dimensions = 400;
        let all = vectors(20, dimensions, 1.0, seed);
        let coarse = Coarse::new(metric, dimensions, bits);
        for (node, vector) in all.iter().enumerate() {
            coarse.write(node as u32, vector);
        }
        let spread = dimensions as f32 * if metric == Metric::L2 { 2.0 } else { 1.0 };
        // The worst of some hundred pairs: eight deviations.
        let allowed = spread * if bits == CodeBits::Four { 0.1 } else { 0.02 };
        for a in 0..20 {
            let query = coarse.query_of(a).expect("enough bits");
            for b in 0..20 {
                if a == b {
                    continue;
                }
                let exact = Scorer::new(metric, Element::F32).rank(&all[a as usize], &all[b as usize]);
                let rank = coarse.rank(b, &query);
                prop_assert!((rank - exact).abs() < allowed, "{a} {b}: {rank} for {exact}");
            }
        }
    }
}

/// Codes of one centre err together, those of many to either side.
#[test]
fn ranks_err_to_neither_side_over_many_centres() {
    let (dimensions, centres) = (8 * Lane::WIDTH, 200);
    for bits in CodeBits::ALL {
        for metric in METRICS {
            let scorer = Scorer::new(metric, Element::F32);
            let (mut bias, mut doubts) = (0.0, 0.0);
            for seed in 0..centres {
                let all = vectors(11, dimensions, 1.0, 0x9E37_79B9 * seed);
                let coarse = Coarse::new(metric, dimensions, bits);
                let query = coarse.query(&all[0]);
                for (node, vector) in all[1..].iter().enumerate() {
                    coarse.write(node as u32, vector);
                    let rank = coarse.rank(node as u32, &query);
                    bias += rank - scorer.rank(&all[0], vector);
                    doubts += rank - coarse.least(node as u32, &query, rank);
                }
            }
            assert!(
                bias.abs() < 0.1 * doubts,
                "{bits:?} {metric:?}: {bias} of {doubts}"
            );
        }
    }
}

#[test]
fn codes_without_a_step_and_of_huge_elements_rank_without_nan() {
    for bits in CodeBits::ALL {
        for metric in METRICS {
            let coarse = Coarse::new(metric, 32, bits);
            let all = [[0f32; 32], [f32::MAX; 32], [1e-30; 32], [1.0; 32]];
            for (node, vector) in all.iter().enumerate() {
                coarse.write(node as u32, &Lane::pack(vector));
            }
            for vector in &all {
                let query = coarse.query(&Lane::pack(vector));
                for node in 0..all.len() as u32 {
                    let rank = coarse.rank(node, &query);
                    assert!(!rank.is_nan(), "{bits:?} {metric:?} {node}");
                    assert!(!coarse.least(node, &query, rank).is_nan());
                }
            }
            let query = coarse.query(&Lane::pack(&all[3]));
            if metric == Metric::L2 {
                assert!(
                    (coarse.rank(0, &query) - 32.0).abs() < 1e-3,
                    "zero is far by |q|"
                );
            }
        }
    }
}

#[test]
fn equal_vectors_and_only_they_have_equal_codes_of_eight_bits() {
    let all = vectors(20, 128, 0.0, 9);
    let coarse = Coarse::new(Metric::L2, 128, CodeBits::Eight);
    for (node, vector) in all.iter().chain(&all).enumerate() {
        coarse.write(node as u32, vector);
    }
    for a in 0..40 {
        let likeness = coarse.likeness(a, &all[a as usize % 20]);
        for b in 0..40 {
            assert_eq!(likeness.is_that_of(b), a % 20 == b % 20);
        }
    }
}

/// A rank of one bit is as doubtful as it was, though the node has eight bits by now.
#[test]
fn what_a_rank_may_be_at_least_is_asked_of_the_code_that_it_came_from() {
    let all = vectors(201, 128, 1.0, 77);
    for metric in METRICS {
        let coarse = Coarse::new(metric, 128, CodeBits::One);
        for (node, vector) in all[1..].iter().enumerate() {
            coarse.write(node as u32, vector);
        }
        let query = coarse.query(&all[0]);
        let ranks: Vec<f32> = (0..200).map(|node| coarse.rank(node, &query)).collect();
        let new = coarse.make_room(0, CodeBits::Eight);
        for (node, vector) in all[1..].iter().enumerate() {
            // SAFETY: nobody is led there.
            #[allow(unsafe_code)]
            unsafe {
                coarse.encode(node as u32, vector, &new);
            }
        }
        // Kept: as if a reader were left.
        let _old = coarse.lead(0, new);
        let later = coarse.query(&all[0]);
        let (mut held, mut doubt, mut doubt_later) = (0, 0.0, 0.0);
        for (node, rank) in (0..).zip(ranks) {
            let exact = Scorer::new(metric, Element::F32).rank(&all[0], &all[node as usize + 1]);
            let least = coarse.least(node, &query, rank);
            held += usize::from(least <= exact);
            doubt += exact - least;
            let better = coarse.rank(node, &later);
            doubt_later += exact - coarse.least(node, &later, better);
        }
        assert!(held >= 196, "{metric:?}: {held} of 200");
        // Who came later goes by the new code alone.
        assert!(
            doubt_later * 5.0 < doubt,
            "{metric:?}: {doubt_later} {doubt}"
        );
    }
}
