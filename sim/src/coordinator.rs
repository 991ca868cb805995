//! A coordinator: the core's state machine behind Raft, leases, and answers.
//!
//! Who is granted what the core's `Grantor` decides: only after a ReadIndex round, or a
//! commit, that began after the renewal arrived, and counted from its arrival.

use crate::checks::Fact;
use crate::duties::{Duties, DutyPolicy};
use crate::leases::Reigning;
use crate::message::Message;
use crate::mutant::Mutant;
use crate::process::{Effects, Proc, Ticket, Timer};
use crate::raft::{RaftAnswer, RaftRequest};
use cluster_core::control::{ClusterState, Command, Reign, Response};
use cluster_core::ids::*;
use cluster_core::lease::{BootMs, LeaseTerms, grantable};
use cluster_core::map::PartitionMap;
use cluster_core::placement::{PlacementPolicy, place_collection};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const TICK_MS: u64 = 200;
const ELECTION_MS: (u64, u64) = (900, 2_000);

pub const SOURCE: SourceId = SourceId(1);

/// A renewal that waits for the quorum.
#[derive(Clone)]
struct Renewal {
    from: Proc,
    call: Ticket,
    received: BootMs,
    holder: Holder,
}

#[derive(Clone)]
enum Holder {
    /// With the map that it answers by, and the rows of its replicas.
    Node(NodeId, MapStamp, Vec<(PartitionId, u64)>),
    Consumer(ConsumerId),
}

/// What a Raft round is waited for.
enum Waiting {
    Epoch,
    Renewal(Renewal),
    Command(Proc, Ticket),
    Assignment,
    Duty,
}

/// A round under way.
struct Round {
    waiting: Waiting,
    begun_at: BootMs,
}

pub struct Coordinator {
    index: usize,
    terms: LeaseTerms,
    policy: PlacementPolicy,
    duty_policy: DutyPolicy,
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
    waiting: BTreeMap<Ticket, Round>,
}

impl Coordinator {
    pub fn new(
        index: usize,
        terms: LeaseTerms,
        policy: PlacementPolicy,
        duty_policy: DutyPolicy,
    ) -> Self {
        Self {
            index,
            terms,
            policy,
            duty_policy,
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
        let mut rounds = self.waiting.values().map(|round| &round.waiting);
        let is_busy = match self.reigning {
            None => rounds.any(|w| matches!(w, Waiting::Epoch)),
            Some(_) => rounds.any(|w| matches!(w, Waiting::Duty | Waiting::Assignment)),
        };
        if is_busy {
            return;
        }
        let Some(reigning) = &mut self.reigning else {
            let reign = self.reign(term);
            return self.propose(Command::NewEpoch { reign }, Waiting::Epoch, effects);
        };
        let wanted = self
            .duties
            .due(&self.state, reigning, self.duty_policy, effects);
        for command in wanted {
            let waiting = match command {
                Command::AssignSource { .. } => Waiting::Assignment,
                _ => Waiting::Duty,
            };
            self.propose(command, waiting, effects);
        }
    }

    fn reign(&self, term: u64) -> Reign {
        Reign {
            term,
            leader: self.index as u64,
            start: self.start,
        }
    }

    fn begin_round(&mut self, waiting: Waiting, effects: &mut Effects<'_>) -> Ticket {
        let ticket = effects.ticket();
        let begun_at = effects.now;
        self.waiting.insert(ticket, Round { waiting, begun_at });
        ticket
    }

    /// A quorum has answered a round that began then, if no other reign came in
    /// between.
    fn confirmed(&mut self, begun_at: BootMs) {
        if let Some(reigning) = &mut self.reigning
            && self.state.reign() == Some(reigning.grantor.reign())
        {
            let begun_at = reigning.ms(begun_at);
            reigning.grantor.confirmed(begun_at);
        }
    }

    fn propose(&mut self, command: Command, waiting: Waiting, effects: &mut Effects<'_>) {
        let Some(term) = self.term else { return };
        let ticket = self.begin_round(waiting, effects);
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
                if let (Some(round), Some(response)) = (self.waiting.remove(&ticket), response) {
                    self.confirmed(round.begun_at);
                    self.committed(round.waiting, response, effects);
                }
            }
            RaftAnswer::Confirmed { ticket, index } => {
                self.catch_up(log, index);
                if let Some(round) = self.waiting.remove(&ticket) {
                    self.confirmed(round.begun_at);
                    if let Waiting::Renewal(renewal) = round.waiting {
                        self.grant(renewal, effects);
                    }
                }
            }
            RaftAnswer::Unknown { ticket } => {
                match self.waiting.remove(&ticket).map(|round| round.waiting) {
                    Some(Waiting::Renewal(renewal)) => {
                        self.not_leader(renewal.from, renewal.call, effects);
                    }
                    Some(Waiting::Command(to, call)) => self.not_leader(to, call, effects),
                    _ => {}
                }
            }
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
            // It is gone, or was assigned meanwhile: the holder keeps it.
            (Waiting::Assignment, Response::Refused(_)) => {
                if let Some(reigning) = &mut self.reigning {
                    reigning.grantor.end_handover(SOURCE);
                }
            }
            (Waiting::Command(to, call), response) => {
                effects.call(to, Message::Answer { call, response });
            }
            _ => {}
        }
    }

    /// Answers a renewal, if it may be granted.
    fn grant(&mut self, renewal: Renewal, effects: &mut Effects<'_>) {
        let (to, call) = (renewal.from, renewal.call);
        let Some(reigning) = &mut self.reigning else {
            return;
        };
        let received = reigning.ms(renewal.received);
        let known = (reigning.grantor.epoch(), self.state.map().version);
        let assigned = match renewal.holder {
            Holder::Node(node, knows, rows) => {
                let renewed = reigning.grantor.renew_node(node, received, knows);
                if renewed.is_ok() {
                    reigning.note_rows(node, rows);
                }
                renewed.map(|()| None)
            }
            Holder::Consumer(consumer) => {
                let renewed = reigning.grantor.renew_consumer(consumer, received);
                renewed.map(|handovers| grantable(&self.state, consumer, handovers).next())
            }
        };
        let Ok(assigned) = assigned else {
            return self.not_leader(to, call, effects);
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

    fn renew(&mut self, renewal: Renewal, effects: &mut Effects<'_>) {
        let (to, call) = (renewal.from, renewal.call);
        effects.tell(Fact::RenewalArrived { call });
        let (Some(term), Some(_)) = (self.term, &self.reigning) else {
            return self.not_leader(to, call, effects);
        };
        if effects.is_broken(Mutant::GrantWithoutQuorum) {
            self.confirmed(renewal.received);
            return self.grant(renewal, effects);
        }
        let ticket = self.begin_round(Waiting::Renewal(renewal), effects);
        effects.raft(RaftRequest::ReadIndex { term, ticket });
    }

    pub fn on(&mut self, from: Proc, message: Message, effects: &mut Effects<'_>) {
        let received = effects.now;
        match message {
            Message::RenewNode {
                call,
                node,
                known,
                rows,
            } => {
                let renewal = Renewal {
                    from,
                    call,
                    received,
                    holder: Holder::Node(node, known, rows),
                };
                self.renew(renewal, effects);
            }
            Message::RenewConsumer { call, consumer } => {
                let renewal = Renewal {
                    from,
                    call,
                    received,
                    holder: Holder::Consumer(consumer),
                };
                self.renew(renewal, effects);
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
                let answer = match self.map.stamp() >= at_least {
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
