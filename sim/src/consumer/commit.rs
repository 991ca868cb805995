//! What a committed transaction does, change by change, and what it has to wait
//! for: a definition becomes a collection at this very position, and a key change
//! whose vector was not told again is resolved as the consumer's shell does it,
//! from the transaction, a replica, or the table.

use super::asks::{Purpose, Wish};
use super::run::{Inbound, Run};
use crate::message::Message;
use crate::postgres::{INCARNATION, TableChange, Transaction};
use crate::process::{Effects, Proc, Ticket};
use cluster_core::change::{Change, PositionedChange, VectorColumn};
use cluster_core::collection::{CollectionSpec, Metric};
use cluster_core::control::Command;
use cluster_core::ids::*;
use cluster_core::map::PartitionMap;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::{FullXid, widen};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const INDEX_OID: u32 = 77;
const CALL_TIMEOUT_MS: u64 = 600;

/// What a transaction has said of rows, for its key changes.
#[derive(Default)]
struct Touched {
    rows: BTreeMap<(CollectionId, RowKey), Option<Box<[f32]>>>,
    synced: BTreeSet<PartitionId>,
}

impl Touched {
    fn upserted(&mut self, id: CollectionId, key: &RowKey, vector: &VectorColumn) {
        let value = match vector {
            VectorColumn::Value(value) => Some(value.clone()),
            VectorColumn::Null => None,
            VectorColumn::Unchanged => return,
        };
        self.rows.insert((id, key.clone()), value);
    }

    fn moved_here(&mut self, id: CollectionId, key: &RowKey, vector: &VectorColumn) {
        match vector {
            VectorColumn::Unchanged => drop(self.rows.insert((id, key.clone()), None)),
            known => self.upserted(id, key, known),
        }
    }

    fn deleted(&mut self, id: CollectionId, key: &RowKey) {
        self.rows.insert((id, key.clone()), None);
    }
}

#[derive(Debug)]
enum Wait {
    /// The row as it stood before this position, at a replica.
    Row {
        partition: PartitionId,
        before: WalPosition,
        call: Option<(Ticket, u64)>,
    },
    /// The row as the table has it now.
    Reread {
        call: Option<(Ticket, u64)>,
    },
    Created,
    MapShows(CollectionId),
    Dropped(u64),
}

pub struct Committing {
    transaction: Arc<Transaction>,
    xid: FullXid,
    next: usize,
    /// The collections that the present change still concerns.
    left: Option<Vec<CollectionId>>,
    touched: Touched,
    wait: Option<Wait>,
    resolved: Option<VectorColumn>,
}

impl Committing {
    pub fn describe(&self) -> String {
        let (end, next, wait) = (self.transaction.end, self.next, &self.wait);
        format!("transaction {end} at {next} waits for {wait:?}")
    }
}

/// Whether a change was done with, or waits.
enum Step {
    Done,
    Waits,
}

impl Run {
    /// Works through what was received until something is to be waited for.
    pub fn advance(&mut self, map: &Arc<PartitionMap>, effects: &mut Effects<'_>) {
        loop {
            if let Some(mut committing) = self.committing.take() {
                let step = self.step(&mut committing, map, effects);
                if matches!(step, Step::Waits) {
                    self.committing = Some(committing);
                    return;
                }
                self.complete = committing.transaction.end.max(self.complete);
                self.between_transactions(map, effects);
                continue;
            }
            match self.inbox.pop_front() {
                None => return,
                Some(Inbound::Keepalive(at)) => self.complete = at.max(self.complete),
                Some(Inbound::Transaction(transaction)) => {
                    self.committing = Some(Committing {
                        xid: widen(transaction.xid, self.next_xid),
                        transaction,
                        next: 0,
                        left: None,
                        touched: Touched::default(),
                        wait: None,
                        resolved: None,
                    });
                }
            }
        }
    }

