//! A cluster on which plans are tried out, for the tests.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::collection::*;
use crate::control::{MoveReason, RebalanceMode};
use crate::ids::*;
use crate::map::*;
use crate::placement::{PlacementPolicy, place_collection};
use std::collections::{BTreeMap, BTreeSet};

pub const DEAD_AFTER_MS: u64 = 300_000;

#[derive(Clone)]
pub struct World {
    pub map: PartitionMap,
    pub moves: BTreeMap<PartitionId, Move>,
    pub nodes: Liveness,
    pub replication_factor: u32,
    last_generation: u64,
}

impl World {
    pub fn new(zones: &[u8], replication_factor: u32) -> Self {
        let mut world = Self {
            map: PartitionMap::default(),
            moves: BTreeMap::new(),
            nodes: Liveness::default(),
            replication_factor,
            last_generation: 0,
        };
        for zone in zones {
            world.add_node(*zone);
        }
        world
    }

    pub fn add_node(&mut self, zone: u8) -> NodeId {
        let last = self.map.nodes.keys().next_back().copied();
        let id = last.unwrap_or_default().next();
        let node = Node {
            id,
            disk_uuid: String::new(),
            address: String::new(),
            zone: zone.to_string(),
            is_draining: false,
        };
        self.map.nodes.insert(id, node);
        self.silence(id, 0);
        id
    }

    /// How long a node has been silent; live up to a lease's time.
    pub fn silence(&mut self, node: NodeId, silent_ms: u64) {
        let view = NodeView {
            silent_ms,
            is_live: silent_ms <= 11_000,
            map: None,
        };
        self.nodes.0.insert(node, view);
    }

    pub fn drain(&mut self, node: NodeId) {
        self.map.nodes.get_mut(&node).unwrap().is_draining = true;
    }

    /// A ready collection, placed as the coordinators would.
    pub fn add_collection(&mut self, partitions_per_node: u32) -> CollectionId {
        let id = self.new_collection();
        let policy = PlacementPolicy {
            partitions_per_node,
            replication_factor: self.replication_factor,
            ..PlacementPolicy::default()
        };
        for placed in place_collection(&self.map, policy, id.0) {
            self.add_partition(id, &placed.nodes);
        }
        id
    }

    pub fn new_collection(&mut self) -> CollectionId {
        let last = self.map.collections.keys().next_back().copied();
        let id = last.unwrap_or_default().next();
        let spec = CollectionSpec {
            source: SourceId(1),
            index_oid: 1,
            definition_generation: id.0,
            table_oid: 1,
            schema_name: String::new(),
            table_name: String::new(),
            index_name: String::new(),
            column_name: String::new(),
            column_attnum: 1,
            key_attnums: vec![1],
            metric: Metric::L2,
            dimensions: 4,
            m: 16,
            ef_construction: 64,
        };
        let state = CollectionState::Ready {
            snapshot: BackfillSnapshot::default(),
        };
        let last_backfill = BackfillId(1);
        let collection = Collection {
            id,
            spec,
            state,
            last_backfill,
            reconcile: None,
        };
        self.map.collections.insert(id, collection);
        id
    }

    pub fn add_partition(&mut self, collection: CollectionId, nodes: &[NodeId]) -> PartitionId {
        let last = self.map.partitions.keys().next_back().copied();
        let id = last.unwrap_or_default().next();
        let replicas = nodes.iter().map(|node| self.replica(*node)).collect();
        let partition = Partition {
            id,
            collection,
            range: HashRange::WHOLE,
            replicas,
        };
        self.map.partitions.insert(id, partition);
        id
    }

    fn replica(&mut self, node: NodeId) -> Replica {
        self.last_generation += 1;
        Replica {
            node,
            generation: Generation(self.last_generation),
            state: ReplicaState::Serving,
        }
    }

    pub fn set_state(&mut self, partition: PartitionId, node: NodeId, state: ReplicaState) {
        let partition = self.map.partitions.get_mut(&partition).unwrap();
        let replica = partition.replicas.iter_mut().find(|r| r.node == node);
        replica.unwrap().state = state;
    }

    pub fn policy(&self) -> RebalancePolicy {
        RebalancePolicy {
            replication_factor: self.replication_factor,
            dead_after_ms: DEAD_AFTER_MS,
        }
    }

