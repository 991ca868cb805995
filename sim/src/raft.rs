//! Raft, as what it promises: one log of commands, terms, at most one leader a
//! term, and commits and ReadIndex rounds that need a majority which has promised
//! itself to no later term.
//!
//! Whether a round gets through is decided in the instant in which it ends, from
//! the links as they are then. A leader that is cut off goes on believing in
//! itself until it hears of a later term. A command that found no majority is not
//! gone: when its leader wins again before anybody else committed, it commits
//! after all. Not modelled: log compaction, changes of membership, a candidate
//! whose log is behind (a winner has every committed entry).

use crate::process::Ticket;
use crate::random::Rng;
use cluster_core::control::Command;

pub const MEMBERS: usize = 3;
/// Commands without a majority that a member remembers.
const LIMBO_MAX: usize = 8;

#[derive(Debug)]
pub enum RaftRequest {
    Propose {
        term: u64,
        ticket: Ticket,
        command: Box<Command>,
    },
    ReadIndex {
        term: u64,
        ticket: Ticket,
    },
    Campaign,
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub enum RaftAnswer {
    /// At this index of the log; the first is 1.
    Committed {
        ticket: Ticket,
        index: usize,
    },
    /// The member still led its term; everything up to `index` was committed.
    Confirmed {
        ticket: Ticket,
        index: usize,
    },
    /// No majority: a command may commit later all the same.
    Unknown {
        ticket: Ticket,
    },
    Elected {
        term: u64,
    },
}

#[derive(Default)]
struct Member {
    is_up: bool,
    /// The highest term that it has voted in or heard of; survives a crash.
    promised: u64,
    leads: Option<u64>,
    /// Up to where it knows the log to be committed: what a deposed leader may
    /// still tell.
    known: usize,
    /// Commands appended here alone, and the log's length below them.
    limbo: (usize, Vec<Command>),
}

pub struct Raft {
    members: Vec<Member>,
    pub log: Vec<Command>,
}

impl Raft {
    pub fn new(bootstrap: Vec<Command>) -> Self {
        let up = || Member {
            is_up: true,
            ..Member::default()
        };
        Self {
            members: (0..MEMBERS).map(|_| up()).collect(),
            log: bootstrap,
        }
    }

    pub fn leads(&self, member: usize) -> Option<u64> {
        self.members[member].leads
    }

    pub fn crash(&mut self, member: usize) {
        self.members[member].is_up = false;
        self.members[member].leads = None;
    }

    pub fn restart(&mut self, member: usize) {
        self.members[member].is_up = true;
    }

    /// Whether a majority answers that has promised itself to nothing later.
    fn has_quorum(
        &self,
        member: usize,
        term: u64,
        connects: &impl Fn(usize, usize) -> bool,
    ) -> bool {
        let follows = |other: usize| {
            let it = &self.members[other];
            it.is_up && connects(member, other) && it.promised <= term
        };
        (0..MEMBERS).filter(|other| follows(*other)).count() > MEMBERS / 2
    }

    fn promise(&mut self, member: usize, term: u64, connects: &impl Fn(usize, usize) -> bool) {
        for other in 0..MEMBERS {
            let reached = connects(member, other) && self.members[other].is_up;
            if reached && self.members[other].promised <= term {
                self.hear(other, term);
            }
        }
    }

    /// A member learns of a term: a leader of an earlier one steps down.
    fn hear(&mut self, member: usize, term: u64) {
        let it = &mut self.members[member];
        it.promised = term.max(it.promised);
        if it.leads.is_some_and(|led| led < term) {
            it.leads = None;
        }
    }

    pub fn campaign(
        &mut self,
        member: usize,
        connects: &impl Fn(usize, usize) -> bool,
    ) -> Option<u64> {
        let reached = (0..MEMBERS).filter(|o| connects(member, *o) && self.members[*o].is_up);
        let term = reached.map(|o| self.members[o].promised).max()? + 1;
        if !self.members[member].is_up || !self.has_quorum(member, term, connects) {
            return None;
        }
        self.promise(member, term, connects);
        self.members[member].leads = Some(term);
        let (below, limbo) = std::mem::take(&mut self.members[member].limbo);
        if below == self.log.len() {
            self.log.extend(limbo);
        }
        self.members[member].known = self.log.len();
        Some(term)
    }

    pub fn commit(
        &mut self,
        member: usize,
        (term, ticket): (u64, Ticket),
        command: Command,
        connects: &impl Fn(usize, usize) -> bool,
    ) -> RaftAnswer {
        let leads = self.members[member].leads == Some(term);
        if leads && self.has_quorum(member, term, connects) {
            self.promise(member, term, connects);
            let (below, mut limbo) = std::mem::take(&mut self.members[member].limbo);
            if below == self.log.len() {
                self.log.append(&mut limbo);
            }
            self.log.push(command);
            let index = self.log.len();
            self.members[member].known = index;
            return RaftAnswer::Committed { ticket, index };
        }
        let length = self.log.len();
        let limbo = &mut self.members[member].limbo;
        if leads && (limbo.1.is_empty() || limbo.0 == length) && limbo.1.len() < LIMBO_MAX {
            limbo.0 = length;
            limbo.1.push(command);
        }
        RaftAnswer::Unknown { ticket }
    }

    pub fn read_index(
        &mut self,
        member: usize,
        (term, ticket): (u64, Ticket),
        connects: &impl Fn(usize, usize) -> bool,
    ) -> RaftAnswer {
        let leads = self.members[member].leads == Some(term);
        if !leads || !self.has_quorum(member, term, connects) {
            return RaftAnswer::Unknown { ticket };
        }
        let index = self.log.len();
        RaftAnswer::Confirmed { ticket, index }
    }

    /// A leader's heartbeat: who heard it, and up to where it may apply now.
    pub fn heartbeat(
        &mut self,
        leader: usize,
        connects: &impl Fn(usize, usize) -> bool,
        rng: &mut Rng,
    ) -> Vec<(usize, usize)> {
        let Some(term) = self.members[leader].leads else {
            return Vec::new();
        };
        let mut heard = Vec::new();
        for other in (0..MEMBERS).filter(|other| *other != leader) {
            if !connects(leader, other) || !self.members[other].is_up {
                continue;
            }
            let promised = self.members[other].promised;
            if promised > term {
                self.hear(leader, promised);
                return heard;
            }
            self.hear(other, term);
            // A follower may be a little behind.
            let behind = if rng.chance(700) { 0 } else { rng.below(3) };
            let known = self.members[leader].known;
            heard.push((other, known.saturating_sub(behind as usize)));
        }
        heard
    }
}
