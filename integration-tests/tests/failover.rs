//! One process dies or sleeps under load: no query fails, none falls back, and
//! nobody answers under a lease that is over.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use cluster_core::map::{PartitionMap, Replica, ReplicaState};
use integration_tests::{
    Cluster, DirectSearch, Done, Items, Load, Session, Shape, Wire, clustered_vector, is_settled,
    serving_per_node, wait_until_served,
};
use std::time::{Duration, Instant};

const DIMENSIONS: usize = 24;
const ROWS: i64 = 3_000;
/// From a fresh start, or a fresh quorum, until a node answers.
const SERVES_WITHIN: Duration = Duration::from_secs(15);

fn leases(ttl_ms: u64, renew_every_ms: u64) -> String {
    format!("leases.ttl_ms = {ttl_ms}\nleases.renew_every_ms = {renew_every_ms}")
}

/// Three nodes, three coordinators, two replicas, and a table with an index.
fn cluster(name: &str, settings: &[(&str, &str)]) -> Result<(Cluster, Wire, Items)> {
    let cluster = Cluster::start_with(name, Shape::THREE, settings)?;
    let wire = cluster.wire()?;
    wire.wait_for_nodes(3)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "items", ROWS, DIMENSIONS)?;
    Ok((cluster, wire, items))
}

/// Every row, the load's too, is there, and only once.
fn assert_whole(cluster: &Cluster, items: &Items, done: Done) -> Result<()> {
    println!("{}: {done:?}", items.name);
    let mut session = cluster.session()?;
    session.batch_execute(
        "SET ruvector.read_consistency = strong; SET ruvector.search_timeout_ms = 40000",
    )?;
    items.assert_every_row_once(&mut session)?;
    items.assert_equals_exact(&mut session, 10)
}

#[test]
fn p5_p11_a_killed_leader_costs_no_query_and_its_successor_renews_every_lease() -> Result<()> {
    let leases = leases(5_000, 1_000);
    let (cluster, wire, items) = cluster("leader-kill", &[("COORDINATOR_SETTINGS", &leases)])?;
    let load = Load::start(&cluster, &items, 3)?;
    load.go_on(100)?;
    for _ in 0..2 {
        wire.wait_for_coordinators()?;
        let before = wire.leader()?;
        let killed_at = Instant::now();
        cluster.kill(&before.process())?;
        let limit = Duration::from_secs(10);
        wire.leader_within(limit, "a new epoch, every lease renewed", |leader| {
            leader.epoch() > before.epoch() && leader.has_renewed_all()
        })?;
        println!(
            "a new epoch and every lease after {:?}",
            killed_at.elapsed()
        );
        // Beyond the end of every lease that the dead leader gave.
        while killed_at.elapsed() < Duration::from_secs(6) {
            load.go_on(20)?;
        }
        cluster.restart(&before.process())?;
    }
    let done = load.finish()?;
    ensure!(done.inserts > 50, "inserts did not go on: {done:?}");
    assert_whole(&cluster, &items, done)?;
    cluster.finish()
}

#[test]
fn p2_p7_a_killed_node_costs_no_query_holds_the_slot_for_its_time_and_serves_again() -> Result<()> {
    let leases = leases(3_000, 500);
    let demote_after = Duration::from_secs(4);
    let (cluster, wire, items) = cluster(
        "node-loss",
        &[
            ("COORDINATOR_SETTINGS", &leases),
            ("CONSUMER_SETTINGS", "demote_after_ms = 4000"),
        ],
    )?;
    let maps = wire.log_maps()?;
    let mut session = cluster.session()?;
    let load = Load::start(&cluster, &items, 3)?;
    load.go_on(100)?;
    let victim = "node-2";
    let address = cluster.address(victim)?;
    let killed_at = Instant::now();
    cluster.kill(victim)?;
    load.go_on(50)?;

    // The slot waits for the replicas on the dead node, and then no longer.
    let slot = slot_name(&wire.map()?)?;
    let held = session.value("SELECT pg_current_wal_lsn()")?;
    let early = is_confirmed(&mut session, &slot, &held)?;
    ensure!(
        !early || killed_at.elapsed() >= demote_after,
        "the slot passed {held} {:?} after the kill, without the dead node's replicas",
        killed_at.elapsed()
    );
    while !is_confirmed(&mut session, &slot, &held)? {
        ensure!(
            killed_at.elapsed() < demote_after + Duration::from_secs(10),
            "the slot is still below {held}"
        );
        load.go_on(5)?;
    }
    println!("the slot went on after {:?}", killed_at.elapsed());
    let node = |map: &PartitionMap| {
        let mut nodes = map.nodes.values();
        nodes.find(|node| node.address == address).unwrap().id
    };
    maps.wait_for(Duration::from_secs(5), "its replicas are demoted", |map| {
        let mut partitions = map.partitions.values();
        partitions.all(|partition| {
            let replica = partition.replica_on(node(map));
            replica.is_none_or(|replica| replica.state == ReplicaState::Demoted)
        })
    })?;
    load.go_on(50)?;

    cluster.restart(victim)?;
    let settled = "two replicas serve everywhere, the node's among them";
    maps.wait_for(Duration::from_secs(60), settled, |map| {
        is_settled(map, 2) && serving_per_node(map)[&node(map)] > 0
    })?;
    let query = clustered_vector(7, DIMENSIONS);
    wait_until_served(&wire, &items.index(), &query, &address, SERVES_WITHIN)?;
    load.go_on(50)?;
    let done = load.finish()?;
    maps.assert_always_served(1)?;
    assert_whole(&cluster, &items, done)?;
    cluster.finish()
}