    /// A plan, checked for what holds of every plan.
    pub fn plan(&self) -> Plan {
        let plan = plan(&self.map, &self.moves, self.policy(), &self.nodes);
        let mut partitions = BTreeSet::new();
        for planned in &plan.moves {
            assert!(
                partitions.insert(planned.partition),
                "two moves: {planned:?}"
            );
            assert!(!self.map.nodes[&planned.to].is_draining, "{planned:?}");
            assert!(self.nodes.is_live(planned.to), "{planned:?}");
            let partition = &self.map.partitions[&planned.partition];
            assert_ne!(Some(planned.to), planned.from);
            let held = partition.replica_on(planned.to).map(|r| r.state);
            assert!(
                held.is_none_or(|state| state.is_left_behind()),
                "{planned:?}"
            );
            assert!(!is_void(planned, &self.map, &self.moves), "{planned:?}");
        }
        plan
    }

    /// Begins a move, as the state machine does.
    pub fn start(&mut self, planned: &PlannedMove) {
        let mut learner = self.replica(planned.to);
        learner.state = ReplicaState::Learner;
        let begun = Move {
            to: planned.to,
            generation: learner.generation,
            from: planned.from,
            reason: planned.reason,
        };
        let partition = self.map.partitions.get_mut(&planned.partition).unwrap();
        partition.replicas.retain(|r| r.node != planned.to);
        partition.replicas.push(learner);
        assert!(self.moves.insert(planned.partition, begun).is_none());
    }

    /// Ends a move: the learner serves, the giver is gone. No fewer serve.
    pub fn end(&mut self, id: PartitionId) {
        let ended = self.moves.remove(&id).unwrap();
        let partition = self.map.partitions.get_mut(&id).unwrap();
        let before = partition.in_state(ReplicaState::Serving).count();
        partition.replicas.retain(|r| Some(r.node) != ended.from);
        let to = partition.replicas.iter_mut().find(|r| r.node == ended.to);
        to.unwrap().state = ReplicaState::Serving;
        assert!(partition.in_state(ReplicaState::Serving).count() >= before);
    }

    /// Carries a plan out at once.
    pub fn carry_out(&mut self, plan: &Plan) {
        for planned in &plan.moves {
            self.start(planned);
            self.end(planned.partition);
        }
    }

    /// Plans, starts what the throttle admits, ends all but the newest, until
    /// nothing is left to do. Answers all that began.
    pub fn settle(&mut self, throttle: Throttle) -> Vec<PlannedMove> {
        let mut begun = Vec::new();
        loop {
            let plan = self.plan();
            let wanted = wanted(RebalanceMode::Auto, &plan, &[]);
            let started = admit(&wanted, &self.map, &self.moves, &self.nodes, throttle);
            started.iter().for_each(|planned| self.start(planned));
            begun.extend(started);
            let newest = self.moves.values().map(|m| m.generation).max();
            let is_last = self.moves.len() == 1;
            let ends = |m: &Move| is_last || Some(m.generation) != newest;
            let ended = self.moves.iter().filter(|(_, m)| ends(m));
            let ended: Vec<_> = ended.map(|(id, _)| *id).collect();
            if ended.is_empty() {
                return begun;
            }
            ended.into_iter().for_each(|id| self.end(id));
            assert!(begun.len() <= 4 * self.replicas() + 8, "it never settles");
        }
    }

    pub fn replicas(&self) -> usize {
        self.map.partitions.values().map(|p| p.replicas.len()).sum()
    }

    /// Replicas per node, without the nodes that hold none.
    pub fn loads(&self) -> BTreeMap<NodeId, usize> {
        let mut loads = BTreeMap::new();
        for replica in self.map.partitions.values().flat_map(|p| &p.replicas) {
            *loads.entry(replica.node).or_default() += 1;
        }
        loads
    }

    pub fn load(&self, node: NodeId) -> usize {
        self.loads().get(&node).copied().unwrap_or(0)
    }

    /// Partitions with two copies in one zone.
    pub fn sharing_a_zone(&self) -> usize {
        let shares = |p: &&Partition| {
            let zones = p.replicas.iter().map(|r| &self.map.nodes[&r.node].zone);
            zones.collect::<BTreeSet<_>>().len() < p.replicas.len()
        };
        self.map.partitions.values().filter(shares).count()
    }

    pub fn of_reason(plan: &Plan, reason: MoveReason) -> Vec<PlannedMove> {
        let moves = plan.moves.iter().copied();
        moves.filter(|m| m.reason == reason).collect()
    }
}
