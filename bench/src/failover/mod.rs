//! What it costs searches that a coordinator's leader dies, that a node dies, and
//! that a partition moves, at a cluster of `make up NODES=3 COORDINATORS=3
//! REPLICAS=2`. Searches arrive at a fixed rate all the while and may not fall
//! back. Each part prints a table for RESULTS.md.

mod leader;
mod load;
mod moving;
mod node;
mod table;

use anyhow::{Result, bail};
use integration_tests::{Cluster, Wire};
use load::{Record, Window};
use std::time::Duration;

/// The cluster, its processes and its insides.
struct Bench {
    cluster: Cluster,
    wire: Wire,
}

pub fn run(part: &str, run_dir: &str) -> Result<()> {
    let cluster = Cluster::attach(run_dir)?;
    let wire = cluster.wire()?;
    let bench = Bench { cluster, wire };
    bench.wire.wait_for_nodes(3)?;
    match part {
        "leader" => leader::run(&bench),
        "node" => node::run(&bench),
        "move" => moving::run(&bench),
        _ => bail!("no part {part:?}; there are leader, node and move"),
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The rows that every part's table has: who failed, and the latencies outside
/// and inside the windows of the fault.
fn print_searches(
    record: &Record,
    before: &[Window],
    during: &[Window],
    fault: &str,
) -> Result<(Duration, Duration)> {
    let calm = record.percentiles(before)?;
    let disturbed = record.percentiles(during)?;
    println!(
        "| searches, {} a second; failed; fell back (goals 0, 0) | {}; {}; {} |",
        load::SEARCHES_PER_SECOND,
        record.searches(),
        record.failed.len(),
        record.fallbacks
    );
    for (label, p) in [("before", calm), (fault, disturbed)] {
        println!(
            "| {label}: p50 / p99 / maximum of {} | {:.1} / {:.1} / {:.1} ms |",
            p.samples,
            ms(p.p50),
            ms(p.p99),
            ms(p.max)
        );
    }
    for problem in record.failed.iter().take(5) {
        eprintln!("failed: {problem}");
    }
    Ok((calm.p99, disturbed.p99))
}
