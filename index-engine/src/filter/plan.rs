//! Which way a filtered search takes next. A pure function of what is known: how many rows
//! match, and how many of the nodes nearest to the query did.
//!
//! Costs are in ranks: what it takes to rank a row that is listed. There is no way that is
//! good everywhere:
//! - ranking all rows that match costs as many ranks as they are, whatever the query;
//! - looking at the nearest nodes, matching or not, takes so many that enough of them
//!   match: few where matching rows lie near the query, almost all where they lie far;
//! - hopping from one matching row to another costs a search's steps, somewhat dearer ones,
//!   whatever the number of rows; it goes astray where too few match to hop to, or where
//!   the nearest of them are spread around a hole, as rows are that are all far away.
//!
//! A search looks around the query first, if that costs little beside ranking all, since
//! then it knows how many match near the query. It ends with ranking all.
//!
//! What a hop costs (25 ranks, and a rank for three of ten rows within two hops, 20 at most) was
//! measured on Fashion-MNIST with one-bit codes and `m = 16`, by the example `filtered`. There a
//! node's neighbours and theirs were taken to be 400 nodes. The shares of ranking all that may be
//! risked, and the 6 rows that must be within two hops, were chosen on the same data: a search
//! that meets fewer matches than chance allows gives up at a seventh of what ranking all costs.
//! Other data and other `m` shift where a way begins to pay, and never what is found in the end.

/// How a filtered search found its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// All rows that match are listed and ranked.
    PreFilter,
    /// The nearest nodes are looked for, and those that match are taken.
    PostFilter,
    /// The nearest matching rows are looked for, through the others.
    Traversal,
}

/// The next round of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub(super) strategy: Strategy,
    /// Nodes to look at, or rows; of no meaning to `PreFilter`.
    pub(super) width: usize,
    /// In ranks.
    pub(super) cost: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// Rows that match, about.
    pub(super) matching: f64,
    /// Rows of the index.
    pub(super) rows: f64,
    /// Matching rows that have to be met, those of earlier pages included.
    pub(super) wanted: usize,
    /// Nodes that a search without a filter would look at.
    pub(super) width: usize,
    /// In the widest round so far: nodes looked at, and how many of them matched.
    pub(super) looked_at: usize,
    pub(super) matched: usize,
    /// In ranks.
    pub(super) spent: f64,
    /// What looking at a node costs, in ranks.
    pub(super) per_node: f64,
    /// Hopping has not failed yet, and nothing speaks against it.
    pub(super) may_hop: bool,
}

/// A round may cost so much of ranking all, together with those before: it may fail.
const RISKED: f64 = 0.5;
/// And so much where far fewer rows matched than elsewhere: then it probably does.
const RISKED_IN_VAIN: f64 = 0.15;
/// Such a round is wider than the one before by this factor at most.
const STEP_IN_VAIN: f64 = 4.0;
/// Looking around the query costs so much at most, of ranking all.
const LOOK_AROUND: f64 = 0.1;
/// Nodes are looked at beyond those that should do, by this factor.
const MARGIN: f64 = 1.25;
/// Matching rows to hop to, in all that are two hops away; fewer do not connect.
const HOPS_MIN: f64 = 6.0;
/// Nodes that two hops lead to.
const WITHIN_TWO_HOPS: f64 = 400.0;
/// To read the lists of a row's neighbours, in ranks.
const HOP: f64 = 25.0;
/// Of the rows within two hops so many are ranked at each hop; the others have been met.
const RANKED_AT_A_HOP: f64 = 0.3;
const RANKED_MAX: f64 = 20.0;
/// Rows that hopping looks at, for each that is wanted: more where few are within two hops.
const HOPPED: f64 = 2.0;
const HOPPED_MORE_BELOW: f64 = 4.0;

