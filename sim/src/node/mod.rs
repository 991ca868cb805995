//! A cluster node: lease, map, replicas, one apply stream, searches.
//!
//! The shell `cluster-node` without threads, RocksDB and gRPC; what it decides by
//! calling the core is decided here by calling the core.

pub mod checkpoint;
mod copy;
pub mod disk;
pub mod learner;
mod lease;
mod search;
mod stage;
mod stream;
mod writer;

use crate::checks::Fact;
use crate::coordinator::SOURCE;
use crate::message::Message;
use crate::process::{Effects, Proc, Ticket, Timer};
use crate::raft;
use cluster_core::collection::CollectionState;
use cluster_core::control::{Command, Response};
use cluster_core::ids::*;
use cluster_core::lease::{Offer, TokenFence};
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use disk::{NodeDisk, NodeWrite, ReplicaData};
use learner::Learning;
use lease::NodeLease;
use search::Searches;
use std::collections::BTreeMap;
use std::sync::Arc;
use writer::{After, Job, Replica};

const TICK_MS: u64 = 100;
const CALL_TIMEOUT_MS: u64 = 600;
const MAP_EVERY_MS: u64 = 800;
const REPORT_EVERY_MS: u64 = 400;
const HOUSEKEEPING_MS: u64 = 500;

/// What is to be done once a write has been synced.
#[derive(Clone)]
pub enum Written {
    Member(NodeId),
    Token(ConsumerEpoch, Then),
    Replica {
        partition: PartitionId,
        generation: Generation,
        data: Option<Arc<ReplicaData>>,
        after: After,
    },
}

/// Who waits for a token.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    Installed(Proc, Ticket),
    Open(Proc, Ticket),
}

/// An apply stream; a later one supersedes it.
#[derive(Clone, Copy)]
struct Stream {
    ticket: Ticket,
    consumer: Proc,
    token: ConsumerEpoch,
}

pub struct Node {
    index: usize,
    pub member: Option<NodeId>,
    token: TokenFence,
    lease: NodeLease,
    grace_ms: u64,
    renew_every_ms: u64,
    map: Arc<PartitionMap>,
    replicas: BTreeMap<PartitionId, Replica>,
    stream: Option<Stream>,
    retention: (FullXid, WalPosition),
    writes: BTreeMap<Ticket, Written>,
    searches: Searches,
    leader: usize,
    /// The renewal or joining under way, and when it was sent.
    renewing: Option<(Ticket, u64)>,
    renew_at: u64,
    fetching_map: Option<(Ticket, u64)>,
    map_at: u64,
    report_at: u64,
    housekeeping_at: u64,
}

impl Node {
    pub fn new(index: usize, grace_ms: u64) -> Self {
        Self {
            index,
            member: None,
            token: TokenFence::default(),
            lease: NodeLease::default(),
            grace_ms,
            renew_every_ms: 1_000,
            map: Arc::default(),
            replicas: BTreeMap::new(),
            stream: None,
            retention: (0, WalPosition::ZERO),
            writes: BTreeMap::new(),
            searches: Searches::default(),
            leader: 0,
            renewing: None,
            renew_at: 0,
            fetching_map: None,
            map_at: 0,
            report_at: 0,
            housekeeping_at: 0,
        }
    }

    /// Starts with what the disk holds, and nothing else.
    pub fn restart(&mut self, disk: &NodeDisk, effects: &mut Effects<'_>) {
        *self = Node::new(self.index, self.grace_ms);
        self.member = disk.member;
        self.token = TokenFence::new(disk.token);
        for (partition, data) in &disk.replicas {
            let mut restored = (**data).clone();
            restored.learning = data.learning.as_ref().map(Learning::restored);
            let replica = Replica::new(Arc::new(restored));
            self.replicas.insert(*partition, replica);
        }
        effects.wake(1, Timer::Tick);
    }

    /// For who wants to know why nothing moves.
    pub fn describe(&self) -> String {
        let stream = self.stream.map(|s| s.ticket);
        let replicas = self.replicas.iter().map(|(id, r)| {
            let state = self.assigned(*id, r.data.generation);
            let learner = r.data.learning.as_ref().map(|l| &l.learner);
            format!(
                "{id} {state:?} at {} busy {} with {} jobs, gap {:?}, attached {:?}, {learner:?}",
                r.applied,
                r.is_busy,
                r.jobs.len(),
                r.gap_on,
                r.attached
            )
        });
        let replicas: Vec<_> = replicas.collect();
        format!("node:{} stream {stream:?} {replicas:#?}", self.index)
    }

