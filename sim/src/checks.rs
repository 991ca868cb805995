//! The promises, asserted in every step from what processes tell and from what is
//! true: the oracle, the committed map, the disks. No process sees any of it.

use crate::client::Consistency;
use crate::coordinator::SOURCE;
use crate::disk::Disk;
use crate::node::disk::ReplicaData;
use crate::oracle::Version;
use crate::postgres::{INCARNATION, Postgres, Snapshot};
use crate::process::{Proc, Ticket};
use cluster_core::apply::StoredVector;
use cluster_core::collection::CollectionState;
use cluster_core::control::ClusterState;
use cluster_core::ids::*;
use cluster_core::invariants::{
    check_applied, check_confirmation, check_epoch, check_grant, check_successor, check_token,
};
use cluster_core::map::{HashRange, PartitionMap, ReplicaState};
use cluster_core::row_key::RowKey;
use cluster_core::scan::Failure;
use cluster_core::wal_position::{Lsn, WalPosition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a replica gave for a search, before paging.
#[derive(Clone, Debug)]
pub struct Served {
    pub partition: PartitionId,
    pub generation: Generation,
    pub applied: WalPosition,
    /// Where a backfill's rows stand.
    pub stamp_high: WalPosition,
    /// Key, vector, and whether it is a former version.
    pub hits: Vec<(RowKey, Box<[f32]>, bool)>,
}

/// How a session's search ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub consistency: Consistency,
    pub min_lsn: Option<Lsn>,
    /// Where the snapshot stands.
    pub at: Lsn,
    pub result: Result<BTreeSet<RowKey>, Failure>,
}

#[derive(Clone, Debug)]
pub enum Fact {
    MapTaken {
        before: Arc<PartitionMap>,
        after: Arc<PartitionMap>,
    },
    EpochHeld {
        before: LeaseEpoch,
        after: LeaseEpoch,
    },
    RenewalArrived {
        call: Ticket,
    },
    Granted {
        call: Ticket,
        epoch: LeaseEpoch,
    },
    Fed {
        token: ConsumerEpoch,
        installed: ConsumerEpoch,
    },
    Applied {
        partition: PartitionId,
        before: WalPosition,
        to: WalPosition,
    },
    Live {
        partition: PartitionId,
    },
    SlotConfirmed(WalPosition),
    /// A replica that must be complete lacks what the slot no longer has.
    RowsMissing {
        partition: PartitionId,
    },
    Answered {
        /// Asked without a position: only the lease vouches for it.
        is_unleased: bool,
        of: Served,
    },
    /// A search begins.
    Searching {
        snapshot: Snapshot,
        collection: CollectionId,
        consistency: Consistency,
    },
    Searched(Outcome),
}

/// What a run has seen, to tell a run that proves something from an idle one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub batches: u64,
    pub searches: u64,
    pub searches_failed: u64,
    pub moves_begun: u64,
    pub learners_live: u64,
    pub releases: u64,
    /// Splits that came about.
    pub splits: u64,
    pub demotions: u64,
    pub backfills: u64,
    pub handovers: u64,
    pub epochs: u64,
    pub confirmations: u64,
    pub rows_compared: u64,
}

/// Everything that is true.
pub struct Truth<'a> {
    pub postgres: &'a Postgres,
    pub state: &'a ClusterState,
    pub disks: &'a [Disk],
}

#[derive(Default)]
pub struct Checks {
    /// The epoch that was committed when a renewal first arrived.
    arrivals: BTreeMap<Ticket, LeaseEpoch>,
    /// Replicas that were released and are gone.
    released: BTreeSet<(PartitionId, Generation)>,
    highest_token: ConsumerEpoch,
    pub final_searches: u64,
    pub counts: Counts,
}

fn end_of(lsn: Lsn) -> WalPosition {
    WalPosition::end_of(INCARNATION, lsn)
}

type Verdict = Result<(), String>;

fn words<E: std::fmt::Display>(result: Result<(), E>) -> Verdict {
    result.map_err(|violation| violation.to_string())
}

