//! Who would hold what: the working copy on which placement and rebalancing try
//! out their moves.
//!
//! It counts with numbers instead of ids, and keeps the nodes of each zone in the
//! order of their loads, so that ten thousand partitions on five hundred nodes
//! are arranged in milliseconds. Never: gives a node two copies of a
//! partition, or gives up a zone for balance.
//!
//! The rule of zones: the copies of a partition are spread over the zones as
//! evenly as they can be. A move keeps it if the zone that gains a copy has had
//! fewer of that partition than the one that loses it.

mod level;
#[cfg(test)]
mod tests;

use crate::ids::NodeId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A node's number in a layout.
pub(crate) type SeatNo = usize;
/// A partition's number in a layout.
pub(crate) type PartitionNo = usize;

/// What a node may do while moves are tried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Takes partitions.
    Open,
    /// Takes none while it is silent, but stays: it counts in the mean.
    Waiting,
    /// Takes none, and what it holds will go.
    Leaving,
}

#[derive(Debug)]
pub(crate) struct Seat {
    pub node: NodeId,
    pub standing: Standing,
    zone: usize,
    /// Copies that are not arranged here; they decide between equal loads.
    others: usize,
    load: usize,
    /// The partitions that may leave it.
    gives: BTreeSet<PartitionNo>,
}

/// A copy that changes its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shift {
    pub partition: PartitionNo,
    pub from: SeatNo,
    pub to: SeatNo,
}

#[derive(Debug, Default)]
pub(crate) struct Layout {
    seats: Vec<Seat>,
    /// The open seats of each zone as `(load, others, seat)`, least first.
    open: Vec<BTreeSet<(usize, usize, SeatNo)>>,
    zone_numbers: BTreeMap<String, usize>,
    /// Who holds each partition.
    homes: Vec<Vec<SeatNo>>,
    /// The collection of each partition, as a number.
    groups: Vec<u64>,
    /// How many partitions of a collection a seat holds.
    of_group: BTreeMap<(SeatNo, u64), usize>,
}

impl Layout {
    pub fn add_seat(&mut self, node: NodeId, zone: &str, others: usize, standing: Standing) {
        let zones = self.zone_numbers.len();
        let zone = *self.zone_numbers.entry(zone.to_owned()).or_insert(zones);
        self.open
            .resize_with(self.zone_numbers.len(), BTreeSet::new);
        let seat = self.seats.len();
        if standing == Standing::Open {
            self.open[zone].insert((0, others, seat));
        }
        self.seats.push(Seat {
            node,
            standing,
            zone,
            others,
            load: 0,
            gives: BTreeSet::new(),
        });
    }

    /// Seats are added in the order of their nodes' ids.
    pub fn seat_of(&self, node: NodeId) -> Option<SeatNo> {
        self.seats.binary_search_by_key(&node, |s| s.node).ok()
    }

    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    pub fn add_partition(&mut self, group: u64) -> PartitionNo {
        self.homes.push(Vec::new());
        self.groups.push(group);
        self.homes.len() - 1
    }

    pub fn partitions(&self) -> usize {
        self.homes.len()
    }

    pub fn homes(&self, partition: PartitionNo) -> &[SeatNo] {
        &self.homes[partition]
    }

    pub fn hold(&mut self, partition: PartitionNo, seat: SeatNo) {
        assert!(
            !self.homes[partition].contains(&seat),
            "two copies on one node"
        );
        self.homes[partition].push(seat);
        self.change_load(partition, seat, 1);
    }

    fn leave(&mut self, partition: PartitionNo, seat: SeatNo) {
        self.homes[partition].retain(|home| *home != seat);
        self.change_load(partition, seat, -1);
    }

    fn change_load(&mut self, partition: PartitionNo, seat: SeatNo, by: isize) {
        let of_group = self.of_group.entry((seat, self.groups[partition]));
        let count = of_group.or_default();
        *count = count.saturating_add_signed(by);
        let record = &mut self.seats[seat];
        let entry = |record: &Seat| (record.load, record.others, seat);
        let was_open = self.open[record.zone].remove(&entry(record));
        record.load = record.load.saturating_add_signed(by);
        if was_open {
            self.open[record.zone].insert(entry(record));
        }
    }

    /// A copy may leave its seat.
    pub fn release(&mut self, partition: PartitionNo, seat: SeatNo) {
        self.seats[seat].gives.insert(partition);
    }

    pub fn gives(&self, partition: PartitionNo, seat: SeatNo) -> bool {
        self.seats[seat].gives.contains(&partition)
    }

    pub fn relocate(&mut self, shift: Shift) {
        let Shift {
            partition,
            from,
            to,
        } = shift;
        self.leave(partition, from);
        self.hold(partition, to);
        if self.seats[from].gives.remove(&partition) {
            self.seats[to].gives.insert(partition);
        }
    }

    /// The partition stays where it is from here on.
    pub fn settle(&mut self, partition: PartitionNo) {
        for home in &self.homes[partition] {
            self.seats[*home].gives.remove(&partition);
        }
    }

