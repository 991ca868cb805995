//! What a node keeps on its disk: the stand-in for RocksDB. A write is atomic: a
//! crash leaves all of it or nothing.

use super::learner::Learning;
use cluster_core::apply::{StoredRow, Tombstone};
use cluster_core::ids::*;
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use std::collections::BTreeMap;
use std::sync::Arc;

pub type Former = (FullXid, Box<[f32]>);

/// The records of one replica.
#[derive(Clone, Debug, Default)]
pub struct ReplicaData {
    pub generation: Generation,
    pub collection: CollectionId,
    pub watermark: WalPosition,
    pub rows: BTreeMap<RowKey, StoredRow>,
    pub tombstones: BTreeMap<RowKey, Tombstone>,
    /// By key and end: who ended the version, and its vector.
    pub formers: BTreeMap<(RowKey, WalPosition), Former>,
    pub truncated: WalPosition,
    /// The highest stamp of a backfill's rows.
    pub stamp_high: WalPosition,
    pub last_backfill: BackfillId,
    /// The last chunk of the backfill that is open.
    pub open_backfill: Option<u64>,
    /// Set until the copy is whole and the log replayed.
    pub learning: Option<Learning>,
}

#[derive(Clone, Debug)]
pub enum NodeWrite {
    Member(NodeId),
    Token(ConsumerEpoch),
    Put(PartitionId, Arc<ReplicaData>),
    Remove(PartitionId),
}

#[derive(Debug, Default)]
pub struct NodeDisk {
    pub member: Option<NodeId>,
    pub token: ConsumerEpoch,
    pub replicas: BTreeMap<PartitionId, Arc<ReplicaData>>,
}

impl NodeDisk {
    pub fn apply(&mut self, write: NodeWrite) {
        match write {
            NodeWrite::Member(id) => self.member = Some(id),
            NodeWrite::Token(token) => self.token = token.max(self.token),
            NodeWrite::Put(partition, data) => {
                self.replicas.insert(partition, data);
            }
            NodeWrite::Remove(partition) => {
                self.replicas.remove(&partition);
            }
        }
    }
}
