//! Random histories of statements, transactions and crashes: see
//! `integration_tests::histories`. Which seeds, and for how long, is read from
//!
//! - `SEEDS`: `7` or `1..300`, and then all of them are played however long it takes;
//!   without it, those that have failed before and then fresh ones while there is time;
//! - `HISTORY_SECONDS`: that time, 240 if not said.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, bail};
use integration_tests::histories::{Stage, Tally};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Each has found something that was broken on purpose, or shows much at once.
const FIXED: [u64; 4] = [1, 2, 4, 7];
const SECONDS: u64 = 240;
/// A soak goes on after a failure, on a cluster of its own each time.
const FAILURES_MAX: usize = 5;

struct Plan {
    seeds: Box<dyn Iterator<Item = u64>>,
    until: Option<Instant>,
    failures_max: usize,
}

fn plan() -> Result<Plan> {
    if let Ok(seeds) = std::env::var("SEEDS") {
        let number = |text: &str| {
            text.trim()
                .parse::<u64>()
                .with_context(|| format!("SEEDS={seeds}"))
        };
        let (first, end) = match seeds.split_once("..") {
            Some((first, end)) => (number(first)?, number(end)?),
            None => (number(&seeds)?, number(&seeds)? + 1),
        };
        return Ok(Plan {
            seeds: Box::new(first..end),
            until: None,
            failures_max: FAILURES_MAX,
        });
    }
    let seconds = match std::env::var("HISTORY_SECONDS") {
        Ok(seconds) => seconds.parse().context("HISTORY_SECONDS")?,
        Err(_) => SECONDS,
    };
    // Fresh ones every second: what CI has not seen yet.
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(Plan {
        seeds: Box::new(FIXED.into_iter().chain(fresh..)),
        until: Some(Instant::now() + Duration::from_secs(seconds)),
        failures_max: 1,
    })
}

#[test]
fn p1_p2_p3_random_histories_with_crashes_end_with_the_heap_and_no_search_lies() -> Result<()> {
    let plan = plan()?;
    let began = Instant::now();
    let (mut played, mut total) = (0, Tally::default());
    let mut failures = Vec::new();
    let mut stage = None;
    for (place, seed) in plan.seeds.enumerate() {
        let is_over = plan.until.is_some_and(|until| Instant::now() > until);
        if failures.len() >= plan.failures_max || is_over && place >= FIXED.len() {
            break;
        }
        let this = match stage.take() {
            Some(stage) => stage,
            None => Stage::open(&format!("histories-{place}"))?,
        };
        let started = Instant::now();
        match this.play(seed) {
            Ok(tally) => {
                println!(
                    "seed {seed}: {:.1} s, {tally:?}",
                    started.elapsed().as_secs_f64()
                );
                total.add(&tally);
                played += 1;
                stage = Some(this);
            }
            Err(failure) => {
                println!(
                    "seed {seed} FAILED: {:#}\n  what was done: {}\n  again: SEED={seed} scripts/histories.sh",
                    failure.problem,
                    failure.record.display()
                );
                failures.push(seed);
                // Dropped: its processes end, its logs and records stay.
            }
        }
    }
    println!(
        "{played} histories in {:.0} s: {total:?}",
        began.elapsed().as_secs_f64()
    );
    if let Some(stage) = stage {
        stage.close()?;
    }
    if !failures.is_empty() {
        bail!("these seeds failed: {failures:?}");
    }
    assert!(played > 0);
    Ok(())
}
