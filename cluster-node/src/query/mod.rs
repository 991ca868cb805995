//! Searches: who may be answered ([`search`]), pages that go on where the last
//! one ended ([`cursors`]), and threads that compute them ([`pool`]); and what a replica
//! holds, to be compared with the heap ([`digest`]).
//!
//! A page belongs to one index of one replica. What a cursor has returned it
//! never returns again, so its token is good for one page only.

pub mod cursors;
pub mod digest;
pub mod pool;
pub mod search;

#[cfg(test)]
mod digest_tests;
#[cfg(test)]
mod drift_tests;
#[cfg(test)]
mod lease_loss_tests;
#[cfg(test)]
mod share_tests;
#[cfg(test)]
mod stranger_tests;

use crate::config::SearchConfig;

pub struct Queries {
    pub cursors: cursors::Cursors,
    pub pool: pool::Pool,
    pub digests: tokio::sync::Semaphore,
}

impl Queries {
    pub fn new(config: &SearchConfig) -> Self {
        Self {
            cursors: cursors::Cursors::new(config),
            pool: pool::Pool::new(config),
            digests: tokio::sync::Semaphore::new(digest::DIGESTS_MAX),
        }
    }
}
#[cfg(test)]
mod stale_replica_tests;
