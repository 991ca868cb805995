//! One run of the source: from the slot's confirmed position on, until something
//! ends it. Another run follows, with nothing of this one.
//!
//! The token is on every reachable node's disk before the slot is taken over. A
//! learner is counted as required in the same step in which its report shows that
//! it is live at or above the confirmed position, and only then promoted.

use super::asks::{Asks, Purpose, Wish};
use super::backfill::Backfill;
use super::commit::Committing;
use super::feed::{Fed, Feed, News, Retention};
use crate::checks::Fact;
use crate::coordinator::SOURCE;
use crate::message::{Message, Report};
use crate::mutant::Mutant;
use crate::postgres::{INCARNATION, Transaction};
use crate::process::{Effects, Proc, Ticket};
use cluster_core::change::{Change, PositionedChange};
use cluster_core::collection::CollectionState;
use cluster_core::confirm::{ConfirmTracker, ReplicaKey};
use cluster_core::control::{Command, Response};
use cluster_core::ids::*;
use cluster_core::invariants::check_confirmation;
use cluster_core::map::{HashRange, PartitionMap, ReplicaState};
use cluster_core::scan::MapStamp;
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_core::xid::FullXid;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Changes of a partition that are sent together.
const BATCH_CHANGES_MAX: usize = 4;
const TELL_EVERY_MS: u64 = 60;
const INSTALL_MS: u64 = 700;
const WAL_SILENCE_MS: u64 = 2_500;
const STATUS_EVERY_MS: u64 = 200;
/// A required replica that makes nothing durable for so long, with work
/// outstanding, is demoted.
const STALL_MS: u64 = 5_000;
const DEMOTE_AGAIN_MS: u64 = 2_000;

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

struct Stall {
    durable: WalPosition,
    since: u64,
}

