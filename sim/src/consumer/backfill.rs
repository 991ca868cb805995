//! Filling a collection beside the stream, in the order that makes it right: open
//! durably everywhere, take the snapshot, copy, wait until what was streamed
//! meanwhile is durable, read pending rows again, close everywhere, finish.

use super::asks::{Purpose, Wish};
use super::run::{Run, end_of};
use crate::message::{BackfillStep, Message};
use crate::postgres::SlotSnapshot;
use crate::process::{Effects, Proc, Ticket};
use cluster_core::change::BackfillRow;
use cluster_core::collection::{BackfillSnapshot, CollectionState};
use cluster_core::control::Command;
use cluster_core::ids::*;
use cluster_core::map::{HashRange, PartitionMap, ReplicaState};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const CHUNK_ROWS: usize = 6;
const CALL_TIMEOUT_MS: u64 = 700;
const PENDING_POLL_MS: u64 = 150;
/// A copy takes a while, and the stream goes on meanwhile.
const COPY_MS_MAX: u64 = 1_500;

type Target = (PartitionId, NodeId);

#[derive(Debug)]
enum Phase {
    Begin,
    WaitMap,
    Open,
    Snapshot {
        call: Option<(Ticket, u64)>,
    },
    Copy,
    /// Until what was streamed up to here is durable; `None`: up to now.
    Settle {
        to: Option<WalPosition>,
        not_before: u64,
    },
    List,
    Close,
    Finish,
}

pub struct Backfill {
    collection: CollectionId,
    id: BackfillId,
    phase: Phase,
    seen: Option<BackfillSnapshot>,
    ranges: Vec<(HashRange, PartitionId, Vec<NodeId>)>,
    chunks: BTreeMap<PartitionId, u64>,
    todo: BTreeMap<Target, VecDeque<BackfillStep>>,
    calls: BTreeMap<Ticket, (Target, u64)>,
    closed: BTreeSet<Target>,
    pending: BTreeSet<RowKey>,
    /// Some partition did not close: what is pending has to be read again.
    is_refused: bool,
    /// Another backfill has begun, or a consumer: begin anew.
    is_void: bool,
    /// When the rows of the snapshot are there.
    copied_at: u64,
}

impl Backfill {
    pub fn new(collection: CollectionId) -> Self {
        Self {
            collection,
            id: BackfillId(0),
            phase: Phase::Begin,
            seen: None,
            ranges: Vec::new(),
            chunks: BTreeMap::new(),
            todo: BTreeMap::new(),
            calls: BTreeMap::new(),
            closed: BTreeSet::new(),
            pending: BTreeSet::new(),
            is_refused: false,
            is_void: false,
            copied_at: 0,
        }
    }

    pub fn describe(&self) -> String {
        let steps: usize = self.todo.values().map(VecDeque::len).sum();
        format!(
            "backfill {} in {:?}, {steps} steps left",
            self.id, self.phase
        )
    }

    pub fn begun(&mut self, id: BackfillId) {
        self.id = id;
        self.phase = Phase::WaitMap;
    }

    fn take_ranges(&mut self, map: &PartitionMap) {
        let partitions = map.partitions_of(self.collection).into_iter();
        self.ranges = partitions
            .map(|p| {
                let serving = p.in_state(ReplicaState::Serving);
                (p.range, p.id, serving.map(|r| r.node).collect())
            })
            .collect();
    }

    /// One that was demoted meanwhile is copied from a peer later.
    fn forget_demoted(&mut self, map: &PartitionMap) {
        let is_target = |id: &PartitionId, node: NodeId| {
            let replica = map.partitions.get(id).and_then(|p| p.replica_on(node));
            replica.is_some_and(|r| r.state == ReplicaState::Serving)
        };
        for (_, id, nodes) in &mut self.ranges {
            nodes.retain(|node| is_target(id, *node));
        }
        self.todo.retain(|(id, node), _| is_target(id, *node));
    }

