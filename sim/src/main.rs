//! `sim --seed N` runs one seed, `sim --seeds A..B` many; the exit code says
//! whether every promise held.

use sim::mutant::Mutant;
use sim::{Options, Report, STEPS_DEFAULT};
use std::process::ExitCode;

const USAGE: &str = "usage: sim [--seed N | --seeds A..B] [--steps M] [--trace] [--mutant NAME]";

struct Arguments {
    seeds: std::ops::Range<u64>,
    steps: u64,
    prints: bool,
    mutant: Option<Mutant>,
}

fn arguments() -> Option<Arguments> {
    let mut parsed = Arguments {
        seeds: 1..2,
        steps: STEPS_DEFAULT,
        prints: false,
        mutant: None,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        match name.as_str() {
            "--trace" => parsed.prints = true,
            "--seed" => {
                let seed: u64 = given.next()?.parse().ok()?;
                parsed.seeds = seed..seed.checked_add(1)?;
            }
            "--seeds" => {
                let range = given.next()?;
                let (from, to) = range.split_once("..")?;
                parsed.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            "--steps" => parsed.steps = given.next()?.parse().ok()?,
            "--mutant" => parsed.mutant = Some(Mutant::from_name(&given.next()?)?),
            _ => return None,
        }
    }
    Some(parsed)
}

fn tell(report: &Report, is_only: bool) {
    let Report {
        seed,
        hash,
        lines,
        world_ms,
        counts,
        ..
    } = report;
    if let Err(violation) = &report.verdict {
        if is_only {
            for line in &report.last_lines {
                println!("{line}");
            }
        }
        println!("seed {seed}: BROKEN after {world_ms} ms: {violation}");
    } else if is_only {
        println!("seed {seed}: held for {world_ms} ms, {lines} lines, trace {hash:016x}");
        println!("{counts:?}");
    }
}

fn main() -> ExitCode {
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let is_only = arguments.seeds.end - arguments.seeds.start == 1;
    let (mut ran, mut failed) = (0u64, Vec::new());
    for seed in arguments.seeds {
        let report = sim::run(Options {
            seed,
            steps: arguments.steps,
            mutant: arguments.mutant,
            prints: arguments.prints,
        });
        tell(&report, is_only);
        ran += 1;
        if report.verdict.is_err() {
            failed.push(seed);
        }
    }
    if !is_only {
        println!("{ran} seeds, failing: {failed:?}");
    }
    match failed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
