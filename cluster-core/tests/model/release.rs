//! A node whose replica gives its place to another: nothing is answered from it
//! once the coordinators have taken it away, for from then on nobody feeds it.
//!
//! The node is cut off, crashes, and learns maps late and from coordinators that
//! lag behind. Its renewals are granted by a leader that may have been deposed.

use crate::checker::{Model, breaks, holds};
use crate::cluster::cluster;
use crate::committed::{Committed, PARTITION};
use crate::terms::{DRIFT_IGNORED, STEP_MS, TERMS, boot_ms};
use cluster_core::control::{Command, MoveReason, Reign};
use cluster_core::ids::*;
use cluster_core::invariants::{Violation, check_answer, check_successor};
use cluster_core::lease::*;
use cluster_core::map::ReplicaState;
use cluster_core::rebalance::tend::{Release, releases};
use cluster_core::rebalance::{Liveness, NodeView};
use std::collections::BTreeSet;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    DriftIgnored,
    RoundBeforeArrival,
    /// The replica is taken away without a word of its node.
    WaitsForNobody,
    /// A lease that was lost and regained lets the node answer by its old map.
    AnswersByOldMap,
    /// A node takes whatever map it is told.
    TakesAnyMap,
}

struct Releasing {
    broken: Broken,
    elections: u8,
    renewals: u8,
}

const GIVES: NodeId = NodeId(1);
const TAKES: NodeId = NodeId(2);
const TIME_MAX_MS: u64 = 4 * STEP_MS;

#[derive(Clone, Hash)]
struct World {
    now: u64,
    is_slow: bool,
    /// Every map that some coordinator may still show; the last is the committed.
    history: Vec<Committed>,
    released: Option<MapStamp>,
    leader: usize,
    coordinators: [Option<Reigning>; 2],
    node: Node,
    network: BTreeSet<Message>,
    elections_left: u8,
    crashes_left: u8,
    renewals_left: u8,
}

#[derive(Clone, Hash)]
struct Reigning {
    grantor: Grantor,
    since: u64,
    /// What this coordinator knows: all that is committed, while it leads.
    view: Committed,
}

#[derive(Clone, Default, Hash)]
struct Node {
    lease: HeldLease,
    /// The map that it answers by, of the history.
    map: Option<usize>,
    awaits: Option<BootMs>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Renew {
        sent: BootMs,
        knows: MapStamp,
    },
    /// Confirmed by a round, not recorded yet.
    Arrived {
        sent: BootMs,
        knows: MapStamp,
        at: usize,
        received: ReignMs,
    },
    Grant {
        sent: BootMs,
        map: MapStamp,
    },
}

#[derive(Clone, Debug)]
enum Action {
    TimePasses,
    Elect { leader: usize },
    Release,
    FinishRelease,
    Renew,
    Arrive { renewal: Message, at: usize },
    Answer { arrived: Message },
    Take { grant: Message },
    LearnMap { version: usize },
    Crash,
}

impl World {
    fn committed(&self) -> &Committed {
        self.history.last().expect("never empty")
    }

    fn boot_ms(&self) -> BootMs {
        boot_ms(self.now, self.is_slow)
    }

    fn commit(&mut self, command: Command) -> Result<(), Violation> {
        let mut next = self.committed().clone();
        next.apply(command)?;
        self.history.push(next);
        Ok(())
    }

    fn knows(&self) -> MapStamp {
        let map = self.node.map.map(|at| &self.history[at]);
        map.map_or_else(MapStamp::default, Committed::stamp)
    }

    fn has_let_go(&self, broken: Broken) -> bool {
        let (Some(since), Some(leading)) = (self.released, &self.coordinators[self.leader]) else {
            return false;
        };
        let Some((generation, _)) = self.committed().replica(GIVES) else {
            return false;
        };
        let release = Release {
            partition: PARTITION,
            node: GIVES,
            generation,
        };
        let grantor = &leading.grantor;
        let view = NodeView::of(GIVES, grantor, self.now - leading.since);
        let nodes = Liveness([(GIVES, view)].into());
        let over = releases(&[(release, since)].into(), &nodes, grantor.terms());
        over == [release] || broken == Broken::WaitsForNobody
    }
}

impl Releasing {
    fn elect(&self, world: &mut World, leader: usize) -> Result<(), Violation> {
        let reign = Reign {
            term: world.committed().state().reign().map_or(0, |r| r.term) + 1,
            leader: leader as u64,
            start: 1,
        };
        world.commit(Command::NewEpoch { reign })?;
        let terms = match self.broken {
            Broken::DriftIgnored => DRIFT_IGNORED,
            _ => TERMS,
        };
        let view = world.committed().clone();
        world.leader = leader;
        world.coordinators[leader] = Some(Reigning {
            grantor: Grantor::begin(terms, reign, view.state().map().epoch),
            since: world.now,
            view,
        });
        Ok(())
    }

