//! A node on a temporary disk, for tests: no coordinators, the map handed in.
#![allow(clippy::unwrap_used)]

use crate::clock::boot_ms;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::partition::job::{CopyStep, Gap, Job, OnHole, StreamGaps};
use crate::partition::replica::Replica;
use crate::query::search::{Page, PageOf, Search};
use crate::storage::{Identity, RawRecord};
use cluster_core::backfill::BackfillMark;
use cluster_core::change::{BackfillRow, Batch, Change, PositionedChange, VectorColumn};
use cluster_core::collection::{
    BackfillSnapshot, Collection, CollectionSpec, CollectionState, Metric,
};
use cluster_core::ids::*;
use cluster_core::learner::CopyKey;
use cluster_core::map::{
    HashRange, Partition, PartitionMap, Replica as Assigned, ReplicaState, Source,
};
use cluster_core::reconcile::SeenPublished;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_core::xid::FullXid;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

pub const PARTITION: PartitionId = PartitionId(3);
pub const NODE: NodeId = NodeId(7);
pub const LEARNER: NodeId = NodeId(8);
pub const ALL_XIDS: FullXid = 1;
pub const CURRENT: FullXid = u64::MAX;

/// The end of the transaction that commits at `lsn`.
pub fn end(lsn: u64) -> WalPosition {
    WalPosition::end_of(Incarnation(1), Lsn(lsn))
}

pub fn key(n: u32) -> RowKey {
    RowKey::from_columns([n.to_be_bytes().as_slice()]).unwrap()
}

pub fn upsert(n: u32, vector: [f32; 2]) -> Change {
    Change::Upsert {
        key: key(n),
        vector: VectorColumn::Value(vector.into()),
    }
}

pub fn unchanged(n: u32) -> Change {
    Change::Upsert {
        key: key(n),
        vector: VectorColumn::Unchanged,
    }
}

pub fn delete(n: u32) -> Change {
    Change::Delete { key: key(n) }
}

pub fn row(n: u32, vector: [f32; 2]) -> BackfillRow {
    BackfillRow {
        key: key(n),
        vector: vector.into(),
    }
}

/// A transaction that commits at `to`, with xid `to`.
pub fn batch(previous: u64, to: u64, changes: Vec<Change>) -> Batch {
    let positioned = changes.into_iter().enumerate();
    Batch {
        partition: PARTITION,
        generation: Generation(1),
        previous: if previous == 0 {
            WalPosition::ZERO
        } else {
            end(previous)
        },
        to: end(to),
        changes: positioned
            .map(|(n, change)| PositionedChange {
                position: WalPosition::new(Incarnation(1), Lsn(to), n as u32 + 1),
                xid: to,
                change,
            })
            .collect(),
    }
}

/// One source, one collection, one partition on this node.
pub fn map() -> PartitionMap {
    let mut map = PartitionMap {
        cluster_id: "c".into(),
        epoch: LeaseEpoch(1),
        version: MapVersion(1),
        ..PartitionMap::default()
    };
    let source = Source {
        id: SourceId(1),
        name: "s".into(),
        incarnation: Incarnation(1),
        slot: None,
        slot_name: "slot".into(),
        publication_name: "p".into(),
        server_start: None,
        slot_hold_limit_bytes: None,
        problem: String::new(),
        consumer: None,
        consumer_epoch: ConsumerEpoch(0),
        is_paused: false,
        dsn_version: DsnVersion(0),
    };
    map.sources.insert(source.id, source);
    let spec = CollectionSpec {
        source: SourceId(1),
        index_oid: 1,
        definition_generation: 1,
        table_oid: 1,
        schema_name: "public".into(),
        table_name: "t".into(),
        index_name: "i".into(),
        column_name: "c".into(),
        column_attnum: 2,
        key_attnums: vec![1],
        metric: Metric::L2,
        dimensions: 2,
        m: 16,
        ef_construction: 64,
    };
    let collection = Collection {
        id: CollectionId(2),
        spec,
        state: CollectionState::Ready {
            snapshot: BackfillSnapshot::default(),
        },
        last_backfill: BackfillId(1),
        reconcile: None,
    };
    map.collections.insert(collection.id, collection);
    let partition = Partition {
        id: PARTITION,
        collection: CollectionId(2),
        range: HashRange::WHOLE,
        replicas: vec![Assigned {
            node: NODE,
            generation: Generation(1),
            state: ReplicaState::Serving,
        }],
    };
    map.partitions.insert(partition.id, partition);
    map
}

