//! A session and the searches that it makes: a snapshot, the core's scan driven
//! over the network, keys looked up in the heap under the snapshot.

use crate::checks::{Fact, Outcome};
use crate::message::{Message, Search};
use crate::postgres::{Postgres, Snapshot};
use crate::process::{Effects, Proc, Ticket};
use crate::raft;
use cluster_core::collection::CollectionState;
use cluster_core::ids::*;
use cluster_core::map::PartitionMap;
use cluster_core::row_key::RowKey;
use cluster_core::scan::{
    AttemptId, Command, DistributedScan, Event, Failure, FailureKind, ScanLimits,
};
use cluster_core::wal_position::Lsn;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const TICK_MS: u64 = 25;
const PAGE_ROWS: usize = 7;
const PAGE_DEADLINE_MS: u64 = 4_000;
const MAP_TIMEOUT_MS: u64 = 500;
/// A session holds its snapshot for so long before it searches, at most.
const THINK_MS_MAX: u64 = 2_500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    Eventual,
    Session,
    Strong,
}

struct Scan {
    scan: DistributedScan<RowKey>,
    collection: CollectionId,
    query: [f32; 2],
    consistency: Consistency,
    min_lsn: Option<Lsn>,
    snapshot: Snapshot,
    /// Calls under way, with when they are given up.
    calls: BTreeMap<Ticket, (AttemptId, u64)>,
    wake_at: u64,
    keys: BTreeSet<RowKey>,
}

#[derive(Default)]
pub struct Client {
    map: Arc<PartitionMap>,
    fetching_map: Option<(Ticket, u64)>,
    map_at: u64,
    /// The end of the session's own last commit.
    pub committed: Lsn,
    /// A snapshot that is held until a search begins under it.
    held: Option<(Snapshot, u64)>,
    scan: Option<Scan>,
    next_at: u64,
    /// Strong searches only, one after the other.
    pub is_final: bool,
}

impl Client {
    pub fn tick(&mut self, postgres: &mut Postgres, effects: &mut Effects<'_>) {
        let now = effects.now;
        if self
            .fetching_map
            .is_some_and(|(_, at)| now >= at + MAP_TIMEOUT_MS)
        {
            self.fetching_map = None;
            self.feed(Event::RefreshFailed, postgres, effects);
        }
        if now >= self.map_at && self.scan.is_none() {
            self.fetch_map((LeaseEpoch(0), MapVersion(0)), effects);
        }
        self.time_out_calls(postgres, effects);
        match &self.scan {
            Some(scan) if now >= scan.wake_at => self.feed(Event::Tick, postgres, effects),
            Some(_) => {}
            None if now >= self.next_at => self.begin(postgres, effects),
            None => {}
        }
    }

    fn time_out_calls(&mut self, postgres: &mut Postgres, effects: &mut Effects<'_>) {
        let Some(scan) = &mut self.scan else { return };
        let now = effects.now;
        let late = scan.calls.iter().find(|(_, (_, until))| now >= *until);
        if let Some((call, (attempt, _))) = late.map(|(call, it)| (*call, *it)) {
            scan.calls.remove(&call);
            let failed = Event::Failed {
                attempt,
                failure: Failure::new(FailureKind::Unavailable, "no answer in time"),
                known: None,
            };
            self.feed(failed, postgres, effects);
        }
    }

    fn fetch_map(&mut self, at_least: (LeaseEpoch, MapVersion), effects: &mut Effects<'_>) {
        if self.fetching_map.is_some() {
            return;
        }
        self.map_at = effects.now + 5_000;
        let call = effects.ticket();
        self.fetching_map = Some((call, effects.now));
        let any = Proc::Coordinator(effects.rng.below(raft::MEMBERS as u64) as usize);
        effects.call(any, Message::GetMap { call, at_least });
    }

    fn begin(&mut self, postgres: &mut Postgres, effects: &mut Effects<'_>) {
        let now = effects.now;
        let (snapshot, begin_at) = match self.held.take() {
            Some(held) => held,
            None => {
                let thinks = !self.is_final && effects.rng.chance(300);
                let think_ms = match thinks {
                    true => effects.rng.below(THINK_MS_MAX),
                    false => 0,
                };
                (postgres.take_snapshot(), now + think_ms)
            }
        };
        if now < begin_at {
            self.held = Some((snapshot, begin_at));
            return;
        }
        let is_ready = |state: &CollectionState| match state {
            CollectionState::Ready { snapshot: seen } => {
                seen.covers(snapshot.xmax, snapshot.running.iter().copied())
            }
            _ => false,
        };
        let mut ready = self.map.collections.values().rev();
        let Some(collection) = ready.find(|c| is_ready(&c.state)).map(|c| c.id) else {
            // Scanned exactly, without us.
            postgres.drop_snapshot(snapshot.number);
            self.map_at = now;
            self.next_at = now + 100;
            return;
        };
        let consistency = match effects.rng.below(10) {
            _ if self.is_final => Consistency::Strong,
            0..4 => Consistency::Eventual,
            4..7 => Consistency::Session,
            _ => Consistency::Strong,
        };
        let min_lsn = match consistency {
            Consistency::Eventual => None,
            Consistency::Session => Some(self.committed),
            Consistency::Strong => Some(snapshot.at),
        };
        let limits = ScanLimits {
            attempt_timeout_ms: 600,
            hedge_after_ms: effects.rng.chance(500).then_some(120),
            ..ScanLimits::default()
        };
        let seed = effects.rng.draw();
        self.scan = Some(Scan {
            scan: DistributedScan::new(collection, &self.map, limits, [], seed),
            collection,
            query: [effects.rng.below(64) as f32, 0.0],
            consistency,
            min_lsn,
            snapshot,
            calls: BTreeMap::new(),
            wake_at: now,
            keys: BTreeSet::new(),
        });
        if let Some(scan) = &self.scan {
            effects.tell(Fact::Searching {
                snapshot: scan.snapshot.clone(),
                collection,
                consistency,
            });
        }
        self.next_page(postgres, effects);
    }

