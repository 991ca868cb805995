//! Whose turn it is: several sources ask for one of a few places, and none of them
//! may keep the others out, however much it asks for.
//!
//! Sources take turns, one place each time; within a source it is first come, first
//! served. A source has at most so many places and so many waiting; what comes
//! beyond is refused at once.

use crate::ids::SourceId;
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FairLimits {
    pub places: usize,
    /// Of them, for one source.
    pub places_per_source: usize,
    pub waiting: usize,
    pub waiting_per_source: usize,
}

/// Why a ticket was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Everybody together waits too much.
    Full,
    /// This source does.
    SourceFull,
}

#[derive(Debug)]
struct OfSource<T> {
    running: usize,
    waiting: VecDeque<T>,
}

#[derive(Debug)]
pub struct FairQueue<T> {
    limits: FairLimits,
    running: usize,
    waiting: usize,
    /// Those that run or wait.
    sources: BTreeMap<SourceId, OfSource<T>>,
    /// Who had its turn last.
    last: SourceId,
}

impl<T> FairQueue<T> {
    pub fn new(limits: FairLimits) -> Self {
        Self {
            limits,
            running: 0,
            waiting: 0,
            sources: BTreeMap::new(),
            last: SourceId(0),
        }
    }

    /// Puts a ticket at its source's end. [`Self::turn`] says when it is its turn.
    pub fn push(&mut self, source: SourceId, ticket: T) -> Result<(), Refused> {
        let waiting = self.sources.get(&source).map_or(0, |s| s.waiting.len());
        // A free place is no waiting.
        let has_place = self.has_place(source) && waiting == 0;
        if !has_place && waiting >= self.limits.waiting_per_source {
            return Err(Refused::SourceFull);
        }
        if !has_place && self.waiting >= self.limits.waiting {
            return Err(Refused::Full);
        }
        let of_source = self.sources.entry(source).or_insert_with(|| OfSource {
            running: 0,
            waiting: VecDeque::new(),
        });
        of_source.waiting.push_back(ticket);
        self.waiting += 1;
        Ok(())
    }

    fn has_place(&self, source: SourceId) -> bool {
        let running = self.sources.get(&source).map_or(0, |s| s.running);
        self.running < self.limits.places && running < self.limits.places_per_source
    }

    /// Gives a place to the next ticket, if there is one of both.
    pub fn turn(&mut self) -> Option<(SourceId, T)> {
        let after = (
            std::ops::Bound::Excluded(self.last),
            std::ops::Bound::Unbounded,
        );
        let later = self.sources.range(after).map(|(id, _)| *id);
        let earlier = self.sources.range(..=self.last).map(|(id, _)| *id);
        let waits = |id: &SourceId| {
            let waiting = self.sources.get(id).map_or(0, |s| s.waiting.len());
            waiting > 0 && self.has_place(*id)
        };
        let source = later.chain(earlier).find(waits)?;
        let of_source = self.sources.get_mut(&source)?;
        let ticket = of_source.waiting.pop_front()?;
        of_source.running += 1;
        self.running += 1;
        self.waiting -= 1;
        self.last = source;
        Some((source, ticket))
    }

    /// A place that [`Self::turn`] gave is free again.
    pub fn done(&mut self, source: SourceId) {
        let of_source = self.sources.get_mut(&source);
        let of_source = of_source.filter(|of_source| of_source.running > 0);
        let of_source = of_source.expect("only a place that was given is given back");
        of_source.running -= 1;
        self.running -= 1;
        if of_source.running == 0 && of_source.waiting.is_empty() {
            self.sources.remove(&source);
        }
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FairLimits = FairLimits {
        places: 2,
        places_per_source: 2,
        waiting: 100,
        waiting_per_source: 10,
    };
    const GREEDY: SourceId = SourceId(1);
    const MODEST: SourceId = SourceId(2);

    #[test]
    fn a_source_that_asks_for_a_lot_does_not_keep_another_waiting() {
        let mut queue = FairQueue::new(LIMITS);
        for n in 0..10 {
            queue.push(GREEDY, n).expect("room");
        }
        assert_eq!(queue.turn(), Some((GREEDY, 0)));
        assert_eq!(queue.turn(), Some((GREEDY, 1)));
        assert_eq!(queue.turn(), None, "every place is taken");
        queue.push(MODEST, 100).expect("room");
        queue.done(GREEDY);
        assert_eq!(queue.turn(), Some((MODEST, 100)), "the next turn is its");
        queue.done(MODEST);
        assert_eq!(queue.turn(), Some((GREEDY, 2)));
    }

    #[test]
    fn p10_each_sources_places_and_waiting_are_limited_apart() {
        let mut queue = FairQueue::new(FairLimits {
            places_per_source: 1,
            waiting_per_source: 2,
            ..LIMITS
        });
        queue.push(GREEDY, 0).expect("a place");
        assert_eq!(queue.turn(), Some((GREEDY, 0)));
        queue.push(GREEDY, 1).expect("room");
        queue.push(GREEDY, 2).expect("room");
        assert_eq!(queue.turn(), None, "one place each");
        assert_eq!(queue.push(GREEDY, 3), Err(Refused::SourceFull));
        queue.push(MODEST, 4).expect("others are not concerned");
        assert_eq!(queue.turn(), Some((MODEST, 4)));
    }

    #[test]
    fn p10_all_together_wait_no_more_than_allowed_and_a_free_place_is_no_waiting() {
        let mut queue = FairQueue::new(FairLimits {
            places: 1,
            waiting: 0,
            ..LIMITS
        });
        queue.push(GREEDY, 0).expect("a place is free");
        assert_eq!(queue.turn(), Some((GREEDY, 0)));
        assert_eq!(queue.push(MODEST, 1), Err(Refused::Full));
        queue.done(GREEDY);
        queue.push(MODEST, 1).expect("a place is free");
        assert_eq!(queue.turn(), Some((MODEST, 1)));
        queue.done(MODEST);
        assert!(queue.sources.is_empty(), "nothing is kept of who is gone");
    }
}
