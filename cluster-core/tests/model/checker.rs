//! An explicit-state model checker: every state that the actions can reach,
//! breadth first, so that the first violation has a shortest history.
//!
//! States are told apart by a 64-bit fingerprint. With a million states two share
//! one with a probability of about 3 in 10^8; such a state would be skipped, never
//! reported wrongly.

use cluster_core::invariants::Violation;
use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

pub trait Model {
    type State: Clone + Hash;
    type Action: Clone + Debug;

    fn initial(&self) -> Vec<Self::State>;
    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>);
    /// `Err`: what the action itself has violated.
    fn act(&self, state: &mut Self::State, action: &Self::Action) -> Result<(), Violation>;
    /// What holds of every state.
    fn check(&self, state: &Self::State) -> Result<(), Violation>;
}

pub struct Counterexample<A> {
    pub violation: Violation,
    pub history: Vec<A>,
}

pub struct Explored<A> {
    pub states: usize,
    pub depth: usize,
    /// Whether every reachable state was looked at.
    pub is_complete: bool,
    pub found: Option<Counterexample<A>>,
}

/// How a state was reached first.
struct Step<A> {
    from: usize,
    action: Option<A>,
    depth: usize,
}

/// Looks at up to `states_max` states.
pub fn explore<M: Model>(model: &M, states_max: usize) -> Explored<M::Action> {
    let mut seen = HashSet::new();
    let mut steps: Vec<Step<M::Action>> = Vec::new();
    let mut waiting: VecDeque<(usize, M::State)> = VecDeque::new();
    let mut actions = Vec::new();
    for state in model.initial() {
        if seen.insert(fingerprint(&state)) {
            waiting.push_back((steps.len(), state));
            steps.push(Step {
                from: 0,
                action: None,
                depth: 0,
            });
        }
    }
    let mut found = None;
    let mut is_complete = true;
    'all: while let Some((at, state)) = waiting.pop_front() {
        actions.clear();
        model.actions(&state, &mut actions);
        for action in &actions {
            let mut next = state.clone();
            let acted = model.act(&mut next, action);
            let is_new = seen.insert(fingerprint(&next));
            if !is_new && acted.is_ok() {
                continue;
            }
            let depth = steps[at].depth + 1;
            steps.push(Step {
                from: at,
                action: Some(action.clone()),
                depth,
            });
            if let Err(violation) = acted.and_then(|()| model.check(&next)) {
                let history = history(&steps, steps.len() - 1);
                found = Some(Counterexample { violation, history });
                break 'all;
            }
            if steps.len() >= states_max {
                is_complete = false;
                break 'all;
            }
            waiting.push_back((steps.len() - 1, next));
        }
    }
    Explored {
        states: steps.len(),
        depth: steps.last().map_or(0, |step| step.depth),
        is_complete,
        found,
    }
}

fn fingerprint<S: Hash>(state: &S) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}

fn history<A: Clone>(steps: &[Step<A>], mut at: usize) -> Vec<A> {
    let mut history = Vec::new();
    while let Some(action) = &steps[at].action {
        history.push(action.clone());
        at = steps[at].from;
    }
    history.reverse();
    history
}

/// The protocol as it is: no violation, and no fewer states than `states_min`.
pub fn holds<M: Model>(name: &str, model: &M, states_min: usize, states_max: usize) {
    let began = Instant::now();
    let explored = explore(model, states_max);
    println!(
        "{name}: {} states, {} steps deep, {} in {:.1} s",
        explored.states,
        explored.depth,
        if explored.is_complete {
            "all of them"
        } else {
            "the bound"
        },
        began.elapsed().as_secs_f64()
    );
    if let Some(found) = explored.found {
        panic!("{name}: {}\n{}", found.violation, told(&found.history));
    }
    assert!(explored.states >= states_min, "{name}: too few states");
}

/// The protocol without one of its guards: the model must notice.
pub fn breaks<M: Model>(name: &str, model: &M, states_max: usize) -> Violation {
    let explored = explore(model, states_max);
    let Some(found) = explored.found else {
        panic!("{name}: {} states and no violation", explored.states);
    };
    println!(
        "{name}: after {} states: {}\n{}",
        explored.states,
        found.violation,
        told(&found.history)
    );
    found.violation
}

fn told<A: Debug>(history: &[A]) -> String {
    let lines = history.iter().enumerate();
    let lines = lines.map(|(i, action)| format!("  {:>2}. {action:?}\n", i + 1));
    lines.collect()
}

mod tests {
    use super::*;
    use cluster_core::ids::NodeId;

    /// Counts up by one or two to 9; `bad` is a violation.
    struct Counting {
        bad: u64,
    }

    impl Model for Counting {
        type State = u64;
        type Action = u64;

        fn initial(&self) -> Vec<u64> {
            vec![0]
        }

        fn actions(&self, state: &u64, actions: &mut Vec<u64>) {
            actions.extend([1, 2].into_iter().filter(|by| state + by <= 9));
        }

        fn act(&self, state: &mut u64, by: &u64) -> Result<(), Violation> {
            *state += by;
            Ok(())
        }

        fn check(&self, state: &u64) -> Result<(), Violation> {
            match *state == self.bad {
                true => Err(Violation::AnsweredWithoutLease(NodeId(*state))),
                false => Ok(()),
            }
        }
    }

    #[test]
    fn the_checker_sees_every_state_once_and_tells_a_shortest_history() {
        let explored = explore(&Counting { bad: 99 }, 1000);
        assert!(explored.is_complete && explored.found.is_none());
        assert_eq!(explored.states, 10);
        let found = explore(&Counting { bad: 5 }, 1000).found.unwrap();
        assert_eq!(found.history.len(), 3);
        let bounded = explore(&Counting { bad: 99 }, 4);
        assert!(!bounded.is_complete && bounded.states == 4);
    }
}
