//! Whoever takes part in a move or a split is killed (SIGKILL) at each of its steps,
//! under load: it goes on or is rolled back, no query fails, and no partition ever
//! has fewer replicas that serve.
//!
//! Every step (see [`Step`]) meets every victim: the node that gives, the node that
//! takes, the leader, the consumer. All nodes of a split give and take; there the
//! victims are the one whose halves serve first, and the other. A step is hit
//! because somebody else is stopped who would take the next one:
//!
//! | step | who is stopped |
//! |---|---|
//! | attach | the consumer |
//! | copy | nobody: copies are throttled, and their nodes report how far they are |
//! | replay | the consumer, since it attached the learners: it hears of none that is live |
//! | promote | all coordinators but the leader: nothing is committed |
//! | release | the node that gives; of a split, the node whose halves come last. Before the |
//! |         | other node is killed, the quorum in its stead: of three nodes one may be away |
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use cluster_core::control::RebalanceMode;
use cluster_core::ids::NodeId;
use cluster_core::map::PartitionMap;
use integration_tests::{
    Cluster, DirectSearch, Held, Items, Leader, Load, MapLog, Relocation, Shape, Step, Wire,
    assert_whole, clustered_vector, moves_of, wait_until_served, wait_until_settled,
};
use std::time::{Duration, Instant};

const DIMENSIONS: usize = 32;
const REPLICAS: usize = 2;
const CONSUMER: &str = "consumer-1";
/// Whatever is waited for, on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_millis(10);

/// Nobody is away for as long as that, so that no lease ends while somebody is stopped.
const LEASES: &str = "leases.ttl_ms = 15000\nleases.renew_every_ms = 250";
/// The nodes that are away shall still be required when they return; and how many
/// learners are counted is told at once.
const CONSUMER_SETTINGS: &str = "demote_after_ms = 60000\noldest_xmin_every_ms = 100";

#[derive(Clone, Copy, Debug)]
enum Victim {
    From,
    To,
    Leader,
    Consumer,
}

const VICTIMS: [Victim; 4] = [Victim::From, Victim::To, Victim::Leader, Victim::Consumer];

/// A cluster under load, on which one case follows the other.
struct Stage {
    cluster: Cluster,
    wire: Wire,
    items: Items,
    maps: MapLog,
    load: Load,
}

impl Stage {
    fn start(name: &str, rows: i64, coordinator: &str, node: &str) -> Result<Self> {
        let coordinator = format!("{LEASES}\n{coordinator}");
        let settings = [
            ("COORDINATOR_SETTINGS", coordinator.as_str()),
            ("NODE_SETTINGS", node),
            ("CONSUMER_SETTINGS", CONSUMER_SETTINGS),
        ];
        let cluster = Cluster::start_with(name, Shape::THREE, &settings)?;
        let wire = cluster.wire()?;
        wire.wait_for_nodes(3)?;
        wire.set_rebalance(RebalanceMode::Paused)?;
        let mut session = cluster.session()?;
        let items = Items::indexed(&mut session, "items", rows, DIMENSIONS)?;
        session.wait_for(&items.index(), true)?;
        let maps = wire.log_maps()?;
        let load = Load::start_without_a_steady_consumer(&cluster, &items, 2)?;
        load.go_on(50)?;
        Ok(Self {
            cluster,
            wire,
            items,
            maps,
            load,
        })
    }

    fn finish(self) -> Result<()> {
        let done = self.load.finish()?;
        self.maps.assert_always_served(REPLICAS)?;
        assert_whole(&self.cluster, &self.wire, &self.items, done)?;
        self.cluster.finish()
    }

