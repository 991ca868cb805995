//! One source, two consumers that may hold it, two coordinators that may lead.
//!
//! A coordinator that was deposed goes on granting what it can. A command that it
//! had proposed is lost, or committed before the next reign's epoch, and nobody
//! tells it which. A consumer tries any coordinator with one renewal, and takes only
//! the answer to its last one. A source may be given to one that is not known to
//! live, and the heir renews only once there is something to hold: what it would
//! hold from before ends earlier.

use crate::checker::{Model, breaks, holds};
use crate::cluster::cluster;
use crate::committed::{Committed, SOURCE};
use crate::terms::{DRIFT_IGNORED, STEP_MS, TERMS, boot_ms};
use cluster_core::control::{Command, Reign};
use cluster_core::ids::{ConsumerEpoch, ConsumerId, LeaseEpoch};
use cluster_core::invariants::{Violation, check_holders};
use cluster_core::lease::*;
use std::collections::BTreeSet;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The grantor waits out the ttl alone.
    DriftIgnored,
    /// Any earlier word of a quorum lets a leader grant.
    RoundBeforeArrival,
    /// The holder counts from the answer's arrival.
    CountsFromReceipt,
    /// A new leader takes a holder that it does not know for gone.
    WaitsForNobody,
    /// A handover whose outcome is unknown is forgotten.
    HandoverForgotten,
    /// A holder that has let go follows the source again under the same token.
    FollowsAgain,
    /// To ask a holder to let go is taken for its word that it did.
    AskedIsReleased,
}

struct Fencing {
    broken: Broken,
    /// How often the leader asks a living holder to let go.
    recalls: u8,
}

const WAITED_OUT: Fencing = Fencing {
    broken: Broken::Nothing,
    recalls: 0,
};

const CONSUMERS: [ConsumerId; 2] = [ConsumerId(1), ConsumerId(2)];
const TIME_MAX_MS: u64 = 4 * STEP_MS;

#[derive(Clone, Hash)]
struct World {
    now: u64,
    is_slow: [bool; 2],
    committed: Committed,
    leader: usize,
    coordinators: [Option<Reigning>; 2],
    consumers: [Consumer; 2],
    network: BTreeSet<Message>,
    left: Left,
}

/// How often what costs nothing in the protocol may still happen.
#[derive(Clone, Hash)]
struct Left {
    elections: u8,
    doubles: u8,
    recalls: u8,
    renewals: [u8; 2],
}

#[derive(Clone, Hash)]
struct Reigning {
    grantor: Grantor,
    since: u64,
    /// The state as this coordinator knows it: the committed one while it leads.
    view: Committed,
    /// Renewals that arrived and are not answered.
    arrived: BTreeSet<Renewal>,
    /// A handover that is neither committed nor lost.
    proposed: Option<ConsumerId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Renewal {
    consumer: usize,
    sent: BootMs,
    received: ReignMs,
    released: Option<ConsumerEpoch>,
}

#[derive(Clone, Default, Hash)]
struct Consumer {
    lease: HeldLease,
    token: Option<ConsumerEpoch>,
    /// When the renewal was sent whose answer it takes.
    awaits: Option<BootMs>,
    /// It let go of the source, for good under this token.
    released: Option<ConsumerEpoch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Renew {
        consumer: usize,
        sent: BootMs,
        released: Option<ConsumerEpoch>,
    },
    Grant {
        consumer: usize,
        sent: BootMs,
        epoch: LeaseEpoch,
        token: Option<ConsumerEpoch>,
    },
}

#[derive(Clone, Debug)]
enum Action {
    TimePasses,
    Elect {
        leader: usize,
        is_inherited: bool,
    },
    Renew {
        consumer: usize,
    },
    Answer {
        leader: usize,
        renewal: Renewal,
    },
    Propose {
        to: usize,
    },
    Commit,
    Recall,
    ForgetHandover,
    Arrive {
        renewal: Message,
        at: usize,
        again: bool,
    },
    Take {
        grant: Message,
    },
}

impl World {
    fn boot_ms(&self, consumer: usize) -> BootMs {
        boot_ms(self.now, self.is_slow[consumer])
    }

    fn holds(&self, consumer: usize) -> bool {
        let Consumer { lease, token, .. } = &self.consumers[consumer];
        token.is_some() && lease.is_held(self.boot_ms(consumer))
    }

    fn leading(&mut self) -> &mut Reigning {
        self.coordinators[self.leader].as_mut().expect("it reigns")
    }

