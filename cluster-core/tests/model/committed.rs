//! What Raft has committed: the real state machine, cheap to copy.
//!
//! Two states of one model that agree in what is hashed here agree in all of it but
//! the last generation given, for no model changes anything else; and which number
//! the next generation gets makes no difference.

use cluster_core::control::{ClusterState, Command, Response};
use cluster_core::ids::*;
use cluster_core::invariants::{Violation, check_map, check_successor};
use cluster_core::map::{Partition, ReplicaState, Source};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub const SOURCE: SourceId = SourceId(1);
pub const PARTITION: PartitionId = PartitionId(1);

#[derive(Clone)]
pub struct Committed(Arc<ClusterState>);

impl Committed {
    pub fn new(state: ClusterState) -> Self {
        Self(Arc::new(state))
    }

    pub fn state(&self) -> &ClusterState {
        &self.0
    }

    pub fn stamp(&self) -> MapStamp {
        (self.0.map().epoch, self.0.map().version)
    }

    pub fn source(&self) -> &Source {
        &self.0.map().sources[&SOURCE]
    }

    pub fn partition(&self) -> &Partition {
        &self.0.map().partitions[&PARTITION]
    }

    pub fn replica(&self, node: NodeId) -> Option<(Generation, ReplicaState)> {
        let replica = self.partition().replica_on(node);
        replica.map(|replica| (replica.generation, replica.state))
    }

    /// What the real state machine refuses: demotes whatever serves.
    pub fn demote_unchecked(&mut self, node: NodeId) -> Result<(), Violation> {
        let mut state = serde_json::to_value(&*self.0).unwrap();
        let replicas = &mut state["map"]["partitions"]["1"]["replicas"];
        for replica in replicas.as_array_mut().unwrap() {
            if replica["node"] == node.0 {
                replica["state"] = "demoted".into();
            }
        }
        self.0 = Arc::new(serde_json::from_value(state).unwrap());
        check_map(self.0.map())
    }

    /// Commits a command; a refused one changes nothing.
    pub fn apply(&mut self, command: Command) -> Result<Response, Violation> {
        let before = self.clone();
        let response = Arc::make_mut(&mut self.0).apply(command);
        check_map(self.0.map())?;
        check_successor(before.0.map(), self.0.map())?;
        assert_eq!(self.0.violation(), None);
        Ok(response)
    }
}

impl Hash for Committed {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.stamp().hash(hasher);
        self.0.reign().hash(hasher);
        let source = self.source();
        (source.consumer, source.consumer_epoch).hash(hasher);
        for replica in &self.partition().replicas {
            (replica.node, replica.generation, replica.state as u8).hash(hasher);
        }
        let running = self.0.moves().get(&PARTITION);
        running.map(|m| (m.to, m.generation, m.from)).hash(hasher);
    }
}
