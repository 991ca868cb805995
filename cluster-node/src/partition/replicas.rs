//! The replicas that this node holds: created, recovered, found, stopped.

use super::checkpoint::restore::restore;
use super::checkpoint::take::Taking;
use super::index_state::{IndexState, PublishError};
use super::job::InHand;
use super::learning::Learning;
use super::replica::{Replica, ReplicaId};
use super::writer::{Writer, WriterContext};
use crate::config::cores;
use crate::memory::OutOfMemory;
use crate::source::{Source, Sources};
use crate::storage::{LearnerRecord, PartitionMeta, StorageError, WriteSet};
use cluster_core::apply::StoredVector;
use cluster_core::collection::Metric;
use cluster_core::ids::{Generation, PartitionId, SourceId};
use cluster_core::learner::Learner;
use cluster_core::memory::MemoryPressure;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use index_engine::{IndexError, IndexParams};
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashSet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Rows that recovery loads between two looks at the memory.
const MEMORY_LOOK_ROWS: usize = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("index: {0}")]
    Index(#[from] IndexError),
    #[error("no thread for the partition's writer: {0}")]
    Thread(#[from] std::io::Error),
}

pub struct Replicas {
    context: WriterContext,
    sources: Arc<Sources>,
    held: RwLock<BTreeMap<PartitionId, Arc<Replica>>>,
    /// Partitions whose very description is corrupt, and why.
    unreadable: Mutex<BTreeMap<PartitionId, String>>,
    created: watch::Sender<u64>,
}

/// A partition's memory as recovery rebuilt it, and what it stumbled over.
struct Loaded {
    index: IndexState,
    pending: BTreeSet<RowKey>,
    problem: Option<String>,
    learning: Option<Learning>,
    taking: Taking,
}

fn index_params(meta: &PartitionMeta) -> IndexParams {
    IndexParams {
        metric: match meta.metric {
            Metric::L2 => index_engine::Metric::L2,
            Metric::Cosine => index_engine::Metric::Cosine,
            Metric::InnerProduct => index_engine::Metric::InnerProduct,
        },
        dimensions: meta.dimensions as usize,
        m: meta.m as usize,
        ef_construction: meta.ef_construction as usize,
        ..IndexParams::default()
    }
}

impl Replicas {
    pub fn new(context: WriterContext, sources: Arc<Sources>) -> Self {
        Self {
            context,
            sources,
            held: RwLock::default(),
            unreadable: Mutex::default(),
            created: watch::Sender::new(0),
        }
    }

    pub fn get(&self, partition: PartitionId) -> Option<Arc<Replica>> {
        self.held.read().get(&partition).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Replica>> {
        self.held.read().values().cloned().collect()
    }

    pub fn of_source(&self, source: SourceId) -> Vec<Arc<Replica>> {
        let held = self.held.read();
        held.values()
            .filter(|replica| replica.id.source == source)
            .cloned()
            .collect()
    }

    pub fn unreadable(&self) -> BTreeMap<PartitionId, String> {
        self.unreadable.lock().clone()
    }

    /// The replica, once the assignment that a caller has seen arrives here too.
    pub async fn wait_for(&self, partition: PartitionId, wait: Duration) -> Option<Arc<Replica>> {
        self.wait_until_held(partition, Generation(0), wait).await
    }

    /// The replica of an assignment; `None` at once if a later one is held.
    pub async fn wait_for_generation(
        &self,
        partition: PartitionId,
        generation: Generation,
        wait: Duration,
    ) -> Option<Arc<Replica>> {
        let held = self.wait_until_held(partition, generation, wait).await;
        held.filter(|replica| replica.id.generation == generation)
    }

    async fn wait_until_held(
        &self,
        partition: PartitionId,
        at_least: Generation,
        wait: Duration,
    ) -> Option<Arc<Replica>> {
        let mut created = self.created.subscribe();
        let arrives = async {
            loop {
                let held = self.get(partition);
                if let Some(replica) = held.filter(|held| held.id.generation >= at_least) {
                    return Some(replica);
                }
                created.changed().await.ok()?;
            }
        };
        tokio::time::timeout(wait, arrives).await.ok().flatten()
    }

    /// Makes an empty replica, durably; a learner waits to be attached. Blocks on
    /// the disk.
    pub fn create(
        &self,
        partition: PartitionId,
        meta: PartitionMeta,
        is_learner: bool,
    ) -> Result<(), ReplicaError> {
        let index = IndexState::new(index_params(&meta))?;
        let source = self.sources.get(meta.source)?;
        let mut set = WriteSet::default();
        // What an interrupted removal may have left is not this assignment's.
        set.drop_partition(partition);
        set.put_meta(partition, &meta);
        set.put_watermark(partition, WalPosition::ZERO);
        if is_learner {
            set.put_learner(partition, &LearnerRecord::default());
        }
        self.context.storage.commit(set)?;
        self.context.checkpoints.remove(partition);
        let loaded = Loaded {
            index,
            pending: BTreeSet::new(),
            problem: None,
            learning: is_learner.then(Learning::default),
            taking: Taking::nothing(0),
        };
        self.start(partition, meta, source, WalPosition::ZERO, loaded)
    }

    /// Loads every partition of the disk, several at once. Blocks. A corrupt one
    /// is quarantined; the others are served.
    pub fn recover(&self) -> Result<(), StorageError> {
        let held = self.context.storage.partition_ids()?;
        self.context.checkpoints.keep_partitions(&held);
        let waiting = Mutex::new(held);
        std::thread::scope(|scope| {
            for _ in 0..cores() {
                scope.spawn(|| {
                    // Not `while let`: it would hold the lock during the load.
                    loop {
                        let Some(partition) = waiting.lock().pop() else {
                            return;
                        };
                        if let Err(error) = self.recover_one(partition) {
                            let reason = error.to_string();
                            tracing::error!(%partition, reason, "partition cannot be read");
                            self.unreadable.lock().insert(partition, reason);
                        }
                    }
                });
            }
        });
        Ok(())
    }

    fn recover_one(&self, partition: PartitionId) -> Result<(), ReplicaError> {
        let corrupt = |what: &str| {
            let key = partition.0.to_be_bytes();
            StorageError::Corrupt(crate::storage::Corrupt::new(&key, what))
        };
        let meta = self.context.storage.meta(partition)?;
        let meta = meta.ok_or_else(|| corrupt("the partition's description is missing"))?;
        let source = self.sources.get(meta.source)?;
        let watermark = self.context.storage.watermark(partition);
        let durable = watermark.as_ref().ok().copied().flatten();
        let mut loaded = self.load(partition, &meta, durable)?;
        match self.load_learning(partition) {
            Ok(learning) => loaded.learning = learning,
            Err(error) => drop(loaded.problem.get_or_insert(error.to_string())),
        }
        let watermark = match watermark {
            Ok(Some(watermark)) => watermark,
            Ok(None) => {
                let missing = corrupt("the watermark is missing").to_string();
                loaded.problem.get_or_insert(missing);
                WalPosition::ZERO
            }
            Err(error) => {
                loaded.problem.get_or_insert(error.to_string());
                WalPosition::ZERO
            }
        };
        let is_learner = loaded.learning.is_some();
        let (rows, tail) = (loaded.index.rows(), loaded.index.live().index().tail_len());
        tracing::info!(%partition, rows, tail, %watermark, is_learner, "partition recovered");
        self.start(partition, meta, source, watermark, loaded)
    }

    fn load(
        &self,
        partition: PartitionId,
        meta: &PartitionMeta,
        durable: Option<WalPosition>,
    ) -> Result<Loaded, IndexError> {
        let mut loaded = Loaded {
            index: IndexState::new(index_params(meta))?,
            pending: BTreeSet::new(),
            problem: None,
            learning: None,
            taking: Taking::nothing(0),
        };
        if let Err(error) = self.fill(partition, meta, durable, &mut loaded) {
            loaded.problem = Some(error.to_string());
            // It answers nothing, and others may need the memory.
            loaded.index = IndexState::new(index_params(meta))?;
        }
        Ok(loaded)
    }

    /// What the disk remembers of a learner; its rows are loaded as any.
    fn load_learning(&self, partition: PartitionId) -> Result<Option<Learning>, StorageError> {
        let storage = &self.context.storage;
        let Some(record) = storage.learner(partition)? else {
            return Ok(None);
        };
        let log_end = storage.log_end(partition)?.unwrap_or(WalPosition::ZERO);
        let log = record.attached_from.map(|from| (from, log_end.max(from)));
        Ok(Some(Learning {
            learner: Learner::restored(log, record.copied),
            rows_copied: record.rows_copied,
            bytes_copied: record.bytes_copied,
            log: storage.measure_log(partition)?,
            ..Learning::default()
        }))
    }

    /// From a checkpoint and what changed since, or from all rows.
    fn fill(
        &self,
        partition: PartitionId,
        meta: &PartitionMeta,
        durable: Option<WalPosition>,
        loaded: &mut Loaded,
    ) -> Result<(), LoadError> {
        self.has_room()?;
        let restored = match durable {
            Some(durable) => restore(&self.context, partition, meta, &index_params(meta), durable)?,
            None => None,
        };
        match restored {
            Some(restored) => {
                loaded.index = restored.index;
                loaded.pending = restored.pending.into_iter().collect();
                loaded.taking = self.catch_up(partition, restored.number, loaded)?;
            }
            None => {
                self.add_rows(partition, loaded)?;
                loaded.taking = Taking::nothing(loaded.index.rows() as u64);
            }
        }
        for entry in self.context.storage.formers(partition) {
            let (key, former) = entry?;
            loaded
                .index
                .add_former(key, former.ended, former.ended_xid, &former.vector)?;
        }
        Ok(())
    }

    /// Corrects the rows that changed after a checkpoint began.
    fn catch_up(
        &self,
        partition: PartitionId,
        number: u64,
        loaded: &mut Loaded,
    ) -> Result<Taking, LoadError> {
        let storage = &self.context.storage;
        let (mut begun, mut corrected) = (number, FxHashSet::default());
        for entry in storage.changed_since(partition, number) {
            if corrected.len() % MEMORY_LOOK_ROWS == 0 {
                self.has_room()?;
            }
            let (since, key) = entry?;
            begun = begun.max(since);
            if !corrected.insert(key.clone()) {
                continue;
            }
            let row = storage.row(partition, &key)?;
            let (vector, is_pending) = match row.map(|row| row.vector) {
                Some(StoredVector::Value(vector)) => (Some(vector), false),
                Some(StoredVector::Pending) => (None, true),
                None => (None, false),
            };
            loaded.index.correct_row(&key, vector.as_deref())?;
            match is_pending {
                true => loaded.pending.insert(key),
                false => loaded.pending.remove(&key),
            };
        }
        let changed = corrected.len() as u64;
        tracing::info!(%partition, number, changed, "rows that changed since the checkpoint");
        Ok(Taking::loaded(number, begun, changed))
    }

    fn add_rows(&self, partition: PartitionId, loaded: &mut Loaded) -> Result<(), LoadError> {
        for (n, entry) in self.context.storage.rows(partition).enumerate() {
            if n % MEMORY_LOOK_ROWS == 0 {
                self.has_room()?;
            }
            let (key, row) = entry?;
            match row.vector {
                StoredVector::Value(vector) => loaded.index.add_row(key, &vector)?,
                StoredVector::Pending => drop(loaded.pending.insert(key)),
            }
        }
        Ok(())
    }

    /// A node that was killed for its memory must not be killed again while it starts.
    fn has_room(&self) -> Result<(), OutOfMemory> {
        self.context.memory.look();
        match self.context.memory.refuses_at(MemoryPressure::Full) {
            Some(full) => Err(full),
            None => Ok(()),
        }
    }

    fn start(
        &self,
        partition: PartitionId,
        meta: PartitionMeta,
        source: Arc<Source>,
        watermark: WalPosition,
        loaded: Loaded,
    ) -> Result<(), ReplicaError> {
        let (sender, jobs) = mpsc::channel(self.context.config.queue_max);
        let id = ReplicaId {
            partition,
            generation: meta.generation,
            collection: meta.collection,
            source: meta.source,
            dimensions: meta.dimensions as usize,
        };
        let live = loaded.index.live().clone();
        let tail = live.index().tail_len();
        let replica = Arc::new(Replica::new(id, source, watermark, live, sender));
        replica.recovered_rows.store(tail, Ordering::Relaxed);
        *replica.pending.lock() = loaded.pending;
        replica.set_learning(loaded.learning);
        replica.set_trusted_from(meta.trusted_from);
        if let Some(problem) = loaded.problem {
            replica.quarantine(problem);
        }
        let writer = Writer {
            replica: replica.clone(),
            context: self.context.clone(),
            meta,
            index: loaded.index,
            jobs,
            taking: loaded.taking,
            replayed: WalPosition::ZERO,
            swept: None,
            sweeping: None,
            in_hand: InHand::default(),
        };
        let changed = writer.taking.changed_rows();
        replica.changed_rows.store(changed, Ordering::Relaxed);
        writer.show_index();
        std::thread::Builder::new()
            .name(format!("writer-{}", partition.0))
            .spawn(move || writer.run())?;
        self.held.write().insert(partition, replica);
        self.created.send_modify(|n| *n = n.wrapping_add(1));
        Ok(())
    }

    /// Stops a replica and deletes its data. Streams that fed it are superseded:
    /// what they say next must not count for a later replica of the partition.
    pub async fn remove(&self, partition: PartitionId) -> Result<(), StorageError> {
        let removed = self.held.write().remove(&partition);
        if let Some(replica) = removed {
            replica.source.next_stream();
            replica.source.notify();
            replica.stop().await;
        }
        let storage = self.context.storage.clone();
        let checkpoints = self.context.checkpoints.clone();
        let dropped = tokio::task::spawn_blocking(move || {
            let mut set = WriteSet::default();
            set.drop_partition(partition);
            let dropped = storage.commit(set);
            checkpoints.remove(partition);
            dropped
        });
        dropped
            .await
            .expect("dropping a partition does not panic")?;
        self.unreadable.lock().remove(&partition);
        Ok(())
    }

    /// Ends every writer; what they have committed stays.
    pub async fn stop_all(&self) {
        for replica in self.all() {
            replica.stop().await;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}
