//! What happened, line by line, and a hash of all of it: two runs of a seed must
//! agree in every line.

use crate::clock::WorldMs;
use std::collections::VecDeque;
use std::fmt::{self, Write};

/// Lines kept for a failure's report when the whole trace is not printed.
const KEPT_LINES: usize = 60;

pub struct Trace {
    hash: u64,
    lines: u64,
    kept: VecDeque<String>,
    prints: bool,
    line: String,
}

impl Trace {
    pub fn new(prints: bool) -> Self {
        Self {
            hash: 0xCBF2_9CE4_8422_2325,
            lines: 0,
            kept: VecDeque::new(),
            prints,
            line: String::new(),
        }
    }

    pub fn line(&mut self, now: WorldMs, what: fmt::Arguments<'_>) {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        write!(line, "{now:>8} {what}").expect("a string takes what is written");
        // FNV-1a.
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        self.lines += 1;
        if self.prints {
            println!("{line}");
        }
        let recycled = match self.kept.len() {
            KEPT_LINES => self.kept.pop_front().unwrap_or_default(),
            _ => String::new(),
        };
        self.kept.push_back(line);
        self.line = recycled;
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    pub fn lines(&self) -> u64 {
        self.lines
    }

    pub fn last_lines(&self) -> Vec<String> {
        self.kept.iter().cloned().collect()
    }
}
