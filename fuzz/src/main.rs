//! `fuzz [TARGET…] [--minutes 10] [--seed 1] [--input FILE]`: all targets without a name.

use anyhow::{Context, Result, bail};
use fuzz::allocation::Counting;
use fuzz::run;
use fuzz::targets::{TARGETS, Target};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut targets: Vec<&Target> = Vec::new();
    let (mut minutes, mut seed, mut input) = (10.0, 1, None);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .with_context(|| format!("{argument} needs a value"))
        };
        match argument.as_str() {
            "--minutes" => minutes = value()?.parse().context("--minutes")?,
            "--seed" => seed = value()?.parse().context("--seed")?,
            "--input" => input = Some(value()?),
            name => match TARGETS.iter().find(|target| target.name == name) {
                Some(target) => targets.push(target),
                None => bail!(
                    "no target {name:?}; there are {:?}",
                    TARGETS.map(|t| t.name)
                ),
            },
        }
    }
    if targets.is_empty() {
        targets.extend(&TARGETS);
    }
    for target in targets {
        if let Some(file) = &input {
            let bytes = std::fs::read(file).with_context(|| file.clone())?;
            println!("{}: {}", target.name, run::again(target, &bytes)?);
            continue;
        }
        let limit = Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")?;
        let ran = run::run(target, seed, limit)?;
        println!(
            "{}: {} inputs from seed {seed} in {minutes} min, {} kinds of outcome, {} inputs kept",
            target.name, ran.inputs, ran.outcomes, ran.kept
        );
    }
    Ok(())
}
