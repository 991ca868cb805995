//! The reigning leader's leases: the rules are the core's [`Grantor`]; here it gets
//! the process's clock, and what the nodes said when they renewed. Nothing outlives a
//! reign.

use cluster_core::control::Reign;
use cluster_core::ids::*;
use cluster_core::lease::{BootMs, Grantor, LeaseTerms, ReignMs};
use cluster_core::rebalance::{Liveness, NodeView};
use std::collections::BTreeMap;

pub struct Reigning {
    pub grantor: Grantor,
    since: BootMs,
    /// The rows of its replicas, as a node reported them last.
    rows: BTreeMap<NodeId, Vec<(PartitionId, u64)>>,
}

impl Reigning {
    pub fn new(reign: Reign, epoch: LeaseEpoch, terms: LeaseTerms, now: BootMs) -> Self {
        Self {
            grantor: Grantor::begin(terms, reign, epoch),
            since: now,
            rows: BTreeMap::new(),
        }
    }

    /// What came before the reign counts from its beginning: longer, not shorter.
    pub fn ms(&self, at: BootMs) -> ReignMs {
        at.saturating_sub(self.since)
    }

    pub fn note_rows(&mut self, node: NodeId, rows: Vec<(PartitionId, u64)>) {
        self.rows.insert(node, rows);
    }

    /// The rows of each partition, as the fullest of its replicas reports them.
    pub fn rows(&self) -> BTreeMap<PartitionId, u64> {
        let mut most = BTreeMap::new();
        for (partition, rows) in self.rows.values().flatten() {
            let known: &mut u64 = most.entry(*partition).or_default();
            *known = (*rows).max(*known);
        }
        most
    }

    /// What is known of these nodes.
    pub fn liveness(&self, nodes: impl Iterator<Item = NodeId>, now: BootMs) -> Liveness {
        let now = self.ms(now);
        let view = |node: NodeId| (node, NodeView::of(node, &self.grantor, now));
        Liveness(nodes.map(view).collect())
    }
}
