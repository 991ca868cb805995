//! What a run asks of the coordinators: repeated until somebody answers, for an
//! outcome that is unknown is asked for again, and every command is idempotent.

use crate::message::Message;
use crate::process::{Effects, Proc, Ticket};
use crate::raft;
use cluster_core::collection::CollectionSpec;
use cluster_core::confirm::ReplicaKey;
use cluster_core::control::{Command, Response};
use cluster_core::ids::*;
use std::collections::BTreeMap;

const TIMEOUT_MS: u64 = 800;
const PAUSE_MS: u64 = 150;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Create(u64),
    Drop(u64),
    BeginBackfill(CollectionId),
    FinishBackfill(CollectionId),
    Promote(ReplicaKey),
    Demote(ReplicaKey),
}

#[derive(Clone)]
pub enum Wish {
    Command(Command),
    Create(ConsumerEpoch, CollectionSpec),
}

struct Asked {
    wish: Wish,
    call: Option<Ticket>,
    due: u64,
}

#[derive(Default)]
pub struct Asks {
    leader: usize,
    asked: BTreeMap<Purpose, Asked>,
}

impl Asks {
    /// One at a time for each purpose.
    pub fn ask(&mut self, purpose: Purpose, wish: Wish) {
        let asked = Asked {
            wish,
            call: None,
            due: 0,
        };
        self.asked.entry(purpose).or_insert(asked);
    }

    pub fn retain(&mut self, is_wanted: impl Fn(&Purpose) -> bool) {
        self.asked.retain(|purpose, _| is_wanted(purpose));
    }

    pub fn tick(&mut self, effects: &mut Effects<'_>) {
        let now = effects.now;
        let timed_out = |a: &Asked| a.call.is_some() && now >= a.due;
        if self.asked.values().any(timed_out) {
            self.leader = (self.leader + 1) % raft::MEMBERS;
        }
        for asked in self.asked.values_mut().filter(|a| now >= a.due) {
            let call = effects.ticket();
            asked.call = Some(call);
            asked.due = now + TIMEOUT_MS;
            let message = match asked.wish.clone() {
                Wish::Command(command) => Message::Propose { call, command },
                Wish::Create(token, spec) => Message::CreateCollection { call, token, spec },
            };
            effects.call(Proc::Coordinator(self.leader), message);
        }
    }

    pub fn not_leader(&mut self, call: Ticket, hint: Option<usize>, now: u64) {
        let asked = self.asked.values_mut().find(|a| a.call == Some(call));
        if let Some(asked) = asked {
            asked.call = None;
            asked.due = now + PAUSE_MS;
            self.leader = hint.unwrap_or((self.leader + 1) % raft::MEMBERS);
        }
    }

    pub fn answered(&mut self, call: Ticket, response: Response) -> Option<(Purpose, Response)> {
        let found = self.asked.iter().find(|(_, a)| a.call == Some(call));
        let purpose = *found?.0;
        self.asked.remove(&purpose);
        Some((purpose, response))
    }
}
