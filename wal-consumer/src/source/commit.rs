//! What a committed transaction does, change by change in its order: rows go to
//! the router (those first that `prepare` has understood already), and definitions of
//! indexes become collections at this very position, while the stream waits and keepalives go on.

use super::key_change::{KeyChanges, Resolved};
use super::run::Run;
use super::{coordination, definitions};
use crate::feed::progress::RunEnd;
use crate::replication::pgoutput::{Message, OldTuple, Relation};
use crate::replication::tuple::Tuple;
use crate::rows::{ColumnMap, LiveColumn, RowOp, Unusable};
use crate::transaction::Transaction;
use anyhow::Context;
use cluster_core::change::{Change, PositionedChange, VectorColumn};
use cluster_core::collection::{Collection, CollectionSpec};
use cluster_core::ids::{CollectionId, SourceId};
use cluster_core::map::PartitionMap;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use std::collections::HashMap;
use tokio_postgres::Client;

/// The tables of the stream as its Relation messages describe them.
#[derive(Default)]
pub struct Tables {
    relations: HashMap<u32, Relation>,
    columns: HashMap<CollectionId, ColumnMap>,
    /// The highest generation seen of an index, for deletions that tell none.
    generations: HashMap<u32, u64>,
}

impl Tables {
    pub fn forget_collection(&mut self, id: CollectionId) {
        self.columns.remove(&id);
    }

    pub(super) fn relation(&self, oid: u32) -> Result<&Relation, RunEnd> {
        // Skipping a row of an unknown table would lose it.
        self.relations
            .get(&oid)
            .ok_or_else(|| RunEnd::restart("protocol", format!("a row of unknown relation {oid}")))
    }
}

/// Where a change stands, and in which transaction.
#[derive(Clone, Copy)]
struct At {
    position: WalPosition,
    xid: FullXid,
}

pub(super) enum RowChange<'a> {
    Insert(&'a Tuple),
    Update(Option<&'a OldTuple>, &'a Tuple),
    Delete(&'a OldTuple),
}

impl RowChange<'_> {
    pub(super) fn of(&self, columns: &ColumnMap) -> Result<RowOp, Unusable> {
        match self {
            RowChange::Insert(new) => columns.insert(new),
            RowChange::Update(old, new) => columns.update(*old, new),
            RowChange::Delete(old) => columns.delete(old),
        }
    }
}

impl Run {
    pub(super) async fn commit(&mut self, mut transaction: Transaction) -> Result<(), RunEnd> {
        let xid = self.xids.borrow().widen(transaction.xid);
        let following = self.progress.following;
        let budget = self.context.config.key_change_memory_bytes;
        let mut moves = KeyChanges::new(transaction.has_key_changes, budget);
        let end = transaction.end_lsn;
        let at = |ordinal| At {
            position: WalPosition::new(following.incarnation, end, ordinal),
            xid,
        };
        while let Some(row) = transaction.next_prepared() {
            let at = at(row.ordinal);
            self.route_row(at, row.collection, row.op, &mut moves)
                .await?;
        }
        while let Some((ordinal, message)) = transaction.next_message()? {
            let at = at(ordinal.unwrap_or(0));
            match &message {
                Message::Relation(relation) => self.take_relation(relation.clone()),
                Message::Insert { relation, new } => {
                    self.take_row(at, *relation, RowChange::Insert(new), &mut moves)
                        .await?;
                }
                Message::Update { relation, old, new } => {
                    let change = RowChange::Update(old.as_ref(), new);
                    self.take_row(at, *relation, change, &mut moves).await?;
                }
                Message::Delete { relation, old } => {
                    self.take_row(at, *relation, RowChange::Delete(old), &mut moves)
                        .await?;
                }
                Message::Truncate { relations } => {
                    for relation in relations {
                        self.truncate(at, *relation).await?;
                    }
                }
                Message::Type | Message::Origin | Message::Logical => {}
                Message::Begin { .. } | Message::Commit { .. } => {
                    return Err(RunEnd::restart("protocol", "a transaction within another"));
                }
            }
        }
        let changes = u64::from(transaction.changes());
        self.context
            .metrics
            .transaction(self.context.source, changes);
        Ok(())
    }