    fn next_page(&mut self, postgres: &mut Postgres, effects: &mut Effects<'_>) {
        let event = Event::NextPage {
            rows: PAGE_ROWS,
            deadline: effects.now + PAGE_DEADLINE_MS,
        };
        self.feed(event, postgres, effects);
    }

    fn feed(&mut self, event: Event<RowKey>, postgres: &mut Postgres, effects: &mut Effects<'_>) {
        let Some(scan) = &mut self.scan else { return };
        for command in scan.scan.on(event, effects.now) {
            self.execute(command, postgres, effects);
        }
    }

    fn execute(
        &mut self,
        command: Command<RowKey>,
        postgres: &mut Postgres,
        effects: &mut Effects<'_>,
    ) {
        let Some(scan) = &mut self.scan else { return };
        match command {
            Command::Search(ask) => {
                let call = effects.ticket();
                let until = effects.now + ask.timeout_ms.max(1);
                scan.calls.insert(call, (ask.attempt, until));
                let node = self.map.nodes.get(&ask.node);
                let search = Search {
                    ask,
                    collection: scan.collection,
                    query: scan.query,
                    min_lsn: scan.min_lsn,
                    snapshot_xmin: scan.snapshot.xmin,
                };
                if let Some(process) = node.and_then(|n| Proc::at(&n.address)) {
                    effects.call(process, Message::Search { call, search });
                }
            }
            Command::CloseCursors {
                node,
                resume_tokens,
            } => {
                let node = self.map.nodes.get(&node);
                if let Some(process) = node.and_then(|n| Proc::at(&n.address)) {
                    let tokens = resume_tokens;
                    effects.call(process, Message::CloseCursors { tokens });
                }
            }
            Command::RefreshMap { at_least } => self.fetch_map(at_least, effects),
            Command::WakeAt(at) => scan.wake_at = at,
            Command::Page(page) => {
                scan.keys.extend(page.rows.into_iter().map(|hit| hit.key));
                match page.exhausted {
                    true => self.finish(Ok(()), postgres, effects),
                    false => self.next_page(postgres, effects),
                }
            }
            Command::Fail(failure) => self.finish(Err(failure), postgres, effects),
        }
    }

    fn finish(
        &mut self,
        result: Result<(), Failure>,
        postgres: &mut Postgres,
        effects: &mut Effects<'_>,
    ) {
        let Some(scan) = self.scan.take() else { return };
        postgres.drop_snapshot(scan.snapshot.number);
        self.next_at = effects.now + effects.rng.between(30, 250);
        effects.tell(Fact::Searched(Outcome {
            consistency: scan.consistency,
            min_lsn: scan.min_lsn,
            at: scan.snapshot.at,
            result: result.map(|()| scan.keys),
        }));
    }

    pub fn on(&mut self, message: Message, postgres: &mut Postgres, effects: &mut Effects<'_>) {
        match message {
            Message::Map { call, map } => {
                let was_ours = self.fetching_map.is_some_and(|(c, _)| c == call);
                if was_ours {
                    self.fetching_map = None;
                }
                if self.map.is_superseded_by(&map) {
                    effects.tell(Fact::MapTaken {
                        before: self.map.clone(),
                        after: map.clone(),
                    });
                    self.map = map;
                }
                let map = self.map.clone();
                self.feed(Event::Map(map), postgres, effects);
            }
            Message::MapBehind { call } if self.fetching_map.is_some_and(|(c, _)| c == call) => {
                self.fetching_map = None;
                self.feed(Event::RefreshFailed, postgres, effects);
            }
            Message::Found { call, pages, known } => {
                if let Some(attempt) = self.attempt(call) {
                    let answered = Event::Answered {
                        attempt,
                        pages,
                        known,
                    };
                    self.feed(answered, postgres, effects);
                }
            }
            Message::SearchFailed {
                call,
                failure,
                known,
            } => {
                if let Some(attempt) = self.attempt(call) {
                    let failed = Event::Failed {
                        attempt,
                        failure,
                        known,
                    };
                    self.feed(failed, postgres, effects);
                }
            }
            _ => {}
        }
    }

    fn attempt(&mut self, call: Ticket) -> Option<AttemptId> {
        let scan = self.scan.as_mut()?;
        scan.calls.remove(&call).map(|(attempt, _)| attempt)
    }
}
