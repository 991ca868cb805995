//! The world: the one queue of what happens next, and everything that exists.
//! Whatever happens is drawn from one generator, in the order of the queue, so
//! that a seed is a run.

use crate::checks::{Checks, Fact, Truth};
use crate::client::{self, Client};
use crate::clock::{Clock, WorldMs};
use crate::consumer::Consumer;
use crate::coordinator::Coordinator;
use crate::disk::Disk;
use crate::faults::{Cast, Fault};
use crate::message::Message;
use crate::mutant::Mutant;
use crate::network::Network;
use crate::node::Node;
use crate::postgres::Postgres;
use crate::process::{Effect, Effects, Proc, Ticket, Timer};
use crate::raft::{self, Raft, RaftAnswer, RaftRequest};
use crate::random::Rng;
use crate::scenario::Scenario;
use crate::trace::Trace;
use cluster_core::control::{ClusterState, Command, CoordinatorMember};
use std::collections::{BTreeMap, BTreeSet};

const HEARTBEAT_MS: u64 = 150;

pub(crate) enum Event {
    Deliver(Proc, Proc, Message),
    Timer(Proc, u64, Timer),
    Synced(usize, u64, Ticket),
    Raft(usize, u64, RaftRequest),
    Heartbeat,
    Postgres,
    Fault,
    Undo(Fault),
    Move,
    /// Somebody takes a node for lost, and empties it.
    Empty(Proc),
    Look,
}

/// What a process is handed.
pub(crate) enum Input {
    Restart,
    Message(Proc, Message),
    Timer(Timer),
    Synced(Ticket),
    Raft(RaftAnswer),
    /// A leader's heartbeat, and up to where the log may be applied.
    Heard(usize, usize),
}

pub struct World {
    pub now: WorldMs,
    pub scenario: Scenario,
    pub postgres: Postgres,
    pub disks: Vec<Disk>,
    pub clients: Vec<Client>,
    /// The committed state, as no process needs to know it yet.
    pub state: ClusterState,
    pub checks: Checks,
    pub trace: Trace,
    /// The first promise that was broken.
    pub violation: Option<String>,
    pub events: u64,
    pub(crate) is_calm: bool,
    pub(crate) rng: Rng,
    pub(crate) network: Network,
    queue: BTreeMap<(WorldMs, u64), Event>,
    queued: u64,
    mutant: Option<Mutant>,
    pub(crate) tickets: u64,
    clocks: BTreeMap<Proc, Clock>,
    /// Counts starts, so that a crash voids what was under way.
    pub(crate) starts: BTreeMap<Proc, u64>,
    pub(crate) down: BTreeSet<Proc>,
    pub(crate) paused: BTreeMap<Proc, WorldMs>,
    pub(crate) raft: Raft,
    committed: usize,
    coordinators: Vec<Coordinator>,
    nodes: Vec<Node>,
    consumers: Vec<Consumer>,
}

