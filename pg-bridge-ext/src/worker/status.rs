//! What the coordinators know of a collection, gathered from their status.

use super::IndexStatus;
use cluster_client::{ClientError, ClusterClient};
use cluster_core::ids::CollectionId;
use cluster_core::map::ReplicaState;
use proto::v1::{GetStatusRequest, GetStatusResponse, PartitionReport};
use tonic::Status;

/// The leader's status: only it hears the nodes' reports.
pub async fn fetch(client: &ClusterClient) -> Result<GetStatusResponse, ClientError> {
    let ask = |mut coordinator: proto::v1::coordinator_client::CoordinatorClient<_>| async move {
        coordinator.get_status(GetStatusRequest {}).await
    };
    let status = client.leader(ask).await?;
    if status.coordinator_id == status.leader_id {
        return Ok(status);
    }
    let leader = status
        .coordinators
        .iter()
        .find(|c| c.coordinator_id == status.leader_id);
    let Some(leader) = leader else {
        return Err(Status::unavailable("the coordinators have no leader").into());
    };
    Ok(client
        .coordinator(&leader.address)?
        .get_status(GetStatusRequest {})
        .await?
        .into_inner())
}

pub fn of_collection(
    client: &ClusterClient,
    collection: CollectionId,
    status: &GetStatusResponse,
) -> IndexStatus {
    let map = client.map();
    let mut out = IndexStatus::default();
    let (mut applied, mut durable, mut replicas_min) = (u64::MAX, u64::MAX, u32::MAX);
    let partitions = map.partitions_of(collection);
    out.partitions = partitions.len() as u32;
    for partition in &partitions {
        let serving = partition
            .replicas
            .iter()
            .filter(|r| r.state == ReplicaState::Serving);
        replicas_min = replicas_min.min(serving.count() as u32);
        let (mut rows, mut tail_rows, mut pending_rows) = (0, 0, 0);
        for replica in &partition.replicas {
            let report = report(status, replica.node.0, partition.id.0);
            let lsn = |position: Option<proto::v1::WalPosition>| {
                position.map_or(0, |position| position.commit_end_lsn)
            };
            applied = applied.min(report.map_or(0, |r| lsn(r.applied)));
            durable = durable.min(report.map_or(0, |r| lsn(r.durable)));
            match report {
                Some(report) => {
                    rows = rows.max(report.rows);
                    tail_rows = tail_rows.max(report.tail_rows);
                    pending_rows = pending_rows.max(report.pending_rows);
                    if !report.problem.is_empty() && out.problem.is_empty() {
                        let partition = partition.id;
                        out.problem =
                            format!("{partition} on {}: {}", replica.node, report.problem);
                    }
                    if !report.waits_for.is_empty() && out.waits.is_empty() {
                        let name = map.replica_name(partition, replica.node);
                        out.waits = format!("{name} {}", report.waits_for);
                    }
                }
                None if out.problem.is_empty() => {
                    out.problem = format!("{} has not reported {}", replica.node, partition.id);
                }
                None => {}
            }
        }
        out.rows += rows;
        out.tail_rows += tail_rows;
        out.pending_rows += pending_rows;
    }
    out.replicas = if partitions.is_empty() {
        0
    } else {
        replicas_min
    };
    out.applied_lsn = if applied == u64::MAX { 0 } else { applied };
    out.durable_lsn = if durable == u64::MAX { 0 } else { durable };
    let sources = status
        .consumers
        .iter()
        .flat_map(|consumer| &consumer.sources);
    let backfills = sources.flat_map(|source| &source.backfills);
    let ours = backfills.filter(|backfill| backfill.collection_id == collection.0);
    if let Some(backfill) = ours.max_by_key(|backfill| backfill.backfill_id) {
        out.backfill_rows_copied = backfill.rows_copied;
        out.backfill_rows_estimated = backfill.rows_estimated;
        out.backfill_blocks_copied = backfill.blocks_copied;
        out.backfill_blocks_total = backfill.blocks_total;
        out.backfill_snapshots = backfill.snapshots;
        // Whoever has not reported yet is no news while the copy itself stands.
        if out.problem.is_empty() && !backfill.waits_for.is_empty() {
            out.problem = format!("its backfill {}", backfill.waits_for);
        }
    }
    out
}

fn report(status: &GetStatusResponse, node: u64, partition: u64) -> Option<&PartitionReport> {
    let node = status.nodes.iter().find(|status| status.node_id == node)?;
    node.report
        .as_ref()?
        .partitions
        .iter()
        .find(|report| report.partition_id == partition)
}
