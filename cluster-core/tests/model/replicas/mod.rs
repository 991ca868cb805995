//! One partition on two nodes, and the slot that the consumer confirms: what the
//! slot has passed is held by every replica that serves, or that counts.
//!
//! A copy is the position up to which it holds all rows. What is not synced is lost
//! in a crash. Promotions and demotions are asked for over a network that delivers
//! them at any time, any number of times, or never. A consumer starts over at
//! the slot whenever it likes: under its token it remembers whom it asked to be
//! promoted; a process that has forgotten gets another token, as an heir does.
//! Two consumers never confirm at once: the lease and the server's one walsender
//! see to that ([`super::fencing`]).

mod cases;
mod run;

use crate::checker::Model;
use crate::cluster::cluster;
use crate::committed::{Committed, PARTITION, SOURCE};
use cluster_core::apply::{Admission, admit};
use cluster_core::control::{Command, MoveReason, Reign};
use cluster_core::ids::*;
use cluster_core::invariants::{Violation, check_confirmation};
use cluster_core::map::ReplicaState::*;
use cluster_core::wal_position::{Lsn, WalPosition};
use run::{Counted, Run};
use std::collections::BTreeSet;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A learner counts wherever it stands.
    CountsBelowConfirmed,
    /// What a learner has logged counts before it has its copy.
    CountsWhileLearning,
    /// A counted learner is dropped when the map still shows a learner.
    CountedForgotten,
    /// A consumer that starts over under its token has forgotten whom it counted.
    CountedForgottenAtRestart,
    /// A counted learner is attached anew where the stream stands.
    CountedAttachedAnew,
    /// The slot goes on before the demotion is committed.
    DemotedBeforeCommit,
    /// The last serving replica is demoted.
    LastDemoted,
}

struct Replicas {
    broken: Broken,
    left: Left,
}

const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];
const INCARNATION: Incarnation = Incarnation(1);
const CONSUMERS: [ConsumerId; 2] = [ConsumerId(1), ConsumerId(2)];

fn end_of(lsn: u64) -> WalPosition {
    WalPosition::end_of(INCARNATION, Lsn(lsn))
}

#[derive(Clone, Hash)]
struct World {
    committed: Committed,
    /// The end of the WAL, and what the slot has confirmed of it.
    end: u64,
    slot: u64,
    run: Option<Run>,
    copies: [Option<Copied>; 2],
    asked: BTreeSet<Ask>,
    left: Left,
}

/// How often what costs nothing in the protocol may still happen.
#[derive(Clone, Copy, Default, Hash)]
struct Left {
    writes: u8,
    elections: u8,
    runs: u8,
    handovers: u8,
    moves: u8,
    cancels: u8,
    crashes: u8,
    demotions: u8,
}