    pub(super) fn take_relation(&mut self, relation: Relation) {
        for id in self.router.collections_of_table(relation.oid) {
            self.tables.columns.remove(&id);
        }
        self.tables.relations.insert(relation.oid, relation);
    }

    async fn take_row(
        &mut self,
        at: At,
        relation: u32,
        change: RowChange<'_>,
        moves: &mut KeyChanges,
    ) -> Result<(), RunEnd> {
        if definitions::is_definitions(self.tables.relation(relation)?) {
            return self.define(at, relation, change).await;
        }
        for id in self.router.collections_of_table(relation) {
            let op = match self.column_map(id, relation).await? {
                Ok(columns) => change.of(columns),
                Err(unusable) => Err(unusable),
            };
            match op {
                Ok(op) => self.route_row(at, id, op, moves).await?,
                Err(Unusable(reason)) => self.fail_collection(id, &reason).await?,
            }
        }
        Ok(())
    }

    async fn route_row(
        &mut self,
        at: At,
        id: CollectionId,
        op: RowOp,
        moves: &mut KeyChanges,
    ) -> Result<(), RunEnd> {
        let changed = |change| PositionedChange {
            position: at.position,
            xid: at.xid,
            change,
        };
        match op {
            RowOp::Upsert { key, vector } => {
                moves.upserted(id, &key, &vector);
                self.router
                    .route(id, changed(Change::Upsert { key, vector }))
                    .await;
            }
            RowOp::Delete { key } => {
                moves.deleted(id, &key);
                self.router.route(id, changed(Change::Delete { key })).await;
            }
            RowOp::Move { old, new, vector } => {
                let vector = match vector {
                    VectorColumn::Unchanged => {
                        match self.resolve(at.position, id, &old, &new, moves).await? {
                            Resolved::Known(vector) => vector,
                            Resolved::Unusable(reason) => {
                                return self.fail_collection(id, &reason).await;
                            }
                        }
                    }
                    known => known,
                };
                moves.deleted(id, &old);
                moves.moved_here(id, &new, &vector);
                self.router
                    .route(id, changed(Change::Delete { key: old }))
                    .await;
                self.router
                    .route(id, changed(Change::Upsert { key: new, vector }))
                    .await;
            }
        }
        Ok(())
    }

    async fn truncate(&mut self, at: At, relation: u32) -> Result<(), RunEnd> {
        if definitions::is_definitions(self.tables.relation(relation)?) {
            for id in self
                .router
                .collections()
                .keys()
                .copied()
                .collect::<Vec<_>>()
            {
                let spec = self.router.collections()[&id].spec.clone();
                self.drop_index(spec.index_oid, spec.definition_generation)
                    .await?;
            }
            return Ok(());
        }
        for id in self.router.collections_of_table(relation) {
            let change = PositionedChange {
                position: at.position,
                xid: at.xid,
                change: Change::Truncate,
            };
            self.router.route(id, change).await;
        }
        Ok(())
    }

    pub(super) async fn column_map(
        &mut self,
        id: CollectionId,
        relation: u32,
    ) -> Result<Result<&ColumnMap, Unusable>, RunEnd> {
        if !self.tables.columns.contains_key(&id) {
            let live = live_columns(&self.sql, relation).await?;
            let spec = &self.router.collections()[&id].spec;
            match ColumnMap::new(self.tables.relation(relation)?, &live, spec) {
                Ok(map) => self.tables.columns.insert(id, map),
                Err(unusable) => return Ok(Err(unusable)),
            };
        }
        Ok(Ok(&self.tables.columns[&id]))
    }

    pub(super) async fn fail_collection(
        &mut self,
        id: CollectionId,
        reason: &str,
    ) -> Result<(), RunEnd> {
        coordination::give_up(&self.context, id, reason).await?;
        self.remove_collection(id);
        Ok(())
    }

