//! How fast rows come through, beside what Postgres's own logical replication takes for
//! the same; how long they come faster than they are folded, and what is sustained once they wait for it; how soon one row is found; how many small transactions a second it takes; what
//! the consumer holds in memory; and what the primary pays.
//!
//! Everything is on one machine: the processes compete for its cores with Postgres and
//! with one another, so that the figures are the path's, not the parts'. The last line
//! printed is one JSON object.

mod bounded;
mod copy;
mod memory;
mod rows;
mod single;
mod small;
mod tail;
mod tps;

use anyhow::{Result, bail, ensure};
use integration_tests::Cluster;
use serde_json::{Map, Value};

pub const PARTS: [&str; 7] = [
    "copy", "single", "small", "memory", "tail", "bounded", "tps",
];

/// How long the parts run.
#[derive(Clone, Copy)]
pub enum Scale {
    /// Half a minute each: to see that it works.
    Quick,
    /// Within ten minutes together.
    Full,
}

impl Scale {
    fn of<T>(self, quick: T, full: T) -> T {
        match self {
            Scale::Quick => quick,
            Scale::Full => full,
        }
    }
}

pub fn run(scale: &str, run_dir: &str, subscriber: &str, parts: &[&str]) -> Result<()> {
    let scale = match scale {
        "quick" => Scale::Quick,
        "full" => Scale::Full,
        _ => bail!("{scale:?} is neither quick nor full"),
    };
    let unknown = parts.iter().find(|part| !PARTS.contains(part));
    ensure!(
        unknown.is_none(),
        "no part {unknown:?}; there are {PARTS:?}"
    );
    let cluster = Cluster::attach(run_dir)?;
    let mut figures = Map::new();
    for part in parts {
        let found = match *part {
            "copy" => copy::run(&cluster, subscriber, scale)?,
            "single" => single::run(&cluster, scale)?,
            "small" => small::run(&cluster, scale)?,
            "memory" => memory::run(&cluster, scale)?,
            "tail" => tail::run(&cluster, scale)?,
            "bounded" => bounded::run(&cluster, scale)?,
            _ => tps::run(&cluster, subscriber, scale)?,
        };
        figures.insert((*part).to_owned(), found);
    }
    println!("{}", Value::Object(figures));
    Ok(())
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}
