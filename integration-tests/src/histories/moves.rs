//! Replicas that are sent to another node meanwhile: they copy and catch up beside
//! writes and crashes, and one that served lets go.

use super::record::Record;
use crate::placed::moves_of;
use crate::wire::Wire;
use anyhow::Result;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub at_ms: u64,
    /// Which of those that are possible then.
    pub pick: usize,
}

/// Asks for them in their order. What the coordinators refuse, or cannot hear, does not
/// take place.
pub fn run(wire: &Wire, moves: &[Move], record: &Record) {
    let began = Instant::now();
    for Move { at_ms, pick } in moves {
        let due = began + Duration::from_millis(*at_ms);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        match ask(wire, *pick) {
            Ok(asked) => record.tell("moves", &asked, "asked"),
            Err(problem) => record.tell("moves", "a replica", &format!("not asked: {problem:#}")),
        }
    }
}

fn ask(wire: &Wire, pick: usize) -> Result<String> {
    let possible = moves_of(&wire.map()?);
    let Some(planned) = possible.get(pick % possible.len().max(1)) else {
        return Ok("nothing that could move".to_owned());
    };
    wire.apply_moves(&[*planned])?;
    Ok(format!("{planned:?}"))
}
