//! Commands that speak to the coordinators' state machine and to a consumer's
//! confirmation, of one partition.

use crate::cluster::cluster;
use crate::words::Words;
use cluster_core::confirm::{ConfirmTracker, ReplicaKey};
use cluster_core::control::*;
use cluster_core::ids::*;
use cluster_core::map::Partition;
use cluster_core::wal_position::{Lsn, WalPosition};

const PARTITION: PartitionId = PartitionId(1);
const INCARNATION: Incarnation = Incarnation(1);

pub struct Control {
    state: ClusterState,
    tracker: ConfirmTracker,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            state: ClusterState::default(),
            tracker: ConfirmTracker::new(INCARNATION, Lsn(0)),
        }
    }
}

impl Control {
    pub fn run(&mut self, words: &Words) -> Option<String> {
        if words.name == "cluster" {
            self.state = cluster(words.get("nodes"), words.get("replicas"), 1);
            return Some(self.replicas());
        }
        self.confirmation(words).or_else(|| self.moves(words))
    }

    fn partition(&self) -> &Partition {
        &self.state.map().partitions[&PARTITION]
    }

    fn replicas(&self) -> String {
        let replicas = self.partition().replicas.iter();
        let told: Vec<_> = replicas
            .map(|r| format!("{} {:?}", r.node, r.state).to_lowercase())
            .collect();
        told.join(", ")
    }

    fn replica(&self, node: u64) -> ReplicaKey {
        let found = self.partition().replica_on(NodeId(node));
        ReplicaKey {
            partition: PARTITION,
            node: NodeId(node),
            generation: found.expect("a replica").generation,
        }
    }

    fn apply(&mut self, command: Command) -> String {
        match self.state.apply(command) {
            Response::Refused(refusal) => format!("refused: {refusal}"),
            _ => self.replicas(),
        }
    }

    fn moves(&mut self, words: &Words) -> Option<String> {
        let token = || ConsumerEpoch(words.number("token").unwrap_or(1));
        let partition = PARTITION;
        let node = NodeId(words.number("node").unwrap_or(0));
        let replica = |of: &Self| of.replica(node.0).generation;
        let command = match words.name {
            "move" => Command::StartMove {
                partition,
                to: NodeId(words.get("to")),
                from: words.number("from").map(NodeId),
                reason: MoveReason::Operator,
            },
            "promote" => Command::PromoteReplica {
                token: token(),
                partition,
                node,
                generation: replica(self),
                waits_out: true,
            },
            "demote" => Command::DemoteReplica {
                token: token(),
                partition,
                node,
                generation: replica(self),
                min_required: words.get("min_required") as u32,
            },
            "mark_stale" => Command::MarkStale {
                token: token(),
                partition,
                node,
                generation: replica(self),
                reason: String::new(),
            },
            "finish_release" => Command::FinishRelease {
                partition,
                node,
                generation: replica(self),
            },
            _ => return None,
        };
        Some(self.apply(command))
    }

    fn confirmation(&mut self, words: &Words) -> Option<String> {
        let at = |key| WalPosition::end_of(INCARNATION, Lsn(words.get(key)));
        match words.name {
            "require" => self.tracker.require(self.replica(words.get("node"))),
            "sent" => self.tracker.sent(Lsn(words.get("up_to"))),
            "durable" => {
                let replica = self.replica(words.get("node"));
                self.tracker.durable(replica, at("up_to"));
            }
            "count" => {
                let replica = self.replica(words.get("node"));
                return Some(match self.tracker.count(replica, at("durable")) {
                    true => "counted".to_owned(),
                    false => "not counted: below what is confirmed".to_owned(),
                });
            }
            "follow_map" => {
                let required: Vec<_> = [1, 2, 3]
                    .into_iter()
                    .filter(|id| self.is_required(NodeId(*id)))
                    .map(|id| self.replica(id))
                    .collect();
                self.tracker.retain(|replica| required.contains(replica));
            }
            _ => return None,
        }
        Some(format!("confirmed {}", self.tracker.confirmed().0))
    }

    fn is_required(&self, node: NodeId) -> bool {
        use cluster_core::map::ReplicaState::*;
        let replica = self.partition().replica_on(node);
        replica.is_some_and(|r| matches!(r.state, Serving | Learner))
    }
}
