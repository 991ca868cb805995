//! A deterministic simulation of a whole cluster: three coordinators, nodes,
//! consumers, clients and a Postgres, on a network, disks and clocks that fail as
//! a seed says. The same seed gives the same run, line by line.
//!
//! What decides is the product's own code, `cluster-core`: the coordinators' state
//! machine, placement, who is granted a lease, which moves and splits begin and end,
//! admission and merge of rows, confirmation, the counting of learners, demotion, the
//! client's scan with its retries, paging and hedges. What moves bytes in the
//! product is rebuilt here in its simplest form: openraft as [`raft`], RocksDB as
//! [`disk`], Postgres as [`postgres`], gRPC as [`network`], the index as an exact
//! search; and the shells around the core as [`coordinator`] (with [`leases`] and
//! [`duties`]), [`node`], [`consumer`] and [`client`], written after the shells.
//!
//! In reading order: chance and time ([`random`], [`clock`]), what exists
//! ([`process`], [`message`], [`network`], [`disk`], [`raft`], [`postgres`],
//! [`oracle`]), who acts ([`coordinator`], [`node`], [`consumer`], [`client`]),
//! what happens ([`scenario`], [`faults`], [`events`], [`world`]), and what must hold
//! ([`checks`], [`settle`], [`mutant`]).
//!
//! # What is asserted
//!
//! In every step, from what processes tell and what is true: P1 (no row that the
//! snapshot sees and the asked position covers is missing from a whole answer),
//! P2 (the slot is confirmed only up to what is on the disk of every replica that
//! serves; a serving replica equals the table at its watermark), P3 (nothing is
//! given that the table did not hold), P4, P5 (tokens, grants, no answer without a
//! position from a replica that was let go), P6, and the core's own assertions (P7
//! among them). At the end everything is mended, and the cluster must catch up,
//! equal the table, and answer.
//!
//! # Caveats
//!
//! - The shells are rebuilt, so a bug in a real shell is not found here, and one
//!   in the core's rules or in the protocol between processes is.
//! - Within a stream the network keeps order and loses nothing without breaking
//!   the stream, as TCP does. Messages are not corrupted.
//! - A Raft round is decided in the instant in which it ends; logs are not
//!   compacted and members do not change. Postgres does not fail: no timelines,
//!   lost slots, incarnations.
//! - One source, one table, one index with its redefinitions; no filters, no drains,
//!   no limit of held WAL and so no stale replicas, no approximate search, no exact
//!   fallback in the bridge. A backfill is
//!   one snapshot.
//! - "Invisible row" holds by construction, since the client looks keys up in the
//!   heap; what is checked is that no replica gives what never was.
//! - P8 to P11 are not looked at, but for the limits of queues.

pub mod checks;
pub mod client;
pub mod clock;
pub mod consumer;
pub mod coordinator;
pub mod disk;
pub mod duties;
pub mod events;
pub mod faults;
pub mod leases;
pub mod message;
pub mod mutant;
pub mod network;
pub mod node;
pub mod oracle;
pub mod postgres;
pub mod process;
pub mod raft;
pub mod random;
pub mod scenario;
pub mod settle;
pub mod trace;
pub mod world;

use checks::Counts;
use mutant::Mutant;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

/// Events with faults, before the world is mended.
pub const STEPS_DEFAULT: u64 = 20_000;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub steps: u64,
    pub mutant: Option<Mutant>,
    /// Print every line of the trace.
    pub prints: bool,
}

impl Options {
    pub fn seed(seed: u64) -> Self {
        Self {
            seed,
            steps: STEPS_DEFAULT,
            mutant: None,
            prints: false,
        }
    }
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub hash: u64,
    pub lines: u64,
    pub world_ms: u64,
    pub counts: Counts,
    /// The first promise that was broken.
    pub verdict: Result<(), String>,
    pub last_lines: Vec<String>,
}

/// Runs a seed to its end, or to the first broken promise.
pub fn run(options: Options) -> Report {
    let mut world = World::new(options.seed, options.mutant, options.prints);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        while world.events < options.steps && world.violation.is_none() {
            world.step();
        }
        if world.violation.is_none() {
            settle::settle(&mut world);
        }
    }));
    let verdict = match (ran, world.violation.take()) {
        (Err(panic), _) => Err(format!("an assertion failed: {}", words(&*panic))),
        (Ok(()), Some(violation)) => Err(violation),
        (Ok(()), None) => Ok(()),
    };
    Report {
        seed: options.seed,
        hash: world.trace.hash(),
        lines: world.trace.lines(),
        world_ms: world.now,
        counts: world.checks.counts,
        verdict,
        last_lines: world.trace.last_lines(),
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}
