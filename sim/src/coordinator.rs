//! A coordinator: the core's state machine behind Raft, leases, and answers.
//!
//! It grants only after a ReadIndex round that began after the renewal arrived,
//! and counts a renewal from its arrival.

use crate::checks::Fact;
use crate::duties::Duties;
use crate::leases::{Reigning, Renewal};
use crate::message::Message;
use crate::mutant::Mutant;
use crate::process::{Effects, Proc, Ticket, Timer};
use crate::raft::{RaftAnswer, RaftRequest};
use cluster_core::control::{ClusterState, Command, Reign, Response};
use cluster_core::ids::*;
use cluster_core::lease::{BootMs, LeaseTerms};
use cluster_core::map::PartitionMap;
use cluster_core::placement::{PlacementPolicy, place_collection};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const TICK_MS: u64 = 200;
const ELECTION_MS: (u64, u64) = (900, 2_000);

pub const SOURCE: SourceId = SourceId(1);

/// What a Raft round is waited for.
enum Waiting {
    Epoch,
    Node(Proc, Renewal, NodeId, MapStamp),
    Consumer(Proc, Renewal, ConsumerId),
    Command(Proc, Ticket),
    Duty,
}

pub struct Coordinator {
    index: usize,
    terms: LeaseTerms,
    policy: PlacementPolicy,
    pub state: ClusterState,
    map: Arc<PartitionMap>,
    applied: usize,
    /// Tells one start of the process from the next.
    start: u64,
    term: Option<u64>,
    pub reigning: Option<Reigning>,
    duties: Duties,
    leader: Option<usize>,
    campaign_at: BootMs,
    waiting: BTreeMap<Ticket, Waiting>,
}