    /// One relocation, with one victim at one step.
    fn kill_at(&self, step: Step, victim: Victim, begin: Begin) -> Result<()> {
        let what = format!("{step:?}, {victim:?}");
        self.wire.wait_for_coordinators()?;
        wait_until_settled(&self.wire, REPLICAS, &what)?;
        let began = Instant::now();
        let mut held = Held::nobody(&self.cluster);
        held.stop(CONSUMER)?;
        let relocation = begin(self).with_context(|| what.clone())?;
        self.reach(&relocation, step, &mut held)
            .with_context(|| what.clone())?;

        if let (Step::Release, Victim::To) = (step, victim) {
            self.stop_the_quorum(&mut held)?;
            held.go_on(&self.process_of(relocation.from)?)?;
        }
        let leader = self.wire.leader()?;
        let process = match victim {
            Victim::From => self.process_of(relocation.from)?,
            Victim::To => self.process_of(relocation.to)?,
            Victim::Leader => leader.process(),
            Victim::Consumer => CONSUMER.to_owned(),
        };
        held.kill(&process)?;
        let killed_after = began.elapsed();
        let newest = self.maps.newest().context("no map")?;
        ensure!(
            relocation.is_at(&newest, step),
            "{what}: {process} was killed too late: {newest:#?}"
        );
        self.load.go_on(20).with_context(|| what.clone())?;
        held.all_go_on()?;
        if let Victim::Leader = victim {
            let elected = |successor: &Leader| successor.epoch() > leader.epoch();
            self.wire.leader_within(LIMIT, &what, elected)?;
        }
        self.load.go_on(20).with_context(|| what.clone())?;
        self.cluster.restart(&process)?;
        self.wire.wait_for_coordinators()?;
        let map = wait_until_settled(&self.wire, REPLICAS, &what)?;
        self.wait_until_all_serve(&map)?;
        println!(
            "{what}: {process} killed after {killed_after:.1?}, {} after {:.1?}",
            match relocation.is_done(&map) {
                true => "done",
                false => "rolled back",
            },
            began.elapsed()
        );
        self.load.go_on(20).with_context(|| what.clone())
    }

    /// From the consumer's stop before the learners came into the map, until the
    /// relocation is at the step, and stays there.
    fn reach(&self, relocation: &Relocation, step: Step, held: &mut Held) -> Result<()> {
        match step {
            Step::Attach => return Ok(()),
            Step::Promote => self.stop_the_quorum(held)?,
            Step::Release if relocation.is_split() => {
                held.stop(&self.process_of(relocation.from)?)?;
            }
            Step::Copy | Step::Replay | Step::Release => {}
        }
        held.go_on(CONSUMER)?;
        match step {
            Step::Attach => {}
            Step::Copy => self.wait_for_copies(relocation)?,
            Step::Replay => self.reach_replay(relocation, held)?,
            Step::Promote => self.wait_until_counted(relocation)?,
            Step::Release => {
                if !relocation.is_split() {
                    self.reach_replay(relocation, held)?;
                    held.stop(&self.process_of(relocation.from)?)?;
                    held.go_on(CONSUMER)?;
                }
                let is_at = |map: &PartitionMap| relocation.is_at(map, step);
                self.maps.wait_for(LIMIT, "it is released", is_at)?;
            }
        }
        Ok(())
    }

    /// The copy goes on without the consumer, and nobody counts what comes of it.
    fn reach_replay(&self, relocation: &Relocation, held: &mut Held) -> Result<()> {
        self.wait_for_copies(relocation)?;
        held.stop(CONSUMER)?;
        self.wire.leader_within(LIMIT, "all is copied", |leader| {
            relocation.has_copied(leader)
        })?;
        Ok(())
    }

    /// A node that has returned has its lease and its rows: until then no other may
    /// be away.
    fn wait_until_all_serve(&self, map: &PartitionMap) -> Result<()> {
        let (index, query) = (self.items.index(), clustered_vector(7, DIMENSIONS));
        for node in map.nodes.values() {
            wait_until_served(&self.wire, &index, &query, &node.address, LIMIT)?;
        }
        Ok(())
    }

    fn wait_for_copies(&self, relocation: &Relocation) -> Result<()> {
        self.wire
            .leader_within(LIMIT, "the learners copy", |leader| {
                relocation.copies(leader)
            })?;
        Ok(())
    }

    fn wait_until_counted(&self, relocation: &Relocation) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let name = "ruvector_consumer_learners_counted";
        loop {
            let counted = self.cluster.metric(CONSUMER, name)?;
            if counted == relocation.learners.len() as f64 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{counted} learners are counted");
            std::thread::sleep(POLL_EVERY);
        }
    }

    /// The leader goes on, and commits nothing. Whoever follows the map of one that is
    /// stopped has been told of all so far.
    fn stop_the_quorum(&self, held: &mut Held) -> Result<()> {
        let newest = self.maps.newest().context("no map")?;
        let version = newest.stamp();
        self.wire.wait_for_coordinator_maps(version)?;
        let leader = self.wire.leader()?.process();
        for id in 1..=3 {
            let process = format!("coordinator-{id}");
            if process != leader {
                held.stop(&process)?;
            }
        }
        Ok(())
    }

    fn process_of(&self, node: NodeId) -> Result<String> {
        let map = self.maps.newest().context("no map")?;
        let node = map.nodes.get(&node).context("the map lacks the node")?;
        self.cluster.node_process_at(&node.address)
    }

    /// Whoever leads; an election may be under way.
    fn ask_leader(&self, ask: impl Fn(&Wire) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match ask(&self.wire) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(POLL_EVERY),
                Ok(()) => return Ok(()),
            }
        }
    }

    /// What is under way, once the newest map shows it.
    fn begun(&self, of: impl Fn(&PartitionMap) -> Option<Relocation>) -> Result<Relocation> {
        let what = "learners are in the map";
        let map = self.maps.wait_for(LIMIT, what, |map| of(map).is_some())?;
        of(&map).context(what)
    }
}

