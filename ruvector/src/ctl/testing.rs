//! A small cluster as the leader would tell of it.

use super::Observed;
use cluster_core::collection::{
    BackfillSnapshot, Collection, CollectionSpec, CollectionState, Metric,
};
use cluster_core::ids::*;
use cluster_core::map::*;
use proto::v1::{
    GetStatusResponse, LearnerProgress, MoveReason, MoveStatus, NodeReport, NodeStatus,
    PartitionReport, PlannedMove,
};

pub const TTL_MS: u64 = 10_000;

/// A replica by node, generation and state.
pub type Held = (u64, u64, ReplicaState);

/// Nodes 1 to `nodes`, and partitions from 1 on with these replicas.
pub fn observed(nodes: u64, partitions: &[&[Held]]) -> Observed {
    let node = |id: u64| Node {
        id: NodeId(id),
        disk_uuid: format!("disk-{id}"),
        address: format!("10.0.0.{id}:7501"),
        zone: String::new(),
        is_draining: false,
    };
    let replica = |(node, generation, state): &Held| Replica {
        node: NodeId(*node),
        generation: Generation(*generation),
        state: *state,
    };
    let partition = |(id, replicas): (u64, &&[Held])| Partition {
        id: PartitionId(id),
        collection: CollectionId(1),
        range: HashRange::WHOLE,
        replicas: replicas.iter().map(replica).collect(),
    };
    let partitions = (1..).zip(partitions).map(partition);
    let map = PartitionMap {
        nodes: (1..=nodes).map(|id| (NodeId(id), node(id))).collect(),
        partitions: partitions.map(|p| (p.id, p)).collect(),
        ..PartitionMap::default()
    };
    let status = GetStatusResponse {
        coordinator_id: 1,
        leader_id: 1,
        is_initialised: true,
        lease_ttl_ms: TTL_MS,
        nodes: (1..=nodes).map(|id| alive(id, 500, &[])).collect(),
        ..GetStatusResponse::default()
    };
    Observed { status, map }
}

/// Collection 1 of source 1, complete.
pub fn collection() -> Collection {
    Collection {
        id: CollectionId(1),
        spec: CollectionSpec {
            source: SourceId(1),
            index_oid: 1,
            definition_generation: 1,
            table_oid: 1,
            schema_name: "public".into(),
            table_name: "items".into(),
            index_name: "items_idx".into(),
            column_name: "embedding".into(),
            column_attnum: 2,
            key_attnums: vec![1],
            metric: Metric::L2,
            dimensions: 2,
            m: 16,
            ef_construction: 64,
        },
        state: CollectionState::Ready {
            snapshot: BackfillSnapshot::default(),
        },
        last_backfill: BackfillId(1),
        reconcile: None,
    }
}

/// A node that renewed so long ago, and reports rows of these partitions.
pub fn alive(node_id: u64, renewed_ms_ago: u64, rows: &[(u64, u64)]) -> NodeStatus {
    let report = |(partition_id, rows): &(u64, u64)| PartitionReport {
        partition_id: *partition_id,
        rows: *rows,
        ..PartitionReport::default()
    };
    NodeStatus {
        node_id,
        renewed_ms_ago: Some(renewed_ms_ago),
        report: Some(NodeReport {
            partitions: rows.iter().map(report).collect(),
            memory_bytes: 5_000_000,
            disk_bytes: 70_000_000,
            ..NodeReport::default()
        }),
    }
}

pub fn planned(partition: u64, from: Option<u64>, to: u64, reason: MoveReason) -> PlannedMove {
    PlannedMove {
        partition_id: partition,
        to_node_id: to,
        from_node_id: from,
        reason: reason.into(),
    }
}

/// Partition `of` is being split on `nodes`: of its halves only the first
/// replica of the lower serves yet.
pub fn split(seen: &mut Observed, of: u64, nodes: &[u64]) {
    let replica = |node: &u64| Replica {
        node: NodeId(*node),
        generation: Generation(50),
        state: ReplicaState::Learner,
    };
    let half = |id: u64, range: HashRange| Partition {
        id: PartitionId(id),
        collection: CollectionId(1),
        range,
        replicas: nodes.iter().map(replica).collect(),
    };
    let ranges = HashRange::tile(2);
    let (mut low, high) = (half(101, ranges[0]), half(102, ranges[1]));
    low.replicas[0].state = ReplicaState::Serving;
    seen.map.splits.insert(PartitionId(of), Split { low, high });
}

pub fn running(
    partition: u64,
    from: Option<u64>,
    to: u64,
    learner: Option<LearnerProgress>,
) -> MoveStatus {
    MoveStatus {
        r#move: Some(planned(partition, from, to, MoveReason::Drain)),
        generation: 9,
        running_ms: 6_000,
        learner,
    }
}

/// A quarter of 100,000 rows in 4 s.
pub fn quarter() -> LearnerProgress {
    LearnerProgress {
        rows_copied: 25_000,
        rows_total: 100_000,
        bytes_copied: 50_000_000,
        copying_ms: 4_000,
        log_bytes: 1_200,
        is_copied: false,
        is_stuck: false,
    }
}