impl Coordinator {
    pub fn new(index: usize, terms: LeaseTerms, policy: PlacementPolicy) -> Self {
        Self {
            index,
            terms,
            policy,
            state: ClusterState::default(),
            map: Arc::default(),
            applied: 0,
            start: 0,
            term: None,
            reigning: None,
            duties: Duties::default(),
            leader: None,
            campaign_at: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// The log and what was applied of it are on disk; all else is forgotten.
    pub fn restart(&mut self, effects: &mut Effects<'_>) {
        self.start += 1;
        self.step_down();
        self.leader = None;
        self.duties = Duties::default();
        self.put_off_election(effects);
        effects.wake(1, Timer::Tick);
    }

    fn put_off_election(&mut self, effects: &mut Effects<'_>) {
        self.campaign_at = effects.now + effects.rng.between(ELECTION_MS.0, ELECTION_MS.1);
    }

    fn step_down(&mut self) {
        self.term = None;
        self.reigning = None;
        self.waiting.clear();
    }

    /// Applies what the log has up to `index`; the last response.
    pub fn catch_up(&mut self, log: &[Command], index: usize) -> Option<Response> {
        let mut last = None;
        while self.applied < index {
            last = Some(self.state.apply(log[self.applied].clone()));
            self.applied += 1;
        }
        if last.is_some() {
            self.map = Arc::new(self.state.map().clone());
        }
        last
    }

    /// A leader's heartbeat arrived.
    pub fn heard(&mut self, leader: usize, effects: &mut Effects<'_>) {
        self.leader = Some(leader);
        self.put_off_election(effects);
    }

    /// `leads`: the term that Raft lets it lead, as it knows itself.
    pub fn tick(&mut self, leads: Option<u64>, effects: &mut Effects<'_>) {
        effects.wake(TICK_MS, Timer::Tick);
        if self.term.is_some() && self.term != leads {
            self.step_down();
        }
        let Some(term) = leads else {
            if effects.now >= self.campaign_at {
                self.put_off_election(effects);
                effects.raft(RaftRequest::Campaign);
            }
            return;
        };
        self.term = Some(term);
        let proposes = self.waiting.values().any(|w| matches!(w, Waiting::Epoch));
        match &mut self.reigning {
            None if !proposes => {
                let reign = self.reign(term);
                self.propose(Command::NewEpoch { reign }, Waiting::Epoch, effects);
            }
            None => {}
            Some(reigning) => {
                let wanted = self.duties.due(&self.state, reigning, effects);
                for command in wanted {
                    self.propose(command, Waiting::Duty, effects);
                }
            }
        }
    }

    fn reign(&self, term: u64) -> Reign {
        Reign {
            term,
            leader: self.index as u64,
            start: self.start,
        }
    }

    fn propose(&mut self, command: Command, waiting: Waiting, effects: &mut Effects<'_>) {
        let Some(term) = self.term else { return };
        let ticket = effects.ticket();
        self.waiting.insert(ticket, waiting);
        effects.raft(RaftRequest::Propose {
            term,
            ticket,
            command: Box::new(command),
        });
    }

    pub fn on_raft(&mut self, answer: RaftAnswer, log: &[Command], effects: &mut Effects<'_>) {
        match answer {
            RaftAnswer::Elected { term } => {
                self.step_down();
                self.term = Some(term);
                self.leader = Some(self.index);
                self.catch_up(log, log.len());
            }
            RaftAnswer::Committed { ticket, index } => {
                let response = self.catch_up(log, index);
                if let (Some(waiting), Some(response)) = (self.waiting.remove(&ticket), response) {
                    self.committed(waiting, response, effects);
                }
            }
            RaftAnswer::Confirmed { ticket, index } => {
                self.catch_up(log, index);
                if let Some(waiting) = self.waiting.remove(&ticket) {
                    self.grant(waiting, effects);
                }
            }
            RaftAnswer::Unknown { ticket } => match self.waiting.remove(&ticket) {
                Some(Waiting::Node(to, renewal, ..) | Waiting::Consumer(to, renewal, _)) => {
                    self.not_leader(to, renewal.call, effects);
                }
                Some(Waiting::Command(to, call)) => self.not_leader(to, call, effects),
                _ => {}
            },
        }
    }

    fn not_leader(&self, to: Proc, call: Ticket, effects: &mut Effects<'_>) {
        let hint = self.leader.filter(|leader| *leader != self.index);
        effects.call(to, Message::NotLeader { call, hint });
    }

    fn committed(&mut self, waiting: Waiting, response: Response, effects: &mut Effects<'_>) {
        match (waiting, response) {
            (Waiting::Epoch, Response::Epoch { epoch }) => {
                if let Some(term) = self.term {
                    let reign = self.reign(term);
                    let reigning = Reigning::new(reign, epoch, self.terms, effects.now);
                    self.reigning = Some(reigning);
                    self.duties = Duties::default();
                }
            }
            (Waiting::Command(to, call), response) => {
                effects.call(to, Message::Answer { call, response });
            }
            _ => {}
        }
    }

    fn grant(&mut self, waiting: Waiting, effects: &mut Effects<'_>) {
        let map = self.state.map();
        let Some(reigning) = &mut self.reigning else {
            return;
        };
        let known = (reigning.epoch, map.version);
        let (to, call, assigned) = match waiting {
            Waiting::Node(to, renewal, node, knows) => {
                reigning.renew_node(node, renewal.received, knows);
                (to, renewal.call, None)
            }
            Waiting::Consumer(to, renewal, consumer) => {
                let withheld = reigning.renew_consumer(consumer, renewal.received);
                let source = map.sources.get(&SOURCE);
                let held = source.filter(|s| s.consumer == Some(consumer));
                let token = held.map(|s| s.consumer_epoch);
                let assigned = token.filter(|token| Some(*token) != withheld);
                (to, renewal.call, assigned.map(|token| (SOURCE, token)))
            }
            _ => return,
        };
        effects.tell(Fact::Granted {
            call,
            epoch: known.0,
        });
        let granted = Message::Granted {
            call,
            known,
            ttl_ms: self.terms.ttl_ms,
            assigned,
        };
        effects.call(to, granted);
    }

    fn renew(&mut self, waiting: Waiting, effects: &mut Effects<'_>) {
        let (to, call) = match &waiting {
            Waiting::Node(to, renewal, ..) | Waiting::Consumer(to, renewal, _) => {
                (*to, renewal.call)
            }
            _ => return,
        };
        effects.tell(Fact::RenewalArrived { call });
        let (Some(term), Some(_)) = (self.term, &self.reigning) else {
            return self.not_leader(to, call, effects);
        };
        if effects.is_broken(Mutant::GrantWithoutQuorum) {
            return self.grant(waiting, effects);
        }
        let ticket = effects.ticket();
        self.waiting.insert(ticket, waiting);
        effects.raft(RaftRequest::ReadIndex { term, ticket });
    }

    pub fn on(&mut self, from: Proc, message: Message, effects: &mut Effects<'_>) {
        let received = effects.now;
        match message {
            Message::RenewNode { call, node, known } => {
                let renewal = Renewal { call, received };
                self.renew(Waiting::Node(from, renewal, node, known), effects);
            }
            Message::RenewConsumer { call, consumer } => {
                let renewal = Renewal { call, received };
                self.renew(Waiting::Consumer(from, renewal, consumer), effects);
            }
            Message::Propose { call, command } => self.command(from, call, command, effects),
            Message::CreateCollection { call, token, spec } => {
                let seed = (spec.index_oid, spec.definition_generation);
                let placement = place_collection(self.state.map(), self.policy, seed);
                let command = Command::CreateCollection {
                    token,
                    spec,
                    placement,
                };
                self.command(from, call, command, effects);
            }
            Message::GetMap { call, at_least } => {
                let answer = match (self.map.epoch, self.map.version) >= at_least {
                    true => Message::Map {
                        call,
                        map: self.map.clone(),
                    },
                    false => Message::MapBehind { call },
                };
                effects.call(from, answer);
            }
            _ => {}
        }
    }

    fn command(&mut self, from: Proc, call: Ticket, command: Command, effects: &mut Effects<'_>) {
        match self.reigning {
            Some(_) => self.propose(command, Waiting::Command(from, call), effects),
            None => self.not_leader(from, call, effects),
        }
    }
}
