//! A key change whose vector is out of line and untouched: the value stands
//! neither in the new tuple nor in the key-only old one. It is found, in this
//! order, among the transaction's earlier changes of the row; at a replica, as
//! the row stood before this position; in the table itself. The latter may be
//! newer than this position, and the stream will then say so again.

use super::run::Run;
use super::slot_limit;
use crate::backfill::reread;
use crate::feed::progress::RunEnd;
use cluster_core::change::VectorColumn;
use cluster_core::ids::{CollectionId, NodeId, PartitionId};
use cluster_core::map::ReplicaState;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use proto::v1;
use proto::v1::fetch_row_response::Found;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// What a remembered row costs beyond key and vector.
const ROW_OVERHEAD_BYTES: usize = 128;
/// How often replicas are looked at again while none can be asked.
const REPLICA_POLL: Duration = Duration::from_millis(200);

pub enum Resolved {
    Known(VectorColumn),
    Unusable(String),
}

/// What one transaction has said of the rows that it touched; only kept for
/// transactions that change keys.
pub struct KeyChanges {
    is_needed: bool,
    bytes_left: usize,
    /// Once the budget is spent, nothing is known of what was touched.
    is_complete: bool,
    /// `None`: gone, NULL, or not known.
    rows: HashMap<(CollectionId, RowKey), Option<Box<[f32]>>>,
    /// Partitions whose replica has applied all that came before.
    synced: HashSet<PartitionId>,
}

impl KeyChanges {
    pub fn new(is_needed: bool, budget_bytes: usize) -> Self {
        Self {
            is_needed,
            bytes_left: budget_bytes,
            is_complete: true,
            rows: HashMap::new(),
            synced: HashSet::new(),
        }
    }

    pub fn upserted(&mut self, id: CollectionId, key: &RowKey, vector: &VectorColumn) {
        match vector {
            // Asked here too, for nobody shall copy what is not kept.
            VectorColumn::Value(_) if !self.is_kept() => {}
            VectorColumn::Value(value) => self.remember(id, key, Some(value.clone())),
            VectorColumn::Null => self.remember(id, key, None),
            VectorColumn::Unchanged => {}
        }
    }

    pub fn moved_here(&mut self, id: CollectionId, key: &RowKey, vector: &VectorColumn) {
        match vector {
            VectorColumn::Unchanged => self.remember(id, key, None),
            known => self.upserted(id, key, known),
        }
    }

    pub fn deleted(&mut self, id: CollectionId, key: &RowKey) {
        self.remember(id, key, None);
    }

    fn is_kept(&self) -> bool {
        self.is_needed && self.is_complete
    }

    fn remember(&mut self, id: CollectionId, key: &RowKey, value: Option<Box<[f32]>>) {
        if !self.is_kept() {
            return;
        }
        let vector_bytes = value.as_ref().map_or(0, |v| v.len() * 4);
        let bytes = ROW_OVERHEAD_BYTES + key.as_bytes().len() + vector_bytes;
        match self.bytes_left.checked_sub(bytes) {
            Some(left) => {
                self.bytes_left = left;
                self.rows.insert((id, key.clone()), value);
            }
            None => {
                self.is_complete = false;
                self.rows = HashMap::new();
                self.synced.clear();
            }
        }
    }

    /// The outer `None`: the transaction has not touched the row, as far as it
    /// remembers.
    fn recall(&self, id: CollectionId, key: &RowKey) -> Option<Option<Box<[f32]>>> {
        self.rows.get(&(id, key.clone())).cloned()
    }
}

impl Run {
    pub(super) async fn resolve(
        &mut self,
        position: WalPosition,
        id: CollectionId,
        old: &RowKey,
        new: &RowKey,
        moves: &mut KeyChanges,
    ) -> Result<Resolved, RunEnd> {
        if let Some(Some(value)) = moves.recall(id, old) {
            return Ok(Resolved::Known(VectorColumn::Value(value)));
        }
        let Some(partition) = self.router.partition_for(id, old.placement_hash()) else {
            return Ok(Resolved::Known(VectorColumn::Unchanged));
        };
        let partition = partition.id;
        // Whatever the transaction did to this very key is remembered unless
        // the budget was spent: then its changes must be applied first.
        if !moves.is_complete || moves.synced.insert(partition) {
            self.router.flush_within(partition).await;
        }
        let before = self.router.sent_to(partition);
        if let Some(value) = self.fetch_row(position, partition, old, before).await? {
            return Ok(Resolved::Known(VectorColumn::Value(value)));
        }
        let Some(spec) = self.router.collections().get(&id).map(|c| c.spec.clone()) else {
            return Ok(Resolved::Known(VectorColumn::Unchanged));
        };
        match reread::current(&self.sql, &spec, std::slice::from_ref(new)).await {
            Ok(rows) => Ok(Resolved::Known(match rows.into_iter().next() {
                Some(row) => VectorColumn::Value(row.vector),
                None => VectorColumn::Unchanged,
            })),
            Err(reread::RereadError::Unusable(reason)) => Ok(Resolved::Unusable(reason)),
            Err(reread::RereadError::Retry(error)) => Err(error.into()),
        }
    }

