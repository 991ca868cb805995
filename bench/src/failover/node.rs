//! kill -9 of one node after the other, each started again before the next.

use super::leader::TABLE;
use super::load::{Load, Window};
use super::{Bench, ms, print_searches};
use anyhow::Result;
use integration_tests::is_settled;
use std::time::{Duration, Instant};

const KILLS: usize = 6;
const CALM: Duration = Duration::from_secs(8);
/// How long the node is missed: past its lease, so past its demotion too.
const MISSED: Duration = Duration::from_secs(15);
/// Until all replicas serve again.
const RETURNS_WITHIN: Duration = Duration::from_secs(180);
const REPLICAS: usize = 2;

pub fn run(bench: &Bench) -> Result<()> {
    TABLE.make(bench)?;
    let processes = bench.cluster.node_processes()?;
    let load = Load::start(bench.cluster.dsn(), &TABLE)?;
    std::thread::sleep(CALM);
    let (mut before, mut during) = (Vec::<Window>::new(), Vec::<Window>::new());
    for (kill, process) in (1..=KILLS).zip(processes.iter().cycle()) {
        bench
            .wire
            .leader_within(RETURNS_WITHIN, "all replicas serve", |leader| {
                leader.has_no_move()
                    && leader.has_renewed_all()
                    && is_settled(&leader.map, REPLICAS)
            })?;
        TABLE.wait_until_folded(bench)?;
        let calm_from = Instant::now();
        std::thread::sleep(CALM);
        let killed_at = Instant::now();
        bench.cluster.kill(process)?;
        std::thread::sleep(MISSED);
        before.push(calm_from..killed_at);
        during.push(killed_at..Instant::now());
        eprintln!("kill {kill} of {KILLS}: {process}");
        bench.cluster.restart(process)?;
    }
    let record = load.finish()?;
    println!(
        "\n{} rows × {} dimensions, NODES=3 COORDINATORS=3 REPLICAS=2, each node killed {} times:\n",
        TABLE.rows,
        TABLE.dimensions,
        KILLS / processes.len()
    );
    println!("| kill -9 of a node | |\n|---|---|");
    let label = format!("the first {MISSED:?} without the node");
    let (calm, disturbed) = print_searches(&record, &before, &during, &label)?;
    println!(
        "| added p99 (goal ≤ 300 ms) | {:.1} ms |",
        ms(disturbed) - ms(calm)
    );
    Ok(())
}
