//! Who belongs to the cluster: coordinators, nodes, consumers.

use super::command::{CoordinatorMember, Refusal, Reign, Response};
use super::state::*;
use crate::ids::*;
use crate::map::Node;

impl ClusterState {
    pub(super) fn initialise(
        &mut self,
        cluster_id: String,
        members: Vec<CoordinatorMember>,
    ) -> Outcome {
        if self.is_initialised() {
            let cluster_id = self.map.cluster_id.clone();
            return Ok((Response::Initialised { cluster_id }, MapChanged::No));
        }
        if cluster_id.is_empty() || members.is_empty() {
            let what = "a cluster needs an id and at least one coordinator".to_owned();
            return Err(Refusal::Invalid { what });
        }
        self.map.cluster_id = cluster_id.clone();
        self.take_members(members);
        Ok((Response::Initialised { cluster_id }, MapChanged::Yes))
    }

    /// A reign has one epoch, however often its leader asks; the epoch of a
    /// reign that is over does not come back.
    pub(super) fn new_epoch(&mut self, reign: Reign) -> Outcome {
        match self.reign {
            Some(current) if current == reign => {}
            Some(current) if current.is_elected_after(&reign) => {
                let what = format!("the reign of term {} is over", reign.term);
                return Err(Refusal::Conflict { what });
            }
            _ => {
                self.reign = Some(reign);
                self.map.epoch = self.map.epoch.next();
                return Ok((
                    Response::Epoch {
                        epoch: self.map.epoch,
                    },
                    MapChanged::Yes,
                ));
            }
        }
        Ok((
            Response::Epoch {
                epoch: self.map.epoch,
            },
            MapChanged::No,
        ))
    }

    /// An id belongs to a disk: a known id with another disk means that the
    /// data is gone or was copied, and both would be silent data loss.
    pub(super) fn join_node(
        &mut self,
        disk_uuid: String,
        known_as: Option<NodeId>,
        address: String,
        zone: String,
    ) -> Outcome {
        if disk_uuid.is_empty() || address.is_empty() {
            let what = "a node needs a disk uuid and an address".to_owned();
            return Err(Refusal::Invalid { what });
        }
        let by_disk = self
            .map
            .nodes
            .values()
            .find(|n| n.disk_uuid == disk_uuid)
            .map(|n| n.id);
        if let Some(claimed) = known_as {
            let Some(node) = self.map.nodes.get(&claimed) else {
                return Err(Refusal::UnknownNode { node: claimed });
            };
            if by_disk != Some(claimed) {
                return Err(Refusal::DiskMismatch {
                    node: claimed,
                    known: node.disk_uuid.clone(),
                    given: disk_uuid,
                    explanation: "a node with an empty or another disk joins as a new node, \
                                  without an id"
                        .to_owned(),
                });
            }
        }
        if let Some(id) = by_disk {
            let node = self.map.nodes.get_mut(&id).expect("found above");
            let moved = node.address != address || node.zone != zone;
            node.address = address;
            node.zone = zone;
            let changed = if moved {
                MapChanged::Yes
            } else {
                MapChanged::No
            };
            return Ok((Response::NodeJoined { node: id }, changed));
        }
        if self.map.nodes.len() >= NODES_MAX {
            return Err(Refusal::Full {
                of: "nodes".to_owned(),
                limit: NODES_MAX,
            });
        }
        let id = self.last.node.next();
        self.last.node = id;
        self.map.nodes.insert(
            id,
            Node {
                id,
                disk_uuid,
                address,
                zone,
                is_draining: false,
            },
        );
        Ok((Response::NodeJoined { node: id }, MapChanged::Yes))
    }

    pub(super) fn set_draining(&mut self, node: NodeId, is_draining: bool) -> Outcome {
        let Some(known) = self.map.nodes.get_mut(&node) else {
            return Err(Refusal::UnknownNode { node });
        };
        let changed = known.is_draining != is_draining;
        known.is_draining = is_draining;
        Ok((Response::Done, MapChanged::from(changed)))
    }

    /// Only a node that holds no replica is forgotten: nothing is lost with it.
    pub(super) fn remove_node(&mut self, node: NodeId) -> Outcome {
        let held = self.map.held_partitions();
        let held = held.filter(|(p, _)| p.replica_on(node).is_some()).count();
        if held > 0 {
            let what = format!(
                "{node} still holds {held} replicas: drain it first, and wait until it is empty"
            );
            return Err(Refusal::Conflict { what });
        }
        let changed = self.map.nodes.remove(&node).is_some();
        self.planned.retain(|planned| planned.to != node);
        Ok((Response::Done, MapChanged::from(changed)))
    }

    pub(super) fn join_consumer(&mut self, process_uuid: String, address: String) -> Outcome {
        if process_uuid.is_empty() {
            let what = "a consumer needs a process uuid".to_owned();
            return Err(Refusal::Invalid { what });
        }
        if let Some((id, record)) = self
            .consumers
            .iter_mut()
            .find(|(_, record)| record.process_uuid == process_uuid)
        {
            record.address = address;
            return Ok((Response::ConsumerJoined { consumer: *id }, MapChanged::No));
        }
        if self.consumers.len() >= CONSUMERS_MAX {
            return Err(Refusal::Full {
                of: "consumers".to_owned(),
                limit: CONSUMERS_MAX,
            });
        }
        let id = self.last.consumer.next();
        self.last.consumer = id;
        self.consumers.insert(
            id,
            ConsumerRecord {
                process_uuid,
                address,
            },
        );
        Ok((Response::ConsumerJoined { consumer: id }, MapChanged::No))
    }

    pub(super) fn forget_consumer(&mut self, consumer: ConsumerId) -> Outcome {
        if self.held_by(consumer).next().is_some() {
            let what = format!("{consumer} holds a source");
            return Err(Refusal::Conflict { what });
        }
        self.consumers.remove(&consumer);
        Ok((Response::Done, MapChanged::No))
    }
}