    fn targets(&self) -> Vec<Target> {
        let all = self.ranges.iter();
        let all = all.flat_map(|(_, id, nodes)| nodes.iter().map(move |node| (*id, *node)));
        all.filter(|target| !self.closed.contains(target)).collect()
    }

    fn everywhere(&mut self, step: BackfillStep) {
        for target in self.targets() {
            self.todo.entry(target).or_default().push_back(step.clone());
        }
    }

    fn queue_rows(&mut self, rows: &[BackfillRow], stamp: WalPosition) {
        for (range, partition, nodes) in self.ranges.clone() {
            let own = rows
                .iter()
                .filter(|r| range.contains(r.key.placement_hash()));
            let own: Vec<BackfillRow> = own.cloned().collect();
            for rows in own.chunks(CHUNK_ROWS) {
                let number = self.chunks.entry(partition).or_default();
                *number += 1;
                let chunk = BackfillStep::Chunk {
                    chunk: *number,
                    stamp,
                    rows: Arc::new(rows.to_vec()),
                };
                for node in nodes
                    .iter()
                    .filter(|n| !self.closed.contains(&(partition, **n)))
                {
                    let todo = self.todo.entry((partition, *node)).or_default();
                    todo.push_back(chunk.clone());
                }
            }
        }
    }

    pub fn snapshot_taken(
        &mut self,
        of: Ticket,
        snapshot: &SlotSnapshot,
        effects: &mut Effects<'_>,
    ) {
        match &self.phase {
            Phase::Snapshot {
                call: Some((call, _)),
            } if *call == of => {}
            _ => return,
        }
        let stamp = end_of(snapshot.consistent_point);
        match self.seen {
            None => {
                self.seen = Some(snapshot.seen.clone());
                self.queue_rows(&snapshot.rows, stamp);
            }
            Some(_) => {
                let pending = std::mem::take(&mut self.pending);
                let rows = snapshot.rows.iter().filter(|r| pending.contains(&r.key));
                let rows: Vec<BackfillRow> = rows.cloned().collect();
                self.queue_rows(&rows, stamp);
            }
        }
        self.copied_at = effects.now + effects.rng.below(COPY_MS_MAX);
        self.phase = Phase::Copy;
    }

    fn done(&mut self, call: Ticket, result: Result<Vec<RowKey>, String>) {
        let Some((target, _)) = self.calls.remove(&call) else {
            return;
        };
        let todo = self.todo.entry(target).or_default();
        let step = todo.pop_front();
        match (step, result) {
            (Some(BackfillStep::Close), Ok(_)) => drop(self.closed.insert(target)),
            (Some(BackfillStep::Close), Err(why)) if why == "pending" => self.is_refused = true,
            (_, Ok(keys)) => self.pending.extend(keys),
            (Some(step), Err(why)) if why.starts_with("fenced") => todo.push_front(step),
            (_, Err(_)) => self.is_void = true,
        }
    }

    fn send(&mut self, token: ConsumerEpoch, map: &PartitionMap, effects: &mut Effects<'_>) {
        let now = effects.now;
        if matches!(self.phase, Phase::Copy) && now < self.copied_at {
            return;
        }
        self.calls
            .retain(|_, (_, since)| now < *since + CALL_TIMEOUT_MS);
        let busy: BTreeSet<Target> = self.calls.values().map(|(target, _)| *target).collect();
        for (target, steps) in &self.todo {
            let Some(step) = steps.front().filter(|_| !busy.contains(target)) else {
                continue;
            };
            let process = map.nodes.get(&target.1).and_then(|n| Proc::at(&n.address));
            let Some(process) = process else { continue };
            let call = effects.ticket();
            self.calls.insert(call, (*target, now));
            let message = Message::Backfill {
                call,
                token,
                partition: target.0,
                backfill: self.id,
                step: step.clone(),
            };
            effects.call(process, message);
        }
    }

