//! Disks: what is written and not synced is lost in a crash, or is not; nobody
//! knows before.

use crate::clock::WorldMs;
use crate::node::disk::{NodeDisk, NodeWrite};
use crate::process::Ticket;
use crate::random::Rng;
use std::collections::BTreeMap;

const SYNC_MS: (u64, u64) = (1, 12);
const SLOW_SYNC_MS: (u64, u64) = (300, 4_000);

#[derive(Default)]
pub struct Disk {
    pub durable: NodeDisk,
    in_flight: BTreeMap<Ticket, NodeWrite>,
    slow_until: WorldMs,
}

impl Disk {
    pub fn slow_until(&mut self, until: WorldMs) {
        self.slow_until = until;
    }

    /// Takes a write; how long its sync takes.
    pub fn write(
        &mut self,
        ticket: Ticket,
        write: NodeWrite,
        now: WorldMs,
        rng: &mut Rng,
    ) -> WorldMs {
        self.in_flight.insert(ticket, write);
        let (low, high) = match now < self.slow_until {
            true => SLOW_SYNC_MS,
            false => SYNC_MS,
        };
        rng.between(low, high)
    }

    /// Whether the write is on disk now; not if a crash came before.
    pub fn sync(&mut self, ticket: Ticket) -> bool {
        let write = self.in_flight.remove(&ticket);
        write.map(|write| self.durable.apply(write)).is_some()
    }

    pub fn crash(&mut self, rng: &mut Rng) {
        for write in std::mem::take(&mut self.in_flight).into_values() {
            if rng.chance(500) {
                self.durable.apply(write);
            }
        }
    }
}