#[test]
fn p5_a_node_that_slept_past_its_lease_answers_estale_until_it_has_a_fresh_one() -> Result<()> {
    let ttl = Duration::from_secs(2);
    let leases = leases(2_000, 400);
    // Its replicas shall still be the map's when it wakes.
    let settings = [
        ("COORDINATOR_SETTINGS", leases.as_str()),
        ("CONSUMER_SETTINGS", "demote_after_ms = 30000"),
    ];
    let (cluster, wire, items) = cluster("sleep", &settings)?;
    let sleeper = "node-2";
    let address = cluster.address(sleeper)?;
    let query = clustered_vector(7, DIMENSIONS);
    let direct = DirectSearch::new(wire.map()?, &items.index(), query.clone())?;
    let node = direct.node_at(&address)?;
    let eventual = direct.of_node(node, None)?;
    let reached = direct.of_node(node, Some(1))?;
    // Opens the connection, too.
    wire.search(&address, eventual.clone())?.rows()?;
    let load = Load::start(&cluster, &items, 3)?;
    load.go_on(50)?;

    cluster.signal(sleeper, "STOP")?;
    let slept_at = Instant::now();
    while slept_at.elapsed() < 2 * ttl {
        load.go_on(10)?;
    }
    // Without a quorum nobody can give it a fresh lease before it is asked; the
    // others' leases outlast that.
    let leader = wire.leader()?.process();
    let followers: Vec<String> = (1..=3)
        .map(|id| format!("coordinator-{id}"))
        .filter(|name| *name != leader)
        .collect();
    for follower in &followers {
        cluster.signal(follower, "STOP")?;
    }
    // Already in its socket when it wakes.
    let early: Vec<_> = (0..3)
        .map(|_| wire.search_later(&address, eventual.clone()))
        .collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_millis(100));
    cluster.signal(sleeper, "CONT")?;
    let woke_at = Instant::now();
    for sent in early {
        wire.answer(sent)?.assert_estale()?;
    }
    while woke_at.elapsed() < Duration::from_millis(400) {
        wire.search(&address, eventual.clone())?.assert_estale()?;
    }
    // What it has applied needs no lease.
    wire.search(&address, reached)?.rows()?;
    for follower in &followers {
        cluster.signal(follower, "CONT")?;
    }

    wait_until_served(&wire, &items.index(), &query, &address, SERVES_WITHIN)?;
    println!("a fresh lease {:?} after it woke", woke_at.elapsed());
    load.go_on(100)?;
    let done = load.finish()?;
    assert_whole(&cluster, &items, done)?;
    cluster.finish()
}

#[test]
fn p11_past_its_limit_the_slot_passes_a_dead_node_whose_rows_are_reconciled_when_it_is_back()
-> Result<()> {
    let shape = Shape {
        nodes: 2,
        coordinators: 1,
        replicas: 1,
    };
    let limit = "demote_after_ms = 3000\nslot_hold_limit_bytes = 1000000";
    let leases = leases(3_000, 500);
    let settings = [
        ("COORDINATOR_SETTINGS", leases.as_str()),
        ("CONSUMER_SETTINGS", limit),
    ];
    let cluster = Cluster::start_with("slot-hold", shape, &settings)?;
    let wire = cluster.wire()?;
    wire.wait_for_nodes(2)?;
    let mut session = cluster.session()?;
    let items = Items::indexed(&mut session, "items", ROWS, DIMENSIONS)?;
    let maps = wire.log_maps()?;
    let slot = slot_name(&wire.map()?)?;
    let victim = "node-2";
    let address = cluster.address(victim)?;
    cluster.kill(victim)?;
    // Several times the limit.
    items.insert(&mut session, ROWS + 1..8 * ROWS)?;
    let held = session.value("SELECT pg_current_wal_lsn()")?;
    let written_at = Instant::now();
    while !is_confirmed(&mut session, &slot, &held)? {
        ensure!(
            written_at.elapsed() < Duration::from_secs(30),
            "the slot is still below {held}, its limit long reached"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("the slot passed it after {:?}", written_at.elapsed());
    let is_lost = |map: &PartitionMap, replica: &Replica| {
        map.nodes
            .get(&replica.node)
            .is_some_and(|node| node.address == address)
    };
    let marked = "what lay there alone is stale, and nothing else";
    maps.wait_for(Duration::from_secs(5), marked, |map| {
        let mut replicas = map.partitions.values().flat_map(|p| &p.replicas);
        replicas.all(|r| (r.state == ReplicaState::Stale) == is_lost(map, r))
    })?;

    cluster.restart(victim)?;
    let mended = "nothing is stale, and nothing is to be reconciled";
    maps.wait_for(Duration::from_secs(60), mended, |map| {
        let mut replicas = map.partitions.values().flat_map(|p| &p.replicas);
        replicas.all(|r| r.state == ReplicaState::Serving)
            && map.collections.values().all(|c| c.reconcile.is_none())
    })?;
    session.batch_execute("SET ruvector.read_consistency = strong")?;
    session.wait_for(&items.index(), false)?;
    items.assert_every_row_once(&mut session)?;
    items.assert_equals_exact(&mut session, 10)?;
    cluster.finish()
}

fn slot_name(map: &PartitionMap) -> Result<String> {
    let mut sources = map.sources.values();
    let source = sources.next().expect("make up adds a source");
    ensure!(!source.slot_name.is_empty(), "no slot: {source:?}");
    Ok(source.slot_name.clone())
}

fn is_confirmed(session: &mut Session, slot: &str, lsn: &str) -> Result<bool> {
    let sql = format!(
        "SELECT confirmed_flush_lsn >= '{lsn}' FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    Ok(session.value(&sql)? == "t")
}
