//! What an index says it takes, and what the system says. Alone in its process: other tests
//! would take memory beside it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod world;

use index_engine::{CodeBits, IndexParams, Metric, PartitionIndex, Recoded, Representation};
use world::Random;

/// Anonymous pages of the process, in bytes.
fn anonymous_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() << 10
}

#[test]
fn memory_is_told_to_within_a_twentieth_of_what_the_system_counts() {
    const ROWS: usize = 9_000;
    const DIMENSIONS: usize = 512;
    let mut random = Random(3);
    let mut vector = vec![0.0; DIMENSIONS];
    // Kept to the end: what one gives back another would be given.
    let mut all = Vec::new();
    for form in [
        Representation::Plain,
        Representation::Coded,
        Representation::Compact(CodeBits::Eight),
        Representation::Compact(CodeBits::One),
    ] {
        let params = IndexParams {
            metric: Metric::L2,
            dimensions: DIMENSIONS,
            ef_construction: 16,
            representation: form,
            ..IndexParams::default()
        };
        let before = anonymous_bytes();
        let index = PartitionIndex::new(params).unwrap();
        // Some rows stay in the tail.
        for row in 0..ROWS {
            vector.fill_with(|| random.next() as f32 / u64::MAX as f32);
            index.insert(&vector, row as u64).unwrap();
        }
        index.fold(ROWS / 4);
        let grown = (anonymous_bytes() - before) as f64;
        let told = index.memory_bytes() as f64;
        assert!(
            (told / grown - 1.0).abs() < 0.05,
            "{form:?}: {told} of {grown}: {:?}",
            index.footprint()
        );
        let parts = index.footprint();
        assert!(parts.vectors >= ROWS * DIMENSIONS * 4 && parts.handed_in == 0);
        all.push(index);
    }
    // Most blocks of the third in one bit, and then half of these in eight again.
    let index = &all[2];
    for (blocks, bits) in [(1..9, CodeBits::One), (3..7, CodeBits::Eight)] {
        let (before, told_before) = (anonymous_bytes(), index.memory_bytes());
        for block in blocks {
            assert_eq!(index.recode(block, bits), Ok(Recoded::Done));
        }
        let changed = anonymous_bytes() as f64 - before as f64;
        let told = index.memory_bytes() as f64 - told_before as f64;
        assert!(told.abs() > 1e6, "{told}");
        assert!((told / changed - 1.0).abs() < 0.05, "{told} of {changed}");
    }
}
