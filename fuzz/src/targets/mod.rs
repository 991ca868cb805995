//! What is fed. A target says of any input how it ended, or that it did what none may.

mod checkpoint;
mod copy;
mod pgoutput;
mod records;
mod transactions;
mod wire;

use anyhow::Result;
use rand::rngs::SmallRng;

pub struct Target {
    pub name: &'static str,
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// `Err` is a failure; how an input is refused is an outcome.
    pub check: fn(&[u8]) -> Result<String>,
    /// Gives a mangled input what would otherwise be checked before anything else.
    pub mend: Option<fn(&mut SmallRng, &mut [u8])>,
}

pub const TARGETS: [Target; 6] = [
    pgoutput::TARGET,
    transactions::TARGET,
    copy::TARGET,
    wire::TARGET,
    records::TARGET,
    checkpoint::TARGET,
];
