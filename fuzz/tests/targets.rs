//! Each target runs a moment in every test run, and notices what it is there for.
#![allow(clippy::unwrap_used)]

use fuzz::allocation::{self, Counting};
use fuzz::run::run;
use fuzz::targets::{TARGETS, Target};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn p10_no_decoder_panics_or_allocates_what_it_was_only_told() {
    for target in &TARGETS {
        let ran = run(target, 1, Duration::from_millis(500)).unwrap();
        assert!(
            ran.inputs > 1_000 && ran.outcomes > 3,
            "{}: {} inputs",
            target.name,
            ran.inputs
        );
    }
}

const CORPUS: fn() -> Vec<Vec<u8>> = || vec![vec![0; 8]];

fn problem_of(name: &'static str, check: fn(&[u8]) -> anyhow::Result<String>) -> String {
    let target = Target {
        name,
        corpus: CORPUS,
        check,
        mend: None,
    };
    let problem = run(&target, 1, Duration::from_secs(5))
        .err()
        .unwrap()
        .to_string();
    std::fs::remove_file(format!("fuzz-{name}-failed.bin")).unwrap();
    problem
}

#[test]
fn a_length_that_is_believed_is_found() {
    let problem = problem_of("believes", |input| {
        let length = input
            .first_chunk::<4>()
            .map_or(0, |len| u32::from_be_bytes(*len) as usize);
        let trusted: Vec<u8> = Vec::with_capacity(length);
        Ok(format!("{}", trusted.capacity()))
    });
    assert!(problem.contains("bytes allocated"), "{problem}");
}

#[test]
fn a_panic_is_found() {
    let problem = problem_of("panics", |input| {
        assert!(input.len() < 12);
        Ok(String::new())
    });
    assert!(problem.contains("panicked"), "{problem}");
}

#[test]
fn what_a_thread_asks_for_is_counted() {
    let (kept, bytes) = allocation::during(|| vec![0u8; 100_000]);
    assert!(bytes >= kept.len() && bytes < 2 * kept.len());
}
