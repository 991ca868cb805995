//! Load is shared with the least movement: only nodes above the bound give
//! without being asked, and only nodes well under the mean are filled, up to the
//! mean and from the fullest. What is between stays, so that a plan that was
//! carried out gives no other plan.
//!
//! Zones before balance: no move makes two copies share a zone more than before, and
//! copies that share one without need are parted as far as the bound has room.

use super::planner::Planner;
use crate::control::MoveReason;
use crate::ids::NodeId;
use crate::layout::{Layout, PartitionNo, SeatNo, Shift, Standing};
use crate::placement::{LOAD_PERCENT_MAX, load_max};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A node that holds less than this, in per cent of the mean, is filled.
const LOAD_PERCENT_MIN: usize = 85;

/// What nodes hold when the load is shared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    low: usize,
    mean: usize,
    /// Up to here a node is filled for the sake of zones.
    high: usize,
    pub bound: usize,
}

impl Planner<'_> {
    /// `None` without members.
    pub(super) fn share(&self) -> Option<Share> {
        let members = self.members();
        let total: usize = self.layout.seats().iter().map(|seat| seat.load()).sum();
        (members > 0).then(|| Share {
            low: total * LOAD_PERCENT_MIN / (members * 100),
            mean: total / members,
            high: total * LOAD_PERCENT_MAX / (members * 100),
            bound: load_max(total, members),
        })
    }

    pub(super) fn balance(&mut self) {
        let Some(share) = self.share() else { return };
        self.part_zones(share);
        self.fill(share);
        for shift in self.layout.level(share.bound, true) {
            self.note_shift(shift);
        }
    }

    fn part_zones(&mut self, share: Share) {
        for number in 0..self.partitions.len() {
            if let Some(shift) = self.layout.zone_gain(number, share.high) {
                self.shift(shift);
            }
        }
    }

    /// The emptiest node takes from the fullest that may give, until it has the mean,
    /// or as much as that one: then nothing is worth a move back.
    fn fill(&mut self, share: Share) {
        let mut filling = Filling::new(self, share);
        while let Some((load, to)) = filling.takers.pop_first() {
            // Without a gift, zones or collections that still build keep what
            // others have.
            let Some((giver, partition)) = filling.gift(&self.layout, load, to) else {
                continue;
            };
            let (Reverse(full), from) = giver;
            self.shift(Shift {
                partition,
                from,
                to,
            });
            filling.change(from, full, full - 1);
            filling.change(to, load, load + 1);
            if load + 1 < share.mean {
                filling.takers.insert((load + 1, to));
            }
        }
    }

    /// Nodes on their way to the mean: they stop there and not at the lower limit.
    fn being_filled(&self) -> BTreeSet<NodeId> {
        let moves = self.moves.values();
        let balance = moves.filter(|m| m.reason == MoveReason::Balance);
        balance.map(|m| m.to).collect()
    }

    fn shift(&mut self, shift: Shift) {
        self.layout.relocate(shift);
        self.note_shift(shift);
    }

    fn note_shift(&mut self, shift: Shift) {
        let node = |seat: SeatNo| self.layout.seats()[seat].node;
        let (from, to) = (node(shift.from), node(shift.to));
        self.note(shift.partition, to, Some(from), MoveReason::Balance);
    }
}

/// Who takes and who may give, emptiest and fullest first.
struct Filling {
    takers: BTreeSet<(usize, SeatNo)>,
    givers: BTreeSet<(Reverse<usize>, SeatNo)>,
    /// What a giver has for a taker, best last. It only gets less: what moves
    /// here does not move on.
    gifts: BTreeMap<(SeatNo, SeatNo), Vec<PartitionNo>>,
}

impl Filling {
    fn new(planner: &Planner, share: Share) -> Self {
        let begun = planner.being_filled();
        let mut filling = Self {
            takers: BTreeSet::new(),
            givers: BTreeSet::new(),
            gifts: BTreeMap::new(),
        };
        for (number, seat) in planner.layout.seats().iter().enumerate() {
            let low = match begun.contains(&seat.node) {
                true => share.mean,
                false => share.low,
            };
            if seat.standing == Standing::Open && seat.load() < low {
                filling.takers.insert((seat.load(), number));
            }
            if seat.standing != Standing::Leaving {
                filling.givers.insert((Reverse(seat.load()), number));
            }
        }
        filling
    }

    fn change(&mut self, seat: SeatNo, before: usize, after: usize) {
        self.givers.remove(&(Reverse(before), seat));
        self.givers.insert((Reverse(after), seat));
        if self.takers.remove(&(before, seat)) {
            self.takers.insert((after, seat));
        }
    }

    fn gift(
        &mut self,
        layout: &Layout,
        load: usize,
        to: SeatNo,
    ) -> Option<((Reverse<usize>, SeatNo), PartitionNo)> {
        let fuller = self.givers.iter();
        for giver in fuller.take_while(|(Reverse(full), _)| *full >= load + 2) {
            let from = giver.1;
            let gifts = self.gifts.entry((from, to)).or_insert_with(|| {
                let mut gifts = layout.gifts(from, to);
                gifts.reverse();
                gifts
            });
            while let Some(partition) = gifts.pop() {
                if layout.gives(partition, from) {
                    return Some((*giver, partition));
                }
            }
        }
        None
    }
}