impl Checks {
    pub fn fact(&mut self, who: Proc, fact: Fact, truth: &Truth<'_>) -> Verdict {
        match fact {
            Fact::MapTaken { before, after } => words(check_successor(&before, &after)),
            Fact::EpochHeld { before, after } => words(check_epoch(before, after)),
            Fact::RenewalArrived { call } => {
                let epoch = truth.state.map().epoch;
                self.arrivals.entry(call).or_insert(epoch);
                Ok(())
            }
            Fact::Granted { call, epoch } => {
                let reigning = self.arrivals.get(&call).copied().unwrap_or_default();
                words(check_grant(epoch, reigning))
            }
            Fact::Fed { token, installed } => words(check_token(SOURCE, token, installed)),
            Fact::Applied {
                partition,
                before,
                to,
            } => {
                self.counts.batches += 1;
                words(check_applied(partition, before, to))
            }
            Fact::Live { .. } => {
                self.counts.learners_live += 1;
                Ok(())
            }
            Fact::SlotConfirmed(_) => {
                self.counts.confirmations += 1;
                self.slot(truth)
            }
            Fact::RowsMissing { partition } => Err(format!(
                "P2: {who} finds that a replica of {partition} lacks rows that the slot has passed"
            )),
            Fact::Answered { is_unleased, of } => self.answered(who, is_unleased, &of, truth),
            Fact::Searching { .. } => Ok(()),
            Fact::Searched(outcome) => self.searched(&outcome, truth),
        }
    }

    /// P2: what is confirmed is on the disk of every replica that serves a ready
    /// collection.
    pub fn slot(&self, truth: &Truth<'_>) -> Verdict {
        let confirmed = end_of(truth.postgres.confirmed());
        let map = truth.state.map();
        for (partition, node, generation) in serving_when_ready(map) {
            let durable = durable_of(map, truth.disks, partition, node, generation);
            check_confirmation(confirmed, [durable])
                .map_err(|violation| format!("{violation} ({partition} on {node})"))?;
        }
        Ok(())
    }

    /// What holds between the committed map of before a command and after it.
    pub fn committed(&mut self, before: &PartitionMap, truth: &Truth<'_>) -> Verdict {
        let after = truth.state.map();
        words(check_successor(before, after))?;
        if let Some(violation) = truth.state.violation() {
            return Err(violation);
        }
        self.counts.epochs += u64::from(after.epoch > before.epoch);
        let token = after.sources.get(&SOURCE).map(|s| s.consumer_epoch);
        if token > Some(self.highest_token) {
            self.highest_token = token.unwrap_or_default();
            self.counts.handovers += 1;
        }
        let is_half_in_force = |half: PartitionId| after.partitions.contains_key(&half);
        let split = before.splits.values();
        let split = split.filter(|split| is_half_in_force(split.low.id));
        self.counts.splits += split.count() as u64;
        for partition in before.partitions.values() {
            let next = after.partitions.get(&partition.id);
            for replica in &partition.replicas {
                let now = next.and_then(|p| p.replica_on(replica.node));
                let now = now.filter(|r| r.generation == replica.generation);
                let became = now.map(|r| r.state);
                match (replica.state, became) {
                    // With its collection dropped nobody asks any more.
                    (ReplicaState::Releasing, None) if next.is_some() => {
                        self.counts.releases += 1;
                        self.released.insert((partition.id, replica.generation));
                    }
                    (ReplicaState::Serving, Some(ReplicaState::Demoted)) => {
                        self.counts.demotions += 1;
                    }
                    _ => {}
                }
            }
        }
        let learners = |map: &PartitionMap| {
            let replicas = map.partitions.values().flat_map(|p| &p.replicas);
            replicas
                .filter(|r| r.state == ReplicaState::Learner)
                .map(|r| r.generation)
                .collect::<BTreeSet<_>>()
        };
        let begun = learners(after).difference(&learners(before)).count();
        self.counts.moves_begun += begun as u64;
        let ready = |map: &PartitionMap| {
            let states = map.collections.values().map(|c| &c.state);
            states
                .filter(|s| matches!(s, CollectionState::Ready { .. }))
                .count()
        };
        self.counts.backfills += ready(after).saturating_sub(ready(before)) as u64;
        self.slot(truth)
    }

    fn answered(&self, who: Proc, is_unleased: bool, of: &Served, truth: &Truth<'_>) -> Verdict {
        let (partition, generation) = (of.partition, of.generation);
        if is_unleased && self.released.contains(&(partition, generation)) {
            return Err(format!(
                "P5: {who} answers for {partition} in generation {generation}, which it has let go"
            ));
        }
        // Rows of a backfill stand ahead of a stream that lags: the heap decides.
        let is_ahead = of.stamp_high > of.applied || is_before_truncate(of.applied, truth);
        for (key, vector, is_former) in of.hits.iter().filter(|_| !is_ahead) {
            let versions = truth.postgres.oracle.versions(key).iter();
            let mut same = versions.filter(|v| same_bits(&v.vector, vector));
            let is_true = |v: &Version| match (is_former, v.ended) {
                _ if v.began > of.applied => false,
                (false, ended) => ended.is_none_or(|e| e.at > of.applied),
                (true, None) => false,
                (true, Some(ended)) => ended.at <= of.applied && !ended.by_truncate,
            };
            if !same.any(is_true) {
                let what = if *is_former { "former" } else { "current" };
                return Err(format!(
                    "P3: {who} gives {key:?} {vector:?} as a {what} row of {partition} at {}",
                    of.applied
                ));
            }
        }
        Ok(())
    }

