//! The index that a restart begins with: that of the checkpoint which the database names.

use super::file::{self, Unusable};
use crate::config::cores;
use crate::partition::index_state::IndexState;
use crate::partition::writer::WriterContext;
use crate::storage::{PartitionMeta, StorageError, WriteSet};
use cluster_core::ids::PartitionId;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use index_engine::IndexParams;
use std::time::Instant;

/// An index as it was when the checkpoint began.
pub struct Restored {
    pub number: u64,
    pub index: IndexState,
    pub pending: Vec<RowKey>,
}

/// `None`: the index is to be built from the rows. `watermark` is the durable one.
pub fn restore(
    context: &WriterContext,
    partition: PartitionId,
    meta: &PartitionMeta,
    params: &IndexParams,
    watermark: WalPosition,
) -> Result<Option<Restored>, StorageError> {
    let (storage, checkpoints) = (&context.storage, &context.checkpoints);
    let named = storage.checkpoint(partition);
    let restored = match &named {
        Ok(Some(number)) => read(context, partition, meta, params, (*number, watermark)).map(Some),
        Ok(None) => Ok(None),
        Err(error) => Err(Unusable::Foreign(error.to_string())),
    };
    let restored = restored.unwrap_or_else(|why| {
        let number = named.ok().flatten().unwrap_or_default();
        let aside = checkpoints.put_aside(partition, number);
        context.metrics.checkpoints_unusable.inc();
        let aside = aside.display();
        tracing::error!(%partition, number, %why, %aside, "checkpoint is not usable: put aside, building the index from its rows");
        None
    });
    let number = restored.as_ref().map(|restored| restored.number);
    if number.is_none() {
        // Whatever was noted belongs to no checkpoint that is named.
        let mut set = WriteSet::default();
        set.drop_checkpoint(partition);
        storage.commit_lazily(set)?;
    }
    checkpoints.keep_only(partition, number);
    Ok(restored)
}

fn read(
    context: &WriterContext,
    partition: PartitionId,
    meta: &PartitionMeta,
    params: &IndexParams,
    (number, watermark): (u64, WalPosition),
) -> Result<Restored, Unusable> {
    let began = Instant::now();
    let path = context.checkpoints.path(partition, number);
    let (index, contents) = file::read(&path, partition, params, cores())?;
    let is_ours = (contents.generation, contents.number) == (meta.generation, number);
    if !is_ours || contents.watermark > watermark {
        return Err(Unusable::Foreign(format!(
            "it is number {} of {:?} at {}, not number {number} of {:?} at {watermark} or before",
            contents.number, contents.generation, contents.watermark, meta.generation,
        )));
    }
    let (rows, tail) = (contents.rows.len(), index.tail_len());
    let took_ms = began.elapsed().as_millis() as u64;
    tracing::info!(%partition, number, rows, tail, watermark = %contents.watermark, took_ms, "checkpoint loaded");
    Ok(Restored {
        number,
        index: IndexState::restored(params.clone(), index, contents.rows),
        pending: contents.pending,
    })
}
