//! Brings seats above a bound down to it.
//!
//! Where zones forbid the direct move, a chain does it: one node gives to a
//! second, which gives another partition to a third that has room. Without a
//! chain of any length the zones do not allow the bound (augmenting paths, as in
//! Ford and Fulkerson, 1956).

use super::{Layout, PartitionNo, SeatNo, Shift};
use std::cmp::Reverse;
use std::collections::VecDeque;

impl Layout {
    /// Moves until no seat holds more than `max`, or zones forbid it. With
    /// `settles`, a partition that has moved moves no second time.
    pub fn level(&mut self, max: usize, settles: bool) -> Vec<Shift> {
        let mut done = Vec::new();
        while let Some(chain) = self.chain(max) {
            for shift in chain {
                self.relocate(shift);
                if settles {
                    self.settle(shift.partition);
                }
                done.push(shift);
            }
        }
        done
    }

    /// Evens out the seats of each zone among themselves, which zones never
    /// forbid: where they forbid the mean, the rest is shared all the same.
    pub fn even_zones(&mut self) {
        for zone in 0..self.open.len() {
            while let Some(shift) = self.uneven(zone) {
                self.relocate(shift);
            }
        }
    }

    /// From one of the fullest seats of a zone to the emptiest, if they differ by
    /// two or more; or by one, if what they hold besides differs as well.
    fn uneven(&self, zone: usize) -> Option<Shift> {
        let (least, others, to) = *self.open[zone].first()?;
        let fuller = self.open[zone].iter().rev();
        let mut fuller = fuller.take_while(|(load, besides, _)| {
            *load >= least + 2 || (*load == least + 1 && *besides > others)
        });
        fuller.find_map(|(_, _, from)| {
            let mut gives = self.seats[*from].gives.iter().copied();
            let partition = gives.find(|p| !self.homes[*p].contains(&to))?;
            Some(Shift {
                partition,
                from: *from,
                to,
            })
        })
    }

    /// The shortest chain from a seat above `max` to one below, its last
    /// move first: every move goes to a seat that has just got room.
    fn chain(&self, max: usize) -> Option<Vec<Shift>> {
        let mut over: Vec<SeatNo> = (0..self.seats.len())
            .filter(|seat| self.seats[*seat].load > max && self.seats[*seat].has_gifts())
            .collect();
        over.sort_by_key(|seat| (Reverse(self.seats[*seat].load), *seat));
        let mut search = Search::new(self, &over);
        while let Some(at) = search.queue.pop_front() {
            for partition in self.seats[at].gives.iter().copied() {
                if search.trail(at).any(|shift| shift.partition == partition) {
                    continue;
                }
                if let Some(end) = search.reach(self, at, partition, max) {
                    return Some(search.trail(end).collect());
                }
            }
        }
        None
    }
}

/// Breadth first over the seats; each is reached once.
struct Search {
    queue: VecDeque<SeatNo>,
    by: Vec<Option<Shift>>,
    /// Open seats that are not reached, by zone, least loaded first.
    unreached: Vec<(usize, Vec<SeatNo>)>,
}

impl Search {
    fn new(layout: &Layout, over: &[SeatNo]) -> Self {
        let mut is_start = vec![false; layout.seats.len()];
        over.iter().for_each(|seat| is_start[*seat] = true);
        let zones = layout.open.iter().enumerate().map(|(zone, open)| {
            let seats = open.iter().map(|(_, _, seat)| *seat);
            (zone, seats.filter(|seat| !is_start[*seat]).collect())
        });
        Self {
            queue: over.iter().copied().collect(),
            by: vec![None; layout.seats.len()],
            unreached: zones.collect(),
        }
    }

    /// Reaches every seat that may take the partition from `at`; answers the
    /// first one that holds less than `max`.
    fn reach(
        &mut self,
        layout: &Layout,
        at: SeatNo,
        partition: PartitionNo,
        max: usize,
    ) -> Option<SeatNo> {
        let homes = layout.homes(partition);
        let from_zone = layout.seats[at].zone;
        for (zone, seats) in &mut self.unreached {
            if !layout.keeps_zones(partition, from_zone, *zone) {
                continue;
            }
            let reached = seats.iter().copied().filter(|seat| !homes.contains(seat));
            for to in reached {
                self.by[to] = Some(Shift {
                    partition,
                    from: at,
                    to,
                });
                if layout.seats[to].load < max {
                    return Some(to);
                }
                self.queue.push_back(to);
            }
            seats.retain(|seat| homes.contains(seat));
        }
        self.unreached.retain(|(_, seats)| !seats.is_empty());
        None
    }

    /// The moves that lead to a seat, from there back to the start.
    fn trail(&self, seat: SeatNo) -> impl Iterator<Item = Shift> {
        std::iter::successors(self.by[seat], |shift| self.by[shift.from])
    }
}
