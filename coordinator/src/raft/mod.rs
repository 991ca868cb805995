//! Raft: openraft, a log on RocksDB ([`disk`], [`log_store`]), the cluster's
//! state with its snapshots ([`state_machine`]), and the peers ([`network`]).

pub mod disk;
pub mod log_store;
pub mod network;
pub mod state_machine;

#[cfg(test)]
mod storage_tests;

use crate::config::RaftTuning;
use cluster_core::control::{Command, Response};
use std::io::Cursor;

/// A coordinator as Raft's membership names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PeerNode {
    /// `host:port`.
    pub addr: String,
    /// The disk that votes in its name. Memberships that 0.1.0 wrote do not say,
    /// until the leader has asked.
    #[serde(default)]
    pub disk_uuid: String,
}

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Command,
        R = Response,
        NodeId = u64,
        Node = PeerNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub type Raft = openraft::Raft<TypeConfig>;
pub type LogId = openraft::LogId<u64>;
pub type Vote = openraft::Vote<u64>;
pub type StorageError = openraft::StorageError<u64>;
pub type StoredMembership = openraft::StoredMembership<u64, PeerNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<u64, PeerNode>;
pub type Snapshot = openraft::Snapshot<TypeConfig>;
pub type Metrics = openraft::RaftMetrics<u64, PeerNode>;

pub fn raft_config(tuning: &RaftTuning) -> Result<openraft::Config, Box<openraft::ConfigError>> {
    openraft::Config {
        cluster_name: "ruvector".to_owned(),
        heartbeat_interval: tuning.heartbeat_ms,
        election_timeout_min: tuning.election_timeout_min_ms,
        election_timeout_max: tuning.election_timeout_max_ms,
        install_snapshot_timeout: tuning.snapshot_timeout_ms,
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(tuning.snapshot_every_entries),
        max_in_snapshot_log_to_keep: tuning.log_entries_kept,
        snapshot_max_chunk_size: tuning.snapshot_chunk_bytes,
        ..openraft::Config::default()
    }
    .validate()
    .map_err(Box::new)
}
