//! A whole partition goes to another node while it is searched.

use super::load::{Load, Window};
use super::table::Table;
use super::{Bench, print_searches};
use anyhow::{Context, Result, ensure};
use cluster_core::control::{PlannedMove, RebalanceMode};
use cluster_core::ids::PartitionId;
use cluster_core::map::{PartitionMap, ReplicaState};
use integration_tests::{Leader, is_settled, moves_of};
use std::time::{Duration, Instant};

const TABLE: Table = Table {
    name: "bench_move",
    rows: 100_000,
    dimensions: 784,
};
const MOVES: usize = 3;
const CALM: Duration = Duration::from_secs(20);
const MOVED_WITHIN: Duration = Duration::from_secs(900);
const POLL_EVERY: Duration = Duration::from_millis(50);
const REPLICAS: usize = 2;

/// Counted from the order to move.
struct Moved {
    serving: Duration,
    released: Duration,
    /// The last that the learner's node reported of its copying.
    copied: Option<Copied>,
}

#[derive(Clone, Copy)]
struct Copied {
    bytes: u64,
    ms: u64,
}

pub fn run(bench: &Bench) -> Result<()> {
    TABLE.make(bench)?;
    // Nothing else moves, and nothing moves back.
    bench.wire.set_rebalance(RebalanceMode::Manual)?;
    let partition = only_partition(&bench.wire.map()?)?;
    let load = Load::start(bench.cluster.dsn(), &TABLE)?;
    std::thread::sleep(CALM / 4);
    let (mut before, mut during) = (Vec::<Window>::new(), Vec::<Window>::new());
    let mut moves = Vec::new();
    for number in 1..=MOVES {
        TABLE.wait_until_folded(bench)?;
        let calm_from = Instant::now();
        std::thread::sleep(CALM);
        let began = Instant::now();
        let moved = move_away(bench, partition)?;
        before.push(calm_from..began);
        during.push(began..began + moved.released);
        eprintln!(
            "move {number} of {MOVES}: {:.1?} until it serves",
            moved.serving
        );
        moves.push(moved);
    }
    let record = load.finish()?;
    bench.wire.set_rebalance(RebalanceMode::Auto)?;
    println!(
        "\n{} rows × {} dimensions in one partition, NODES=3 COORDINATORS=3 REPLICAS=2, searched all the while:\n",
        TABLE.rows, TABLE.dimensions
    );
    println!("| a partition moves | |\n|---|---|");
    let vectors = TABLE.rows as f64 * TABLE.dimensions as f64 * 4.0;
    for (number, moved) in (1..).zip(&moves) {
        let (serving, released) = (moved.serving.as_secs_f64(), moved.released.as_secs_f64());
        println!(
            "| move {number}: until the new replica serves; until the old one is gone | {serving:.1}; {released:.1} s |"
        );
        println!(
            "| … vectors alone, over the whole time until it serves | {:.1} MB/s |",
            vectors / 1e6 / serving
        );
        if let Some(Copied { bytes, ms }) = moved.copied.filter(|copied| copied.ms > 0) {
            println!(
                "| … the copy from the peer, as the node reported it last | {:.0} MB in {:.1} s, {:.1} MB/s |",
                bytes as f64 / 1e6,
                ms as f64 / 1e3,
                bytes as f64 / 1e3 / ms as f64
            );
        }
    }
    let (calm, disturbed) = print_searches(&record, &before, &during, "while it moves")?;
    println!(
        "| p99 while it moves over p99 before (goal ≤ 2) | {:.2} |",
        disturbed.as_secs_f64() / calm.as_secs_f64()
    );
    Ok(())
}

fn only_partition(map: &PartitionMap) -> Result<PartitionId> {
    let index = TABLE.index();
    let mut collections = map.collections.values();
    let collection = collections
        .find(|c| c.spec.index_name == index)
        .with_context(|| format!("the cluster has no {index}"))?;
    let partitions = map.partitions_of(collection.id);
    ensure!(
        partitions.len() == 1,
        "{index} has {} partitions: its coordinators must run with partitions_per_collection_max = 1 when it is made",
        partitions.len()
    );
    Ok(partitions[0].id)
}

fn move_away(bench: &Bench, partition: PartitionId) -> Result<Moved> {
    let map = bench.wire.map()?;
    let planned = moves_of(&map)
        .into_iter()
        .find(|m| m.partition == partition);
    let planned = planned.context("no node is free of the partition")?;
    let began = Instant::now();
    bench.wire.apply_moves(&[planned])?;
    let (mut serving, mut copied) = (None, None);
    loop {
        if let Ok(leader) = bench.wire.leader() {
            copied = copying(&leader, partition).or(copied);
            if serves(&leader.map, planned) {
                let serving = *serving.get_or_insert(began.elapsed());
                if is_settled(&leader.map, REPLICAS) {
                    return Ok(Moved {
                        serving,
                        released: began.elapsed(),
                        copied,
                    });
                }
            }
        }
        ensure!(began.elapsed() < MOVED_WITHIN, "not moved: {planned:?}");
        std::thread::sleep(POLL_EVERY);
    }
}

fn serves(map: &PartitionMap, planned: PlannedMove) -> bool {
    let partition = map.partitions.get(&planned.partition);
    let replica = partition.and_then(|partition| partition.replica_on(planned.to));
    replica.is_some_and(|replica| replica.state == ReplicaState::Serving)
}

fn copying(leader: &Leader, partition: PartitionId) -> Option<Copied> {
    let mut moves = leader.status.moves.iter();
    let of_partition = |m: &&proto::v1::MoveStatus| {
        m.r#move
            .is_some_and(|planned| planned.partition_id == partition.0)
    };
    let learner = moves.find(of_partition)?.learner?;
    Some(Copied {
        bytes: learner.bytes_copied,
        ms: learner.copying_ms,
    })
}
