//! Numbers that look random and follow from a seed that the caller hands in.

/// The next of them: SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// One of `0..count`, which is not zero.
pub(crate) fn below(state: &mut u64, count: usize) -> usize {
    // The bias is `count / 2^64`.
    ((u128::from(next(state)) * count as u128) >> 64) as usize
}

/// Passes `wanted` of the items on, each set of so many with equal chance, in their
/// order (Knuth, TAOCP 2, algorithm S). `count` is how many items there are.
pub(crate) fn sample<T>(
    state: &mut u64,
    items: impl Iterator<Item = T>,
    count: usize,
    wanted: usize,
) -> Vec<T> {
    let mut chosen = Vec::with_capacity(wanted.min(count));
    for (seen, item) in items.take(count).enumerate() {
        if chosen.len() < wanted && below(state, count - seen) < wanted - chosen.len() {
            chosen.push(item);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_its_size_and_prefers_nobody() {
        let mut state = 3;
        let mut times = [0u32; 20];
        for _ in 0..4_000 {
            let chosen = sample(&mut state, 0..20usize, 20, 5);
            assert!(chosen.len() == 5 && chosen.is_sorted());
            for item in chosen {
                times[item] += 1;
            }
        }
        assert!(times.iter().all(|t| (850..1_150).contains(t)), "{times:?}");
        assert_eq!(sample(&mut state, 0..3, 3, 9), [0, 1, 2]);
    }
}
