//! A model check of the protocols that fence: the real rules of `cluster_core`
//! under every order of events that a bounded world allows.
//!
//! Four models, each small enough to be looked at exhaustively or nearly so: who
//! consumes ([`fencing`]), whose batches a node takes ([`tokens`]), which copies hold
//! what the slot has passed ([`replicas`]), who answers ([`release`]). Messages are delayed, reordered, lost
//! and doubled; processes crash and lose what is not on disk; clocks run apart
//! within the bound. Each guard is also broken on purpose, for a model that cannot
//! fail proves nothing.
//!
//! Deliberately absent: Raft itself (the log is one, its leader may be deposed
//! without knowing it), and rows (a copy is the position up to which it has
//! all of them).
#![allow(clippy::unwrap_used)]
// Nodes and consumers are numbers here, with a place in several arrays.
#![allow(clippy::needless_range_loop)]

mod checker;
#[path = "../shared/cluster.rs"]
mod cluster;
mod committed;
mod fencing;
mod release;
mod replicas;
mod terms;
mod tokens;