    fn step(
        &mut self,
        at: &mut Committing,
        map: &Arc<PartitionMap>,
        effects: &mut Effects<'_>,
    ) -> Step {
        if at.wait.is_some() && matches!(self.wait(at, map, effects), Step::Waits) {
            return Step::Waits;
        }
        while let Some(change) = at.transaction.changes.get(at.next).cloned() {
            if let TableChange::Define {
                definition_generation,
            } = change
            {
                self.define(definition_generation);
                at.wait = Some(Wait::Created);
                at.next += 1;
                return self.step(at, map, effects);
            }
            let left = at.left.take();
            let mut left = left.unwrap_or_else(|| self.collections.keys().copied().collect());
            while let Some(id) = left.last().copied() {
                if matches!(self.route_change(at, id, &change, effects), Step::Waits) {
                    at.left = Some(left);
                    return Step::Waits;
                }
                left.pop();
            }
            at.next += 1;
        }
        Step::Done
    }

    fn route_change(
        &mut self,
        at: &mut Committing,
        id: CollectionId,
        change: &TableChange,
        effects: &mut Effects<'_>,
    ) -> Step {
        let ordinal = at.next as u32 + 1;
        let position = WalPosition::new(INCARNATION, at.transaction.end, ordinal);
        let xid = at.xid;
        let changed = |change| PositionedChange {
            position,
            xid,
            change,
        };
        match change.clone() {
            TableChange::Upsert { key, vector } => {
                at.touched.upserted(id, &key, &vector);
                self.route(id, changed(Change::Upsert { key, vector }), effects);
            }
            TableChange::Delete { key } => {
                at.touched.deleted(id, &key);
                self.route(id, changed(Change::Delete { key }), effects);
            }
            TableChange::Move { old, new, vector } => {
                let vector = match vector {
                    VectorColumn::Unchanged => match self.resolve(at, id, &old, effects) {
                        Some(vector) => vector,
                        None => return Step::Waits,
                    },
                    known => known,
                };
                at.touched.deleted(id, &old);
                at.touched.moved_here(id, &new, &vector);
                self.route(id, changed(Change::Delete { key: old }), effects);
                self.route(id, changed(Change::Upsert { key: new, vector }), effects);
            }
            TableChange::Truncate => self.route(id, changed(Change::Truncate), effects),
            TableChange::Define { .. } => {}
        }
        Step::Done
    }

    /// The vector of a row whose key changes; `None`: it is being looked for.
    fn resolve(
        &mut self,
        at: &mut Committing,
        id: CollectionId,
        old: &RowKey,
        effects: &mut Effects<'_>,
    ) -> Option<VectorColumn> {
        if let Some(resolved) = at.resolved.take() {
            return Some(resolved);
        }
        let touched = at.touched.rows.get(&(id, old.clone()));
        if let Some(Some(value)) = touched {
            return Some(VectorColumn::Value(value.clone()));
        }
        let Some(partition) = self.partition_for(id, old.placement_hash()) else {
            return Some(VectorColumn::Unchanged);
        };
        if at.touched.synced.insert(partition) {
            self.flush_within(partition, effects);
        }
        at.wait = Some(Wait::Row {
            partition,
            before: self.sent_to(partition),
            call: None,
        });
        None
    }

