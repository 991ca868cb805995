//! What a cluster is like once nothing moves any more.

use crate::cluster::Cluster;
use crate::direct_search::{DirectSearch, assert_replicas_agree};
use crate::items::{Items, clustered_vector};
use crate::load::Done;
use crate::placed::is_settled;
use crate::wire::Wire;
use anyhow::{Result, ensure};
use cluster_core::map::PartitionMap;
use std::time::Duration;

const SETTLES_WITHIN: Duration = Duration::from_secs(90);

/// No replica learns or leaves, nothing is to move, and no partition is being split.
pub fn wait_until_settled(wire: &Wire, replicas: usize, what: &str) -> Result<PartitionMap> {
    let leader = wire.leader_within(SETTLES_WITHIN, what, |leader| {
        let map = &leader.map;
        leader.has_no_move() && map.splits.is_empty() && is_settled(map, replicas)
    })?;
    Ok(leader.map)
}

/// Every row is found by SQL, and every replica holds what the others hold.
pub fn assert_whole(cluster: &Cluster, wire: &Wire, items: &Items, done: Done) -> Result<()> {
    println!("{}: {done:?}", items.name);
    let mut session = cluster.session()?;
    session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 40000",
    )?;
    items.assert_every_row_once(&mut session)?;
    let recall = items.recall_at_10(&mut session, 50)?;
    ensure!(recall >= 0.98, "recall@10 is {recall}");
    let end = session.value("SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint")?;
    let rows = session.value(&format!("SELECT count(*) FROM {}", items.name))?;
    let query = clustered_vector(7, items.dimensions);
    let search = DirectSearch::new(wire.map()?, &items.index(), query)?;
    assert_replicas_agree(wire, &search, end.parse()?, rows.parse()?)
}
