//! What happens by the clock: watermarks that moved without rows become
//! durable, former versions are pruned, gauges follow.

use super::replica::{Replica, Undurable};
use super::replicas::Replicas;
use crate::metrics::Metrics;
use crate::node::Node;
use crate::storage::{Storage, WriteSet};
use std::sync::Arc;

/// Makes every moved watermark durable with one synced write; of a learner, how
/// far its log reaches. A replica whose writer is at work is left out: its commit
/// carries the watermark.
pub fn persist_watermarks(replicas: &Replicas, storage: &Storage) {
    let all = replicas.all();
    let mut set = WriteSet::default();
    let mut held = Vec::new();
    for replica in all.iter().filter(|replica| has_moved(replica)) {
        let Some(guard) = replica.commit_lock.try_lock() else {
            continue;
        };
        let partition = replica.id.partition;
        // Once more, for the writer may have been faster.
        let position = match replica.undurable() {
            Some(Undurable::Watermark(applied)) => {
                set.put_watermark(partition, applied);
                applied
            }
            Some(Undurable::Log(end)) => {
                set.put_log_end(partition, end);
                end
            }
            None => continue,
        };
        held.push((replica, position, guard));
    }
    if held.is_empty() {
        return;
    }
    let written = storage.commit(set);
    for (replica, position, _guard) in held {
        match &written {
            Ok(()) => replica.durable_to(position),
            // A failed fsync is final.
            Err(error) => replica.quarantine(error.to_string()),
        }
        replica.source.notify();
    }
}

fn has_moved(replica: &Replica) -> bool {
    replica.undurable().is_some() && !replica.is_quarantined()
}

pub fn prune(replicas: &Replicas) {
    for replica in replicas.all() {
        replica.prune();
    }
}

pub fn checkpoint(replicas: &Replicas) {
    for replica in replicas.all() {
        replica.checkpoint();
    }
}

pub fn end_folding_waits(replicas: &Replicas) {
    for replica in replicas.all() {
        replica.end_folding_wait_if_relieved();
    }
}

pub fn refresh_gauges(replicas: &Replicas, metrics: &Metrics) {
    let all = replicas.all();
    let sum = |f: &dyn Fn(&Arc<Replica>) -> u64| all.iter().map(f).sum::<u64>() as i64;
    metrics.partitions.set(all.len() as i64);
    metrics.rows.set(sum(&|r| r.rows()));
    metrics.former_versions.set(sum(&|r| r.former_versions()));
    metrics.pending_rows.set(sum(&|r| r.pending_rows()));
    metrics
        .tail_rows
        .set(sum(&|r| r.live().index().tail_len() as u64));
    let waits = |replica: &Arc<Replica>| u64::from(replica.folding_wait().is_some());
    metrics.waiting_for_folding.set(sum(&waits));
    metrics
        .removed_vectors
        .set(sum(&|r| r.live().index().removed_len() as u64));
    metrics
        .memory_bytes
        .set(sum(&|r| r.live().memory_bytes() as u64));
    metrics.learners.set(sum(&|r| u64::from(r.is_learning())));
    let unreadable = replicas.unreadable().len() as i64;
    let quarantined = sum(&|r| u64::from(r.is_quarantined()));
    metrics.quarantined.set(quarantined + unreadable);
}

pub fn refresh_memory(node: &Node) {
    let (memory, metrics) = (&node.memory, &node.metrics);
    metrics.memory_used_bytes.set(memory.used_bytes() as i64);
    metrics.memory_limit_bytes.set(memory.limit_bytes() as i64);
    metrics.memory_pressure.set(memory.pressure() as i64);
}
