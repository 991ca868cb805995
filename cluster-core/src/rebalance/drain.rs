//! What a draining node holds goes elsewhere.

use super::conflict::Conflict;
use super::planner::Planner;
use crate::control::MoveReason;
use crate::ids::NodeId;
use std::collections::BTreeMap;

impl Planner<'_> {
    /// One replica a partition; another on a second draining node follows when
    /// the first has moved.
    pub(super) fn drain(&mut self) {
        let mut stuck: BTreeMap<NodeId, usize> = BTreeMap::new();
        for number in 0..self.partitions.len() {
            let partition = self.partitions[number];
            if !self.is_free(number) || !self.has_source(partition) {
                continue;
            }
            let is_draining = |node| self.map.nodes.get(&node).is_some_and(|n| n.is_draining);
            let leaving = partition.replicas.iter().find(|r| is_draining(r.node));
            let Some(node) = leaving.map(|replica| replica.node) else {
                continue;
            };
            if !self.plan_to(number, Some(node), MoveReason::Drain) {
                *stuck.entry(node).or_default() += 1;
            }
        }
        let stuck = stuck.into_iter();
        self.conflicts
            .extend(stuck.map(|(node, replicas)| Conflict::CannotDrain { node, replicas }));
    }
}