pub struct Run {
    pub token: ConsumerEpoch,
    phase: Phase,
    reports: Vec<(NodeId, Report)>,
    /// The nodes that have taken the token, and told where they stand.
    answered: BTreeSet<NodeId>,
    wal: Ticket,
    heard_at: u64,
    pub next_xid: FullXid,
    oldest_xmin: FullXid,
    start: Lsn,
    pub inbox: VecDeque<Inbound>,
    pub committing: Option<Committing>,
    /// Everything up to here has been received and routed.
    pub complete: Lsn,
    told: (Lsn, u64),
    /// The map whose replicas are fed.
    followed: MapStamp,
    status_at: u64,
    tracker: ConfirmTracker,
    counted: BTreeSet<ReplicaKey>,
    stalls: BTreeMap<ReplicaKey, Stall>,
    feeds: BTreeMap<NodeId, Feed>,
    /// Ranges in hash order.
    pub collections: BTreeMap<CollectionId, Vec<(HashRange, PartitionId)>>,
    buffers: BTreeMap<PartitionId, Vec<PositionedChange>>,
    sent_to: BTreeMap<PartitionId, WalPosition>,
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
        let replicas = map.partitions.values().flat_map(|p| &p.replicas);
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
            told: (Lsn(0), 0),
            followed: MapStamp::default(),
            status_at: 0,
            tracker: ConfirmTracker::new(INCARNATION, Lsn(0)),
            counted: BTreeSet::new(),
            stalls: BTreeMap::new(),
            feeds: BTreeMap::new(),
            collections: BTreeMap::new(),
            buffers: BTreeMap::new(),
            sent_to: BTreeMap::new(),
            asks: Asks::default(),
            backfills: BTreeMap::new(),
            ended: None,
        }
    }

    fn end(&mut self, why: &'static str) {
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
            self.told.0,
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
        self.count_learners(effects);
        self.demote_stalled(map, effects);
        self.backfill(map, effects);
        self.asks.tick(effects);
        self.send_status(effects);
    }

    /// What must wait for the end of a transaction, and not for the end of all.
    pub fn between_transactions(&mut self, map: &Arc<PartitionMap>, effects: &mut Effects<'_>) {
        let stamp = (map.epoch, map.version);
        if self.followed != stamp {
            self.followed = stamp;
            self.follow_map(map, effects);
        }
        if effects.now >= self.told.1 + TELL_EVERY_MS {
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
        if !effects.is_broken(Mutant::CountedForgotten) {
            self.count_inherited(map, effects);
        }
        self.follow_map(map, effects);
    }

    /// Learners that a run before this one, under the same token, may have counted
    /// and asked to promote: that may still come about, so that the slot waits for
    /// them from the beginning. One that is being copied or stands below the slot
    /// was never counted; of one whose node does not answer nobody knows.
    fn count_inherited(&mut self, map: &PartitionMap, effects: &mut Effects<'_>) {
        let start = end_of(self.start);
        for partition in map.partitions.values() {
            for replica in partition.in_state(ReplicaState::Learner) {
                let node = replica.node;
                let inherited = key(partition.id, node, replica.generation);
                let of = |r: &&(NodeId, Report)| r.0 == node;
                let mut reports = self.reports.iter().filter(of).map(|(_, report)| report);
                let is_this =
                    |r: &&Report| (r.partition, r.generation) == (partition.id, replica.generation);
                let has_answered = self.answered.contains(&node);
                let report = reports.find(is_this);
                let durable = match report {
                    Some(r) if !r.is_learning && r.durable >= start => r.durable,
                    None if !has_answered => WalPosition::ZERO,
                    _ => continue,
                };
                effects.note(format!("inherits {inherited:?} at {durable}"));
                self.counted.insert(inherited);
                self.tracker.require(inherited);
                self.tracker.durable(inherited, durable);
            }
        }
    }

    pub fn add_collection(&mut self, map: &Arc<PartitionMap>, id: CollectionId) {
        let Some(collection) = map.collections.get(&id) else {
            return;
        };
        if self.collections.contains_key(&id) || !is_fed(map, id) {
            return;
        }
        let is_complete = matches!(collection.state, CollectionState::Ready { .. });
        let from = match is_complete {
            true => end_of(self.start),
            false => WalPosition::ZERO,
        };
        let mut ranges = Vec::new();
        for partition in map.partitions_of(id) {
            ranges.push((partition.range, partition.id));
            // One that is released may lie below the slot by now: it is left alone.
            for replica in partition.in_state(ReplicaState::Serving) {
                let Some(feed) = self.feed(map, replica.node) else {
                    continue;
                };
                feed.add(partition.id, replica.generation, from, is_complete);
                self.require(key(partition.id, replica.node, replica.generation));
            }
        }
        self.collections.insert(id, ranges);
        if !is_complete {
            self.backfills.insert(id, Backfill::new(id));
        }
    }

    fn require(&mut self, replica: ReplicaKey) {
        self.tracker.require(replica);
    }

    fn feed(&mut self, map: &PartitionMap, node: NodeId) -> Option<&mut Feed> {
        let process = Proc::at(&map.nodes.get(&node)?.address)?;
        let (token, start) = (self.token, end_of(self.start));
        let feed = self.feeds.entry(node);
        Some(feed.or_insert_with(|| Feed::new(process, token, start)))
    }

    pub fn drop_gone(&mut self, map: &PartitionMap) {
        let gone = self.collections.keys().filter(|id| !is_fed(map, **id));
        for id in gone.copied().collect::<Vec<_>>() {
            for (_, partition) in self.collections.remove(&id).unwrap_or_default() {
                self.buffers.remove(&partition);
                self.sent_to.remove(&partition);
                for feed in self.feeds.values_mut() {
                    feed.remove(partition);
                }
            }
            self.backfills.remove(&id);
        }
        let fed = &self.collections;
        let is_fed = |id: PartitionId| fed.values().flatten().any(|(_, p)| *p == id);
        self.tracker.retain(|replica| is_fed(replica.partition));
    }

    /// Never within a transaction: what a learner is attached at must be the end
    /// of one.
    fn follow_map(&mut self, map: &Arc<PartitionMap>, effects: &mut Effects<'_>) {
        self.drop_gone(map);
        for id in self.routed_partitions() {
            let learners = map.partitions.get(&id).into_iter();
            let learners = learners.flat_map(|p| p.in_state(ReplicaState::Learner));
            for replica in learners {
                let (node, generation) = (replica.node, replica.generation);
                if self.fed(id, node, generation).is_none() {
                    self.attach(map, id, (node, generation), effects);
                }
            }
        }
        self.follow_replicas(map);
    }

    fn routed_partitions(&self) -> Vec<PartitionId> {
        let ranges = self.collections.values().flatten();
        ranges.map(|(_, partition)| *partition).collect()
    }

    fn fed(&self, id: PartitionId, node: NodeId, generation: Generation) -> Option<&Fed> {
        let fed = self.feeds.get(&node)?.partitions.get(&id);
        fed.filter(|fed| fed.generation == generation)
    }

    /// Who serves now, who goes, and for whom the slot waits.
    fn follow_replicas(&mut self, map: &Arc<PartitionMap>) {
        for id in self.routed_partitions() {
            let Some(partition) = map.partitions.get(&id) else {
                continue;
            };
            for replica in &partition.replicas {
                let (node, generation) = (replica.node, replica.generation);
                let is_learner = self.fed(id, node, generation).map(|f| f.is_learner);
                let feed = self.feeds.get_mut(&node);
                match (replica.state, is_learner, feed) {
                    (ReplicaState::Serving, None, _) => self.end("a replica serves unfed"),
                    (ReplicaState::Serving, Some(true), Some(feed)) => {
                        feed.promoted(id);
                        self.require(key(id, node, generation));
                    }
                    (ReplicaState::Releasing, Some(_), Some(feed)) => feed.releasing(id),
                    (ReplicaState::Demoted, Some(_), Some(feed)) => feed.remove(id),
                    _ => {}
                }
            }
        }
        self.forget_gone(map);
    }

    fn forget_gone(&mut self, map: &Arc<PartitionMap>) {
        for (node, feed) in &mut self.feeds {
            let fed = feed.partitions.iter();
            let gone = fed
                .filter(|(id, fed)| state_of_key(map, &key(**id, *node, fed.generation)).is_none());
            for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
                feed.remove(id);
            }
        }
        self.counted.retain(|r| state_of_key(map, r).is_some());
        let counted = &self.counted;
        self.tracker.retain(|r| match state_of_key(map, r) {
            Some(ReplicaState::Serving) => true,
            Some(ReplicaState::Learner) => counted.contains(r),
            _ => false,
        });
        self.asks.retain(|purpose| match purpose {
            Purpose::Promote(r) => state_of_key(map, r) == Some(ReplicaState::Learner),
            Purpose::Demote(r) => state_of_key(map, r) == Some(ReplicaState::Serving),
            _ => true,
        });
    }

    fn attach(
        &mut self,
        map: &Arc<PartitionMap>,
        id: PartitionId,
        (node, generation): (NodeId, Generation),
        effects: &mut Effects<'_>,
    ) {
        self.flush(effects);
        let from = end_of(self.complete);
        if let Some(feed) = self.feed(map, node) {
            feed.attach(id, generation, from, effects);
        }
    }

    pub fn partition_for(&self, id: CollectionId, hash: u64) -> Option<PartitionId> {
        let ranges = self.collections.get(&id)?.iter();
        let mut found = ranges.filter(|(range, _)| range.contains(hash));
        found.next().map(|(_, partition)| *partition)
    }

    pub fn routes_partition(&self, id: PartitionId) -> bool {
        self.collections.values().flatten().any(|(_, p)| *p == id)
    }

    /// A node whose serving replica has applied a position.
    pub fn replica_at(
        &self,
        id: PartitionId,
        at: WalPosition,
        effects: &mut Effects<'_>,
    ) -> Option<Proc> {
        let has = |feed: &&Feed| {
            let fed = feed.partitions.get(&id);
            feed.is_up() && fed.is_some_and(|f| !f.is_learner && f.applied >= at)
        };
        let nodes: Vec<Proc> = self.feeds.values().filter(has).map(Feed::process).collect();
        effects.rng.pick(&nodes).copied()
    }

    pub fn route(&mut self, id: CollectionId, change: PositionedChange, effects: &mut Effects<'_>) {
        let targets: Vec<PartitionId> = match &change.change {
            Change::Upsert { key, .. } | Change::Delete { key } => {
                let target = self.partition_for(id, key.placement_hash());
                target.into_iter().collect()
            }
            Change::Truncate => {
                let ranges = self.collections.get(&id).into_iter().flatten();
                ranges.map(|(_, partition)| *partition).collect()
            }
        };
        for partition in targets {
            let buffer = self.buffers.entry(partition).or_default();
            // Both halves of a key change bear one position.
            if let Some(last) = buffer.last().map(|c| c.position)
                && buffer.len() >= BATCH_CHANGES_MAX
                && last < change.position
            {
                self.flush_partition(partition, last, effects);
            }
            self.buffers
                .entry(partition)
                .or_default()
                .push(change.clone());
        }
    }

    pub fn flush_within(&mut self, partition: PartitionId, effects: &mut Effects<'_>) {
        let last = self.buffers.get(&partition).and_then(|b| b.last());
        if let Some(last) = last.map(|change| change.position) {
            self.flush_partition(partition, last, effects);
        }
    }

    pub fn sent_to(&self, partition: PartitionId) -> WalPosition {
        let sent = self.sent_to.get(&partition).copied();
        sent.unwrap_or(WalPosition::ZERO)
    }

    fn flush(&mut self, effects: &mut Effects<'_>) {
        let to = end_of(self.complete);
        for partition in self.buffers.keys().copied().collect::<Vec<_>>() {
            self.flush_partition(partition, to, effects);
        }
    }

    fn flush_partition(
        &mut self,
        partition: PartitionId,
        to: WalPosition,
        effects: &mut Effects<'_>,
    ) {
        let changes = self.buffers.remove(&partition).unwrap_or_default();
        if changes.is_empty() {
            return;
        }
        self.sent_to.insert(partition, to);
        for feed in self.feeds.values_mut() {
            feed.push_batch(partition, to, &changes, effects);
        }
    }

    /// Sends what is buffered, then "nothing else".
    pub fn tell(&mut self, effects: &mut Effects<'_>) {
        self.told.1 = effects.now;
        let retention = Retention {
            oldest_xmin: self.oldest_xmin,
            confirmed: end_of(self.tracker.confirmed()),
        };
        self.flush(effects);
        let is_news = self.complete > self.told.0;
        for feed in self.feeds.values_mut() {
            feed.retention = retention;
            if is_news {
                feed.push_nothing_else(end_of(self.complete), effects);
            }
        }
        if is_news {
            self.told.0 = self.complete;
            self.tracker.sent(self.complete);
        }
    }

    pub fn is_durable(&self, at: WalPosition, collection: CollectionId) -> bool {
        let ranges = self.collections.get(&collection);
        let is_of =
            |r: &ReplicaKey| ranges.is_some_and(|p| p.iter().any(|(_, p)| *p == r.partition));
        self.tracker.is_durable(at, is_of)
    }

    fn send_status(&mut self, effects: &mut Effects<'_>) {
        if effects.now < self.status_at {
            return;
        }
        self.status_at = effects.now + STATUS_EVERY_MS;
        let flush = self.tracker.confirmed();
        if let Err(violation) = check_confirmation(end_of(flush), self.required_since_start()) {
            effects.tell(Fact::Broken(violation.to_string()));
        }
        let stream = self.wal;
        effects.stream(Proc::Postgres, stream, Message::Status { stream, flush });
    }

    /// A replica that was required only after the confirmed position was passed
    /// has reported nothing yet, and holds what follows.
    fn required_since_start(&self) -> impl Iterator<Item = WalPosition> {
        let reported = self.tracker.required_durable();
        reported.filter(|durable| *durable > WalPosition::ZERO)
    }

    fn count_learners(&mut self, effects: &mut Effects<'_>) {
        let confirmed = end_of(self.tracker.confirmed());
        let is_early = effects.is_broken(Mutant::LearnerCountedEarly);
        for (node, feed) in &self.feeds {
            for (id, fed) in feed.partitions.iter().filter(|(_, fed)| fed.is_learner) {
                let replica = key(*id, *node, fed.generation);
                let is_live = (!fed.is_learning || is_early) && fed.durable >= confirmed;
                if !is_live || fed.durable == WalPosition::ZERO {
                    continue;
                }
                if self.counted.insert(replica) {
                    effects.note(format!("counts {replica:?} at {}", fed.durable));
                    self.tracker.require(replica);
                    self.tracker.durable(replica, fed.durable);
                }
                let command = Command::PromoteReplica {
                    token: self.token,
                    partition: *id,
                    node: *node,
                    generation: fed.generation,
                };
                self.asks
                    .ask(Purpose::Promote(replica), Wish::Command(command));
            }
        }
    }

    fn demote_stalled(&mut self, map: &PartitionMap, effects: &mut Effects<'_>) {
        let (now, goal) = (effects.now, end_of(self.complete));
        for (node, feed) in &self.feeds {
            for (id, fed) in &feed.partitions {
                let replica = key(*id, *node, fed.generation);
                let is_serving = state_of_key(map, &replica) == Some(ReplicaState::Serving);
                let durable = fed.durable;
                let stall = self.stalls.entry(replica).or_insert(Stall {
                    durable,
                    since: now,
                });
                if durable > stall.durable || durable >= goal || !is_serving {
                    *stall = Stall {
                        durable,
                        since: now,
                    };
                }
                if now < stall.since + STALL_MS || !is_ready(map, *id) {
                    continue;
                }
                stall.since = now - STALL_MS + DEMOTE_AGAIN_MS;
                let command = Command::DemoteReplica {
                    token: self.token,
                    partition: *id,
                    node: *node,
                    generation: fed.generation,
                    min_required: 1,
                };
                self.asks
                    .ask(Purpose::Demote(replica), Wish::Command(command));
            }
        }
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
                    self.asked(purpose, response);
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
                    if let Some(fed) = feed.partitions.get(&id) {
                        let durable = match ignored {
                            true => end_of(self.complete),
                            false => fed.durable,
                        };
                        self.tracker
                            .durable(key(id, *node, fed.generation), durable);
                    }
                }
                News::Restart(why) => {
                    self.ended.get_or_insert(why);
                }
                News::RowsMissing(partition) => {
                    effects.tell(Fact::RowsMissing { partition });
                }
            }
        }
    }

    fn asked(&mut self, purpose: Purpose, response: Response) {
        match (purpose, response) {
            (Purpose::Create(_), Response::CollectionCreated { collection }) => {
                self.created(collection);
            }
            (Purpose::BeginBackfill(id), Response::BackfillBegun { backfill }) => {
                if let Some(it) = self.backfills.get_mut(&id) {
                    it.begun(backfill);
                }
            }
            // A demotion that is refused is asked for again while it is due, a
            // promotion until the map says what became of the learner.
            (Purpose::Promote(_) | Purpose::Demote(_), _) | (_, Response::Done) => {}
            (_, Response::Refused(_)) => self.end("refused"),
            _ => {}
        }
    }
}

pub fn key(partition: PartitionId, node: NodeId, generation: Generation) -> ReplicaKey {
    ReplicaKey {
        partition,
        node,
        generation,
    }
}

fn state_of_key(map: &PartitionMap, of: &ReplicaKey) -> Option<ReplicaState> {
    let replica = map.partitions.get(&of.partition)?.replica_on(of.node)?;
    (replica.generation == of.generation).then_some(replica.state)
}

fn state_of(map: &PartitionMap, node: NodeId, report: &Report) -> Option<ReplicaState> {
    state_of_key(map, &key(report.partition, node, report.generation))
}

pub fn is_ready(map: &PartitionMap, partition: PartitionId) -> bool {
    let record = map.partitions.get(&partition);
    let collection = record.and_then(|p| map.collections.get(&p.collection));
    collection.is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }))
}

fn is_fed(map: &PartitionMap, id: CollectionId) -> bool {
    map.collections.get(&id).is_some_and(|c| {
        c.spec.source == SOURCE && !matches!(c.state, CollectionState::Failed { .. })
    })
}