/// Begins a relocation, and says which.
type Begin<'a> = &'a dyn Fn(&Stage) -> Result<Relocation>;

/// Of another partition at each turn.
fn begin_move(stage: &Stage, turn: usize) -> Result<Relocation> {
    let moves = moves_of(&stage.wire.map()?);
    let planned = moves[turn % moves.len()];
    stage.ask_leader(|wire| wire.apply_moves(&[planned]))?;
    stage.begun(|map| Relocation::of_move(map, planned))
}

/// Of whichever partition is due: no second one begins while it lasts.
fn begin_split(stage: &Stage) -> Result<Relocation> {
    stage.ask_leader(|wire| wire.set_rebalance(RebalanceMode::Manual))?;
    let begun = stage.begun(Relocation::of_split)?;
    stage.ask_leader(|wire| wire.set_rebalance(RebalanceMode::Paused))?;
    Ok(begun)
}

#[test]
fn p7_a_move_survives_the_death_of_each_of_its_parties_at_each_step() -> Result<()> {
    // 1,000 rows of a partition are some 170,000 bytes: a copy takes about two seconds.
    let stage = Stage::start(
        "killed-moves",
        6_000,
        "partitions_per_collection_max = 6",
        "copy_bytes_per_second_max = 80000",
    )?;
    // Only what the test asks for moves; what is lost is still repaired.
    stage.ask_leader(|wire| wire.set_rebalance(RebalanceMode::Manual))?;
    let mut turn = 0;
    for step in Step::ALL {
        for victim in VICTIMS {
            stage.kill_at(step, victim, &|stage| begin_move(stage, turn))?;
            turn += 1;
        }
    }
    assert_releasing_answers_estale(&stage)?;
    stage.finish()
}

#[test]
fn p7_a_split_survives_the_death_of_each_of_its_parties_at_each_step() -> Result<()> {
    // 20 splits are due. A half of 750 rows is some 130,000 bytes.
    let stage = Stage::start(
        "killed-splits",
        30_000,
        "partitions_per_node = 7\npartitions_per_collection_max = 20\nsplit_rows = 1000\nmoves_max = 1",
        "copy_bytes_per_second_max = 60000",
    )?;
    for step in Step::ALL {
        for victim in VICTIMS {
            stage.kill_at(step, victim, &begin_split)?;
        }
    }
    stage.finish()
}

/// What gives its place answers nothing from the moment that its node knows.
fn assert_releasing_answers_estale(stage: &Stage) -> Result<()> {
    let wire = &stage.wire;
    let before = wait_until_settled(wire, REPLICAS, "before a release")?;
    let mut held = Held::nobody(&stage.cluster);
    held.stop(CONSUMER)?;
    let relocation = begin_move(stage, 0)?;
    stage.reach(&relocation, Step::Release, &mut held)?;
    let released = stage.maps.newest().context("no map")?;
    let version = released.stamp();

    let address = released.nodes[&relocation.from].address.clone();
    let query = clustered_vector(7, DIMENSIONS);
    let search = DirectSearch::new(before, &stage.items.index(), query)?;
    let asked = search.of_replica(relocation.partition, relocation.from)?;
    // Until the quorum is back, the map goes on saying that it is being released.
    stage.stop_the_quorum(&mut held)?;
    held.go_on(&stage.cluster.node_process_at(&address)?)?;
    wire.wait_for_node_map(&address, version)?;
    wire.search(&address, asked)?.assert_estale()?;
    let newest = stage.maps.newest().context("no map")?;
    ensure!(
        relocation.is_at(&newest, Step::Release),
        "released already: {newest:#?}"
    );
    held.all_go_on()?;
    wait_until_settled(wire, REPLICAS, "after a release")?;
    Ok(())
}
