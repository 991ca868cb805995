//! The network: delays, reorders, loses, doubles, and cuts links, also one way.
//!
//! Streams stand for connections: in order and once. When a message of a stream
//! is lost, the stream is broken both ways and nothing of it comes through any
//! more; who waits for it finds out by silence.

use crate::clock::WorldMs;
use crate::process::{Channel, Proc, Ticket};
use crate::random::Rng;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug)]
pub struct NetworkProfile {
    pub delay_ms_max: u64,
    pub lost_per_mille: u64,
    pub doubled_per_mille: u64,
    /// A message that takes far longer than others.
    pub late_per_mille: u64,
}

const LATE_MS_MAX: u64 = 3_000;
/// A connection survives what loses a single message, mostly.
const STREAM_LOSS_DIVISOR: u64 = 20;

pub struct Network {
    profile: NetworkProfile,
    is_calm: bool,
    /// Links that carry nothing, by direction, and how many faults say so.
    cut: BTreeMap<(Proc, Proc), u32>,
    last_arrival: BTreeMap<(Proc, Proc, Ticket), WorldMs>,
    broken: BTreeSet<Ticket>,
}

impl Network {
    pub fn new(profile: NetworkProfile) -> Self {
        Self {
            profile,
            is_calm: false,
            cut: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
            broken: BTreeSet::new(),
        }
    }

    /// No faults any more.
    pub fn calm(&mut self) {
        self.is_calm = true;
        self.cut.clear();
    }

    pub fn cut(&mut self, from: Proc, to: Proc) {
        *self.cut.entry((from, to)).or_default() += 1;
    }

    pub fn mend(&mut self, from: Proc, to: Proc) {
        if let Some(cuts) = self.cut.get_mut(&(from, to)) {
            *cuts -= 1;
            if *cuts == 0 {
                self.cut.remove(&(from, to));
            }
        }
    }

    pub fn carries(&self, from: Proc, to: Proc) -> bool {
        !self.cut.contains_key(&(from, to))
    }

    /// Whether a question and its answer get through.
    pub fn connects(&self, a: Proc, b: Proc) -> bool {
        a == b || (self.carries(a, b) && self.carries(b, a))
    }

    pub fn delay(&self, rng: &mut Rng) -> WorldMs {
        let is_late = !self.is_calm && rng.chance(self.profile.late_per_mille);
        let max = match is_late {
            true => LATE_MS_MAX,
            false => self.profile.delay_ms_max,
        };
        rng.between(1, max)
    }

    /// When copies of a message arrive.
    pub fn send(
        &mut self,
        (from, to, channel): (Proc, Proc, Channel),
        now: WorldMs,
        rng: &mut Rng,
    ) -> Vec<WorldMs> {
        let is_carried = self.carries(from, to);
        let first = now + self.delay(rng);
        match channel {
            Channel::Call => {
                if !is_carried || self.loses(rng, self.profile.lost_per_mille) {
                    return Vec::new();
                }
                match !self.is_calm && rng.chance(self.profile.doubled_per_mille) {
                    true => vec![first, now + self.delay(rng)],
                    false => vec![first],
                }
            }
            Channel::Stream(stream) => {
                let loss = self.profile.lost_per_mille / STREAM_LOSS_DIVISOR;
                if !is_carried || self.loses(rng, loss) {
                    self.broken.insert(stream);
                }
                if self.broken.contains(&stream) {
                    return Vec::new();
                }
                let last = self.last_arrival.entry((from, to, stream)).or_default();
                *last = first.max(*last);
                vec![*last]
            }
        }
    }

    fn loses(&self, rng: &mut Rng, per_mille: u64) -> bool {
        !self.is_calm && rng.chance(per_mille)
    }
}
