//! One run of the source: from the slot's confirmed position on, until something
//! ends it. Another run follows, with nothing of this one.
//!
//! The token is on every reachable node's disk before the slot is taken over.

use super::asks::{Asks, Purpose};
use super::backfill::Backfill;
use super::commit::Committing;
use super::counting::{Counting, DEMOTION};
use super::feed::{Feed, News};
use super::replicas::{is_ready, key, state_of};
use super::router::Told;
use super::splits::Ranges;
use crate::checks::Fact;
use crate::message::{Message, Report};
use crate::mutant::Mutant;
use crate::postgres::{INCARNATION, Transaction};
use crate::process::{Effects, Proc, Ticket};
use cluster_core::change::PositionedChange;
use cluster_core::confirm::{ConfirmTracker, ReplicaKey};
use cluster_core::control::Response;
use cluster_core::demotion::DemotionWatch;
use cluster_core::ids::*;
use cluster_core::map::{PartitionMap, ReplicaState};
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_core::xid::FullXid;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const INSTALL_MS: u64 = 700;
const WAL_SILENCE_MS: u64 = 2_500;
const STATUS_EVERY_MS: u64 = 200;

pub enum Inbound {
    Transaction(Arc<Transaction>),
    Keepalive(Lsn),
}

enum Phase {
    /// The nodes that have not taken the token yet, by call.
    Installing {
        calls: BTreeSet<Ticket>,
        since: u64,
    },
    Starting {
        since: u64,
    },
    Following,
}

pub struct Run {
    pub token: ConsumerEpoch,
    phase: Phase,
    pub(super) reports: Vec<(NodeId, Report)>,
    /// The nodes that have taken the token, and told where they stand.
    pub(super) answered: BTreeSet<NodeId>,
    pub(super) wal: Ticket,
    pub(super) heard_at: u64,
    pub next_xid: FullXid,
    pub(super) oldest_xmin: FullXid,
    pub(super) start: Lsn,
    pub inbox: VecDeque<Inbound>,
    pub committing: Option<Committing>,
    /// Everything up to here has been received and routed.
    pub complete: Lsn,
    /// The end of the WAL, as the server said last.
    pub(super) server_end: Lsn,
    pub(super) told: Told,
    /// The map whose replicas are fed.
    pub(super) followed: MapStamp,
    pub(super) status_at: u64,
    pub(super) tracker: ConfirmTracker,
    pub(super) counted: BTreeSet<ReplicaKey>,
    pub(super) counting: BTreeMap<ReplicaKey, Counting>,
    /// Promoted; the map is on its way.
    pub(super) promoted: BTreeSet<ReplicaKey>,
    pub(super) watch: DemotionWatch,
    pub(super) feeds: BTreeMap<NodeId, Feed>,
    /// Ranges in hash order.
    pub collections: BTreeMap<CollectionId, Ranges>,
    /// By the partition that is being split: what goes to it goes to them too.
    pub(super) halves: BTreeMap<PartitionId, Ranges>,
    pub(super) buffers: BTreeMap<PartitionId, Vec<PositionedChange>>,
    pub(super) sent_to: BTreeMap<PartitionId, WalPosition>,
    pub asks: Asks,
    pub backfills: BTreeMap<CollectionId, Backfill>,
    /// Why the run is over.
    pub ended: Option<&'static str>,
}

pub fn end_of(lsn: Lsn) -> WalPosition {
    WalPosition::end_of(INCARNATION, lsn)
}

impl Run {
    pub fn begin(token: ConsumerEpoch, map: &PartitionMap, effects: &mut Effects<'_>) -> Self {
        let mut calls = BTreeSet::new();
        let replicas = map.held_partitions().flat_map(|(p, _)| &p.replicas);
        let nodes: BTreeSet<NodeId> = replicas.map(|r| r.node).collect();
        for node in nodes {
            if let Some(process) = map.nodes.get(&node).and_then(|n| Proc::at(&n.address)) {
                let call = effects.ticket();
                calls.insert(call);
                effects.call(process, Message::Install { call, token });
            }
        }
        Self {
            token,
            phase: Phase::Installing {
                calls,
                since: effects.now,
            },
            reports: Vec::new(),
            answered: BTreeSet::new(),
            wal: Ticket::default(),
            heard_at: effects.now,
            next_xid: 0,
            oldest_xmin: 0,
            start: Lsn(0),
            inbox: VecDeque::new(),
            committing: None,
            complete: Lsn(0),
            server_end: Lsn(0),
            told: Told::default(),
            followed: MapStamp::default(),
            status_at: 0,
            tracker: ConfirmTracker::new(INCARNATION, Lsn(0)),
            counted: BTreeSet::new(),
            counting: BTreeMap::new(),
            promoted: BTreeSet::new(),
            watch: DemotionWatch::new(DEMOTION),
            feeds: BTreeMap::new(),
            collections: BTreeMap::new(),
            halves: BTreeMap::new(),
            buffers: BTreeMap::new(),
            sent_to: BTreeMap::new(),
            asks: Asks::default(),
            backfills: BTreeMap::new(),
            ended: None,
        }
    }

