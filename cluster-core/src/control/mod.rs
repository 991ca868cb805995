//! The replicated state machine of the coordinators.
//!
//! Raft orders [`Command`]s; every coordinator applies them to its
//! [`ClusterState`] and so holds the same one. Nothing is computed here that
//! another version of the program might compute differently: where partitions
//! go is decided by the leader ([`crate::placement`]) and carried by the
//! command, so that the map is data.
//!
//! What holds after every command: the map's version rose by one if the map
//! changed and stayed otherwise; ids are never given twice; the partitions of
//! a collection tile the hash space; epochs and tokens only rise. Every command
//! may be applied twice with the effect of once, for a caller that has lost an
//! answer asks again.

mod breaks;
mod collections;
mod command;
mod coordinators;
mod members;
mod moves;
mod slot_hold_limit;
mod source_orders;
mod sources;
mod splits;
mod stale;
mod state;

#[cfg(test)]
mod any_command_tests;
#[cfg(test)]
mod collections_tests;
#[cfg(test)]
mod coordinators_tests;
#[cfg(test)]
mod moves_tests;
#[cfg(test)]
mod sources_tests;
#[cfg(test)]
mod splits_tests;
#[cfg(test)]
mod stale_tests;
#[cfg(test)]
mod tests;

pub use command::{
    Command, CoordinatorMember, Move, MoveReason, PlacedPartition, PlannedMove, RebalanceMode,
    Refusal, Reign, Response,
};
pub use coordinators::COORDINATORS_MAX;
pub use sources::{base_of_slot_name, names_of_next_slot, slot_name_of_incarnation};
pub use stale::passed;
pub use state::{ClusterState, ConsumerRecord};
