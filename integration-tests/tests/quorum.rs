//! Without a quorum, and without any coordinator: leases end when they were to
//! end, and what can still be answered is answered.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, bail, ensure};
use cluster_client::{ClientConfig, ClusterClient};
use cluster_core::ids::{LeaseEpoch, MapVersion};
use cluster_core::wal_position::WalPosition;
use integration_tests::{
    Cluster, DirectSearch, Items, Load, Shape, Wire, clustered_vector, wait_until_served,
};
use proto::v1;
use std::time::{Duration, Instant};

const DIMENSIONS: usize = 24;
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
const SERVES_WITHIN: Duration = Duration::from_secs(15);

/// What the node at an address has applied of everything that it serves; reading
/// at a position that was reached long ago needs no lease.
fn applied(wire: &Wire, search: &DirectSearch, address: &str) -> Result<Vec<WalPosition>> {
    let request = search.of_node(search.node_at(address)?, Some(1))?;
    let response = wire.search(address, request)?.rows()?;
    let positions = response.pages.into_iter().map(|page| {
        let applied = page.applied.context("a page without a position")?;
        Ok(WalPosition::from(applied))
    });
    positions.collect()
}

#[test]
fn p5_under_a_leader_without_a_quorum_no_lease_outlives_its_time() -> Result<()> {
    let ttl = Duration::from_secs(2);
    let settings = "leases.ttl_ms = 2000\nleases.renew_every_ms = 500";
    let cluster = Cluster::start_with(
        "cut-off",
        Shape::THREE,
        &[("COORDINATOR_SETTINGS", settings)],
    )?;
    let wire = cluster.wire()?;
    wire.wait_for_nodes(3)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "items", 1_000, DIMENSIONS)?;
    let near = items.nearest(70_000, 10);
    // From here on this session asks for a position, which is reached soon.
    items.insert(&mut session, 1_001..1_051)?;
    let want = session.exact_ids(&near)?;
    ensure!(session.ids(&near)? == want);
    let query = clustered_vector(7, DIMENSIONS);
    let addresses: Vec<String> = NODES
        .iter()
        .map(|n| cluster.address(n))
        .collect::<Result<_>>()?;
    for address in &addresses {
        wait_until_served(&wire, &items.index(), &query, address, SERVES_WITHIN)?;
    }
    let leader = wire.leader()?;
    let search = DirectSearch::new(leader.map.clone(), &items.index(), query.clone())?;
    let followers: Vec<String> = (1..=3)
        .map(|id| format!("coordinator-{id}"))
        .filter(|name| *name != leader.process())
        .collect();

    for follower in &followers {
        cluster.signal(follower, "STOP")?;
    }
    let cut_at = Instant::now();
    std::thread::sleep(ttl + Duration::from_millis(100));
    let mut other = cluster.session()?;
    items.insert(&mut other, 2_001..2_051)?;
    let before: Vec<_> = addresses
        .iter()
        .map(|address| applied(&wire, &search, address))
        .collect::<Result<_>>()?;
    let source = &search.map().sources[&search.source()];
    while cut_at.elapsed() < ttl + Duration::from_secs(2) {
        for address in &addresses {
            let request = search.of_node(search.node_at(address)?, None)?;
            let answer = wire.search(address, request)?;
            answer
                .assert_estale()
                .context("a search under a lease that is over")?;
            // With the token of the consumer itself.
            let open = v1::ApplyOpen {
                source_id: source.id.0,
                incarnation: source.incarnation.0,
                consumer_epoch: source.consumer_epoch.0,
                epoch: search.map().epoch.0,
                map_version: search.map().version.0,
            };
            let refused = wire.open_apply(address, open)?;
            let status = refused.err().context("an apply stream was opened")?;
            ensure!(proto::error::is_estale(&status), "not ESTALE: {status:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let after: Vec<_> = addresses
        .iter()
        .map(|address| applied(&wire, &search, address))
        .collect::<Result<_>>()?;
    ensure!(
        before == after,
        "rows were applied: {before:?} to {after:?}"
    );

    // A position that is reached is answered; anything at all is not.
    ensure!(session.ids(&near)? == want, "a position that was reached");
    session.batch_execute(
        "SET ruvector.read_consistency = eventual; SET ruvector.search_timeout_ms = 1500",
    )?;
    ensure!(session.client_error(&near).as_deref() == Some("RV001"));

    for follower in &followers {
        cluster.signal(follower, "CONT")?;
    }
    for address in &addresses {
        wait_until_served(&wire, &items.index(), &query, address, SERVES_WITHIN)?;
    }
    session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 40000",
    )?;
    items.assert_every_row_once(&mut session)?;
    items.assert_equals_exact(&mut session, 10)?;
    cluster.finish()
}

#[test]
fn p7_p11_with_all_coordinators_dead_searches_go_on_until_leases_end_and_maps_come_from_nodes()
-> Result<()> {
    let ttl = Duration::from_secs(20);
    let settings = "leases.ttl_ms = 20000\nleases.renew_every_ms = 1000";
    let cluster = Cluster::start_with(
        "headless",
        Shape::THREE,
        &[("COORDINATOR_SETTINGS", settings)],
    )?;
    let wire = cluster.wire()?;
    wire.wait_for_nodes(3)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "items", 1_000, DIMENSIONS)?;
    let near = items.nearest(70_000, 10);
    let want = session.exact_ids(&near)?;
    ensure!(session.ids(&near)? == want);

    // A client that has an older map than the nodes.
    let client = wire.block_on(async {
        ClusterClient::new(ClientConfig {
            coordinators: wire.coordinators().to_vec(),
            ..ClientConfig::default()
        })
    });
    let first = (LeaseEpoch(1), MapVersion(1));
    let old = wire.block_on(client.refresh_map(first))?;
    let other = Items::indexed(&mut session, "other", 100, DIMENSIONS)?;
    let newer = wire.leader_within(SERVES_WITHIN, "the map has changed", |leader| {
        leader.map.stamp() > old.stamp()
    })?;
    let newer = newer.map.stamp();
    for node in NODES {
        wire.wait_for_node_map(&cluster.address(node)?, newer)?;
    }

    let load = Load::of_searches(&cluster, &items, 3)?;
    load.go_on(50)?;
    let dead_at = Instant::now();
    for id in 1..=3 {
        cluster.kill(&format!("coordinator-{id}"))?;
    }
    let map = wire.block_on(client.refresh_map(newer))?;
    ensure!(
        map.stamp() >= newer,
        "an older map was taken: {} {}",
        map.epoch,
        map.version
    );
    while dead_at.elapsed() < Duration::from_secs(8) {
        load.go_on(5)?;
    }
    println!(
        "{:?} without coordinators: {:?}",
        dead_at.elapsed(),
        load.finish()?
    );

    // A worker that starts now and knows coordinators only says so, and the heap
    // answers where that is allowed.
    cluster.end_worker()?;
    // It has committed nothing, and so waits for no position.
    session = cluster.session()?;
    session.batch_execute("SET ruvector.search_timeout_ms = 1500")?;
    let ended_at = Instant::now();
    loop {
        match session.client_error(&near).as_deref() {
            Some("RV003") => break,
            // It is still there.
            None if ended_at.elapsed() < Duration::from_secs(3) => {}
            other => bail!("{other:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    session.batch_execute("SET ruvector.on_unavailable = exact")?;
    ensure!(session.ids(&near)? == want);
    session.batch_execute("SET ruvector.on_unavailable = error")?;
    // One that knows a node has the map from it.
    let mut known = wire.coordinators().to_vec();
    known.push(cluster.address("node-3")?);
    let known = known.join(",");
    session.batch_execute(&format!(
        "ALTER SYSTEM SET ruvector.coordinators = '{known}'"
    ))?;
    session.batch_execute("SELECT pg_reload_conf()")?;
    loop {
        match session.ids(&near) {
            Ok(got) => break ensure!(got == want, "got {got:?}, want {want:?}"),
            Err(error) if dead_at.elapsed() > ttl - Duration::from_secs(2) => {
                return Err(error.context("the worker has no map from the node"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    println!(
        "a new worker answers {:?} after the last coordinator",
        dead_at.elapsed()
    );

    std::thread::sleep((ttl + Duration::from_millis(500)).saturating_sub(dead_at.elapsed()));
    let refused = session.client_error(&near);
    ensure!(
        matches!(refused.as_deref(), Some("RV001" | "RV003")),
        "without a lease and a position: {refused:?}"
    );

    for id in 1..=3 {
        cluster.restart(&format!("coordinator-{id}"))?;
    }
    let query = clustered_vector(7, DIMENSIONS);
    for node in NODES {
        let address = cluster.address(node)?;
        wait_until_served(&wire, &items.index(), &query, &address, SERVES_WITHIN)?;
    }
    session.wait_for(&items.index(), false)?;
    items.insert(&mut session, 3_001..3_051)?;
    session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 40000",
    )?;
    items.assert_every_row_once(&mut session)?;
    other.assert_every_row_once(&mut session)?;
    cluster.finish()
}
