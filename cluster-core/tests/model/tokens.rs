//! One node and the tokens of successive consumers, whose batches come late,
//! doubled and in any order, while the node crashes between any two steps.

use crate::checker::{Model, breaks, holds};
use cluster_core::ids::{ConsumerEpoch, SourceId};
use cluster_core::invariants::{Violation, check_token};
use cluster_core::lease::{Offer, TokenFence};

/// `is_stored`: a new token is on disk before it counts.
struct Tokens {
    is_stored: bool,
}

const SOURCE: SourceId = SourceId(1);
const TOKEN_MAX: u64 = 4;
const CRASHES_MAX: u8 = 3;

#[derive(Clone, Default, Hash)]
struct World {
    /// Tokens given so far: each may still have batches on the way, for ever.
    given: u64,
    fence: TokenFence,
    stored: ConsumerEpoch,
    /// Written, not installed yet.
    writing: Option<ConsumerEpoch>,
    /// The highest token ever taken, which only the checker knows.
    seen: ConsumerEpoch,
    crashes: u8,
}

#[derive(Clone, Debug)]
enum Action {
    GiveToken,
    Batch(ConsumerEpoch),
    Install,
    Crash,
}

impl World {
    fn take(&mut self, token: ConsumerEpoch) -> Result<(), Violation> {
        check_token(SOURCE, token, self.seen)?;
        self.seen = token;
        Ok(())
    }
}

impl Model for Tokens {
    type State = World;
    type Action = Action;

    fn initial(&self) -> Vec<World> {
        vec![World::default()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.given < TOKEN_MAX {
            actions.push(Action::GiveToken);
        }
        match world.writing {
            // The fence is locked while the disk is written.
            Some(_) => actions.push(Action::Install),
            None => actions.extend((1..=world.given).map(|t| Action::Batch(ConsumerEpoch(t)))),
        }
        if world.crashes < CRASHES_MAX {
            actions.push(Action::Crash);
        }
    }

    fn act(&self, world: &mut World, action: &Action) -> Result<(), Violation> {
        match action {
            Action::GiveToken => world.given += 1,
            Action::Batch(token) => match world.fence.offer(*token) {
                Offer::Old { .. } => {}
                Offer::Known => world.take(*token)?,
                Offer::New => {
                    if self.is_stored {
                        world.stored = *token;
                    }
                    world.writing = Some(*token);
                }
            },
            Action::Install => {
                let token = world.writing.take().expect("written");
                world.fence.install(token);
                world.take(token)?;
            }
            Action::Crash => {
                world.crashes += 1;
                world.writing = None;
                world.fence = TokenFence::new(world.stored);
            }
        }
        Ok(())
    }

    /// What is taken is judged when it is taken.
    fn check(&self, _world: &World) -> Result<(), Violation> {
        Ok(())
    }
}

#[test]
fn p5_a_node_takes_no_lower_token_after_a_higher() {
    holds("tokens", &Tokens { is_stored: true }, 100, 10_000);
}

#[test]
fn the_model_notices_a_token_that_is_not_stored() {
    let violation = breaks("token not stored", &Tokens { is_stored: false }, 10_000);
    assert!(
        matches!(violation, Violation::OldTokenAccepted { .. }),
        "{violation}"
    );
}
