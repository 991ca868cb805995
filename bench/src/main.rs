//! Figures of the whole path.
//!
//! From the table `items` that `make quickstart` made:
//! `path-bench freshness DSN [SECONDS]`: rows inserted at 200 a second, each in its own
//! transaction; how long after the commit until another session finds the row.
//! `path-bench overhead DSN`: what SQL costs beyond an empty call by the same route,
//! and beyond the same search in this process.
//!
//! At a cluster of `make up NODES=3 COORDINATORS=3 REPLICAS=2`, with its run folder:
//! `path-bench failover leader|node|move RUN_DIR`: what searches notice when the leader
//! or a node is killed, and while a partition moves.

mod failover;
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
        ["failover", part, run_dir] => failover::run(part, run_dir),
        _ => bail!(
            "usage: path-bench freshness DSN [SECONDS] | overhead DSN | failover leader|node|move RUN_DIR"
        ),
    }
}
