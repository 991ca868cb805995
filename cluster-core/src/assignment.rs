//! Which consumer follows which source: evenly, and as before where that is even
//! enough.
//!
//! A source that nobody can be following goes to the living consumer with the
//! fewest. Loads further apart than one are evened out by asking a holder to let
//! go: the source changes hands once the holder has said that it did. Nothing is
//! taken from a holder whose lease may still run.

use crate::ids::{ConsumerId, SourceId};
use std::collections::BTreeMap;

/// Sources that are asked back at once: for some seconds nobody follows them.
pub const RECALLS_MAX: usize = 2;

/// A source, and who has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    pub source: SourceId,
    pub holder: Option<ConsumerId>,
    /// Nobody follows it under the present token any more, nor can.
    pub is_free: bool,
}

/// A living consumer that may be given sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub consumer: ConsumerId,
    /// It lets go when asked, and says so. One that does not keeps what it has.
    pub can_release: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub give: Vec<(SourceId, ConsumerId)>,
    /// Asked back from their holders; free in a later plan.
    pub recall: Vec<SourceId>,
}

pub fn plan(holdings: &[Holding], candidates: &[Candidate]) -> Plan {
    let mut plan = Plan::default();
    let mut held: BTreeMap<ConsumerId, Vec<SourceId>> = BTreeMap::new();
    for candidate in candidates {
        held.entry(candidate.consumer).or_default();
    }
    for holding in holdings.iter().filter(|holding| !holding.is_free) {
        let holder = holding.holder.and_then(|holder| held.get_mut(&holder));
        if let Some(sources) = holder {
            sources.push(holding.source);
        }
    }
    let mut loads: BTreeMap<ConsumerId, usize> = held
        .iter()
        .map(|(id, sources)| (*id, sources.len()))
        .collect();
    for holding in holdings.iter().filter(|holding| holding.is_free) {
        let Some(consumer) = least_loaded(&loads) else {
            return plan;
        };
        plan.give.push((holding.source, consumer));
        *loads.entry(consumer).or_default() += 1;
    }
    let can_release = |id: &ConsumerId| {
        candidates
            .iter()
            .any(|c| c.consumer == *id && c.can_release)
    };
    while plan.recall.len() < RECALLS_MAX {
        let fullest = held
            .iter()
            .filter(|(id, sources)| can_release(id) && !sources.is_empty())
            .map(|(id, _)| *id)
            // Of several the first.
            .max_by_key(|id| (loads[id], std::cmp::Reverse(*id)));
        let (Some(from), Some(to)) = (fullest, least_loaded(&loads)) else {
            break;
        };
        if loads[&from] <= loads[&to] + 1 {
            break;
        }
        // The same ones as long as nothing changes.
        let source = held.get_mut(&from).and_then(Vec::pop);
        plan.recall.extend(source);
        *loads.entry(from).or_default() -= 1;
        *loads.entry(to).or_default() += 1;
    }
    plan
}

fn least_loaded(loads: &BTreeMap<ConsumerId, usize>) -> Option<ConsumerId> {
    let least = loads.iter().min_by_key(|(id, load)| (**load, **id));
    least.map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(source: u64, holder: Option<u64>, is_free: bool) -> Holding {
        Holding {
            source: SourceId(source),
            holder: holder.map(ConsumerId),
            is_free,
        }
    }

    fn candidates<const N: usize>(ids: [u64; N]) -> Vec<Candidate> {
        let candidate = |id| Candidate {
            consumer: ConsumerId(id),
            can_release: true,
        };
        ids.map(candidate).into()
    }

    /// Applies plans, each handover done before the next plan, until one is empty;
    /// answers how many sources each consumer has, and how many changed hands.
    fn settle(
        holdings: &mut [Holding],
        candidates: &[Candidate],
    ) -> (BTreeMap<ConsumerId, usize>, usize) {
        let mut moved = 0;
        for _ in 0..100 {
            let plan = plan(holdings, candidates);
            if plan == Plan::default() {
                let mut loads = BTreeMap::new();
                for holder in holdings.iter().filter_map(|h| h.holder) {
                    *loads.entry(holder).or_default() += 1;
                }
                return (loads, moved);
            }
            moved += plan.give.len();
            for holding in holdings.iter_mut() {
                let given = plan.give.iter().find(|(s, _)| *s == holding.source);
                if let Some((_, to)) = given {
                    (holding.holder, holding.is_free) = (Some(*to), false);
                }
                holding.is_free |= plan.recall.contains(&holding.source);
            }
        }
        panic!("plans do not come to an end: {holdings:?}");
    }

    #[test]
    fn sources_are_shared_evenly_and_stay_where_they_are() {
        let mut holdings: Vec<_> = (1..=8).map(|s| holding(s, None, true)).collect();
        let (loads, _) = settle(&mut holdings, &candidates([1, 2, 3]));
        let loads: Vec<usize> = loads.into_values().collect();
        assert_eq!(loads, [3, 3, 2]);
        let before = holdings.clone();
        assert_eq!(settle(&mut holdings, &candidates([1, 2, 3])).1, 0);
        assert_eq!(holdings, before, "one apart is even enough");
    }

    #[test]
    fn a_consumer_that_comes_gets_its_share_with_the_fewest_moves() {
        let mut holdings: Vec<_> = (1..=8).map(|s| holding(s, Some(1), false)).collect();
        let (loads, moved) = settle(&mut holdings, &candidates([1, 2]));
        assert_eq!(loads.into_values().collect::<Vec<_>>(), [4, 4]);
        assert_eq!(moved, 4);
    }

    #[test]
    fn p5_what_a_silent_holder_has_is_left_to_it_until_it_is_free() {
        let held = |is_free| [holding(1, Some(9), is_free), holding(2, Some(1), false)];
        let waits = plan(&held(false), &candidates([1]));
        assert_eq!(waits, Plan::default(), "its lease may still run");
        let taken = plan(&held(true), &candidates([1]));
        assert_eq!(taken.give, [(SourceId(1), ConsumerId(1))]);
    }

    #[test]
    fn only_so_many_are_asked_back_at_once_and_the_same_ones_again() {
        let holdings: Vec<_> = (1..=10).map(|s| holding(s, Some(1), false)).collect();
        let first = plan(&holdings, &candidates([1, 2]));
        assert_eq!(first.recall.len(), RECALLS_MAX);
        assert_eq!(plan(&holdings, &candidates([1, 2])), first);
    }

    #[test]
    fn nothing_is_asked_back_of_a_consumer_that_would_not_say_that_it_let_go() {
        let holdings: Vec<_> = (1..=4).map(|s| holding(s, Some(1), false)).collect();
        let mut both = candidates([1, 2]);
        both[0].can_release = false;
        assert_eq!(plan(&holdings, &both), Plan::default());
    }

    #[test]
    fn without_a_living_consumer_nothing_is_planned() {
        assert_eq!(plan(&[holding(1, None, true)], &[]), Plan::default());
    }
}