    fn arrive(&self, world: &mut World, (sent, knows): (BootMs, MapStamp), at: usize) {
        let leads = world.leader == at;
        let reigning = world.coordinators[at].as_mut().expect("it reigns");
        let received = world.now - reigning.since;
        if leads || self.broken == Broken::RoundBeforeArrival {
            reigning.grantor.confirmed(received);
        }
        world.network.insert(Message::Arrived {
            sent,
            knows,
            at,
            received,
        });
    }

    fn answer(world: &mut World, arrived: Message) {
        let Message::Arrived {
            sent,
            knows,
            at,
            received,
        } = arrived
        else {
            unreachable!("only what has arrived is answered")
        };
        let reigning = world.coordinators[at].as_mut().expect("it reigns");
        if reigning.grantor.renew_node(GIVES, received, knows).is_ok() {
            world.network.insert(Message::Grant {
                sent,
                map: reigning.view.stamp(),
            });
        }
    }

    fn take(&self, world: &mut World, grant: Message) {
        let Message::Grant { sent, map } = grant else {
            unreachable!("only grants are taken")
        };
        let now = world.boot_ms();
        let node = &mut world.node;
        node.awaits = None;
        match self.broken {
            Broken::AnswersByOldMap => node.lease.granted(map.0, sent, TERMS.ttl_ms, now),
            _ => node.lease.granted_under(map, sent, TERMS.ttl_ms, now),
        };
    }

    /// Whether the node would answer a search from the replica now.
    fn answers(world: &World) -> bool {
        let Some(map) = world.node.map.map(|at| &world.history[at]) else {
            return false;
        };
        let serves = map
            .replica(GIVES)
            .is_some_and(|(_, state)| state == ReplicaState::Serving);
        let lease = &world.node.lease;
        serves && lease.is_held(world.boot_ms()) && lease.lets_answer_by(map.stamp())
    }

    /// Forgets what the node does not wait for, or what comes too late to count.
    fn forget_the_late(world: &mut World) {
        let (now, awaits) = (world.boot_ms(), world.node.awaits);
        world.network.retain(|message| match message {
            Message::Renew { sent, .. }
            | Message::Arrived { sent, .. }
            | Message::Grant { sent, .. } => awaits == Some(*sent) && now < sent + TERMS.ttl_ms,
        });
    }
}

impl Model for Releasing {
    type State = World;
    type Action = Action;

    /// The node serves under a lease; its successor has caught up.
    fn initial(&self) -> Vec<World> {
        let mut committed = Committed::new(cluster(2, 1, 1));
        let begun = committed.apply(Command::StartMove {
            partition: PARTITION,
            to: TAKES,
            from: Some(GIVES),
            reason: MoveReason::Operator,
        });
        begun.expect("a move");
        let mut world = World {
            now: 0,
            is_slow: false,
            history: vec![committed],
            released: None,
            leader: 0,
            coordinators: [None, None],
            node: Node::default(),
            network: BTreeSet::new(),
            elections_left: self.elections,
            crashes_left: 1,
            renewals_left: self.renewals,
        };
        self.elect(&mut world, 0).expect("the first reign");
        world.node.map = Some(world.history.len() - 1);
        let knows = world.knows();
        let leading = world.coordinators[0].as_mut().expect("elected");
        leading.grantor.confirmed(0);
        leading
            .grantor
            .renew_node(GIVES, 0, knows)
            .expect("confirmed");
        let epoch = leading.grantor.epoch();
        world.node.lease.granted(epoch, 0, TERMS.ttl_ms, 0);
        let slow = World {
            is_slow: true,
            ..world.clone()
        };
        vec![world, slow]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.now < TIME_MAX_MS {
            actions.push(Action::TimePasses);
        }
        if world.elections_left > 0 {
            let leader = 1 - world.leader;
            actions.push(Action::Elect { leader });
        }
        if world.released.is_none() {
            actions.push(Action::Release);
        }
        if world.has_let_go(self.broken) {
            actions.push(Action::FinishRelease);
        }
        if world.renewals_left > 0 {
            actions.push(Action::Renew);
        }
        for message in world.network.iter().copied() {
            match message {
                Message::Renew { .. } => {
                    let reigning = (0..2).filter(|at| world.coordinators[*at].is_some());
                    actions.extend(reigning.map(|at| Action::Arrive {
                        renewal: message,
                        at,
                    }));
                }
                Message::Arrived { .. } => actions.push(Action::Answer { arrived: message }),
                Message::Grant { .. } => actions.push(Action::Take { grant: message }),
            }
        }
        for version in 0..world.history.len() {
            let is_newer = world.node.map.is_none_or(|known| known < version);
            if is_newer || self.broken == Broken::TakesAnyMap {
                actions.push(Action::LearnMap { version });
            }
        }
        if world.crashes_left > 0 {
            actions.push(Action::Crash);
        }
    }