    fn map_stamp(&self) -> MapStamp {
        self.map.stamp()
    }

    pub fn tick(&mut self, effects: &mut Effects<'_>) {
        effects.wake(TICK_MS, Timer::Tick);
        let now = effects.now;
        self.keep_lease(effects);
        if self
            .fetching_map
            .is_some_and(|(_, at)| now >= at + CALL_TIMEOUT_MS)
        {
            self.fetching_map = None;
        }
        if now >= self.map_at {
            self.fetch_map(effects);
        }
        if now >= self.report_at {
            self.report_at = now + REPORT_EVERY_MS;
            self.report(None, effects);
        }
        if now >= self.housekeeping_at {
            self.housekeeping_at = now + HOUSEKEEPING_MS;
            self.reconcile(effects);
            for partition in self.partitions() {
                self.queue(partition, Job::Persist, effects);
                self.queue(partition, Job::Prune, effects);
            }
        }
        self.fetch_checkpoints(effects);
        self.look_at_searches(effects);
    }

    fn partitions(&self) -> Vec<PartitionId> {
        self.replicas.keys().copied().collect()
    }

    fn rows(&self) -> Vec<(PartitionId, u64)> {
        let replicas = self.replicas.iter();
        let rows = replicas.map(|(id, replica)| (*id, replica.data.rows.len() as u64));
        rows.collect()
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
        let message = match self.member {
            Some(node) => Message::RenewNode {
                call,
                node,
                known: self.map_stamp(),
                rows: self.rows(),
            },
            None => Message::Propose {
                call,
                command: Command::JoinNode {
                    disk_uuid: format!("disk-{}", self.index),
                    known_as: None,
                    address: Proc::Node(self.index).to_string(),
                    zone: String::new(),
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
        let at_least = self.lease.floor;
        let any = Proc::Coordinator(effects.rng.below(raft::MEMBERS as u64) as usize);
        effects.call(any, Message::GetMap { call, at_least });
    }

    fn take_map(&mut self, map: Arc<PartitionMap>, effects: &mut Effects<'_>) {
        if self.map.is_superseded_by(&map) {
            effects.tell(Fact::MapTaken {
                before: self.map.clone(),
                after: map.clone(),
            });
            self.map = map;
            self.reconcile(effects);
        }
    }

    /// What the map says of a replica of this node in this generation.
    fn assigned(&self, partition: PartitionId, generation: Generation) -> Option<ReplicaState> {
        let replica = self.map.held_partition(partition)?;
        let replica = replica.replica_on(self.member?)?;
        (replica.generation == generation).then_some(replica.state)
    }

    /// Makes what the map assigns; removes what it has taken away, under a lease
    /// and on a map as new as that lease's grant.
    fn reconcile(&mut self, effects: &mut Effects<'_>) {
        let Some(member) = self.member else { return };
        if self.map.cluster_id.is_empty() {
            return;
        }
        if self.lease.is_held(effects.now) && self.map_stamp() >= self.lease.floor {
            for partition in self.partitions() {
                let generation = self.replicas[&partition].data.generation;
                if self.assigned(partition, generation).is_none() {
                    self.queue(partition, Job::Remove, effects);
                }
            }
        }
        let map = self.map.clone();
        for (partition, _) in map.held_partitions() {
            let Some(replica) = partition.replica_on(member) else {
                continue;
            };
            if replica.state.is_left_behind() || replica.state == ReplicaState::Releasing {
                continue;
            }
            if self.replicas.contains_key(&partition.id) {
                continue;
            }
            let is_learner = replica.state == ReplicaState::Learner;
            let is_ready = map
                .collections
                .get(&partition.collection)
                .is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }));
            // What a ready collection assigns otherwise was lost, or went.
            if !is_learner && is_ready {
                continue;
            }
            let data = Arc::new(ReplicaData {
                generation: replica.generation,
                collection: partition.collection,
                learning: is_learner.then(Learning::default),
                ..ReplicaData::default()
            });
            let mut made = Replica::new(data.clone());
            made.is_busy = true;
            self.replicas.insert(partition.id, made);
            let ticket = effects.write(NodeWrite::Put(partition.id, data.clone()));
            let written = Written::Replica {
                partition: partition.id,
                generation: replica.generation,
                data: Some(data),
                after: After::Changed,
            };
            self.writes.insert(ticket, written);
        }
    }