    async fn define(&mut self, at: At, relation: u32, change: RowChange<'_>) -> Result<(), RunEnd> {
        // An index that cannot be told is none that may be forgotten.
        let unread = |error: anyhow::Error| {
            let at = at.position.commit_end;
            let problem =
                format!("an index's definition in the transaction that ends at {at}: {error:#}");
            RunEnd::Undecodable { at, problem }
        };
        let source = self.context.source;
        let described = self.tables.relation(relation)?;
        let created = match &change {
            RowChange::Insert(new) | RowChange::Update(_, new) => {
                Some(definitions::from_tuple(source, described, new).map_err(unread)?)
            }
            RowChange::Delete(_) => None,
        };
        let replaced = match &change {
            RowChange::Update(Some(old), _) | RowChange::Delete(old) => {
                Some(definitions::from_old_tuple(described, old.tuple()).map_err(unread)?)
            }
            _ => None,
        };
        if let Some((index_oid, generation)) = replaced {
            let is_same_index = created
                .as_ref()
                .is_some_and(|spec| spec.index_oid == index_oid);
            if !is_same_index {
                let generation = generation
                    .or_else(|| self.tables.generations.get(&index_oid).copied())
                    .or_else(|| self.highest_known_generation(index_oid));
                self.drop_index(index_oid, generation.unwrap_or(0)).await?;
            }
        }
        match created {
            Some(spec) => self.create_index(spec).await,
            None => Ok(()),
        }
    }

    fn highest_known_generation(&self, index_oid: u32) -> Option<u64> {
        let map = self.context.client.map();
        let of_index = map
            .collections
            .values()
            .filter(|c| c.spec.source == self.context.source && c.spec.index_oid == index_oid);
        of_index.map(|c| c.spec.definition_generation).max()
    }

    async fn create_index(&mut self, spec: CollectionSpec) -> Result<(), RunEnd> {
        let (index_oid, generation) = (spec.index_oid, spec.definition_generation);
        let highest = self.tables.generations.entry(index_oid).or_default();
        *highest = generation.max(*highest);
        if let Some(id) = coordination::create_collection(&self.context, &spec).await? {
            let source = self.context.source;
            let shows_outcome = |map: &PartitionMap| shows_creation(map, source, id, &spec);
            let map = coordination::wait_for_map(&self.context, shows_outcome).await?;
            if crate::feed::router::is_fed(&map, self.context.source, id) {
                self.add_collection(&map, id);
            }
        }
        // What a former definition held is void from here on.
        if let Some(former) = generation.checked_sub(1) {
            let has_former =
                self.router.collections().values().any(|c| {
                    c.spec.index_oid == index_oid && c.spec.definition_generation <= former
                });
            if has_former {
                self.drop_index(index_oid, former).await?;
            }
        }
        Ok(())
    }

    async fn drop_index(&mut self, index_oid: u32, generation: u64) -> Result<(), RunEnd> {
        coordination::drop_collection(&self.context, index_oid, generation).await?;
        let dropped: Vec<CollectionId> = self
            .router
            .collections()
            .iter()
            .filter(|(_, c)| {
                c.spec.index_oid == index_oid && c.spec.definition_generation <= generation
            })
            .map(|(id, _)| *id)
            .collect();
        // Who decides whether the table is still needed looks into the map.
        coordination::wait_for_map(&self.context, |map| {
            dropped.iter().all(|id| !map.collections.contains_key(id))
        })
        .await?;
        for id in dropped {
            self.remove_collection(id);
        }
        Ok(())
    }
}

/// Whether the map is of after the collection's creation. One that shows it may
/// have been skipped: then it shows what took its place.
fn shows_creation(
    map: &PartitionMap,
    source: SourceId,
    id: CollectionId,
    spec: &CollectionSpec,
) -> bool {
    let is_successor = |c: &Collection| {
        c.spec.source == source
            && c.spec.index_oid == spec.index_oid
            && c.spec.definition_generation > spec.definition_generation
    };
    map.collections.contains_key(&id)
        || map.collections.values().any(is_successor)
        || !map.sources.contains_key(&source)
}

/// The table's columns as the catalog lists them now; none once it is gone.
async fn live_columns(client: &Client, table_oid: u32) -> anyhow::Result<Vec<LiveColumn>> {
    let rows = client
        .query(
            "SELECT attnum, attname::text AS name, atttypid FROM pg_attribute \
             WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' \
             ORDER BY attnum",
            &[&table_oid],
        )
        .await
        .context("reading the table's columns")?;
    rows.iter()
        .map(|row| {
            Ok(LiveColumn {
                attnum: row.try_get("attnum")?,
                name: row.try_get("name")?,
                type_oid: row.try_get("atttypid")?,
            })
        })
        .collect()
}
