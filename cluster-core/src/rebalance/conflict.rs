//! What a plan could not have, in words for whoever runs the cluster.

use super::planner::Planner;
use crate::ids::{NodeId, PartitionId};
use crate::layout::Standing;
use crate::map::ReplicaState;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    #[error(
        "{wanted} copies of each partition are wanted and {nodes} nodes can hold them: add nodes, \
         or lower replication_factor"
    )]
    TooFewNodes { wanted: usize, nodes: usize },
    #[error(
        "{node} holds {replicas} replicas, {bound} would be its share: zones come before \
         balance (add nodes to its zone), or their collections still build"
    )]
    OverBound {
        node: NodeId,
        replicas: usize,
        bound: usize,
    },
    #[error(
        "{partitions} partitions have copies that share a zone, and the nodes of other zones are \
         full: add nodes to those"
    )]
    SharedZone { partitions: usize },
    #[error(
        "{node} cannot be emptied: {replicas} of its replicas find no other node without a copy. \
         Add a node, or let it stay"
    )]
    CannotDrain { node: NodeId, replicas: usize },
    #[error(
        "{partitions} partitions, {first} the first, have no copy on a living node: bring their \
         nodes back, or build their indexes anew with REINDEX"
    )]
    Lost {
        partitions: usize,
        first: PartitionId,
    },
    #[error(
        "{partitions} partitions, {first} the first, are stale on all their replicas: each needs \
         a reconcile; REINDEX builds its index anew"
    )]
    Stale {
        partitions: usize,
        first: PartitionId,
    },
}

impl Planner<'_> {
    pub(super) fn report_conflicts(&mut self) {
        let (wanted, nodes) = (self.policy.replication_factor as usize, self.members());
        if nodes < wanted && !self.partitions.is_empty() {
            self.conflicts.push(Conflict::TooFewNodes { wanted, nodes });
        }
        self.report_over_bound();
        let shared = |number: &usize| self.layout.shares_a_zone(*number);
        let partitions = (0..self.layout.partitions()).filter(shared).count();
        if partitions > 0 {
            self.conflicts.push(Conflict::SharedZone { partitions });
        }
        self.report_lost();
        self.report_stale();
    }

    fn report_over_bound(&mut self) {
        let Some(share) = self.share() else { return };
        let seats = self.layout.seats().iter();
        let over = seats.filter(|s| s.standing != Standing::Leaving && s.load() > share.bound);
        self.conflicts.extend(over.map(|seat| Conflict::OverBound {
            node: seat.node,
            replicas: seat.load(),
            bound: share.bound,
        }));
    }

    fn report_lost(&mut self) {
        let is_lost = |number: &usize| {
            let partition = self.partitions[*number];
            let mut serving = partition.in_state(ReplicaState::Serving);
            partition.is_served() && serving.all(|replica| self.is_dead(replica.node))
        };
        let lost: Vec<usize> = (0..self.partitions.len()).filter(is_lost).collect();
        if let Some(first) = lost.first() {
            self.conflicts.push(Conflict::Lost {
                partitions: lost.len(),
                first: self.partitions[*first].id,
            });
        }
    }

    fn report_stale(&mut self) {
        let stale = self.partitions.iter().filter(|p| p.needs_reconcile());
        let stale: Vec<PartitionId> = stale.map(|p| p.id).collect();
        if let Some(first) = stale.first() {
            self.conflicts.push(Conflict::Stale {
                partitions: stale.len(),
                first: *first,
            });
        }
    }
}