/// [`map`] of vectors of other dimensions.
pub fn map_of(dimensions: usize) -> PartitionMap {
    let mut map = map();
    let collections = map.collections.values_mut();
    collections.for_each(|collection| collection.spec.dimensions = dimensions as u32);
    map
}

/// [`map`] with what this node's replica is now.
pub fn map_in(version: u64, state: ReplicaState) -> PartitionMap {
    let mut map = map();
    map.version = MapVersion(version);
    let partition = map.partitions.get_mut(&PARTITION).unwrap();
    partition.replicas[0].state = state;
    map
}

/// [`map`] with a second replica, on [`LEARNER`], and where `NODE` listens.
pub fn moving(version: u64, address: &str, state: ReplicaState) -> PartitionMap {
    let mut map = map();
    map.version = MapVersion(version);
    for (id, address) in [(NODE, address), (LEARNER, "127.0.0.1:1")] {
        let node = cluster_core::map::Node {
            id,
            disk_uuid: "d".into(),
            address: address.into(),
            zone: String::new(),
            is_draining: false,
        };
        map.nodes.insert(id, node);
    }
    let partition = map.partitions.get_mut(&PARTITION).unwrap();
    partition.replicas.push(Assigned {
        node: LEARNER,
        generation: Generation(2),
        state,
    });
    map
}

/// A started node, as a member that holds its lease.
pub struct TestNode {
    pub node: Arc<Node>,
    pub maps: watch::Sender<Arc<PartitionMap>>,
    pub gaps: Arc<StreamGaps>,
}

impl TestNode {
    pub async fn start(dir: &Path) -> Self {
        Self::start_with(dir, Config::default()).await
    }

    pub async fn start_with(dir: &Path, config: Config) -> Self {
        Self::start_as(dir, NODE, config, map()).await
    }

    pub async fn start_as(dir: &Path, id: NodeId, config: Config, map: PartitionMap) -> Self {
        let config = Config {
            data_dir: dir.to_owned(),
            ..config
        };
        let (maps, watch) = watch::channel(Arc::new(map));
        let metrics = Arc::new(Metrics::default());
        let node = Arc::new(Node::open(config, metrics, watch, None).unwrap());
        let identity = Identity {
            disk_uuid: "d".into(),
            member: Some((id, "c".into())),
        };
        node.set_identity(identity).unwrap();
        node.replicas.recover().unwrap();
        let granted = (LeaseEpoch(1), MapVersion(1));
        node.lease.granted(granted, boot_ms(), 60_000);
        crate::assignment::reconcile(&node).await;
        Self {
            node,
            maps,
            gaps: Arc::default(),
        }
    }

    /// The node's lease runs out at once.
    pub fn lose_lease(&mut self) {
        let lapsed = crate::lease::Lease::new(0);
        Arc::get_mut(&mut self.node).unwrap().lease = lapsed;
    }

    /// Ends every writer, so that the disk can be opened again.
    pub async fn stop(self) {
        self.node.replicas.stop_all().await;
    }

    pub fn replica(&self) -> Arc<Replica> {
        self.node.replicas.get(PARTITION).unwrap()
    }

    /// Applies and waits until the writer has done it.
    pub async fn apply(&self, batch: Batch) {
        let replica = self.replica();
        replica.apply(batch, self.gaps.clone(), None).await.unwrap();
        self.idle().await;
    }

    pub async fn attach(&self, from: WalPosition) {
        let (replica, gaps) = (self.replica(), self.gaps.clone());
        let on_hole = OnHole::BeginAnew;
        replica.attach(from, gaps, on_hole).await.unwrap();
        self.idle().await;
    }

    /// One step of a copy, as the peer of the present run brings it.
    pub async fn copy(&self, step: CopyStep) -> Result<(), String> {
        let run = self.replica().copy_wanted().unwrap().run;
        self.ask(|reply| Job::Copy { run, step, reply }).await
    }

