//! Figures of the whole path, from the table `items` that `make quickstart` made.
//!
//! `path-bench freshness DSN [SECONDS]`: rows inserted at 200 a second, each in its own
//! transaction; how long after the commit until another session finds the row.
//! `path-bench overhead DSN`: what SQL costs beyond an empty call by the same route,
//! and beyond the same search in this process.

mod freshness;
mod overhead;
mod percentile;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["freshness", dsn] => freshness::run(dsn, 20),
        ["freshness", dsn, seconds] => freshness::run(dsn, seconds.parse()?),
        ["overhead", dsn] => overhead::run(dsn),
        _ => bail!("usage: path-bench freshness DSN [SECONDS] | overhead DSN"),
    }
}