    pub(super) fn end(&mut self, why: &'static str) {
        self.ended.get_or_insert(why);
    }

    /// For who wants to know why nothing moves.
    pub fn describe(&self) -> String {
        let committing = self.committing.as_ref().map(Committing::describe);
        let feeds: Vec<_> = self.feeds.values().map(Feed::describe).collect();
        let backfills: Vec<_> = self.backfills.values().map(Backfill::describe).collect();
        format!(
            "complete {}, told {}, confirmed {}, {committing:?}, {} received, {backfills:?}, {feeds:#?}",
            self.complete,
            self.told.end,
            self.tracker.confirmed(),
            self.inbox.len()
        )
    }

    pub fn tick(&mut self, map: &Arc<PartitionMap>, effects: &mut Effects<'_>) {
        let now = effects.now;
        match &self.phase {
            Phase::Installing { calls, since } => {
                if calls.is_empty() || now >= since + INSTALL_MS {
                    self.wal = effects.ticket();
                    self.phase = Phase::Starting { since: now };
                    let stream = self.wal;
                    effects.stream(Proc::Postgres, stream, Message::StartReplication { stream });
                }
                return;
            }
            Phase::Starting { since } => {
                if now >= since + WAL_SILENCE_MS {
                    self.end("the slot did not start");
                }
                return;
            }
            Phase::Following => {}
        }
        if now >= self.heard_at + WAL_SILENCE_MS {
            return self.end("Postgres is silent");
        }
        self.advance(map, effects);
        match self.committing {
            None => self.between_transactions(map, effects),
            // Whom a transaction waits for may have moved meanwhile.
            Some(_) => self.follow_replicas(map),
        }
        for feed in self.feeds.values_mut() {
            feed.tick(effects);
        }
        self.count_learners(map, effects);
        self.demote_late(effects);
        self.backfill(map, effects);
        self.asks.tick(effects);
        self.send_status(effects);
    }

    /// What must wait for the end of a transaction, and not for the end of all.
    pub fn between_transactions(&mut self, map: &Arc<PartitionMap>, effects: &mut Effects<'_>) {
        let stamp = map.stamp();
        if self.followed != stamp {
            self.followed = stamp;
            self.follow_map(map, effects);
        }
        if self.owes(effects.now) {
            self.tell(effects);
        }
    }

    fn started(&mut self, confirmed: Lsn, map: &Arc<PartitionMap>, effects: &mut Effects<'_>) {
        effects.note(format!("follows from {confirmed}"));
        self.phase = Phase::Following;
        self.heard_at = effects.now;
        self.start = confirmed;
        self.complete = confirmed;
        self.tracker = ConfirmTracker::new(INCARNATION, confirmed);
        for (node, report) in &self.reports {
            let state = state_of(map, *node, report);
            let is_behind = report.is_learning || report.durable < end_of(confirmed);
            if state == Some(ReplicaState::Serving) && is_behind && is_ready(map, report.partition)
            {
                effects.tell(Fact::RowsMissing {
                    partition: report.partition,
                });
            }
        }
        for id in map.collections.keys() {
            self.add_collection(map, *id);
        }
        self.count_inherited(map, effects);
        self.follow_map(map, effects);
    }

    pub(super) fn require(&mut self, replica: ReplicaKey) {
        self.tracker.require(replica);
    }

    fn send_status(&mut self, effects: &mut Effects<'_>) {
        if effects.now < self.status_at {
            return;
        }
        self.status_at = effects.now + STATUS_EVERY_MS;
        let flush = self.tracker.confirmed();
        let stream = self.wal;
        effects.stream(Proc::Postgres, stream, Message::Status { stream, flush });
    }