    pub async fn until_live(&self) {
        for _ in 0..4_000 {
            if !self.replica().is_learning() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("not live: {:?}", self.replica().standing());
    }

    /// Everything that a copy would carry.
    pub fn records(&self) -> Vec<RawRecord> {
        let storage = &self.node.storage;
        let all = storage.records_behind(PARTITION, &CopyKey::default(), usize::MAX);
        all.unwrap()
    }

    pub async fn nothing_else(&self, to: u64) {
        let replica = self.replica();
        let gaps = &self.gaps;
        replica.nothing_else(end(to), gaps, false).await.unwrap();
        self.idle().await;
    }

    pub async fn idle(&self) {
        while !self.replica().is_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sends a job that is answered, and waits for the answer.
    pub async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Job,
    ) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        self.replica().send(job(reply)).await.unwrap();
        answer.await.unwrap()
    }

    pub async fn open_backfill(&self, backfill: u64) -> Result<Option<BackfillMark>, String> {
        let backfill = BackfillId(backfill);
        self.ask(|reply| Job::OpenBackfill {
            backfill,
            since: None,
            published: None,
            reply,
        })
        .await
    }

    /// Under a membership that was seen before the server stood at `seen_at`.
    pub async fn open_published(
        &self,
        backfill: u64,
        membership: u32,
        seen_at: u64,
    ) -> Result<Option<BackfillMark>, String> {
        let backfill = BackfillId(backfill);
        let published = SeenPublished {
            membership,
            seen_at: end(seen_at),
            is_noted: false,
        };
        self.ask(|reply| Job::OpenBackfill {
            backfill,
            since: None,
            published: Some(published),
            reply,
        })
        .await
    }

    pub async fn close_backfill(&self, backfill: u64) -> Result<(), String> {
        let backfill = BackfillId(backfill);
        self.ask(|reply| Job::CloseBackfill { backfill, reply })
            .await
            .map(drop)
    }

    pub async fn chunk(
        &self,
        backfill: u64,
        chunk: u64,
        stamp: u64,
        rows: Vec<BackfillRow>,
    ) -> Result<(), String> {
        self.last_chunk(backfill, chunk, stamp, rows, None).await
    }

    /// A chunk that ends a range, if there is a mark.
    pub async fn last_chunk(
        &self,
        backfill: u64,
        chunk: u64,
        stamp: u64,
        rows: Vec<BackfillRow>,
        mark: Option<BackfillMark>,
    ) -> Result<(), String> {
        let (backfill, stamp) = (BackfillId(backfill), end(stamp));
        self.ask(|reply| Job::Chunk {
            backfill,
            chunk,
            stamp,
            rows,
            mark,
            reply,
        })
        .await
        .map(drop)
    }

    pub fn gap(&self) -> Option<Gap> {
        self.gaps.all().first().copied()
    }

    /// Every key that a search from the origin finds, nearest first.
    pub async fn find(&self, snapshot_xmin: FullXid) -> Vec<u32> {
        self.find_near([0.0, 0.0], snapshot_xmin).await
    }

    pub async fn find_near(&self, query: [f32; 2], snapshot_xmin: FullXid) -> Vec<u32> {
        let page = self.page(Search {
            vector: query.into(),
            snapshot_xmin,
            ..search()
        });
        let page = page.await.unwrap();
        assert!(page.exhausted);
        page.hits.iter().map(|(key, _)| number(key)).collect()
    }

    pub async fn page(&self, search: Search) -> Result<Page, crate::query::search::PageError> {
        let mut pages = self.node.search(search).await.unwrap();
        pages.pop().unwrap().1
    }
}

pub fn number(key: &RowKey) -> u32 {
    u32::from_be_bytes(key.columns().unwrap()[0].try_into().unwrap())
}

/// Everything from the origin, from what is there.
pub fn search() -> Search {
    Search {
        epoch: LeaseEpoch(1),
        map_version: MapVersion(1),
        source: SourceId(1),
        asked_by: None,
        incarnation: Incarnation(1),
        collection: CollectionId(2),
        vector: vec![0.0, 0.0].into(),
        ef: 100,
        page_rows: 1_000,
        min_lsn: None,
        snapshot_xmin: CURRENT,
        deadline: Duration::from_millis(200),
        exact: false,
        accepts_stale: false,
        partitions: vec![PageOf {
            partition: PARTITION,
            generation: Generation(1),
            token: 0,
        }],
    }
}