    /// The handover that the leader may propose now.
    fn free_for(&self, broken: Broken) -> Option<usize> {
        let leading = self.coordinators[self.leader].as_ref()?;
        let source = self.committed.source();
        let heir = CONSUMERS.iter().position(|c| source.consumer != Some(*c))?;
        let now = self.now - leading.since;
        let mut grantor = leading.grantor.clone();
        let waited = match broken {
            Broken::WaitsForNobody => now + TERMS.wait_out_ms() + 1,
            _ => now,
        };
        let is_free =
            grantor.begin_handover(SOURCE, source.consumer, source.consumer_epoch, waited);
        let may = is_free && leading.proposed.is_none();
        may.then_some(heir)
    }

    fn hand_over(&mut self, heir: ConsumerId) -> Result<(), Violation> {
        let expected = self.committed.source().consumer_epoch;
        self.committed.apply(Command::AssignSource {
            source: SOURCE,
            consumer: heir,
            expected,
        })?;
        Ok(())
    }
}

impl Fencing {
    fn elect(&self, world: &mut World, leader: usize, inherited: bool) -> Result<(), Violation> {
        let deposed = world.leading();
        let proposed = deposed.proposed.take();
        if let Some(heir) = proposed.filter(|_| inherited) {
            world.hand_over(heir)?;
        }
        let term = world.committed.state().reign().map_or(0, |r| r.term) + 1;
        let reign = Reign {
            term,
            leader: leader as u64,
            start: 1,
        };
        world.committed.apply(Command::NewEpoch { reign })?;
        let terms = match self.broken {
            Broken::DriftIgnored => DRIFT_IGNORED,
            _ => TERMS,
        };
        let epoch = world.committed.state().map().epoch;
        world.leader = leader;
        world.coordinators[leader] = Some(Reigning {
            grantor: Grantor::begin(terms, reign, epoch),
            since: world.now,
            view: world.committed.clone(),
            arrived: BTreeSet::new(),
            proposed: None,
        });
        Ok(())
    }

    fn arrive(
        &self,
        world: &mut World,
        (consumer, sent, released): (usize, BootMs, Option<ConsumerEpoch>),
        at: usize,
    ) {
        let (now, leads) = (world.now, world.leader == at);
        let reigning = world.coordinators[at].as_mut().expect("it reigns");
        let received = now - reigning.since;
        // The round begins with the arrival; a quorum answers only the one that
        // leads.
        if leads || self.broken == Broken::RoundBeforeArrival {
            reigning.grantor.confirmed(received);
        }
        reigning.arrived.insert(Renewal {
            consumer,
            sent,
            received,
            released,
        });
    }

    fn take(&self, world: &mut World, grant: Message) {
        let Message::Grant {
            consumer,
            sent,
            epoch,
            token,
        } = grant
        else {
            unreachable!("only grants are taken")
        };
        let now = world.boot_ms(consumer);
        let holder = &mut world.consumers[consumer];
        holder.awaits = None;
        let counted = match self.broken {
            Broken::CountsFromReceipt => now,
            _ => sent,
        };
        holder.lease.granted(epoch, counted, TERMS.ttl_ms, now);
        if holder.lease.is_held(now) {
            if token.is_none() {
                holder.released = holder.released.max(holder.token);
            }
            let may_follow = self.broken == Broken::FollowsAgain || token > holder.released;
            holder.token = token.filter(|_| may_follow);
        }
    }

    /// Forgets what nobody waits for, or what would come too late to count: it
    /// could only make a grantor wait longer.
    fn forget_the_late(&self, world: &mut World) {
        let waits = |consumer: usize, sent: BootMs| {
            let is_late = boot_ms(world.now, world.is_slow[consumer]) >= sent + TERMS.ttl_ms;
            let is_late = is_late && self.broken != Broken::CountsFromReceipt;
            world.consumers[consumer].awaits == Some(sent) && !is_late
        };
        world.network.retain(|message| match message {
            Message::Renew { consumer, sent, .. } | Message::Grant { consumer, sent, .. } => {
                waits(*consumer, *sent)
            }
        });
        for reigning in world.coordinators.iter_mut().flatten() {
            reigning.arrived.retain(|r| waits(r.consumer, r.sent));
        }
    }

