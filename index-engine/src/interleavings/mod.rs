//! The engine's own code under the orders of its threads' steps, with [loom].
//!
//! Each model is a small program of two or three threads. It runs as often as there are
//! orders of their steps (up to so many preemptions) and stores that a load may still
//! show; a failed assertion, a panic or a deadlock in one of them fails the test. What is
//! watched is what comes from [`crate::sync`]: readers, lives, tail, roles, links, entry,
//! copies, stages of repair, the buckets of segments; and of vectors, that nobody reads one
//! while it is written or without having learned of it ([`crate::sync::Accessed`]).
//!
//! Buckets, chunks and stripes are tiny here, so that a model crosses from one to the next.
//!
//! Not modelled: codes, sketches and the tree of held links (bytes in place, read by atomics
//! that loom cannot watch), inverted lists, filters, checkpoints and their count of holders
//! (an `Arc`'s, and a fence of std's beside it: `PartitionIndex::is_being_written`), pools of
//! marks, counters of accesses, memory that is handed in, groups, and blocks that change the
//! width of their codes. Nor what the engine leans on: `std::sync::Arc`, parking_lot.
//! Loom shows stale values, but no load that is served from a store which the schedule has yet
//! to come to.
//!
//! Not found when it was broken: that the entry never leaves. It is settled anew before each
//! batch, so the check matters only once all is removed.
//!
//! [loom]: https://docs.rs/loom
#![allow(clippy::unwrap_used)]

mod index;
mod links;
mod lives;
mod readers;

use std::sync::Arc;

use loom::model::Builder;
use loom::thread::{self, JoinHandle};

use crate::hnsw::level_of;
use crate::{IndexParams, PartitionIndex, Representation, VectorId};

/// Threads stopped where they could go on, in one run. All orders would be too many.
const PREEMPTIONS: usize = 3;

/// Runs the model in every order, up to so many preemptions, or those that the environment
/// allows (`LOOM_MAX_PREEMPTIONS`).
fn in_every_order(model: impl Fn() + Send + Sync + 'static) {
    let mut orders = Builder::new();
    orders.preemption_bound.get_or_insert(PREEMPTIONS);
    orders.max_branches = 100_000;
    orders.check(model);
}

/// A thread that does something with what others hold too. Who only reads goes here, and
/// last; who writes is the model's first thread. For loom comes upon an order where a store
/// follows another thread's load by way of the last access only: where the writer reads a
/// place before it writes there, as most do, that load would be its own.
fn beside<T: Send + Sync + 'static, R: 'static>(
    shared: &Arc<T>,
    work: impl FnOnce(&Arc<T>) -> R + 'static,
) -> JoinHandle<R> {
    let shared = Arc::clone(shared);
    thread::spawn(move || work(&shared))
}

const M: usize = 2;

/// An index of numbers, all of them linked. The first has id 0, and so on.
fn index_of(numbers: &[f32]) -> Arc<PartitionIndex> {
    let index = PartitionIndex::new(IndexParams {
        dimensions: 1,
        m: M,
        ef_construction: 4,
        representation: Representation::Plain,
        ..IndexParams::default()
    });
    let index = index.unwrap();
    for (id, number) in (0..).zip(numbers) {
        assert_eq!(insert(&index, *number, 0), VectorId(id));
    }
    index.fold(numbers.len());
    Arc::new(index)
}

fn insert(index: &PartitionIndex, number: f32, level: u8) -> VectorId {
    let hash = (0..).find(|hash| level_of(*hash, M) == level).unwrap();
    index.insert(&[number][..], hash).unwrap()
}

/// The numbers that a search comes to, in order.
fn numbers(index: &PartitionIndex) -> Vec<f64> {
    const ROWS: usize = 9;
    let mut cursor = index.cursor(&[0.0][..], ROWS, u64::MAX, false).unwrap();
    let page = cursor.next_page(index, ROWS);
    assert!(page.exhausted);
    page.hits
        .into_iter()
        .map(|(_, distance)| distance)
        .collect()
}
