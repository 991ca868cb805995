//! Sizes and rates of a run, drawn from its seed.

use crate::checks::serving_when_ready;
use crate::clock::WorldMs;
use crate::duties::DutyPolicy;
use crate::faults::Cast;
use crate::network::NetworkProfile;
use crate::process::Proc;
use crate::random::Rng;
use cluster_core::control::{ClusterState, MoveReason, PlannedMove};
use cluster_core::ids::NodeId;
use cluster_core::lease::LeaseTerms;
use cluster_core::placement::PlacementPolicy;
use cluster_core::rebalance::{RebalancePolicy, Throttle};

/// Copies of a partition beyond which no further one is asked for.
const REPLICAS_MAX: usize = 4;
/// A node that is silent for longer does not come back, as far as moves go.
const DEAD_AFTER_MS: u64 = 9_000;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub cast: Cast,
    pub keys: u64,
    pub writes_per_mille: u64,
    pub terms: LeaseTerms,
    pub policy: PlacementPolicy,
    pub duties: DutyPolicy,
    pub network: NetworkProfile,
    pub move_every_ms: u64,
    pub faults_from: WorldMs,
    /// How often the index was defined.
    pub definitions: u64,
    defined_from: WorldMs,
    redefines_per_mille: u64,
}

impl Scenario {
    pub fn draw(rng: &mut Rng) -> Self {
        let nodes = rng.between(2, 4);
        let ttl_ms = rng.between(2_000, 4_000);
        // Mostly there is a node for a replica to go to.
        let copies_max = match rng.chance(250) {
            true => nodes.min(3),
            false => nodes - 1,
        };
        let replication_factor = rng.between(1, copies_max) as u32;
        Self {
            cast: Cast {
                nodes: nodes as usize,
                consumers: rng.between(1, 2) as usize,
                clients: rng.between(2, 3) as usize,
            },
            keys: rng.between(8, 40),
            writes_per_mille: rng.between(100, 500),
            terms: LeaseTerms {
                ttl_ms,
                renew_every_ms: ttl_ms / 3,
                drift_percent: 10,
                epoch_grace_ms: 500,
            },
            policy: PlacementPolicy {
                partitions_per_node: 1,
                replication_factor,
                ..PlacementPolicy::default()
            },
            duties: DutyPolicy {
                rebalance: RebalancePolicy {
                    replication_factor,
                    dead_after_ms: DEAD_AFTER_MS,
                },
                throttle: Throttle {
                    moves_max: rng.between(2, 8) as u32,
                    moves_per_node_max: rng.between(1, 4) as u32,
                },
                split_rows: match rng.chance(800) {
                    true => rng.between(3, 10),
                    false => 0,
                },
            },
            network: NetworkProfile {
                delay_ms_max: rng.between(2, 30),
                lost_per_mille: rng.below(40),
                doubled_per_mille: rng.below(40),
                late_per_mille: rng.below(15),
            },
            move_every_ms: rng.between(600, 4_000),
            faults_from: match rng.chance(250) {
                true => rng.between(300, 3_000),
                false => rng.between(4_000, 9_000),
            },
            definitions: 0,
            defined_from: rng.between(400, 2_500),
            redefines_per_mille: if rng.chance(300) { 1 } else { 0 },
        }
    }

    /// How likely `CREATE INDEX` is now, or a rebuild later.
    pub fn defines(&self, now: WorldMs) -> u64 {
        match self.definitions {
            0 if now >= self.defined_from => 1_000,
            1..3 => self.redefines_per_mille,
            _ => 0,
        }
    }

    /// Another copy of a partition, mostly in the place of one.
    pub fn a_move(
        &self,
        state: &ClusterState,
        from: Option<Proc>,
        rng: &mut Rng,
    ) -> Option<PlannedMove> {
        let at = |node: &NodeId| {
            let known = state.map().nodes.get(node);
            known.and_then(|known| Proc::at(&known.address))
        };
        let serving = serving_when_ready(state.map());
        let is_meant = |node: &NodeId| from.is_none() || at(node) == from;
        let serving: Vec<_> = serving.filter(|(_, node, _)| is_meant(node)).collect();
        let is_emptied = from.is_some();
        let (partition, from, _) = *rng.pick(&serving)?;
        let record = state.map().partitions.get(&partition)?;
        let free = state.map().nodes.keys().copied();
        let free: Vec<NodeId> = free.filter(|n| record.replica_on(*n).is_none()).collect();
        let to = *rng.pick(&free)?;
        let adds = !is_emptied && record.replicas.len() < REPLICAS_MAX && rng.chance(250);
        Some(PlannedMove {
            partition,
            to,
            from: (!adds).then_some(from),
            reason: MoveReason::Operator,
        })
    }
}