    fn act(&self, world: &mut World, action: &Action) -> Result<(), Violation> {
        match action {
            Action::TimePasses => world.now += STEP_MS,
            Action::Elect { leader } => {
                world.elections_left -= 1;
                self.elect(world, *leader)?;
            }
            Action::Release => {
                let (generation, _) = world.committed().replica(TAKES).expect("a learner");
                world.commit(Command::PromoteReplica {
                    token: ConsumerEpoch(1),
                    partition: PARTITION,
                    node: TAKES,
                    generation,
                    waits_out: true,
                })?;
                world.released = Some(world.committed().stamp());
            }
            Action::FinishRelease => {
                let (generation, _) = world.committed().replica(GIVES).expect("releasing");
                world.commit(Command::FinishRelease {
                    partition: PARTITION,
                    node: GIVES,
                    generation,
                })?;
            }
            Action::Renew => {
                world.renewals_left -= 1;
                let sent = world.boot_ms();
                let knows = world.knows();
                world.node.awaits = Some(sent);
                world.network.insert(Message::Renew { sent, knows });
            }
            Action::Arrive { renewal, at } => {
                world.network.remove(renewal);
                if let Message::Renew { sent, knows } = *renewal {
                    self.arrive(world, (sent, knows), *at);
                }
            }
            Action::Answer { arrived } => {
                world.network.remove(arrived);
                Self::answer(world, *arrived);
            }
            Action::Take { grant } => self.take(world, *grant),
            Action::LearnMap { version } => {
                let map = |at: usize| world.history[at].state().map();
                if let Some(known) = world.node.map {
                    check_successor(map(known), map(*version))?;
                }
                world.node.map = Some(*version);
            }
            Action::Crash => {
                world.crashes_left -= 1;
                world.node = Node::default();
            }
        }
        let (leader, committed) = (world.leader, world.committed().clone());
        if let Some(leading) = &mut world.coordinators[leader] {
            leading.view = committed;
        }
        Self::forget_the_late(world);
        Ok(())
    }

    fn check(&self, world: &World) -> Result<(), Violation> {
        if !Self::answers(world) {
            return Ok(());
        }
        let holds_lease = world.node.lease.is_held(world.boot_ms());
        let is_assigned = world.committed().replica(GIVES).is_some();
        check_answer((GIVES, PARTITION), holds_lease, is_assigned)
    }
}

const STATES_MAX: usize = 300_000;

fn release(broken: Broken) -> Releasing {
    Releasing {
        broken,
        elections: 1,
        renewals: 1,
    }
}

#[test]
fn p5_nothing_is_answered_from_a_replica_that_was_taken_away() {
    let model = release(Broken::Nothing);
    holds("release, election", &model, 10_000, STATES_MAX);
}

#[test]
fn p5_nothing_is_answered_from_a_replica_that_was_acknowledged_away() {
    let model = Releasing {
        elections: 0,
        renewals: 2,
        ..release(Broken::Nothing)
    };
    holds("release, two renewals", &model, 10_000, STATES_MAX);
}

fn answers_late(name: &str, broken: Broken) {
    let violation = breaks(name, &release(broken), STATES_MAX);
    let is_late = matches!(violation, Violation::AnsweredAfterRelease(..));
    assert!(is_late, "{violation}");
}

#[test]
fn the_model_notices_that_drift_is_ignored() {
    answers_late("release: drift ignored", Broken::DriftIgnored);
}

#[test]
fn the_model_notices_a_round_before_the_arrival() {
    answers_late("release: round before arrival", Broken::RoundBeforeArrival);
}

#[test]
fn the_model_notices_a_release_that_waits_for_nobody() {
    answers_late("release: waits for nobody", Broken::WaitsForNobody);
}

#[test]
fn the_model_notices_a_regained_lease_under_an_old_map() {
    answers_late("release: answers by an old map", Broken::AnswersByOldMap);
}

#[test]
fn p6_the_model_notices_a_map_that_goes_back() {
    let violation = breaks("any map", &release(Broken::TakesAnyMap), STATES_MAX);
    assert!(
        matches!(violation, Violation::MapWentBack { .. }),
        "{violation}"
    );
}
