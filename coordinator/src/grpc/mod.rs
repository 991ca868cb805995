//! The services `Coordinator` and `Raft`. Protobuf stops here.

pub mod coordinator_service;
mod initialise;
mod membership;
pub mod refusal;
mod renewals;
mod status;
mod watch;
