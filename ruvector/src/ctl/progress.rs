//! What the nodes' and consumers' reports add up to.

use super::Observed;
use cluster_core::ids::{CollectionId, PartitionId};
use cluster_core::map::Partition;
use proto::v1::{BackfillProgress, PartitionReport, SourceProgress};

impl Observed {
    /// The reports of a partition's replicas, with the node that each is from.
    pub fn replica_reports(
        &self,
        partition: PartitionId,
    ) -> impl Iterator<Item = (u64, &PartitionReport)> {
        self.status.nodes.iter().flat_map(move |node| {
            let reports = node.report.iter().flat_map(|report| &report.partitions);
            let of_partition = reports.filter(move |report| report.partition_id == partition.0);
            of_partition.map(|report| (node.node_id, report))
        })
    }

    /// The fullest report of a replica that the map knows: replicas differ only
    /// by how far they are.
    pub fn partition_report(&self, partition: &Partition) -> Option<&PartitionReport> {
        let reports = self.replica_reports(partition.id);
        let assigned = reports.filter(|(node, report)| is_assigned(partition, *node, report));
        assigned
            .map(|(_, report)| report)
            .max_by_key(|report| report.rows)
    }

    pub fn source_progress(&self, source: u64) -> Option<&SourceProgress> {
        let all = self
            .status
            .consumers
            .iter()
            .flat_map(|consumer| &consumer.sources);
        all.filter(|progress| progress.source_id == source)
            .max_by_key(|progress| progress.received_lsn)
    }

    pub fn backfill(&self, collection: CollectionId) -> Option<&BackfillProgress> {
        let all = self
            .status
            .consumers
            .iter()
            .flat_map(|consumer| &consumer.sources);
        all.flat_map(|progress| &progress.backfills)
            .filter(|backfill| backfill.collection_id == collection.0)
            .max_by_key(|backfill| backfill.backfill_id)
    }
}

/// In a sentence without its subject, the next snapshot.
pub fn waits_for(progress: &BackfillProgress) -> Option<String> {
    Some(progress.waits_for.clone()).filter(|waits_for| !waits_for.is_empty())
}

/// `1,200 of about 60,000 rows (2 %), 64 of 3,000 blocks, 2 snapshots`.
pub fn backfill_text(progress: &BackfillProgress) -> String {
    use super::table::count;
    let copied = progress.rows_copied;
    let mut text = match progress.rows_estimated {
        0 => format!("{} rows copied", count(copied)),
        estimated => {
            let percent = copied.saturating_mul(100) / estimated;
            format!(
                "{} of about {} rows ({} %)",
                count(copied),
                count(estimated),
                percent.min(99)
            )
        }
    };
    if progress.snapshots > 0 {
        text += &format!(
            ", {} of {} blocks, {} snapshot{}",
            count(progress.blocks_copied),
            count(progress.blocks_total),
            progress.snapshots,
            if progress.snapshots == 1 { "" } else { "s" }
        );
    }
    if let Some(waits_for) = waits_for(progress) {
        text += &format!("; its next snapshot {waits_for}");
    }
    text
}

/// Is the report of a replica that the map knows? Nodes report others until they let go of
/// them, and are not asked again when they are gone.
pub fn is_assigned(partition: &Partition, node: u64, report: &PartitionReport) -> bool {
    let is_it = |replica: &cluster_core::map::Replica| {
        replica.node.0 == node && replica.generation.0 == report.generation
    };
    partition.replicas.iter().any(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backfill_tells_rows_blocks_and_snapshots() {
        let mut progress = BackfillProgress {
            rows_copied: 1_200,
            rows_estimated: 60_000,
            ..BackfillProgress::default()
        };
        assert_eq!(
            backfill_text(&progress),
            "1,200 of about 60,000 rows (2 %)",
            "no snapshot yet"
        );
        assert_eq!(waits_for(&progress), None);
        (progress.blocks_copied, progress.blocks_total) = (64, 3_000);
        progress.snapshots = 2;
        assert_eq!(
            backfill_text(&progress),
            "1,200 of about 60,000 rows (2 %), 64 of 3,000 blocks, 2 snapshots"
        );
        progress.waits_for = "waits for pid 7".to_owned();
        assert_eq!(waits_for(&progress).as_deref(), Some("waits for pid 7"));
        let said = backfill_text(&progress);
        assert!(
            said.ends_with("2 snapshots; its next snapshot waits for pid 7"),
            "{said}"
        );
    }
}
