//! What the leader knows of the nodes; handed in, for only it hears them.

use crate::ids::{MapStamp, NodeId};
use crate::lease::{Grantor, ReignMs};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Since its last renewal; since the reign began, if there was none in it.
    pub silent_ms: u64,
    /// It has renewed in this reign, and its lease may still run.
    pub is_live: bool,
    /// The map that it answered by when it renewed last.
    pub map: Option<MapStamp>,
}

impl NodeView {
    /// A node that has not renewed in this reign has been silent since it began,
    /// and may hold a lease of the last one.
    pub fn of(node: NodeId, grantor: &Grantor, now: ReignMs) -> Self {
        let silent_ms = grantor.node_silence_ms(node, now);
        let map = grantor.node_knows(node);
        Self {
            silent_ms,
            is_live: map.is_some() && !grantor.terms().is_waited_out(silent_ms),
            map,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Liveness(pub BTreeMap<NodeId, NodeView>);

impl Liveness {
    pub fn is_live(&self, node: NodeId) -> bool {
        self.0.get(&node).is_some_and(|view| view.is_live)
    }

    /// Silent for longer than the grace. A node of which nothing is known is
    /// neither live nor dead.
    pub fn is_dead(&self, node: NodeId, dead_after_ms: u64) -> bool {
        let view = self.0.get(&node);
        view.is_some_and(|view| !view.is_live && view.silent_ms > dead_after_ms)
    }
}