    fn answer(world: &mut World, leader: usize, renewal: Renewal) {
        let reigning = world.coordinators[leader].as_mut().expect("it reigns");
        reigning.arrived.remove(&renewal);
        let Renewal {
            consumer,
            sent,
            received,
            released,
        } = renewal;
        let id = CONSUMERS[consumer];
        if reigning.grantor.renew_consumer(id, received).is_err() {
            return;
        }
        if let Some(released) = released {
            reigning.grantor.released(SOURCE, released);
        }
        let taken = reigning.grantor.renew_consumer(id, received);
        let taken = taken.expect("confirmed above");
        let token = grantable(reigning.view.state(), id, taken)
            .next()
            .map(|(_, token)| token);
        world.network.insert(Message::Grant {
            consumer,
            sent,
            epoch: reigning.grantor.epoch(),
            token,
        });
    }
}

impl Model for Fencing {
    type State = World;
    type Action = Action;

    /// The first consumer holds the source, and has just renewed.
    fn initial(&self) -> Vec<World> {
        let committed = Committed::new(cluster(1, 1, 2));
        let mut world = World {
            now: 0,
            is_slow: [false; 2],
            committed: committed.clone(),
            leader: 0,
            coordinators: [None, None],
            consumers: Default::default(),
            network: BTreeSet::new(),
            left: Left {
                elections: 1,
                doubles: 1 - self.recalls,
                recalls: self.recalls,
                // One to hear that it is asked, one to say that it let go.
                renewals: [1 + self.recalls, 1],
            },
        };
        world.coordinators[0] = Some(Reigning {
            grantor: Grantor::begin(TERMS, Reign::default(), LeaseEpoch(0)),
            since: 0,
            view: committed,
            arrived: BTreeSet::new(),
            proposed: None,
        });
        self.elect(&mut world, 0, false).expect("the first reign");
        let grantor = &mut world.leading().grantor;
        grantor.confirmed(0);
        grantor.renew_consumer(CONSUMERS[0], 0).expect("confirmed");
        let epoch = grantor.epoch();
        let lease = &mut world.consumers[0].lease;
        lease.granted(epoch, 0, TERMS.ttl_ms, 0);
        world.consumers[0].token = Some(ConsumerEpoch(1));
        [false, true]
            .into_iter()
            .map(|is_slow| World {
                is_slow: [is_slow, false],
                ..world.clone()
            })
            .collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.now < TIME_MAX_MS {
            actions.push(Action::TimePasses);
        }
        if world.left.elections > 0 {
            let leader = 1 - world.leader;
            let proposed = world.coordinators[world.leader]
                .as_ref()
                .and_then(|c| c.proposed);
            for is_inherited in [false, true] {
                if proposed.is_some() || !is_inherited {
                    actions.push(Action::Elect {
                        leader,
                        is_inherited,
                    });
                }
            }
        }
        for consumer in 0..2 {
            let is_holder = world.committed.source().consumer == Some(CONSUMERS[consumer]);
            if world.left.renewals[consumer] > 0 && (consumer == 0 || is_holder) {
                actions.push(Action::Renew { consumer });
            }
        }
        for (leader, reigning) in world.coordinators.iter().enumerate() {
            let arrived = reigning.iter().flat_map(|r| &r.arrived);
            actions.extend(arrived.map(|renewal| Action::Answer {
                leader,
                renewal: *renewal,
            }));
        }
        if let Some(to) = world.free_for(self.broken) {
            actions.push(Action::Propose { to });
        }
        if world.coordinators[world.leader]
            .as_ref()
            .is_some_and(|c| c.proposed.is_some())
        {
            actions.push(Action::Commit);
            if self.broken == Broken::HandoverForgotten {
                actions.push(Action::ForgetHandover);
            }
        }
        if world.left.recalls > 0 && world.committed.source().consumer == Some(CONSUMERS[0]) {
            actions.push(Action::Recall);
        }
        for message in &world.network {
            if let Message::Grant { .. } = message {
                actions.push(Action::Take { grant: *message });
                continue;
            }
            for at in (0..2).filter(|at| world.coordinators[*at].is_some()) {
                for again in [false, true] {
                    if world.left.doubles > 0 || !again {
                        actions.push(Action::Arrive {
                            renewal: *message,
                            at,
                            again,
                        });
                    }
                }
            }
        }
    }

