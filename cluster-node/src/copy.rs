//! Has every learner of this node copied from a peer: a bounded number at once,
//! from another peer after each failure, with growing pauses. A copy that broke
//! off goes on behind the last record that is on disk.

use crate::grpc::fetch::{FetchError, Peer, fetch};
use crate::node::Node;
use crate::partition::replica::Replica;
use cluster_core::ids::{Generation, PartitionId};
use cluster_core::learner::{backoff_ms, choose_parent, choose_peer};
use cluster_core::memory::MemoryPressure;
use futures::FutureExt;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How often the replicas are looked through for one that must copy.
const LOOK_EVERY: Duration = Duration::from_millis(100);

type Assignment = (PartitionId, Generation);

/// What is known of the copies of one learner.
#[derive(Default)]
struct Attempts {
    is_running: bool,
    /// In a row.
    failures: u32,
    not_before: Option<Instant>,
}

type Ended = (Assignment, Result<(), FetchError>);

/// Follows until `shutdown`.
pub async fn follow(node: Arc<Node>, shutdown: CancellationToken) {
    let mut attempts = BTreeMap::<Assignment, Attempts>::new();
    let mut running = JoinSet::new();
    loop {
        start_due(&node, &mut attempts, &mut running);
        node.metrics.copies_running.set(running.len() as i64);
        tokio::select! {
            Some(ended) = running.join_next(), if !running.is_empty() => {
                let (assignment, copied) = ended.expect("a copy's panic is caught, and none is aborted");
                note(&mut attempts, assignment, copied);
            }
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Starts the copies that there is room for, those with fewest failures first.
fn start_due(
    node: &Arc<Node>,
    attempts: &mut BTreeMap<Assignment, Attempts>,
    running: &mut JoinSet<Ended>,
) {
    let wanting: BTreeMap<Assignment, Arc<Replica>> = node
        .replicas
        .all()
        .into_iter()
        .filter(|replica| replica.copy_wanted().is_some() && !replica.is_quarantined())
        .map(|replica| ((replica.id.partition, replica.id.generation), replica))
        .collect();
    attempts.retain(|assignment, at| at.is_running || wanting.contains_key(assignment));
    let now = Instant::now();
    let mut due: Vec<_> = wanting
        .into_iter()
        .map(|(assignment, replica)| {
            let at = attempts.entry(assignment).or_default();
            let is_due = !at.is_running && at.not_before.is_none_or(|due| due <= now);
            (at.failures, assignment, replica, is_due)
        })
        .filter(|(.., is_due)| *is_due)
        .collect();
    due.sort_by_key(|(failures, assignment, ..)| (*failures, *assignment));
    // Better not begun than broken off: it goes on when there is room.
    if node.memory.pressure() >= MemoryPressure::Tight {
        return;
    }
    for (failures, assignment, replica, _) in due {
        if running.len() >= node.config.copies_max.max(1) {
            return;
        }
        let at = attempts.entry(assignment).or_default();
        let Some(peer) = peer(node, &replica, failures) else {
            fail(at);
            tracing::warn!(partition = %assignment.0, "no serving peer to copy from");
            continue;
        };
        at.is_running = true;
        let node = node.clone();
        running.spawn(async move {
            let copied = AssertUnwindSafe(copy(&node, &replica, peer)).catch_unwind();
            let copied = copied.await.unwrap_or(Err(FetchError::Panicked));
            (assignment, copied)
        });
    }
}

/// A peer that the map lets serve, another after each failure.
fn peer(node: &Node, replica: &Replica, failures: u32) -> Option<Peer> {
    let map = node.map();
    let id = replica.id.partition;
    let (partition, range, chosen) = match map.partitions.get(&id) {
        Some(partition) => (
            partition,
            None,
            choose_peer(partition, node.id()?, failures)?,
        ),
        None => {
            let (parent, half) = map.split_of(id)?;
            (
                parent,
                Some(half.range),
                choose_parent(parent, node.id()?, failures)?,
            )
        }
    };
    Some(Peer {
        node: chosen.node,
        address: map.nodes.get(&chosen.node)?.address.clone(),
        partition: partition.id,
        generation: chosen.generation,
        range,
    })
}

async fn copy(node: &Node, replica: &Arc<Replica>, peer: Peer) -> Result<(), FetchError> {
    let Some(wanted) = replica.copy_wanted() else {
        return Ok(());
    };
    let partition = replica.id.partition;
    let (from, at_least) = (peer.node, wanted.at_least);
    let is_resumed = !wanted.after.0.is_empty();
    tracing::info!(%partition, %from, %at_least, is_resumed, "copying from a peer");
    let copied = fetch(node, replica, wanted, &peer).await;
    if let Err(error) = &copied {
        let rows = replica.learner_progress().map_or(0, |p| p.rows_copied);
        tracing::warn!(%partition, %from, rows, %error, "the copy broke off; going on later");
    }
    copied
}

fn note(
    attempts: &mut BTreeMap<Assignment, Attempts>,
    assignment: Assignment,
    copied: Result<(), FetchError>,
) {
    let at = attempts.entry(assignment).or_default();
    at.is_running = false;
    match copied {
        Ok(()) => *at = Attempts::default(),
        Err(_) => fail(at),
    }
}

fn fail(at: &mut Attempts) {
    at.failures = at.failures.saturating_add(1);
    let pause = Duration::from_millis(backoff_ms(at.failures));
    at.not_before = Some(Instant::now() + pause);
}
