//! A WAL consumer process: joins, renews its lease, follows the source while it
//! is assigned and the lease is held. When the lease ends, the run ends first of
//! all.

mod asks;
mod backfill;
mod commit;
mod counting;
mod feed;
mod replicas;
mod router;
mod run;
mod splits;

use crate::checks::Fact;
use crate::message::Message;
use crate::process::{Effects, Proc, Ticket, Timer};
use crate::raft;
use cluster_core::control::{Command, Response};
use cluster_core::ids::*;
use cluster_core::lease::HeldLease;
use cluster_core::map::PartitionMap;
use run::Run;
use std::sync::Arc;

const TICK_MS: u64 = 40;
const CALL_TIMEOUT_MS: u64 = 600;
const RENEW_EVERY_MS: u64 = 700;
const MAP_EVERY_MS: u64 = 300;
const PAUSE_MS: u64 = 250;

pub struct Consumer {
    index: usize,
    id: Option<ConsumerId>,
    lease: HeldLease,
    map: Arc<PartitionMap>,
    floor: MapStamp,
    assigned: Option<ConsumerEpoch>,
    run: Option<Run>,
    begin_at: u64,
    leader: usize,
    renewing: Option<(Ticket, u64)>,
    renew_at: u64,
    fetching_map: Option<(Ticket, u64)>,
    map_at: u64,
}

impl Consumer {
    pub fn new(index: usize) -> Self {
        Self {
            index,
            id: None,
            lease: HeldLease::default(),
            map: Arc::default(),
            floor: MapStamp::default(),
            assigned: None,
            run: None,
            begin_at: 0,
            leader: 0,
            renewing: None,
            renew_at: 0,
            fetching_map: None,
            map_at: 0,
        }
    }

    /// Its uuid is on disk; the coordinators know the id that goes with it.
    pub fn restart(&mut self, effects: &mut Effects<'_>) {
        *self = Consumer::new(self.index);
        effects.wake(1, Timer::Tick);
    }

    pub fn tick(&mut self, effects: &mut Effects<'_>) {
        effects.wake(TICK_MS, Timer::Tick);
        let now = effects.now;
        if !self.lease.is_held(now) {
            // Before anything else.
            self.run = None;
            self.assigned = None;
        }
        self.keep_lease(effects);
        if self
            .fetching_map
            .is_some_and(|(_, at)| now >= at + CALL_TIMEOUT_MS)
        {
            self.fetching_map = None;
        }
        if now >= self.map_at || self.floor > self.stamp() {
            self.fetch_map(effects);
        }
        let Some(token) = self.assigned else { return };
        if self.run.is_none() && now >= self.begin_at && self.stamp() >= self.floor {
            effects.note(format!("begins a run under token {token}"));
            self.run = Some(Run::begin(token, &self.map, effects));
        }
        if let Some(run) = &mut self.run {
            run.tick(&self.map, effects);
        }
        self.end_run_if_over(effects);
    }

    fn end_run_if_over(&mut self, effects: &mut Effects<'_>) {
        if let Some(why) = self.run.as_ref().and_then(|run| run.ended) {
            effects.note(format!("ends a run: {why}"));
            self.run = None;
            self.begin_at = effects.now + PAUSE_MS;
        }
    }

    pub fn describe(&self) -> Option<String> {
        self.run.as_ref().map(Run::describe)
    }

    fn stamp(&self) -> MapStamp {
        self.map.stamp()
    }

    fn keep_lease(&mut self, effects: &mut Effects<'_>) {
        let now = effects.now;
        if self
            .renewing
            .is_some_and(|(_, at)| now >= at + CALL_TIMEOUT_MS)
        {
            self.renewing = None;
            self.leader = (self.leader + 1) % raft::MEMBERS;
            self.renew_at = now;
        }
        if self.renewing.is_some() || now < self.renew_at {
            return;
        }
        let call = effects.ticket();
        self.renewing = Some((call, now));
        let message = match self.id {
            Some(consumer) => Message::RenewConsumer { call, consumer },
            None => Message::Propose {
                call,
                command: Command::JoinConsumer {
                    process_uuid: format!("consumer-{}", self.index),
                    address: Proc::Consumer(self.index).to_string(),
                },
            },
        };
        effects.call(Proc::Coordinator(self.leader), message);
    }

    fn fetch_map(&mut self, effects: &mut Effects<'_>) {
        if self.fetching_map.is_some() {
            return;
        }
        self.map_at = effects.now + MAP_EVERY_MS;
        let call = effects.ticket();
        self.fetching_map = Some((call, effects.now));
        let at_least = self.floor;
        let any = Proc::Coordinator(effects.rng.below(raft::MEMBERS as u64) as usize);
        effects.call(any, Message::GetMap { call, at_least });
    }

    pub fn on(&mut self, from: Proc, message: Message, effects: &mut Effects<'_>) {
        let is_renewal = |call: Ticket| self.renewing.is_some_and(|(c, _)| c == call);
        match message {
            Message::Granted {
                call,
                known,
                ttl_ms,
                assigned,
            } if is_renewal(call) => self.granted(known, ttl_ms, assigned, effects),
            Message::NotLeader { call, hint } if is_renewal(call) => {
                self.renewing = None;
                self.leader = hint.unwrap_or((self.leader + 1) % raft::MEMBERS);
                self.renew_at = effects.now + CALL_TIMEOUT_MS / 4;
            }
            Message::Answer { call, response } if is_renewal(call) => {
                self.renewing = None;
                if let Response::ConsumerJoined { consumer } = response {
                    self.id = Some(consumer);
                }
            }
            Message::Map { call, map } => {
                self.fetching_map = self.fetching_map.filter(|(c, _)| *c != call);
                if self.map.is_superseded_by(&map) {
                    effects.tell(Fact::MapTaken {
                        before: self.map.clone(),
                        after: map.clone(),
                    });
                    self.map = map;
                }
            }
            Message::MapBehind { call } => {
                self.fetching_map = self.fetching_map.filter(|(c, _)| *c != call);
            }
            message => {
                // A lease that has run out lets nothing more happen.
                if !self.lease.is_held(effects.now) {
                    self.run = None;
                }
                if let Some(run) = &mut self.run {
                    run.on(from, message, &self.map, effects);
                }
                self.end_run_if_over(effects);
            }
        }
    }

    fn granted(
        &mut self,
        known: MapStamp,
        ttl_ms: u64,
        assigned: Option<(SourceId, ConsumerEpoch)>,
        effects: &mut Effects<'_>,
    ) {
        let Some((_, sent_at)) = self.renewing.take() else {
            return;
        };
        self.renew_at = effects.now + RENEW_EVERY_MS;
        let before = self.lease.epoch();
        self.lease.granted(known.0, sent_at, ttl_ms, effects.now);
        effects.tell(Fact::EpochHeld {
            before,
            after: self.lease.epoch(),
        });
        if !self.lease.is_held(effects.now) {
            return;
        }
        let token = assigned.map(|(_, token)| token);
        if token != self.assigned {
            self.assigned = token;
            self.run = None;
            self.floor = known.max(self.floor);
        }
    }
}