pub(super) fn choose(known: &Known) -> Choice {
    let all = Choice {
        strategy: Strategy::PreFilter,
        width: 0,
        cost: known.matching,
    };
    if known.looked_at == 0 {
        let around = post_filter(known, known.width);
        let is_cheap = around.cost <= all.cost * LOOK_AROUND;
        return if is_cheap { around } else { all };
    }
    let selectivity = (known.matching / known.rows).clamp(1e-9, 1.0);
    // What was seen, and the selectivity as if it had been seen in as many rows as make
    // one that matches.
    let rate = (known.matched as f64 + 1.0) / (known.looked_at as f64 + 1.0 / selectivity);
    let mut width = known.wanted as f64 * MARGIN / rate;
    // Fewer than chance allows, so they lie elsewhere.
    let expected = known.looked_at as f64 * selectivity;
    let is_in_vain = (known.matched as f64) < expected / 3.0 - 2.0;
    if is_in_vain {
        width = width.min(STEP_IN_VAIN * known.looked_at as f64);
    }
    let width = width.max(2.0 * known.looked_at as f64).min(known.rows);
    let mut best = post_filter(known, width.ceil() as usize);
    // A greedy search does not see that far.
    let connects = !is_in_vain && selectivity * WITHIN_TWO_HOPS >= HOPS_MIN;
    let hopping = traversal(known, selectivity);
    if known.may_hop && connects && hopping.cost < best.cost {
        best = hopping;
    }
    let risked = if is_in_vain { RISKED_IN_VAIN } else { RISKED };
    if known.spent + best.cost <= all.cost * risked {
        best
    } else {
        all
    }
}

fn post_filter(known: &Known, width: usize) -> Choice {
    Choice {
        strategy: Strategy::PostFilter,
        width,
        cost: width as f64 * known.per_node,
    }
}

fn traversal(known: &Known, selectivity: f64) -> Choice {
    let more = 1.0 + HOPPED_MORE_BELOW / (selectivity * WITHIN_TWO_HOPS);
    let width = (known.wanted as f64 * HOPPED * more).max(known.width as f64);
    let ranked = (RANKED_AT_A_HOP * selectivity * WITHIN_TWO_HOPS).min(RANKED_MAX);
    Choice {
        strategy: Strategy::Traversal,
        width: width as usize,
        cost: width * (HOP + ranked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(matching: f64) -> Known {
        Known {
            matching,
            rows: 200_000.0,
            wanted: 20,
            width: 40,
            looked_at: 0,
            matched: 0,
            spent: 0.0,
            per_node: 6.0,
            may_hop: true,
        }
    }

    /// After looking around the query.
    fn seen(matching: f64, matched: usize) -> Known {
        Known {
            looked_at: 40,
            matched,
            spent: 240.0,
            ..known(matching)
        }
    }

    #[test]
    fn few_rows_are_ranked_at_once_and_many_looked_for() {
        for matching in [0.0, 1.0, 20.0, 1_000.0, 2_000.0] {
            let choice = choose(&known(matching));
            assert_eq!(
                (choice.strategy, choice.cost),
                (Strategy::PreFilter, matching)
            );
        }
        for matching in [10_000.0, 100_000.0, 180_000.0] {
            let choice = choose(&known(matching));
            assert_eq!((choice.strategy, choice.width), (Strategy::PostFilter, 40));
        }
    }

    #[test]
    fn what_matches_near_the_query_decides() {
        let strategy = |known: &Known| choose(known).strategy;
        // As many as elsewhere, and more.
        assert_eq!(strategy(&seen(100_000.0, 20)), Strategy::PostFilter);
        assert_eq!(strategy(&seen(10_000.0, 15)), Strategy::PostFilter);
        // One in twenty: hopping costs least.
        assert_eq!(strategy(&seen(10_000.0, 2)), Strategy::Traversal);
        let no_hops = Known {
            may_hop: false,
            ..seen(10_000.0, 2)
        };
        assert_eq!(strategy(&no_hops), Strategy::PostFilter);
        // Too few to hop to.
        assert_eq!(strategy(&seen(1_000.0, 0)), Strategy::PreFilter);
        // None of thousands: they lie elsewhere.
        let none = Known {
            looked_at: 5_000,
            spent: 30_000.0,
            ..seen(100_000.0, 0)
        };
        assert_eq!(strategy(&none), Strategy::PreFilter);
    }

    #[test]
    fn a_search_never_costs_much_more_than_ranking_all() {
        for matching in [1.0f64, 100.0, 3_000.0, 20_000.0, 60_000.0, 190_000.0] {
            for may_hop in [false, true] {
                // Nothing matches, wherever it looks.
                let mut known = Known {
                    may_hop,
                    ..known(matching)
                };
                let mut rounds = 0;
                loop {
                    let choice = choose(&known);
                    known.spent += choice.cost;
                    rounds += 1;
                    match choice.strategy {
                        Strategy::PreFilter => break,
                        Strategy::PostFilter => known.looked_at = choice.width,
                        Strategy::Traversal => known.may_hop = false,
                    }
                }
                assert!(
                    known.spent <= 1.5 * matching,
                    "{} for {matching}",
                    known.spent
                );
                assert!(rounds < 12, "{rounds} rounds");
            }
        }
    }
}