    fn is_idle(&self) -> bool {
        self.todo.values().all(VecDeque::is_empty)
    }
}

impl Run {
    pub fn backfill_done(&mut self, call: Ticket, result: Result<Vec<RowKey>, String>) {
        let mut of = self.backfills.values_mut();
        if let Some(backfill) = of.find(|b| b.calls.contains_key(&call)) {
            backfill.done(call, result);
        }
    }

    pub fn backfill(&mut self, map: &Arc<PartitionMap>, effects: &mut Effects<'_>) {
        for id in self.backfills.keys().copied().collect::<Vec<_>>() {
            let Some(mut backfill) = self.backfills.remove(&id) else {
                continue;
            };
            let state = map.collections.get(&id).map(|c| &c.state);
            if matches!(state, Some(CollectionState::Ready { .. })) {
                continue;
            }
            if backfill.is_void {
                backfill = Backfill::new(id);
            }
            backfill.forget_demoted(map);
            self.step_backfill(&mut backfill, map, effects);
            backfill.send(self.token, map, effects);
            self.backfills.insert(id, backfill);
        }
    }

    fn step_backfill(
        &mut self,
        backfill: &mut Backfill,
        map: &Arc<PartitionMap>,
        effects: &mut Effects<'_>,
    ) {
        let (id, now, token) = (backfill.collection, effects.now, self.token);
        let (is_idle, is_refused) = (backfill.is_idle(), backfill.is_refused);
        match &mut backfill.phase {
            Phase::Begin => {
                let begin = Command::BeginBackfill {
                    token,
                    collection: id,
                };
                self.asks
                    .ask(Purpose::BeginBackfill(id), Wish::Command(begin));
            }
            Phase::WaitMap => {
                let begun = map.collections.get(&id).map(|c| c.last_backfill);
                if begun >= Some(backfill.id) {
                    backfill.take_ranges(map);
                    backfill.everywhere(BackfillStep::Open);
                    backfill.phase = Phase::Open;
                }
            }
            Phase::Open if is_idle => {
                backfill.phase = Phase::Snapshot { call: None };
            }
            Phase::Snapshot { call }
                if call.is_none_or(|(_, since)| now >= since + CALL_TIMEOUT_MS) =>
            {
                let ticket = effects.ticket();
                *call = Some((ticket, now));
                effects.call(Proc::Postgres, Message::TakeSnapshot { call: ticket });
            }
            Phase::Copy if is_idle => {
                backfill.phase = Phase::Settle {
                    to: None,
                    not_before: now,
                };
            }
            Phase::Settle { to, not_before } => {
                if to.is_none() && self.committing.is_none() {
                    self.tell(effects);
                    *to = Some(end_of(self.complete));
                }
                let is_settled = to.is_some_and(|to| self.is_durable(to, id));
                if is_settled && now >= *not_before {
                    backfill.everywhere(BackfillStep::ListPending);
                    backfill.phase = Phase::List;
                }
            }
            Phase::List if is_idle => {
                if backfill.pending.is_empty() {
                    backfill.is_refused = false;
                    backfill.everywhere(BackfillStep::Close);
                    backfill.phase = Phase::Close;
                } else {
                    backfill.phase = Phase::Snapshot { call: None };
                }
            }
            Phase::Close if is_idle && is_refused => {
                backfill.phase = Phase::Settle {
                    to: None,
                    not_before: now + PENDING_POLL_MS,
                };
            }
            Phase::Close if is_idle => backfill.phase = Phase::Finish,
            Phase::Finish => {
                let finish = Command::FinishBackfill {
                    token,
                    collection: id,
                    backfill: backfill.id,
                    snapshot: backfill.seen.clone().unwrap_or_default(),
                };
                self.asks
                    .ask(Purpose::FinishBackfill(id), Wish::Command(finish));
            }
            _ => {}
        }
    }
}
