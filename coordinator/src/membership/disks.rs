//! Which disk votes in a coordinator's name, where Raft's membership does not say:
//! in clusters that 0.1.0 made.
//!
//! Once every coordinator answers and tells its disk, all run a version that knows
//! of disks, and the leader names them. Until then an emptied disk is not told from
//! the one that has voted.

use super::{Change, Membership, change, peers};
use crate::coordinator::Coordinator;
use crate::raft::PeerNode;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tonic::Status;

/// Duties wait for the answers: they are not asked for at every turn.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// Whether all coordinators are known to run a version that knows of disks.
pub fn names_every_disk(coordinator: &Coordinator) -> bool {
    let metrics = coordinator.raft.metrics();
    let metrics = metrics.borrow();
    let mut nodes = metrics.membership_config.membership().nodes();
    nodes.all(|(_, node)| !node.disk_uuid.is_empty())
}

pub(super) async fn name_disks(
    coordinator: &Coordinator,
    found: &Membership,
) -> Result<(), Status> {
    let mut unnamed = found.nodes.iter();
    if unnamed.all(|(_, node)| !node.disk_uuid.is_empty()) || !is_due(coordinator) {
        return Ok(());
    }
    let asking = found.nodes.iter().map(|(id, node)| async move {
        let disk_uuid = disk_of(coordinator, *id, node).await?;
        let addr = node.addr.clone();
        Some((*id, PeerNode { addr, disk_uuid }))
    });
    let named: Option<BTreeMap<u64, PeerNode>> = join_all(asking).await.into_iter().collect();
    let Some(named) = named else {
        return Ok(());
    };
    tracing::info!(?named, "the membership names the disks from now on");
    change(coordinator, Change::SetNodes(named)).await
}

/// Of one that follows this leader; what is named already stays.
async fn disk_of(coordinator: &Coordinator, id: u64, node: &PeerNode) -> Option<String> {
    if !node.disk_uuid.is_empty() {
        return Some(node.disk_uuid.clone());
    }
    let own = coordinator.config.id;
    if id == own {
        return Some(coordinator.disk_uuid.clone());
    }
    let answer = peers::ask(coordinator, &node.addr).await.ok()?;
    let is_it = answer.coordinator_id == id && answer.leader_id == own && answer.is_initialised;
    Some(answer.disk_uuid).filter(|uuid| is_it && !uuid.is_empty())
}

fn is_due(coordinator: &Coordinator) -> bool {
    let mut asked_at = coordinator.disks_asked_at.lock();
    let is_due = asked_at.is_none_or(|at| at.elapsed() >= ASK_EVERY);
    if is_due {
        *asked_at = Some(Instant::now());
    }
    is_due
}
