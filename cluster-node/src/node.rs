//! The node as a whole: what its parts share, and what it reports.

use crate::config::Config;
use crate::lease::Lease;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::partition::WriterContext;
use crate::partition::checkpoint::files::Checkpoints;
use crate::partition::replicas::Replicas;
use crate::query::Queries;
use crate::source::Sources;
use crate::storage::{Identity, Storage, StorageError};
use cluster_client::ClusterClient;
use cluster_core::ids::{Generation, MapVersion, NodeId, PartitionId};
use cluster_core::map::{PartitionMap, ReplicaState};
use parking_lot::RwLock;
use proto::v1;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;

pub struct Node {
    pub config: Config,
    pub metrics: Arc<Metrics>,
    pub storage: Arc<Storage>,
    pub sources: Arc<Sources>,
    pub replicas: Arc<Replicas>,
    pub lease: Lease,
    pub queries: Queries,
    pub memory: Arc<Memory>,
    apply_memory: ApplyMemory,
    /// Copies that may be sent to other nodes at once.
    pub checkpoints: Arc<Semaphore>,
    /// Absent in tests, which hand the map in.
    pub client: Option<ClusterClient>,
    map: watch::Receiver<Arc<PartitionMap>>,
    identity: RwLock<Option<Identity>>,
}

/// The memory of batches that wait, counted in KiB.
struct ApplyMemory {
    free: Arc<Semaphore>,
    total: u32,
}

impl ApplyMemory {
    fn new(bytes_max: usize) -> Self {
        let total = u32::try_from(bytes_max / 1024).unwrap_or(u32::MAX).max(1);
        Self {
            free: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// A batch larger than the whole waits until it is alone.
    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let share = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let taken = self.free.clone().acquire_many_owned(share.min(self.total));
        taken.await.expect("the semaphore is never closed")
    }
}

impl Node {
    /// Opens the disk; recovers nothing yet.
    pub fn open(
        config: Config,
        metrics: Arc<Metrics>,
        map: watch::Receiver<Arc<PartitionMap>>,
        client: Option<ClusterClient>,
    ) -> Result<Self, StorageError> {
        let path = config.data_dir.join("db");
        let storage = Arc::new(Storage::open(&path, &config.storage, metrics.clone())?);
        let sources = Arc::new(Sources::new(storage.clone()));
        let memory = Arc::new(Memory::of_process(config.memory_limit_bytes));
        let context = WriterContext {
            storage: storage.clone(),
            metrics: metrics.clone(),
            memory: memory.clone(),
            config: config.apply.clone(),
            checkpoints: Arc::new(Checkpoints::new(config.data_dir.join("checkpoints"))),
        };
        Ok(Self {
            replicas: Arc::new(Replicas::new(context, sources.clone())),
            lease: Lease::new(config.epoch_grace_ms),
            queries: Queries::new(&config.search),
            memory,
            apply_memory: ApplyMemory::new(config.apply.waiting_bytes_max),
            checkpoints: Arc::new(Semaphore::new(config.checkpoints_max)),
            identity: RwLock::new(storage.identity()?),
            config,
            metrics,
            storage,
            sources,
            client,
            map,
        })
    }

    /// Waits until a batch of so many bytes may wait for its writer.
    pub async fn apply_memory(&self, bytes: usize) -> OwnedSemaphorePermit {
        self.apply_memory.take(bytes).await
    }

    pub fn map(&self) -> Arc<PartitionMap> {
        self.map.borrow().clone()
    }

    /// What this node's assignment of a partition is in the map that it knows.
    pub fn assigned(&self, partition: PartitionId, generation: Generation) -> Option<ReplicaState> {
        let map = self.map();
        let replica = map.held_partition(partition)?.replica_on(self.id()?)?;
        (replica.generation == generation).then_some(replica.state)
    }

    pub fn watch_map(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.map.clone()
    }

    pub fn identity(&self) -> Option<Identity> {
        self.identity.read().clone()
    }

    pub fn id(&self) -> Option<NodeId> {
        let identity = self.identity.read();
        Some(identity.as_ref()?.member.as_ref()?.0)
    }

    /// Remembers who the node is, durably first. Blocks on the disk.
    pub fn set_identity(&self, identity: Identity) -> Result<(), StorageError> {
        self.storage.put_identity(&identity)?;
        *self.identity.write() = Some(identity);
        Ok(())
    }

    pub fn map_version(&self) -> MapVersion {
        self.map.borrow().version
    }

    /// ESTALE with what this node knows.
    pub fn estale(&self, reason: &'static str, message: impl Into<String>) -> Status {
        self.metrics.refused_estale(reason);
        proto::error::estale(message, self.lease.epoch(), self.map_version())
    }

    pub fn report(&self) -> v1::NodeReport {
        // The map first: what it takes away is not answered from here on.
        let map = self.map();
        let replicas = self.replicas.all();
        let mut partitions: Vec<_> = replicas
            .iter()
            .map(|replica| {
                let live = replica.live();
                let watermarks = replica.standing().watermarks;
                v1::PartitionReport {
                    partition_id: replica.id.partition.0,
                    generation: replica.id.generation.0,
                    applied: Some(watermarks.applied.into()),
                    durable: Some(watermarks.durable.into()),
                    rows: replica.rows(),
                    former_versions: replica.former_versions(),
                    tail_rows: live.index().tail_len() as u64,
                    pending_rows: replica.pending_rows(),
                    memory_bytes: live.memory_bytes() as u64,
                    problem: replica.reported_problem().unwrap_or_default(),
                    waits_for: replica
                        .folding_wait()
                        .map_or_else(String::new, |full| full.to_string()),
                    learner: replica
                        .learner_progress()
                        .map(|progress| v1::LearnerProgress {
                            is_stuck: replica.is_quarantined(),
                            ..progress.into()
                        }),
                }
            })
            .collect();
        let unreadable = self.replicas.unreadable();
        partitions.extend(
            unreadable
                .into_iter()
                .map(|(id, problem)| v1::PartitionReport {
                    partition_id: id.0,
                    problem,
                    ..Default::default()
                }),
        );
        v1::NodeReport {
            memory_bytes: partitions.iter().map(|p| p.memory_bytes).sum(),
            memory_used_bytes: self.memory.used_bytes(),
            memory_limit_bytes: self.memory.limit_bytes(),
            memory_pressure: self.memory.pressure().name().to_owned(),
            partitions,
            disk_bytes: self.storage.disk_bytes(),
            is_plaintext: self.config.transport.is_plaintext(),
            searches_total: self.metrics.searches.get(),
            estale_total: self.metrics.estale_total(),
            allows_plaintext_off_loopback: self.config.transport.allow_plaintext_off_loopback,
            epoch: map.epoch.0,
            map_version: map.version.0,
        }
    }
}
