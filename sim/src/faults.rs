//! What goes wrong, and when: drawn from the seed, undone after a while.

use crate::clock::WorldMs;
use crate::process::Proc;
use crate::raft;
use crate::random::Rng;

/// How often and how long.
const EVERY_MS: (u64, u64) = (300, 3_000);
const LASTS_MS: (u64, u64) = (200, 9_000);

#[derive(Clone, Debug)]
pub enum Fault {
    /// The process is gone, and comes back with its disk.
    Crash(Proc),
    /// The process stands still and does not know it.
    Pause(Proc),
    /// Links that carry nothing, by direction.
    Cut(Vec<(Proc, Proc)>),
    SlowDisk(usize),
}

/// What the world has, to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    pub nodes: usize,
    pub consumers: usize,
    pub clients: usize,
}

impl Cast {
    pub fn all(self) -> impl Iterator<Item = Proc> {
        let nodes = (0..self.nodes).map(Proc::Node);
        let consumers = (0..self.consumers).map(Proc::Consumer);
        let clients = (0..self.clients).map(Proc::Client);
        let coordinators = (0..raft::MEMBERS).map(Proc::Coordinator);
        coordinators.chain(nodes).chain(consumers).chain(clients)
    }

    fn one_that_fails(self, rng: &mut Rng) -> Proc {
        match rng.below(10) {
            0..5 => Proc::Node(rng.below(self.nodes as u64) as usize),
            5..8 => Proc::Consumer(rng.below(self.consumers as u64) as usize),
            _ => Proc::Coordinator(rng.below(raft::MEMBERS as u64) as usize),
        }
    }
}

pub fn next_in(rng: &mut Rng) -> WorldMs {
    rng.between(EVERY_MS.0, EVERY_MS.1)
}

/// A fault, and for how long. `leader`: who leads the coordinators.
pub fn draw(cast: Cast, leader: Option<usize>, rng: &mut Rng) -> (Fault, WorldMs) {
    let lasts = rng.between(LASTS_MS.0, LASTS_MS.1);
    let victim = match leader {
        Some(leader) if rng.chance(150) => Proc::Coordinator(leader),
        _ => cast.one_that_fails(rng),
    };
    let fault = match rng.below(100) {
        0..35 => Fault::Crash(victim),
        35..50 => Fault::Pause(victim),
        50..90 => Fault::Cut(links(cast, victim, rng)),
        _ => Fault::SlowDisk(rng.below(cast.nodes as u64) as usize),
    };
    (fault, lasts)
}

fn links(cast: Cast, victim: Proc, rng: &mut Rng) -> Vec<(Proc, Proc)> {
    let is_coordinator = |p: &Proc| matches!(p, Proc::Coordinator(_));
    let with_postgres = cast.all().chain([Proc::Postgres]);
    let others: Vec<Proc> = match rng.below(4) {
        // From the coordinators alone: its lease ends, and clients still reach it.
        0 | 1 => with_postgres.filter(is_coordinator).collect(),
        2 => with_postgres.filter(|_| rng.chance(500)).collect(),
        _ => with_postgres.collect(),
    };
    let ways = rng.below(4);
    let mut cut = Vec::new();
    for other in others.into_iter().filter(|other| *other != victim) {
        if ways != 0 {
            cut.push((victim, other));
        }
        if ways != 1 {
            cut.push((other, victim));
        }
    }
    cut
}