fn bootstrap() -> Vec<Command> {
    let member = |i| CoordinatorMember {
        id: i as u64,
        address: Proc::Coordinator(i).to_string(),
    };
    let initialise = Command::Initialise {
        cluster_id: "simulated".to_owned(),
        members: (0..raft::MEMBERS).map(member).collect(),
    };
    let add_source = Command::AddSource {
        name: "postgres".to_owned(),
        dsn: "host=postgres".to_owned(),
    };
    vec![initialise, add_source]
}

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>, prints: bool) -> Self {
        let mut rng = Rng::new(seed);
        let scenario = Scenario::draw(&mut rng);
        let cast = scenario.cast;
        let mut clocks = BTreeMap::from([(Proc::Postgres, Clock::new(&mut rng))]);
        clocks.extend(cast.all().map(|process| (process, Clock::new(&mut rng))));
        let coordinator = |i| Coordinator::new(i, scenario.terms, scenario.policy, scenario.duties);
        let mut world = Self {
            now: 0,
            postgres: Postgres::new(scenario.keys, &mut rng),
            disks: (0..cast.nodes).map(|_| Disk::default()).collect(),
            clients: (0..cast.clients).map(|_| Client::default()).collect(),
            state: ClusterState::default(),
            checks: Checks::default(),
            trace: Trace::new(prints),
            violation: None,
            events: 0,
            is_calm: false,
            network: Network::new(scenario.network),
            rng,
            queue: BTreeMap::new(),
            queued: 0,
            mutant,
            tickets: 0,
            clocks,
            starts: BTreeMap::new(),
            down: BTreeSet::new(),
            paused: BTreeMap::new(),
            raft: Raft::new(bootstrap()),
            committed: 0,
            coordinators: (0..raft::MEMBERS).map(coordinator).collect(),
            nodes: (0..cast.nodes)
                .map(|i| Node::new(i, scenario.terms.epoch_grace_ms))
                .collect(),
            consumers: (0..cast.consumers).map(Consumer::new).collect(),
            scenario,
        };
        world
            .trace
            .line(0, format_args!("{seed} {:?}", world.scenario));
        world.follow_log();
        for process in cast.all() {
            world.input(process, Input::Restart);
        }
        world.schedule(1, Event::Heartbeat);
        world.schedule(1, Event::Postgres);
        world.schedule(world.scenario.faults_from, Event::Fault);
        world.schedule(world.scenario.faults_from, Event::Move);
        world.schedule(100, Event::Look);
        world
    }

    pub(crate) fn schedule(&mut self, after: WorldMs, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), event);
    }

    /// Lets the next thing happen.
    pub fn step(&mut self) {
        let Some(((at, number), event)) = self.queue.pop_first() else {
            return;
        };
        self.now = at;
        self.events += 1;
        if let Some(until) = self.pause_of(&event) {
            // It stands still: this happens to it when it goes on, in its order.
            self.queue.insert((until, number), event);
            return;
        }
        match event {
            Event::Deliver(from, to, message) => {
                if self.down.contains(&to) {
                    return;
                }
                self.trace.line(
                    self.now,
                    format_args!("{from} > {to} {} {}", message.name(), message.detail()),
                );
                self.input(to, Input::Message(from, message));
            }
            Event::Timer(process, start, timer) => {
                if self.is_same_start(process, start) {
                    self.input(process, Input::Timer(timer));
                }
            }
            Event::Synced(node, start, ticket) => {
                let process = Proc::Node(node);
                if self.is_same_start(process, start) && self.disks[node].sync(ticket) {
                    self.input(process, Input::Synced(ticket));
                }
            }
            Event::Raft(member, start, request) => {
                if self.is_same_start(Proc::Coordinator(member), start) {
                    self.raft_round(member, request);
                }
            }
            Event::Heartbeat => self.heartbeats(),
            Event::Postgres => self.work(),
            Event::Fault => self.fault(),
            Event::Undo(fault) => self.undo(fault),
            Event::Move => self.move_something(),
            Event::Empty(process) => self.begin_move(Some(process)),
            Event::Look => self.look(),
        }
    }

    /// Until when the process stands still that this would happen to.
    fn pause_of(&self, event: &Event) -> Option<WorldMs> {
        let process = match event {
            Event::Deliver(_, to, _) => *to,
            Event::Timer(process, ..) => *process,
            Event::Synced(node, ..) => Proc::Node(*node),
            Event::Raft(member, ..) => Proc::Coordinator(*member),
            _ => return None,
        };
        let until = self.paused.get(&process).copied();
        until.filter(|until| *until > self.now)
    }

    fn start_of(&self, process: Proc) -> u64 {
        self.starts.get(&process).copied().unwrap_or(0)
    }

    fn is_same_start(&self, process: Proc, start: u64) -> bool {
        !self.down.contains(&process) && self.start_of(process) == start
    }

    pub(crate) fn input(&mut self, process: Proc, input: Input) {
        let now = self.clocks[&process].read(self.now);
        let mutant = self.mutant;
        let mut effects = Effects::new(process, now, &mut self.rng, mutant, &mut self.tickets);
        match process {
            Proc::Postgres => match input {
                Input::Message(from, message) => self.postgres.on(from, message, &mut effects),
                Input::Timer(_) => self.postgres.send_wal(&mut effects),
                _ => {}
            },
            Proc::Coordinator(i) => {
                let it = &mut self.coordinators[i];
                match input {
                    Input::Restart => it.restart(&mut effects),
                    Input::Message(from, message) => it.on(from, message, &mut effects),
                    Input::Timer(_) => it.tick(self.raft.leads(i), &mut effects),
                    Input::Raft(answer) => it.on_raft(answer, &self.raft.log, &mut effects),
                    Input::Heard(leader, index) => {
                        it.catch_up(&self.raft.log, index);
                        it.heard(leader, &mut effects);
                    }
                    Input::Synced(_) => {}
                }
            }
            Proc::Node(i) => {
                let it = &mut self.nodes[i];
                match input {
                    Input::Restart => it.restart(&self.disks[i].durable, &mut effects),
                    Input::Message(from, message) => it.on(from, message, &mut effects),
                    Input::Timer(Timer::Tick) => it.tick(&mut effects),
                    Input::Timer(Timer::Computed(call)) => it.computed(call, &mut effects),
                    Input::Synced(ticket) => it.synced(ticket, &mut effects),
                    Input::Raft(_) | Input::Heard(..) => {}
                }
            }
            Proc::Consumer(i) => {
                let it = &mut self.consumers[i];
                match input {
                    Input::Restart => it.restart(&mut effects),
                    Input::Message(from, message) => it.on(from, message, &mut effects),
                    Input::Timer(_) => it.tick(&mut effects),
                    _ => {}
                }
            }
            Proc::Client(i) => {
                let it = &mut self.clients[i];
                match input {
                    Input::Restart => effects.wake(1, Timer::Tick),
                    Input::Message(_, message) => {
                        it.on(message, &mut self.postgres, &mut effects);
                    }
                    Input::Timer(_) => {
                        effects.wake(client::TICK_MS, Timer::Tick);
                        it.tick(&mut self.postgres, &mut effects);
                    }
                    _ => {}
                }
            }
        }
        let effects = effects.into_effects();
        self.execute(process, effects);
    }

    fn execute(&mut self, process: Proc, effects: Vec<Effect>) {
        let start = self.start_of(process);
        for effect in effects {
            match effect {
                Effect::Send(to, channel, message) => self.send((process, to), channel, message),
                Effect::Wake(local_ms, timer) => {
                    let after = self.clocks[&process].world_ms(local_ms);
                    self.schedule(after, Event::Timer(process, start, timer));
                }
                Effect::Write(ticket, write) => {
                    let Proc::Node(node) = process else { continue };
                    let (now, rng) = (self.now, &mut self.rng);
                    let takes = self.disks[node].write(ticket, write, now, rng);
                    self.schedule(takes, Event::Synced(node, start, ticket));
                }
                Effect::Raft(request) => {
                    let Proc::Coordinator(member) = process else {
                        continue;
                    };
                    let takes = self.network.delay(&mut self.rng) * 2;
                    self.schedule(takes, Event::Raft(member, start, request));
                }
                Effect::Tell(fact) => self.check(process, fact),
                Effect::Note(what) => {
                    self.trace.line(self.now, format_args!("{process} {what}"));
                }
            }
        }
    }

    pub(crate) fn send(
        &mut self,
        (from, to): (Proc, Proc),
        channel: crate::process::Channel,
        message: Message,
    ) {
        let link = (from, to, channel);
        for arrival in self.network.send(link, self.now, &mut self.rng) {
            let event = Event::Deliver(from, to, message.clone());
            self.schedule(arrival - self.now, event);
        }
    }

    fn check(&mut self, process: Proc, fact: Fact) {
        match &fact {
            Fact::Applied { partition, to, .. } => {
                self.trace.line(
                    self.now,
                    format_args!("{process} applied {partition} to {to}"),
                );
            }
            Fact::Searching {
                snapshot,
                collection,
                consistency,
            } => {
                let line = format_args!("{process} {consistency:?} {collection} {snapshot:?}");
                self.trace.line(self.now, line);
            }
            Fact::SlotConfirmed(at) => {
                self.trace
                    .line(self.now, format_args!("slot confirmed at {at}"));
            }
            Fact::Searched(outcome) => {
                let found = outcome.result.as_ref().map(BTreeSet::len);
                let consistency = outcome.consistency;
                self.trace.line(
                    self.now,
                    format_args!("{process} {consistency:?} search: {found:?}"),
                );
            }
            _ => {}
        }
        let truth = Truth {
            postgres: &self.postgres,
            state: &self.state,
            disks: &self.disks,
        };
        let verdict = self.checks.fact(process, fact, &truth);
        self.judge(verdict);
    }

    pub(crate) fn judge(&mut self, verdict: Result<(), String>) {
        if let Err(violation) = verdict
            && self.violation.is_none()
        {
            self.trace
                .line(self.now, format_args!("BROKEN {violation}"));
            self.violation = Some(violation);
        }
    }

    fn raft_round(&mut self, member: usize, request: RaftRequest) {
        let (network, paused, now) = (&self.network, &self.paused, self.now);
        let connects = |a: usize, b: usize| {
            let stands_still = paused.get(&Proc::Coordinator(b)).is_some_and(|t| *t > now);
            a == b
                || (network.connects(Proc::Coordinator(a), Proc::Coordinator(b)) && !stands_still)
        };
        let answer = match request {
            RaftRequest::Campaign => {
                let elected = self.raft.campaign(member, &connects);
                elected.map(|term| RaftAnswer::Elected { term })
            }
            RaftRequest::Propose {
                term,
                ticket,
                command,
            } => Some(
                self.raft
                    .commit(member, (term, ticket), *command, &connects),
            ),
            RaftRequest::ReadIndex { term, ticket } => {
                Some(self.raft.read_index(member, (term, ticket), &connects))
            }
        };
        self.follow_log();
        if let Some(answer) = answer {
            if let RaftAnswer::Elected { term } = answer {
                self.trace.line(
                    self.now,
                    format_args!("coordinator:{member} leads term {term}"),
                );
            }
            self.input(Proc::Coordinator(member), Input::Raft(answer));
        }
    }

    /// Applies what was committed to the state that is true, and checks it.
    fn follow_log(&mut self) {
        while let Some(command) = self.raft.log.get(self.committed).cloned() {
            self.committed += 1;
            let before = self.state.map().clone();
            let index = self.committed;
            let response = self.state.apply(command.clone());
            self.trace.line(
                self.now,
                format_args!("log {index}: {command:?} -> {response:?}"),
            );
            let truth = Truth {
                postgres: &self.postgres,
                state: &self.state,
                disks: &self.disks,
            };
            let verdict = self.checks.committed(&before, &truth);
            self.judge(verdict);
        }
    }

    fn heartbeats(&mut self) {
        self.schedule(HEARTBEAT_MS, Event::Heartbeat);
        for leader in 0..raft::MEMBERS {
            let stands_still = |paused: &BTreeMap<Proc, WorldMs>, now, member| {
                paused
                    .get(&Proc::Coordinator(member))
                    .is_some_and(|until| *until > now)
            };
            if stands_still(&self.paused, self.now, leader) {
                continue;
            }
            let (network, paused, now) = (&self.network, &self.paused, self.now);
            let connects = |a: usize, b: usize| {
                network.connects(Proc::Coordinator(a), Proc::Coordinator(b))
                    && !stands_still(paused, now, b)
            };
            let heard = self.raft.heartbeat(leader, &connects, &mut self.rng);
            for (follower, index) in heard {
                self.input(Proc::Coordinator(follower), Input::Heard(leader, index));
            }
        }
    }

    /// Compares replicas with the table.
    fn look(&mut self) {
        self.schedule(400, Event::Look);
        let verdict = crate::settle::compare_replicas(self);
        self.judge(verdict);
    }

    /// What consumers and nodes are about.
    pub fn describe(&self) -> String {
        let runs: Vec<_> = self
            .consumers
            .iter()
            .filter_map(Consumer::describe)
            .collect();
        let nodes: Vec<_> = self.nodes.iter().map(Node::describe).collect();
        format!("{}; {}", runs.join("; "), nodes.join("; "))
    }

    pub fn cast(&self) -> Cast {
        self.scenario.cast
    }
}
