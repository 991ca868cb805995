//! Towards the nodes: what waits for each ([`queue`]), one ordered stream per
//! node ([`stream`]), and which change goes where ([`router`]).

pub mod progress;
pub mod queue;
pub mod router;
pub mod stream;

#[cfg(test)]
mod router_tests;