    /// Looks whether what a transaction waits for has come.
    fn wait(
        &mut self,
        at: &mut Committing,
        map: &Arc<PartitionMap>,
        effects: &mut Effects<'_>,
    ) -> Step {
        let ordinal = at.next as u32 + 1;
        let position = WalPosition::new(INCARNATION, at.transaction.end, ordinal);
        let moved = match at.transaction.changes.get(at.next) {
            Some(TableChange::Move { old, new, .. }) => Some((old.clone(), new.clone())),
            _ => None,
        };
        let now = effects.now;
        let is_out = |call: &Option<(Ticket, u64)>| {
            call.is_some_and(|(_, since)| now < since + CALL_TIMEOUT_MS)
        };
        match (&mut at.wait, moved) {
            (
                Some(Wait::Row {
                    partition,
                    before,
                    call,
                }),
                Some((old, _)),
            ) => {
                // Split or dropped meanwhile: the router cannot follow while it waits
                // here, and nobody else will answer.
                if !map.partitions.contains_key(partition) {
                    self.end("a partition went while a key changed in it");
                    return Step::Waits;
                }
                if is_out(call) {
                    return Step::Waits;
                }
                if let Some(node) = self.replica_at(*partition, *before, effects) {
                    effects.note(format!("looks for {old:?} before {position}"));
                    let ticket = effects.ticket();
                    *call = Some((ticket, now));
                    let fetch = Message::FetchRow {
                        call: ticket,
                        partition: *partition,
                        key: old,
                        before: position,
                        at_least: *before,
                    };
                    effects.call(node, fetch);
                }
                return Step::Waits;
            }
            (Some(Wait::Reread { call }), Some((_, new))) => {
                if !is_out(call) {
                    let ticket = effects.ticket();
                    *call = Some((ticket, now));
                    let reread = Message::Reread {
                        call: ticket,
                        key: new,
                    };
                    effects.call(Proc::Postgres, reread);
                }
                return Step::Waits;
            }
            (Some(Wait::Created), _) => return Step::Waits,
            (Some(Wait::MapShows(id)), _) => {
                let id = *id;
                let newest = map.collections.keys().next_back();
                if !map.collections.contains_key(&id) && newest < Some(&id) {
                    return Step::Waits;
                }
                self.add_collection(map, id);
                return self.drop_former(at, map, effects);
            }
            (Some(Wait::Dropped(below)), _) => {
                let below = *below;
                let is_former =
                    |id: &CollectionId| map.collections[id].spec.definition_generation < below;
                if map.collections.keys().any(is_former) {
                    return Step::Waits;
                }
                self.drop_gone(map);
            }
            _ => {}
        }
        at.wait = None;
        Step::Done
    }

    /// What a former definition held is void from here on.
    fn drop_former(
        &mut self,
        at: &mut Committing,
        map: &Arc<PartitionMap>,
        effects: &mut Effects<'_>,
    ) -> Step {
        let TableChange::Define {
            definition_generation: generation,
        } = at.transaction.changes[at.next - 1]
        else {
            return Step::Done;
        };
        let command = Command::DropCollection {
            token: self.token,
            source: crate::coordinator::SOURCE,
            index_oid: INDEX_OID,
            definition_generation: generation - 1,
        };
        self.asks
            .ask(Purpose::Drop(generation), Wish::Command(command));
        at.wait = Some(Wait::Dropped(generation));
        self.wait(at, map, effects)
    }

    fn define(&mut self, definition_generation: u64) {
        let spec = CollectionSpec {
            source: crate::coordinator::SOURCE,
            index_oid: INDEX_OID,
            definition_generation,
            table_oid: 7,
            schema_name: "public".to_owned(),
            table_name: "items".to_owned(),
            index_name: "items_embedding".to_owned(),
            column_name: "embedding".to_owned(),
            column_attnum: 2,
            key_attnums: vec![1],
            metric: Metric::L2,
            dimensions: 2,
            m: 16,
            ef_construction: 64,
        };
        let wish = Wish::Create(self.token, spec);
        self.asks.ask(Purpose::Create(definition_generation), wish);
    }

    pub fn created(&mut self, id: CollectionId) {
        if let Some(at) = &mut self.committing
            && matches!(at.wait, Some(Wait::Created))
        {
            at.wait = Some(Wait::MapShows(id));
        }
    }

    pub fn row_found(&mut self, of: Ticket, found: Option<Option<Box<[f32]>>>) {
        let Some(at) = &mut self.committing else {
            return;
        };
        let Some(Wait::Row { call, .. }) = &mut at.wait else {
            return;
        };
        if call.is_none_or(|(ticket, _)| ticket != of) {
            return;
        }
        match found {
            // Another replica, or the same once it is there.
            None => *call = None,
            Some(None) => at.wait = Some(Wait::Reread { call: None }),
            Some(Some(vector)) => {
                at.wait = None;
                at.resolved = Some(VectorColumn::Value(vector));
            }
        }
    }

    pub fn row_reread(&mut self, of: Ticket, vector: Option<Box<[f32]>>) {
        let Some(at) = &mut self.committing else {
            return;
        };
        if let Some(Wait::Reread {
            call: Some((ticket, _)),
        }) = &at.wait
            && *ticket == of
        {
            at.wait = None;
            at.resolved = Some(vector.map_or(VectorColumn::Unchanged, VectorColumn::Value));
        }
    }
}
