//! kill -9 of the coordinators' leader, again and again: how long until there is a
//! new epoch and every lease is renewed under it.

use super::load::{Load, Window};
use super::table::Table;
use super::{Bench, ms, print_searches};
use crate::percentile::percentile;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub const TABLE: Table = Table {
    name: "bench_failover",
    rows: 20_000,
    dimensions: 128,
};
const KILLS: usize = 20;
const CALM: Duration = Duration::from_secs(3);
/// Searches count as disturbed until so long after the last lease was renewed.
const AFTERMATH: Duration = Duration::from_secs(1);
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
const POLL_EVERY: Duration = Duration::from_millis(5);

/// Counted from the kill.
struct Takeover {
    epoch: Duration,
    leases: Duration,
}

pub fn run(bench: &Bench) -> Result<()> {
    TABLE.make(bench)?;
    let load = Load::start(bench.cluster.dsn(), &TABLE)?;
    // The first searches warm caches and plans.
    std::thread::sleep(CALM);
    let (mut before, mut during) = (Vec::<Window>::new(), Vec::<Window>::new());
    let (mut epochs, mut leases) = (Vec::new(), Vec::new());
    for kill in 1..=KILLS {
        bench.wire.wait_for_coordinators()?;
        bench.wire.wait_for_nodes(3)?;
        let calm_from = Instant::now();
        std::thread::sleep(CALM);
        let killed_at = Instant::now();
        let (process, takeover) = kill_leader(bench)?;
        std::thread::sleep(AFTERMATH);
        before.push(calm_from..killed_at);
        during.push(killed_at..killed_at + takeover.leases + AFTERMATH);
        eprintln!(
            "kill {kill} of {KILLS}: {process}, epoch after {:.0} ms, leases after {:.0} ms",
            ms(takeover.epoch),
            ms(takeover.leases)
        );
        epochs.push(takeover.epoch);
        leases.push(takeover.leases);
        bench.cluster.restart(&process)?;
    }
    let record = load.finish()?;
    println!(
        "\n{} rows × {} dimensions, NODES=3 COORDINATORS=3 REPLICAS=2, default leases, {KILLS} times:\n",
        TABLE.rows, TABLE.dimensions
    );
    println!("| kill -9 of the leader | |\n|---|---|");
    for (label, times) in [
        ("until a new epoch is committed", &mut epochs),
        (
            "until every lease is renewed under it (goal ≤ 3 s)",
            &mut leases,
        ),
    ] {
        println!(
            "| {label}: median / maximum | {:.2} / {:.2} s |",
            percentile(times, 50).as_secs_f64(),
            percentile(times, 100).as_secs_f64()
        );
    }
    let label = format!("from the kill to {AFTERMATH:?} after the last renewal");
    let (calm, disturbed) = print_searches(&record, &before, &during, &label)?;
    println!(
        "| added p99 (goal ≤ 300 ms) | {:.1} ms |",
        ms(disturbed) - ms(calm)
    );
    Ok(())
}

fn kill_leader(bench: &Bench) -> Result<(String, Takeover)> {
    let old = bench.wire.leader()?;
    let killed_at = Instant::now();
    bench.cluster.kill(&old.process())?;
    let mut epoch = None;
    loop {
        if let Ok(leader) = bench.wire.leader()
            && leader.epoch() > old.epoch()
        {
            let epoch = *epoch.get_or_insert(killed_at.elapsed());
            if leader.has_renewed_all() {
                let leases = killed_at.elapsed();
                return Ok((old.process(), Takeover { epoch, leases }));
            }
        }
        ensure!(
            killed_at.elapsed() < GIVE_UP_AFTER,
            "no successor of {} has renewed every lease",
            old.process()
        );
        std::thread::sleep(POLL_EVERY);
    }
}
