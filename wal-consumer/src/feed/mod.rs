//! Towards the nodes: what waits for each ([`queue`]), who is fed there and how
//! ([`node`]), one ordered stream per node ([`stream`]), what nodes report
//! ([`reports`]), and which change goes where ([`router`]).

pub mod node;
pub mod progress;
pub mod queue;
mod reports;
pub mod router;
pub mod stream;

#[cfg(test)]
mod learner_tests;
#[cfg(test)]
mod replica_tests;
#[cfg(test)]
pub(crate) mod router_tests;
#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod testing;