    pub fn on(
        &mut self,
        from: Proc,
        message: Message,
        map: &Arc<PartitionMap>,
        effects: &mut Effects<'_>,
    ) {
        match message {
            Message::Installed { call, result } => self.installed(from, call, result, map),
            Message::Started {
                stream,
                confirmed,
                next_xid,
            } if stream == self.wal && matches!(self.phase, Phase::Starting { .. }) => {
                self.next_xid = next_xid;
                self.started(confirmed, map, effects);
            }
            Message::Wal {
                stream,
                transaction,
            } if stream == self.wal => {
                self.heard_at = effects.now;
                self.inbox.push_back(Inbound::Transaction(transaction));
                self.advance(map, effects);
            }
            Message::Keepalive {
                stream,
                wal_end,
                oldest_xmin,
                next_xid,
            } if stream == self.wal => {
                self.heard_at = effects.now;
                self.oldest_xmin = oldest_xmin;
                self.next_xid = next_xid;
                self.server_end = wal_end;
                self.inbox.push_back(Inbound::Keepalive(wal_end));
                self.advance(map, effects);
            }
            Message::Opened { .. }
            | Message::Watermarks { .. }
            | Message::Gap { .. }
            | Message::Refused { .. } => self.node_said(from, &message, effects),
            Message::Row { call, found } => {
                self.row_found(call, found);
                self.advance(map, effects);
            }
            Message::RereadDone { call, vector } => {
                self.row_reread(call, vector);
                self.advance(map, effects);
            }
            Message::NotLeader { call, hint } => self.asks.not_leader(call, hint, effects.now),
            Message::Answer { call, response } => {
                if let Some((purpose, response)) = self.asks.answered(call, response) {
                    self.asked(purpose, response, effects.now);
                    self.advance(map, effects);
                }
            }
            Message::BackfillDone { call, result } => self.backfill_done(call, result),
            Message::Snapshot { call, snapshot } => {
                for backfill in self.backfills.values_mut() {
                    backfill.snapshot_taken(call, &snapshot, effects);
                }
            }
            _ => {}
        }
    }

    fn installed(
        &mut self,
        from: Proc,
        call: Ticket,
        result: Result<Vec<Report>, crate::message::Fenced>,
        map: &PartitionMap,
    ) {
        let Phase::Installing { calls, .. } = &mut self.phase else {
            return;
        };
        calls.remove(&call);
        let address = from.to_string();
        let node = map.nodes.values().find(|n| n.address == address);
        match (result, node) {
            (Err(_), _) => self.end("fenced"),
            (Ok(reports), Some(node)) => {
                self.answered.insert(node.id);
                let reports = reports.into_iter().map(|report| (node.id, report));
                self.reports.extend(reports);
            }
            (Ok(_), None) => {}
        }
    }

    fn node_said(&mut self, from: Proc, message: &Message, effects: &mut Effects<'_>) {
        let feed = self.feeds.iter_mut().find(|(_, f)| f.process() == from);
        let Some((node, feed)) = feed else { return };
        let ignored = effects.is_broken(Mutant::ConfirmIgnoringNode) && *node == NodeId(1);
        for news in feed.on(message, effects) {
            match news {
                News::Moved(id) => {
                    // What a learner has logged is not what a replica has.
                    let fed = feed.partitions.get(&id);
                    let is_early = effects.is_broken(Mutant::LearnerCountedEarly);
                    if let Some(fed) = fed.filter(|fed| !fed.is_learning || is_early) {
                        let durable = match ignored {
                            true => end_of(self.complete),
                            false => fed.durable,
                        };
                        self.tracker
                            .durable(key(id, *node, fed.generation), durable);
                    }
                }
                News::Detached => self.followed = MapStamp::default(),
                News::Restart(why) => {
                    self.ended.get_or_insert(why);
                }
                News::RowsMissing(partition) => {
                    effects.tell(Fact::RowsMissing { partition });
                }
            }
        }
    }

    fn asked(&mut self, purpose: Purpose, response: Response, now: u64) {
        match (purpose, response) {
            (Purpose::Create(_), Response::CollectionCreated { collection }) => {
                self.created(collection);
            }
            (Purpose::BeginBackfill(id), Response::BackfillBegun { backfill }) => {
                if let Some(it) = self.backfills.get_mut(&id) {
                    it.begun(backfill);
                }
            }
            (Purpose::Demote(replica), Response::Refused(_)) => self.watch.refused(replica, now),
            (Purpose::Promote(replica), Response::Done) => drop(self.promoted.insert(replica)),
            // A promotion that is refused is asked for until the map says what became of the learner.
            (Purpose::Promote(_) | Purpose::Demote(_), _) | (_, Response::Done) => {}
            (_, Response::Refused(_)) => self.end("refused"),
            _ => {}
        }
    }
}
