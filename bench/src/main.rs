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
//!
//! At a cluster of one node, with a second Postgres beside it (`make bench-replication`):
//! `path-bench replication quick|full RUN_DIR SUBSCRIBER_DSN [PART…]`: how fast rows come
//! through, beside a subscription of Postgres, and what that takes.

mod failover;
mod freshness;
mod overhead;
mod percentile;
mod replication;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["freshness", dsn] => freshness::run(dsn, 20),
        ["freshness", dsn, seconds] => freshness::run(dsn, seconds.parse()?),
        ["overhead", dsn] => overhead::run(dsn),
        ["failover", part, run_dir] => failover::run(part, run_dir),
        ["replication", scale, run_dir, subscriber] => {
            replication::run(scale, run_dir, subscriber, &replication::PARTS)
        }
        ["replication", scale, run_dir, subscriber, ref parts @ ..] => {
            replication::run(scale, run_dir, subscriber, parts)
        }
        _ => bail!(
            "usage: path-bench freshness DSN [SECONDS] | overhead DSN | failover leader|node|move RUN_DIR \
             | replication quick|full RUN_DIR SUBSCRIBER_DSN [copy|single|small|memory|tail|bounded|tps…]"
        ),
    }
}
