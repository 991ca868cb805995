//! The rows on a stopped node's disk, to be made what no stream made them. Records are
//! the node's own, checksums and all: nothing but a comparison with the heap tells.

use anyhow::{Context, Result};
use cluster_core::apply::{StoredRow, StoredVector};
use cluster_core::ids::PartitionId;
use cluster_core::row_key::RowKey;
use cluster_node::metrics::Metrics;
use cluster_node::storage::{Storage, StorageConfig, WriteSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct ReplicaDisk {
    storage: Storage,
    partitions: Vec<PartitionId>,
}

impl ReplicaDisk {
    /// Of the partitions named. The node must not run.
    pub fn open(data_dir: &Path, partitions: Vec<PartitionId>) -> Result<Self> {
        let metrics = Arc::new(Metrics::default());
        // The process may be about to end, and its lock with it.
        let deadline = Instant::now() + Duration::from_secs(10);
        let db = data_dir.join("db");
        let storage = loop {
            match Storage::open(&db, &StorageConfig::default(), metrics.clone()) {
                Ok(storage) => break storage,
                Err(locked) if Instant::now() > deadline => return Err(locked.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        Ok(Self {
            storage,
            partitions,
        })
    }

    /// The row and the partition that holds it.
    pub fn row(&self, key: &RowKey) -> Result<(PartitionId, StoredRow)> {
        for partition in &self.partitions {
            if let Some(row) = self.storage.row(*partition, key)? {
                return Ok((*partition, row));
            }
        }
        anyhow::bail!("no partition holds {key:?}")
    }

    pub fn delete(&self, key: &RowKey) -> Result<()> {
        let (partition, _) = self.row(key)?;
        let mut set = WriteSet::default();
        set.delete_row(partition, key);
        self.storage.commit(set).context("deleting a row")
    }

    /// Deletes every row of a partition but its first and its last; says how many.
    pub fn gut(&self, partition: PartitionId) -> Result<usize> {
        let keys: Vec<RowKey> = self
            .storage
            .rows(partition)
            .map(|row| Ok(row?.0))
            .collect::<Result<_>>()?;
        let inner = keys
            .get(1..keys.len().saturating_sub(1))
            .unwrap_or_default();
        let mut set = WriteSet::default();
        inner.iter().for_each(|key| set.delete_row(partition, key));
        self.storage.commit(set).context("deleting rows")?;
        Ok(inner.len())
    }

    /// Turns one component of the vector.
    pub fn alter(&self, key: &RowKey) -> Result<()> {
        let (partition, mut row) = self.row(key)?;
        let StoredVector::Value(vector) = &mut row.vector else {
            anyhow::bail!("{key:?} is pending");
        };
        vector[0] = -vector[0];
        self.put(partition, key, &row)
    }

    /// Gives another key, whose partition it must be, a copy of a row.
    pub fn add(&self, key: &RowKey, partition: PartitionId, like: &StoredRow) -> Result<()> {
        self.put(partition, key, like)
    }

    fn put(&self, partition: PartitionId, key: &RowKey, row: &StoredRow) -> Result<()> {
        let mut set = WriteSet::default();
        set.put_row(partition, key, row);
        self.storage.commit(set).context("writing a row")
    }
}
