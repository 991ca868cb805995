//! A partition on this node. Its row state is a function of the stream and the
//! backfill; its index can always be rebuilt from the rows.
//!
//! The order of one batch: decide (`cluster_core::apply`), write durably, publish
//! to the in-memory index, move the watermark, acknowledge. A crash between
//! writing and publishing loses nothing: recovery publishes what was written.
//!
//! Reading order: [`replica`] (what others see), [`job`] (what its writer is
//! asked), `writer`, `stage` (folding changes of a commit), `backfill`,
//! `index_state` with [`live_index`], `key_table` and `formers` (memory),
//! [`learning`] with `learn` (a replica that copies a peer and logs the
//! stream meanwhile), [`checkpoint`], [`replicas`] (all of them, and recovery), [`fold`],
//! [`folding_wait`], [`housekeeping`], `progress`.
//!
//! Caveat: a search may see a key twice while a new version is published. It
//! never misses a row whose change lies at or below the watermark.

mod backfill;
pub mod checkpoint;
pub mod fold;
pub mod folding_wait;
mod formers;
pub mod housekeeping;
mod index_state;
pub mod job;
mod key_table;
mod learn;
pub mod learning;
pub mod live_index;
mod progress;
mod reconcile;
pub mod replica;
pub mod replicas;
mod stage;
mod writer;

pub use progress::Watermarks;
pub use writer::WriterContext;

#[cfg(test)]
mod backfill_tests;
#[cfg(test)]
mod checkpoint_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod folding_wait_tests;
#[cfg(test)]
mod learn_tests;
#[cfg(test)]
mod memory_tests;
#[cfg(test)]
mod reconcile_tests;
#[cfg(test)]
mod tests;