    /// Asks the serving replicas that have applied `before`, waiting until one has,
    /// or until it is not to be waited for. Which serve may change meanwhile, though
    /// the router has not followed.
    async fn fetch_row(
        &self,
        position: WalPosition,
        partition: PartitionId,
        key: &RowKey,
        before: WalPosition,
    ) -> Result<Option<Box<[f32]>>, RunEnd> {
        let request = v1::FetchRowRequest {
            partition_id: partition.0,
            key: bytes::Bytes::copy_from_slice(key.as_bytes()),
            before: Some(position.into()),
        };
        let call_timeout = Duration::from_millis(self.context.config.call_timeout_ms);
        let mut changed = self.progress.watch();
        loop {
            // Split or dropped meanwhile: the router cannot follow while it waits
            // here, and nobody else will answer.
            let Some(serving) = self.serving(partition) else {
                let detail = format!("{partition} went while a key changed in it");
                return Err(RunEnd::restart("map_changed", detail));
            };
            let has_nobody = serving.is_empty();
            for node in serving {
                let Some(feed) = self.router.feed(node) else {
                    continue;
                };
                if !feed.is_up() || feed.applied(partition) < before {
                    continue;
                }
                let Ok(mut client) = self.context.client.node(node) else {
                    continue;
                };
                let call = client.fetch_row(request.clone());
                match tokio::time::timeout(call_timeout, call).await {
                    Ok(Ok(answer)) => {
                        let answer = answer.into_inner();
                        return Ok(match answer.found() {
                            Found::Value => proto::convert::vector_from_bytes(&answer.vector).ok(),
                            Found::Pending | Found::Nothing | Found::Unspecified => None,
                        });
                    }
                    Ok(Err(status)) => {
                        tracing::warn!(%node, %partition, problem = status.message(), "row before a key change not to be had");
                    }
                    Err(_) => tracing::warn!(%node, %partition, "FetchRow timed out"),
                }
            }
            // Waiting here would hold the slot for a replica that is to be passed.
            if has_nobody || slot_limit::is_exceeded(&self.context) {
                tracing::warn!(%partition, "no replica has the row before a key change: the table is read instead");
                return Ok(None);
            }
            let _ = tokio::time::timeout(REPLICA_POLL, changed.changed()).await;
        }
    }

    /// Learners do not hold what came before, and may not know that they do not.
    /// `None`: the partition is no more.
    fn serving(&self, partition: PartitionId) -> Option<Vec<NodeId>> {
        let map = self.context.client.map();
        let serving = map
            .partitions
            .get(&partition)?
            .in_state(ReplicaState::Serving);
        Some(serving.map(|replica| replica.node).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const C: CollectionId = CollectionId(1);

    fn key(k: u8) -> RowKey {
        RowKey::from_columns([[k].as_slice()]).unwrap()
    }

    fn value(x: f32) -> VectorColumn {
        VectorColumn::Value(vec![x].into())
    }

    #[test]
    fn insert_then_partial_update_then_key_change_keeps_the_inserted_vector() {
        let mut moves = KeyChanges::new(true, 1 << 20);
        moves.upserted(C, &key(1), &value(5.0));
        moves.upserted(C, &key(1), &VectorColumn::Unchanged);
        assert_eq!(moves.recall(C, &key(1)), Some(Some(vec![5.0].into())));
        moves.deleted(C, &key(1));
        moves.moved_here(C, &key(2), &value(5.0));
        assert_eq!(moves.recall(C, &key(1)), Some(None));
        assert_eq!(moves.recall(C, &key(2)), Some(Some(vec![5.0].into())));
        assert_eq!(moves.recall(C, &key(3)), None);
    }

    #[test]
    fn p10_beyond_its_budget_nothing_is_remembered_and_that_is_known() {
        let mut moves = KeyChanges::new(true, 200);
        moves.upserted(C, &key(1), &value(5.0));
        moves.upserted(C, &key(2), &value(5.0));
        assert!(!moves.is_complete);
        assert_eq!(moves.recall(C, &key(1)), None);
    }
}