    fn act(&self, world: &mut World, action: &Action) -> Result<(), Violation> {
        match action {
            Action::TimePasses => {
                world.now += STEP_MS;
                for consumer in 0..2 {
                    if !world.holds(consumer) {
                        world.consumers[consumer].token = None;
                    }
                }
            }
            Action::Elect {
                leader,
                is_inherited,
            } => {
                world.left.elections -= 1;
                self.elect(world, *leader, *is_inherited)?;
            }
            Action::Renew { consumer } => {
                let (consumer, sent) = (*consumer, world.boot_ms(*consumer));
                world.left.renewals[consumer] -= 1;
                world.consumers[consumer].awaits = Some(sent);
                let released = world.consumers[consumer].released;
                world.network.insert(Message::Renew {
                    consumer,
                    sent,
                    released,
                });
            }
            Action::Answer { leader, renewal } => Self::answer(world, *leader, *renewal),
            Action::Propose { to } => {
                let source = world.committed.source().clone();
                let now = world.now;
                let leading = world.leading();
                let now = match self.broken {
                    Broken::WaitsForNobody => now + TERMS.wait_out_ms() + 1,
                    _ => now,
                } - leading.since;
                let (holder, token) = (source.consumer, source.consumer_epoch);
                assert!(leading.grantor.begin_handover(SOURCE, holder, token, now));
                leading.proposed = Some(CONSUMERS[*to]);
            }
            Action::Commit => {
                let heir = world.leading().proposed.take().expect("proposed");
                world.hand_over(heir)?;
            }
            Action::Recall => {
                world.left.recalls -= 1;
                let token = world.committed.source().consumer_epoch;
                let leading = world.leading();
                leading.grantor.recall(SOURCE, token);
                if self.broken == Broken::AskedIsReleased {
                    leading.grantor.released(SOURCE, token);
                }
            }
            Action::ForgetHandover => world.leading().grantor.end_handover(SOURCE),
            Action::Arrive { renewal, at, again } => {
                match again {
                    true => world.left.doubles -= 1,
                    false => drop(world.network.remove(renewal)),
                }
                if let Message::Renew {
                    consumer,
                    sent,
                    released,
                } = *renewal
                {
                    self.arrive(world, (consumer, sent, released), *at);
                }
            }
            Action::Take { grant } => {
                world.network.remove(grant);
                self.take(world, *grant);
            }
        }
        let committed = world.committed.clone();
        world.leading().view = committed;
        self.forget_the_late(world);
        Ok(())
    }

    fn check(&self, world: &World) -> Result<(), Violation> {
        let holders = (0..2).filter(|consumer| world.holds(*consumer));
        check_holders(SOURCE, holders.map(|consumer| CONSUMERS[consumer]))
    }
}

const STATES_MAX: usize = 600_000;

#[test]
fn p5_at_most_one_consumer_holds_a_source() {
    holds("fencing", &WAITED_OUT, 500_000, STATES_MAX);
}

#[test]
fn p5_a_source_that_is_asked_back_has_one_holder_all_the_while() {
    let recalled = Fencing {
        recalls: 1,
        ..WAITED_OUT
    };
    holds("recall", &recalled, 100_000, STATES_MAX);
}

fn two_hold(name: &str, broken: Broken) {
    let recalls = u8::from(matches!(
        broken,
        Broken::FollowsAgain | Broken::AskedIsReleased
    ));
    let violation = breaks(name, &Fencing { broken, recalls }, STATES_MAX);
    assert!(
        matches!(violation, Violation::TwoHolders { .. }),
        "{violation}"
    );
}

#[test]
fn the_model_notices_that_drift_is_ignored() {
    two_hold("drift ignored", Broken::DriftIgnored);
}

#[test]
fn the_model_notices_a_round_before_the_arrival() {
    two_hold("round before arrival", Broken::RoundBeforeArrival);
}

#[test]
fn the_model_notices_a_lease_counted_from_receipt() {
    two_hold("counted from receipt", Broken::CountsFromReceipt);
}

#[test]
fn the_model_notices_a_new_leader_that_waits_for_nobody() {
    two_hold("waits for nobody", Broken::WaitsForNobody);
}

#[test]
fn the_model_notices_a_forgotten_handover() {
    two_hold("handover forgotten", Broken::HandoverForgotten);
}

#[test]
fn the_model_notices_a_holder_that_follows_again_what_it_let_go_of() {
    two_hold("follows again", Broken::FollowsAgain);
}

#[test]
fn the_model_notices_a_leader_that_takes_its_asking_for_the_answer() {
    two_hold("asked is released", Broken::AskedIsReleased);
}