    pub fn synced(&mut self, ticket: Ticket, effects: &mut Effects<'_>) {
        if let Some(written) = self.writes.remove(&ticket) {
            self.written(written, effects);
        }
    }

    pub fn on(&mut self, from: Proc, message: Message, effects: &mut Effects<'_>) {
        match message {
            Message::Granted {
                call,
                known,
                ttl_ms,
                ..
            } => self.granted(call, known, ttl_ms, effects),
            Message::NotLeader { call, hint } if self.renewing.is_some_and(|(c, _)| c == call) => {
                self.renewing = None;
                self.leader = hint.unwrap_or((self.leader + 1) % raft::MEMBERS);
                self.renew_at = effects.now + CALL_TIMEOUT_MS / 4;
            }
            Message::Answer {
                call,
                response: Response::NodeJoined { node },
            } if self.renewing.is_some_and(|(c, _)| c == call) => {
                self.renewing = None;
                let ticket = effects.write(NodeWrite::Member(node));
                self.writes.insert(ticket, Written::Member(node));
            }
            Message::Map { call, map } => {
                if self.fetching_map.is_some_and(|(c, _)| c == call) {
                    self.fetching_map = None;
                }
                self.take_map(map, effects);
            }
            Message::MapBehind { call } => {
                self.fetching_map = self.fetching_map.filter(|(c, _)| *c != call);
            }
            Message::Install { call, token } => {
                self.install(token, Then::Installed(from, call), effects);
            }
            Message::OpenStream {
                stream,
                token,
                incarnation,
            } => {
                let known = self.map.sources.get(&SOURCE).map(|s| s.incarnation);
                if !self.lease.is_held(effects.now) || known != Some(incarnation) {
                    effects.stream(from, stream, Message::Refused { stream });
                    return;
                }
                self.install(token, Then::Open(from, stream), effects);
            }
            Message::Attach { .. } | Message::Apply { .. } | Message::NothingElse { .. } => {
                self.feed(message, effects);
            }
            Message::FetchRow {
                call,
                partition,
                key,
                before,
                at_least,
            } => {
                let replica = self.replicas.get(&partition);
                let has = |r: &&Replica| r.data.learning.is_none() && r.applied >= at_least;
                let found = replica.filter(has).map(|r| r.data.row_before(&key, before));
                if found == Some(None) {
                    effects.note(format!("has no {key:?} in {partition} before {before}"));
                }
                effects.call(from, Message::Row { call, found });
            }
            Message::Backfill {
                call,
                token,
                partition,
                backfill,
                step,
            } => {
                let is_old = matches!(self.token.offer(token), Offer::Old { .. });
                if is_old || !self.replicas.contains_key(&partition) {
                    let result = Err("fenced, or not held here".to_owned());
                    effects.call(from, Message::BackfillDone { call, result });
                    return;
                }
                self.queue(
                    partition,
                    Job::Backfill(from, call, backfill, step),
                    effects,
                );
            }
            Message::FetchCheckpoint {
                call,
                partition,
                at_least,
                after,
                range,
            } => {
                let page = self.checkpoint(partition, at_least, (after.as_ref(), range));
                effects.call(from, Message::Checkpoint { call, page });
            }
            Message::Checkpoint { call, page } => self.copied(call, page, effects),
            Message::Search { call, search } => self.search(from, call, search, effects),
            Message::CloseCursors { tokens } => self.searches.close(&tokens),
            _ => {}
        }
    }

    fn granted(&mut self, call: Ticket, known: MapStamp, ttl_ms: u64, effects: &mut Effects<'_>) {
        let Some((_, sent_at)) = self.renewing.filter(|(c, _)| *c == call) else {
            return;
        };
        self.renewing = None;
        self.renew_at = effects.now + self.renew_every_ms;
        let before = self.lease.epoch();
        self.lease.granted(known, sent_at, ttl_ms, effects.now);
        effects.tell(Fact::EpochHeld {
            before,
            after: self.lease.epoch(),
        });
    }
}