    /// P1 and P7: of an answer that claims to be whole, no row is missing that the
    /// snapshot sees and the asked position covers.
    fn searched(&mut self, outcome: &Outcome, truth: &Truth<'_>) -> Verdict {
        self.counts.searches += 1;
        let Ok(keys) = &outcome.result else {
            self.counts.searches_failed += 1;
            return Ok(());
        };
        if outcome.consistency == Consistency::Strong {
            self.final_searches += 1;
        }
        let Some(min_lsn) = outcome.min_lsn else {
            return Ok(());
        };
        // TRUNCATE empties the table for older snapshots too.
        if truth.postgres.last_truncate() > outcome.at {
            return Ok(());
        }
        let (at, covered) = (end_of(outcome.at), end_of(min_lsn));
        for (key, version) in truth.postgres.oracle.rows_at(at) {
            if version.began <= covered && !keys.contains(key) {
                return Err(format!(
                    "P1: a {:?} search at {at} covering {covered} misses {key:?}, a row since {} that ended {:?}",
                    outcome.consistency, version.began, version.ended
                ));
            }
        }
        Ok(())
    }

    /// A replica that serves holds exactly what the table held at its watermark.
    pub fn replica(
        &mut self,
        who: Proc,
        (partition, range): (PartitionId, HashRange),
        data: &ReplicaData,
        truth: &Truth<'_>,
    ) -> Verdict {
        let at = data.watermark;
        let is_ahead = data.stamp_high > at || data.open_backfill.is_some();
        if is_ahead || is_before_truncate(at, truth) {
            return Ok(());
        }
        let rows = truth.postgres.oracle.rows_at(at);
        let mut expected: BTreeMap<&RowKey, &[f32]> = rows
            .filter(|(key, _)| range.contains(key.placement_hash()))
            .map(|(key, version)| (key, &*version.vector))
            .collect();
        self.counts.rows_compared += expected.len() as u64;
        for (key, row) in &data.rows {
            let expected = expected.remove(key);
            let is_same = match &row.vector {
                StoredVector::Value(vector) => expected.is_some_and(|e| same_bits(e, vector)),
                StoredVector::Pending => false,
            };
            if !is_same {
                return Err(format!(
                    "P3: {partition} on {who} at {at} holds {key:?} as {row:?}, and the table had {expected:?}"
                ));
            }
        }
        match expected.first_key_value() {
            Some((key, vector)) => Err(format!(
                "P2: {partition} on {who} at {at} lacks {key:?} {vector:?}"
            )),
            None => Ok(()),
        }
    }
}

/// The table has forgotten what it held then, and replicas may have. A key change
/// that is replayed finds no vector, or that of a later row of the old key; no
/// snapshot sees the difference.
fn is_before_truncate(at: WalPosition, truth: &Truth<'_>) -> bool {
    at < end_of(truth.postgres.last_truncate())
}

pub fn same_bits(a: &[f32], b: &[f32]) -> bool {
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

/// The replicas that the slot has to wait for, halves of a split included.
pub fn serving_when_ready(
    map: &PartitionMap,
) -> impl Iterator<Item = (PartitionId, NodeId, Generation)> {
    let is_ready = |id: &CollectionId| {
        let collection = map.collections.get(id);
        collection.is_some_and(|c| matches!(c.state, CollectionState::Ready { .. }))
    };
    let ready = map
        .held_partitions()
        .filter(move |(p, _)| is_ready(&p.collection));
    ready.flat_map(|(partition, _)| {
        let serving = partition.in_state(ReplicaState::Serving);
        serving.map(|r| (partition.id, r.node, r.generation))
    })
}

/// What is on a node's disk of a replica. A copy that is not whole holds nothing.
pub fn durable_of(
    map: &PartitionMap,
    disks: &[Disk],
    partition: PartitionId,
    node: NodeId,
    generation: Generation,
) -> WalPosition {
    let data = data_of(map, disks, partition, node);
    let whole = data.filter(|d| d.generation == generation && d.learning.is_none());
    whole.map_or(WalPosition::ZERO, |d| d.watermark)
}

pub fn data_of<'a>(
    map: &PartitionMap,
    disks: &'a [Disk],
    partition: PartitionId,
    node: NodeId,
) -> Option<&'a ReplicaData> {
    let process = Proc::at(&map.nodes.get(&node)?.address)?;
    let Proc::Node(index) = process else {
        return None;
    };
    disks
        .get(index)?
        .durable
        .replicas
        .get(&partition)
        .map(|d| &**d)
}
