//! Which replicas move where: repair, drain, balance.
//!
//! Everything here is a function of the map, the running moves and what the
//! leader knows of the nodes; equal inputs give equal plans. A plan names one
//! move a partition at most, of ready collections only, to nodes that renew
//! their leases, and only where a live replica serves that can be copied. It never
//! takes a serving replica away: a move adds one before another goes.
//!
//! In reading order: [`nodes`] (what is known of the nodes), `planner` (the
//! working copy), `repair` and `drain`, `balance`, [`conflict`] (what could not be
//! had), [`throttle`] (what starts now), [`tend`] (what a running move needs), `split`.
//!
//! Caveats: a replica too many, left by a lower replication factor, stays;
//! a node that is silent but not yet dead keeps its replicas.

mod balance;
pub mod conflict;
mod drain;
pub mod nodes;
mod planner;
mod repair;
mod split;
pub mod tend;
pub mod throttle;

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

pub use conflict::Conflict;
pub use nodes::{Liveness, NodeView};
pub use split::{hopeless_splits, splits};
pub use tend::{Cancellation, Hopeless, Release, cancellations, is_void, releases};
pub use throttle::{Throttle, admit, wanted};

use crate::control::{Move, PlannedMove};
use crate::ids::PartitionId;
use crate::map::PartitionMap;
use planner::Planner;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebalancePolicy {
    /// Copies of each partition, as far as there are nodes.
    pub replication_factor: u32,
    /// A node that is silent for longer is replaced.
    pub dead_after_ms: u64,
}

/// What should move, repairs first, then drains, then balance; and what could not
/// be had.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub moves: Vec<PlannedMove>,
    pub conflicts: Vec<Conflict>,
}

pub fn plan(
    map: &PartitionMap,
    moves: &BTreeMap<PartitionId, Move>,
    policy: RebalancePolicy,
    nodes: &Liveness,
) -> Plan {
    let mut planner = Planner::new(map, moves, policy, nodes);
    planner.repair();
    planner.drain();
    planner.balance();
    planner.finish()
}
