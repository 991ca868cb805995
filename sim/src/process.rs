//! Processes, and what one of them wants from the world. A process is handed its
//! own clock's reading and chance; it never sees the world's time nor another
//! process.

use crate::checks::Fact;
use crate::message::Message;
use crate::mutant::Mutant;
use crate::node::disk::NodeWrite;
use crate::raft::RaftRequest;
use crate::random::Rng;
use cluster_core::lease::BootMs;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proc {
    Postgres,
    Coordinator(usize),
    Node(usize),
    Consumer(usize),
    Client(usize),
}

impl Proc {
    /// The process behind a `host:port` of the map.
    pub fn at(address: &str) -> Option<Self> {
        let (kind, number) = address.split_once(':')?;
        let number = number.parse().ok()?;
        match kind {
            "node" => Some(Proc::Node(number)),
            "coordinator" => Some(Proc::Coordinator(number)),
            _ => None,
        }
    }
}

impl fmt::Display for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Proc::Postgres => write!(f, "postgres"),
            Proc::Coordinator(n) => write!(f, "coordinator:{n}"),
            Proc::Node(n) => write!(f, "node:{n}"),
            Proc::Consumer(n) => write!(f, "consumer:{n}"),
            Proc::Client(n) => write!(f, "client:{n}"),
        }
    }
}

/// Names a call, a stream, a cursor or a write; never given twice in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// One message: may be lost, doubled, overtaken.
    Call,
    /// In order and once, until it breaks; then nothing more comes through.
    Stream(Ticket),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    Tick,
    /// A search's computation is done.
    Computed(Ticket),
}

#[derive(Debug)]
pub enum Effect {
    Send(Proc, Channel, Message),
    /// After this many milliseconds of the process's own clock.
    Wake(u64, Timer),
    Write(Ticket, NodeWrite),
    Raft(RaftRequest),
    Tell(Fact),
    /// A line for the trace.
    Note(String),
}

pub struct Effects<'a> {
    pub me: Proc,
    /// The process's own clock.
    pub now: BootMs,
    pub rng: &'a mut Rng,
    pub mutant: Option<Mutant>,
    tickets: &'a mut u64,
    effects: Vec<Effect>,
}

impl<'a> Effects<'a> {
    pub fn new(
        me: Proc,
        now: BootMs,
        rng: &'a mut Rng,
        mutant: Option<Mutant>,
        tickets: &'a mut u64,
    ) -> Self {
        Self {
            me,
            now,
            rng,
            mutant,
            tickets,
            effects: Vec::new(),
        }
    }

    pub fn ticket(&mut self) -> Ticket {
        *self.tickets += 1;
        Ticket(*self.tickets)
    }

    pub fn call(&mut self, to: Proc, message: Message) {
        self.effects.push(Effect::Send(to, Channel::Call, message));
    }

    pub fn stream(&mut self, to: Proc, stream: Ticket, message: Message) {
        let channel = Channel::Stream(stream);
        self.effects.push(Effect::Send(to, channel, message));
    }

    pub fn wake(&mut self, after_ms: u64, timer: Timer) {
        self.effects.push(Effect::Wake(after_ms, timer));
    }

    pub fn write(&mut self, write: NodeWrite) -> Ticket {
        let ticket = self.ticket();
        self.effects.push(Effect::Write(ticket, write));
        ticket
    }

    pub fn raft(&mut self, request: RaftRequest) {
        self.effects.push(Effect::Raft(request));
    }

    pub fn tell(&mut self, fact: Fact) {
        self.effects.push(Effect::Tell(fact));
    }

    pub fn note(&mut self, what: String) {
        self.effects.push(Effect::Note(what));
    }

    pub fn is_broken(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn into_effects(self) -> Vec<Effect> {
        self.effects
    }
}
