//! Partitions that lack a replica get it back, those with the fewest live ones
//! first.

use super::planner::Planner;
use crate::control::MoveReason;
use crate::ids::NodeId;
use crate::map::{Partition, ReplicaState};

/// What a partition lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    /// The node of a replica that was left behind is back: it learns anew there.
    Return(NodeId),
    /// A replica's node is dead: another takes its place.
    Replace(NodeId),
    /// It has fewer replicas than it should.
    Add,
}

impl Planner<'_> {
    pub(super) fn repair(&mut self) {
        let wanted = (self.policy.replication_factor as usize).min(self.members());
        let mut lacking: Vec<_> = self
            .partitions
            .iter()
            .enumerate()
            .filter(|(number, p)| self.is_free(*number) && self.has_source(p))
            .filter_map(|(number, p)| {
                let lack = self.lack(p, wanted)?;
                let serving = p.in_state(ReplicaState::Serving);
                let live = serving.filter(|r| self.nodes.is_live(r.node)).count();
                Some((live, number, lack))
            })
            .collect();
        lacking.sort_unstable();
        for (_, number, lack) in lacking {
            match lack {
                Lack::Return(node) => self.note(number, node, None, MoveReason::Repair),
                Lack::Replace(node) => {
                    self.plan_to(number, Some(node), MoveReason::Repair);
                }
                Lack::Add => {
                    self.plan_to(number, None, MoveReason::Repair);
                }
            }
        }
    }

    fn lack(&self, partition: &Partition, wanted: usize) -> Option<Lack> {
        let is_draining = |node| self.map.nodes.get(&node).is_some_and(|n| n.is_draining);
        let returns = partition
            .replicas
            .iter()
            .filter(|r| r.state.is_left_behind())
            .find(|r| self.nodes.is_live(r.node) && !is_draining(r.node));
        let dead = partition.replicas.iter().find(|r| self.is_dead(r.node));
        match (returns, dead) {
            (Some(replica), _) => Some(Lack::Return(replica.node)),
            (None, Some(replica)) => Some(Lack::Replace(replica.node)),
            (None, None) => (partition.replicas.len() < wanted).then_some(Lack::Add),
        }
    }
}
