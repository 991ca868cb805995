//! One target for a while, from a seed.

use crate::allocation;
use crate::mutate::mutate;
use crate::targets::Target;
use anyhow::{Result, bail};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Inputs that are kept besides the captured ones.
const KEPT_MAX: usize = 4_096;
/// Every so many inputs the clock is looked at.
const CLOCK_EVERY: u64 = 1_024;

pub struct Ran {
    pub inputs: u64,
    pub outcomes: usize,
    pub kept: usize,
}

/// Until the time is up, or the first input that does what none may; that one is
/// written to a file.
pub fn run(target: &Target, seed: u64, limit: Duration) -> Result<Ran> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut corpus = (target.corpus)();
    let captured = corpus.len();
    let mut outcomes = BTreeSet::new();
    for input in corpus.clone() {
        outcomes.insert(try_input(target, &input)?);
    }
    let began = Instant::now();
    let mut inputs = 0;
    while inputs % CLOCK_EVERY != 0 || began.elapsed() < limit {
        inputs += 1;
        let one = rng.random_range(0..corpus.len());
        let other = rng.random_range(0..corpus.len());
        let mut input = mutate(&mut rng, &corpus[one], &corpus[other]);
        if let Some(mend) = target.mend {
            mend(&mut rng, &mut input);
        }
        if outcomes.insert(try_input(target, &input)?) && corpus.len() < captured + KEPT_MAX {
            corpus.push(input);
        }
    }
    Ok(Ran {
        inputs,
        outcomes: outcomes.len(),
        kept: corpus.len() - captured,
    })
}

/// The kind of outcome: without the numbers that differ from input to input.
fn try_input(target: &Target, input: &[u8]) -> Result<String> {
    let (tried, allocated) =
        allocation::during(|| catch_unwind(AssertUnwindSafe(|| (target.check)(input))));
    let problem = match tried {
        Ok(Ok(_)) if allocated > allocation::limit(input.len()) => format!(
            "{allocated} bytes allocated for {} of input; {} are allowed",
            input.len(),
            allocation::limit(input.len())
        ),
        Ok(Ok(outcome)) => {
            return Ok(outcome
                .chars()
                .filter(|c| !c.is_ascii_digit())
                .take(80)
                .collect());
        }
        Ok(Err(problem)) => format!("{problem:#}"),
        Err(_) => "it panicked".to_owned(),
    };
    let file = PathBuf::from(format!("fuzz-{}-failed.bin", target.name));
    std::fs::write(&file, input)?;
    bail!(
        "{}: {problem}; the input is in {}",
        target.name,
        file.display()
    )
}

/// One input again, from the file that a failure wrote.
pub fn again(target: &Target, input: &[u8]) -> Result<String> {
    try_input(target, input)
}