/// A node's copy under one assignment.
#[derive(Clone, Hash)]
struct Copied {
    generation: Generation,
    /// Otherwise it learns: `applied` and `durable` are of its log alone.
    is_live: bool,
    /// The log holds everything above this.
    from: u64,
    applied: u64,
    durable: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Ask {
    token: ConsumerEpoch,
    node: usize,
    generation: Generation,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum What {
    Promote,
    Demote,
}

#[derive(Clone, Debug)]
enum Action {
    Elect,
    Route,
    Attach(usize),
    Feed(usize),
    Sync(usize),
    Report(usize),
    CopyFromPeer(usize),
    Count(usize),
    AskDemotion(usize),
    Commit(Ask),
    SeeMap,
    StartMove { to: usize, replaces: bool },
    CancelMove,
    FinishRelease(usize),
    StartRun,
    HandOver,
    Crash(usize),
}

impl World {
    fn copy(&self, node: usize, generation: Generation) -> Option<&Copied> {
        self.copies[node]
            .as_ref()
            .filter(|c| c.generation == generation)
    }

    /// The copy that the run's stream to a node is for.
    fn fed_copy(&self, node: usize) -> Option<&Copied> {
        let run = self.run.as_ref()?;
        self.copy(node, run.view.replica(NODES[node])?.0)
    }

    /// Up to where a node holds every row on disk.
    fn held(&self, node: usize, generation: Generation) -> WalPosition {
        let copy = self.copy(node, generation).filter(|copy| copy.is_live);
        copy.map_or(WalPosition::ZERO, |copy| end_of(copy.durable))
    }

    fn running(&mut self) -> &mut Run {
        self.run.as_mut().expect("a run")
    }

    /// A serving peer's copy that a learner may take: it reaches the log.
    fn peer(&self, node: usize) -> Option<u64> {
        let learner = self.copies[node].as_ref()?;
        let peer = 1 - node;
        let (generation, state) = self.committed.replica(NODES[peer])?;
        let copy = self.copy(peer, generation).filter(|copy| copy.is_live)?;
        (state == Serving && copy.applied >= learner.from).then_some(copy.applied)
    }

    fn attach(&mut self, node: usize) {
        let run = self.running();
        let from = match run.counted[node] {
            Some(Counted::Before) => run.start,
            _ => run.routed,
        };
        run.fed[node] = Some(from);
        let generation = run.key(node).generation;
        let goes_on = self
            .copy(node, generation)
            .is_some_and(|copy| copy.applied >= from);
        if !goes_on {
            self.copies[node] = Some(Copied {
                generation,
                is_live: false,
                from,
                applied: from,
                durable: from,
            });
        }
    }

    fn feed(&mut self, node: usize) {
        let run = self.running();
        let (from, to) = (run.fed[node].expect("a stream"), run.routed);
        run.fed[node] = Some(to);
        let copy = self.copies[node].as_mut().expect("fed");
        match admit(end_of(copy.applied), end_of(from), end_of(to)) {
            Admission::Apply => copy.applied = to,
            Admission::Duplicate | Admission::Gap => {}
        }
    }

    /// What a node says of its copy reaches the consumer.
    fn report(&mut self, node: usize) {
        let copy = self.fed_copy(node).expect("a copy").clone();
        let run = self.running();
        let key = run.key(node);
        if copy.is_live {
            run.tracker.durable(key, end_of(copy.durable));
        }
    }

    fn count(&mut self, node: usize, broken: Broken) {
        let durable = end_of(self.fed_copy(node).expect("a copy").durable);
        let run = self.running();
        let key = run.key(node);
        if broken == Broken::CountsBelowConfirmed {
            run.tracker.require(key);
        } else if !run.tracker.count(key, durable) {
            return;
        }
        run.counted[node] = Some(Counted::Here);
        self.ask(node, What::Promote);
    }

    fn ask(&mut self, node: usize, what: What) {
        let promotion = self.running().promotion(node);
        self.asked.insert(Ask { what, ..promotion });
    }

    fn commit(&mut self, ask: Ask, broken: Broken) -> Result<(), Violation> {
        let (token, generation, partition) = (ask.token, ask.generation, PARTITION);
        let node = NODES[ask.node];
        let command = match ask.what {
            What::Promote => Command::PromoteReplica {
                token,
                partition,
                node,
                generation,
                waits_out: true,
            },
            What::Demote if broken == Broken::LastDemoted => {
                return self.committed.demote_unchecked(node);
            }
            What::Demote => Command::DemoteReplica {
                token,
                partition,
                node,
                generation,
                min_required: 1,
            },
        };
        self.committed.apply(command)?;
        Ok(())
    }

    /// A node deletes what is not assigned to it any more, at once.
    fn delete_unassigned(&mut self) {
        for node in 0..2 {
            let assigned = self
                .committed
                .replica(NODES[node])
                .map(|(generation, _)| generation);
            let copy = &mut self.copies[node];
            // A copy that is newer than the map here does not exist.
            if copy
                .as_ref()
                .is_some_and(|copy| Some(copy.generation) != assigned)
            {
                *copy = None;
            }
        }
    }
}

impl Model for Replicas {
    type State = World;
    type Action = Action;

    /// One serving replica, or two.
    fn initial(&self) -> Vec<World> {
        let with = |replicas: u64| {
            let committed = Committed::new(cluster(2, replicas, 2));
            let mut world = World {
                committed,
                end: 0,
                slot: 0,
                run: None,
                copies: [None, None],
                asked: BTreeSet::new(),
                left: self.left,
            };
            for node in 0..2 {
                let replica = world.committed.replica(NODES[node]);
                world.copies[node] = replica.map(|(generation, _)| Copied {
                    generation,
                    is_live: true,
                    from: 0,
                    applied: 0,
                    durable: 0,
                });
            }
            world.run = Some(Run::start(&world, self.broken));
            world
        };
        vec![with(1), with(2)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let left = &world.left;
        let mut offer = |may: bool, action: Action| {
            if may {
                actions.push(action);
            }
        };
        offer(left.elections > 0, Action::Elect);
        offer(left.runs > 0, Action::StartRun);
        offer(left.handovers > 0, Action::HandOver);
        for ask in &world.asked {
            offer(true, Action::Commit(*ask));
        }
        let is_moving = !world.committed.state().moves().is_empty();
        offer(left.cancels > 0 && is_moving, Action::CancelMove);
        for node in 0..2 {
            let state = world.committed.replica(NODES[node]).map(|(_, state)| state);
            let may_move = left.moves > 0 && !is_moving;
            let may_move = may_move && matches!(state, None | Some(Demoted));
            for replaces in [false, true] {
                offer(may_move, Action::StartMove { to: node, replaces });
            }
            offer(state == Some(Releasing), Action::FinishRelease(node));
            if let Some(copy) = &world.copies[node] {
                offer(left.crashes > 0, Action::Crash(node));
                offer(copy.durable < copy.applied, Action::Sync(node));
                let may_copy = !copy.is_live && world.peer(node).is_some();
                offer(may_copy, Action::CopyFromPeer(node));
            }
        }
        let Some(run) = &world.run else {
            return;
        };
        offer(run.routed < world.end || left.writes > 0, Action::Route);
        offer(run.view.stamp() < world.committed.stamp(), Action::SeeMap);
        for node in 0..2 {
            let state = run.state(node);
            let copy = world.fed_copy(node);
            let is_fed = run.fed[node].is_some();
            let has_assignment = copy.is_some() || state == Some(Learner);
            let is_current = run.view.replica(NODES[node]).map(|r| r.0)
                == world.committed.replica(NODES[node]).map(|r| r.0);
            offer(
                state == Some(Learner) && !is_fed && has_assignment && is_current,
                Action::Attach(node),
            );
            let Some(copy) = copy.filter(|_| is_fed) else {
                continue;
            };
            offer(run.fed[node] < Some(run.routed), Action::Feed(node));
            offer(true, Action::Report(node));
            let is_ready = copy.is_live || self.broken == Broken::CountsWhileLearning;
            let is_new = run.counted[node] != Some(Counted::Here);
            offer(
                state == Some(Learner) && is_ready && is_new,
                Action::Count(node),
            );
            offer(
                state == Some(Serving) && left.demotions > 0,
                Action::AskDemotion(node),
            );
        }
    }

    fn act(&self, world: &mut World, action: &Action) -> Result<(), Violation> {
        match *action {
            Action::Elect => {
                world.left.elections -= 1;
                let before = world.committed.state().reign().unwrap_or_default();
                let term = before.term + 1;
                let reign = Reign { term, ..before };
                world.committed.apply(Command::NewEpoch { reign })?;
            }
            Action::Route => {
                let next = world.running().routed + 1;
                if next > world.end {
                    world.left.writes -= 1;
                    world.end = next;
                }
                let run = world.running();
                run.routed = next;
                run.tracker.sent(Lsn(next));
            }
            Action::Attach(node) => world.attach(node),
            Action::Feed(node) => world.feed(node),
            Action::Sync(node) => {
                let copy = world.copies[node].as_mut().expect("a copy");
                copy.durable = copy.applied;
            }
            Action::Report(node) => world.report(node),
            Action::CopyFromPeer(node) => {
                let copied = world.peer(node).expect("a peer");
                let copy = world.copies[node].as_mut().expect("a learner");
                copy.is_live = true;
                copy.applied = copied.max(copy.applied);
                copy.durable = copied.max(copy.durable);
            }
            Action::Count(node) => world.count(node, self.broken),
            Action::AskDemotion(node) => {
                world.left.demotions -= 1;
                world.ask(node, What::Demote);
                if self.broken == Broken::DemotedBeforeCommit {
                    world.running().forget(node);
                }
            }
            Action::Commit(ask) => world.commit(ask, self.broken)?,
            Action::SeeMap => {
                let map = world.committed.clone();
                world.running().see(map, self.broken);
            }
            Action::StartMove { to, replaces } => {
                world.left.moves -= 1;
                world.committed.apply(Command::StartMove {
                    partition: PARTITION,
                    to: NODES[to],
                    from: replaces.then_some(NODES[1 - to]),
                    reason: MoveReason::Operator,
                })?;
            }
            Action::CancelMove => {
                world.left.cancels -= 1;
                let running = world.committed.state().moves()[&PARTITION];
                world.committed.apply(Command::CancelMove {
                    partition: PARTITION,
                    generation: running.generation,
                })?;
            }
            Action::FinishRelease(node) => {
                let (generation, _) = world.committed.replica(NODES[node]).expect("releasing");
                world.committed.apply(Command::FinishRelease {
                    partition: PARTITION,
                    node: NODES[node],
                    generation,
                })?;
            }
            Action::StartRun => {
                world.left.runs -= 1;
                world.run = Some(Run::start(world, self.broken));
            }
            Action::HandOver => {
                world.left.handovers -= 1;
                let source = world.committed.source();
                let expected = source.consumer_epoch;
                let heir = CONSUMERS.iter().find(|c| source.consumer != Some(**c));
                let consumer = *heir.expect("another consumer");
                world.committed.apply(Command::AssignSource {
                    source: SOURCE,
                    consumer,
                    expected,
                })?;
                world.run = Some(Run::start(world, self.broken));
            }
            Action::Crash(node) => {
                world.left.crashes -= 1;
                let copy = world.copies[node].as_mut().expect("a copy");
                copy.applied = copy.durable;
                self.stream_breaks(world, node);
            }
        }
        world.delete_unassigned();
        if let Some(run) = &world.run {
            world.slot = world.slot.max(run.tracker.confirmed().0);
        }
        Ok(())
    }

    fn check(&self, world: &World) -> Result<(), Violation> {
        let confirmed = end_of(world.slot);
        for (node, id) in NODES.into_iter().enumerate() {
            if let Some((generation, Serving)) = world.committed.replica(id) {
                check_confirmation(confirmed, [world.held(node, generation)])?;
            }
            let run = world.run.as_ref();
            let Some(run) = run.filter(|run| run.counted[node] == Some(Counted::Here)) else {
                continue;
            };
            let generation = run.key(node).generation;
            if world.committed.replica(id).map(|r| r.0) == Some(generation) {
                check_confirmation(confirmed, [world.held(node, generation)])?;
            }
        }
        Ok(())
    }
}

impl Replicas {
    /// A learner that nobody counts is attached anew where the stream stands; any
    /// other stream ends with the run, which begins again at the slot.
    fn stream_breaks(&self, world: &mut World, node: usize) {
        let Some(run) = &mut world.run else {
            return;
        };
        let is_counted = run.counted[node].is_some() && self.broken != Broken::CountedAttachedAnew;
        if run.state(node) == Some(Learner) && !is_counted {
            run.fed[node] = None;
        }
    }
}