    fn zone_count(&self, partition: PartitionNo, zone: usize) -> usize {
        let homes = self.homes[partition].iter();
        homes.filter(|home| self.seats[**home].zone == zone).count()
    }

    /// The zones' rule for a copy that goes from one zone to another.
    fn keeps_zones(&self, partition: PartitionNo, from: usize, to: usize) -> bool {
        from == to || self.zone_count(partition, to) < self.zone_count(partition, from)
    }

    /// Zones in which a copy of the partition can come into being, with the
    /// least loaded seat of each and the copies that the zone has already;
    /// `leaving` is not counted.
    fn choices(
        &self,
        partition: PartitionNo,
        leaving: Option<SeatNo>,
    ) -> impl Iterator<Item = (usize, SeatNo)> {
        let homes = &self.homes[partition];
        self.open
            .iter()
            .enumerate()
            .filter_map(move |(zone, open)| {
                let (_, _, seat) = open.iter().find(|(_, _, seat)| !homes.contains(seat))?;
                let leaves = leaving.is_some_and(|seat| self.seats[seat].zone == zone);
                let copies = self.zone_count(partition, zone) - usize::from(leaves);
                Some((copies, *seat))
            })
    }

    /// Where a copy goes: zones before balance. `None` when every open seat
    /// has one already.
    pub fn best_seat(&self, partition: PartitionNo, leaving: Option<SeatNo>) -> Option<SeatNo> {
        let least = self
            .choices(partition, leaving)
            .min_by_key(|(copies, seat)| {
                let seat_ = &self.seats[*seat];
                (*copies, seat_.load, seat_.others, *seat)
            });
        least.map(|(_, seat)| seat)
    }

    /// The first of the proposed seats that keeps the zones and has room, or the
    /// least loaded one.
    pub fn choose(
        &self,
        partition: PartitionNo,
        proposed: &[SeatNo],
        has_room: impl Fn(&Seat) -> bool,
    ) -> Option<SeatNo> {
        let fewest = self
            .choices(partition, None)
            .map(|(copies, _)| copies)
            .min()?;
        let fits = |seat: &&SeatNo| {
            let record = &self.seats[**seat];
            !self.homes[partition].contains(seat)
                && self.zone_count(partition, record.zone) == fewest
                && has_room(record)
        };
        let first = proposed.iter().find(fits).copied();
        first.or_else(|| self.best_seat(partition, None))
    }

    /// What one seat may give another, best first: of the collections that are
    /// spread least evenly over the two, taken in turns.
    pub fn gifts(&self, from: SeatNo, to: SeatNo) -> Vec<PartitionNo> {
        let (giver, taker) = (&self.seats[from], &self.seats[to]);
        let count = |seat, group| {
            let held = self.of_group.get(&(seat, group)).copied();
            held.unwrap_or(0) as i64
        };
        let fits = |p: &PartitionNo| {
            !self.homes[*p].contains(&to) && self.keeps_zones(*p, giver.zone, taker.zone)
        };
        let mut more: BTreeMap<u64, i64> = BTreeMap::new();
        let rank = |p: PartitionNo| {
            let group = self.groups[p];
            let left = more.entry(group);
            let left = left.or_insert_with(|| count(from, group) - count(to, group));
            *left -= 2;
            (Reverse(*left), p)
        };
        let given = giver.gives.iter().copied().filter(fits);
        let mut ranked: Vec<_> = given.map(rank).collect();
        ranked.sort_unstable();
        ranked.into_iter().map(|(_, partition)| partition).collect()
    }

    /// The move that puts a copy into a zone with two fewer of its partition,
    /// onto a seat that holds less than `max`; from the fullest seat that shares.
    pub fn zone_gain(&self, partition: PartitionNo, max: usize) -> Option<Shift> {
        let shares = |seat: SeatNo| self.zone_count(partition, self.seats[seat].zone);
        let from = self.homes[partition]
            .iter()
            .copied()
            .filter(|seat| self.gives(partition, *seat) && shares(*seat) >= 2)
            .max_by_key(|seat| (shares(*seat), self.seats[*seat].load, Reverse(*seat)))?;
        let room = |seat: SeatNo| self.seats[seat].load < max;
        let to = self
            .choices(partition, None)
            .filter(|(copies, seat)| copies + 1 < shares(from) && room(*seat))
            .min_by_key(|(copies, seat)| (*copies, self.seats[*seat].load, *seat));
        to.map(|(_, to)| Shift {
            partition,
            from,
            to,
        })
    }

    /// Whether some open seat would spread the partition better, room or not.
    pub fn shares_a_zone(&self, partition: PartitionNo) -> bool {
        let zones = self.homes[partition].iter().map(|s| self.seats[*s].zone);
        let most = zones.map(|zone| self.zone_count(partition, zone)).max();
        let fewest = self
            .choices(partition, None)
            .map(|(copies, _)| copies)
            .min();
        matches!((most, fewest), (Some(most), Some(fewest)) if fewest + 1 < most)
    }
}

impl Seat {
    pub fn load(&self) -> usize {
        self.load
    }

    pub fn others(&self) -> usize {
        self.others
    }

    pub fn has_gifts(&self) -> bool {
        !self.gives.is_empty()
    }
}
