//! The reigning leader's duties, decided by `cluster_core::rebalance` as the
//! coordinator's shell lets it decide: a living consumer for the source, moves and
//! splits that lead nowhere are given up, releases finished, what repairs, drains,
//! balances or was asked for is begun, and what has grown too large is split.

use crate::coordinator::SOURCE;
use crate::leases::Reigning;
use crate::mutant::Mutant;
use crate::process::Effects;
use cluster_core::control::{ClusterState, Command, PlannedMove, RebalanceMode};
use cluster_core::ids::*;
use cluster_core::rebalance::tend::releasing;
use cluster_core::rebalance::{
    Liveness, RebalancePolicy, Release, Throttle, admit, cancellations, hopeless_splits, is_void,
    plan, releases, splits, wanted,
};
use std::collections::BTreeMap;

/// As the coordinators are configured.
#[derive(Clone, Copy, Debug)]
pub struct DutyPolicy {
    pub rebalance: RebalancePolicy,
    pub throttle: Throttle,
    /// A partition of more rows is split; 0: none is.
    pub split_rows: u64,
}

/// What the leader remembers for as long as it reigns: the first map seen that
/// shows a replica as releasing.
#[derive(Default)]
pub struct Duties {
    releasing: BTreeMap<Release, (LeaseEpoch, MapVersion)>,
}

/// What a look is made of.
struct Look<'a> {
    state: &'a ClusterState,
    nodes: Liveness,
    policy: DutyPolicy,
}

impl Duties {
    /// What is to be proposed now. Not while proposals of before are under way.
    pub fn due(
        &mut self,
        state: &ClusterState,
        reigning: &mut Reigning,
        policy: DutyPolicy,
        effects: &Effects<'_>,
    ) -> Vec<Command> {
        self.observe(state);
        let nodes = state.map().nodes.keys().copied();
        let nodes = reigning.liveness(nodes, effects.now);
        let look = Look {
            state,
            nodes,
            policy,
        };
        let mut commands: Vec<Command> = assign(state, reigning, effects.now).into_iter().collect();
        commands.extend(look.give_up_hopeless());
        commands.extend(self.finish_releases(&look, reigning, effects));
        commands.extend(look.forget_void());
        commands.extend(look.begin());
        commands.extend(look.split(reigning));
        commands
    }

    fn observe(&mut self, state: &ClusterState) {
        let map = state.map();
        let seen_in = map.stamp();
        let known = std::mem::take(&mut self.releasing);
        self.releasing = releasing(map, state.moves())
            .map(|release| (release, known.get(&release).copied().unwrap_or(seen_in)))
            .collect();
    }

    fn finish_releases(
        &self,
        look: &Look<'_>,
        reigning: &Reigning,
        effects: &Effects<'_>,
    ) -> Vec<Command> {
        let over = match effects.is_broken(Mutant::ReleaseWithoutWaiting) {
            true => self.releasing.keys().copied().collect(),
            false => releases(&self.releasing, &look.nodes, reigning.grantor.terms()),
        };
        let finish = |release: Release| Command::FinishRelease {
            partition: release.partition,
            node: release.node,
            generation: release.generation,
        };
        over.into_iter().map(finish).collect()
    }
}

/// Gives the source to a living consumer, unless its holder may still live.
fn assign(state: &ClusterState, reigning: &mut Reigning, now: u64) -> Option<Command> {
    let source = state.map().sources.get(&SOURCE)?;
    let (holder, expected) = (source.consumer, source.consumer_epoch);
    let now = reigning.ms(now);
    let grantor = &mut reigning.grantor;
    let mut consumers = state.consumers().keys().copied();
    let consumer = consumers.find(|consumer| grantor.is_live(*consumer, now))?;
    let is_free = grantor.begin_handover(SOURCE, holder, expected, now);
    is_free.then_some(Command::AssignSource {
        source: SOURCE,
        consumer,
        expected,
    })
}

impl Look<'_> {
    fn give_up_hopeless(&self) -> Vec<Command> {
        let (map, moves) = (self.state.map(), self.state.moves());
        let dead_after_ms = self.policy.rebalance.dead_after_ms;
        let moves = cancellations(map, moves, &self.nodes, dead_after_ms);
        let moves = moves.into_iter().map(|given_up| Command::CancelMove {
            partition: given_up.partition,
            generation: given_up.generation,
        });
        let splits = hopeless_splits(map, &self.nodes, dead_after_ms);
        let splits = splits.into_iter();
        let splits = splits.map(|partition| Command::CancelSplit { partition });
        moves.chain(splits).collect()
    }

    /// Tidies what operators asked for and can never begin.
    fn forget_void(&self) -> Option<Command> {
        let (map, moves) = (self.state.map(), self.state.moves());
        let asked = self.state.planned();
        let is_kept = |planned: &&PlannedMove| !is_void(planned, map, moves);
        let kept: Vec<PlannedMove> = asked.iter().filter(is_kept).copied().collect();
        (kept.len() < asked.len()).then_some(Command::PlanMoves { moves: kept })
    }

    fn begin(&self) -> Vec<Command> {
        let (state, map, moves) = (self.state, self.state.map(), self.state.moves());
        let planned = plan(map, moves, self.policy.rebalance, &self.nodes);
        let wanted = wanted(state.rebalance(), &planned, state.planned());
        let admitted = admit(&wanted, map, moves, &self.nodes, self.policy.throttle);
        let start = |planned: PlannedMove| Command::StartMove {
            partition: planned.partition,
            to: planned.to,
            from: planned.from,
            reason: planned.reason,
        };
        admitted.into_iter().map(start).collect()
    }

    /// As many at once as moves: each copies a partition on each of its nodes.
    fn split(&self, reigning: &Reigning) -> Vec<Command> {
        let (map, moves) = (self.state.map(), self.state.moves());
        let is_paused = self.state.rebalance() == RebalanceMode::Paused;
        if self.policy.split_rows == 0 || is_paused {
            return Vec::new();
        }
        let rows = reigning.rows();
        let due = splits(map, moves, &self.nodes, &rows, self.policy.split_rows);
        let room = (self.policy.throttle.moves_max as usize).saturating_sub(map.splits.len());
        let start = |(partition, at)| Command::StartSplit { partition, at };
        due.into_iter().take(room).map(start).collect()
    }
}
