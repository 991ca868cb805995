//! The state that every coordinator holds, and the door to it.

use super::breaks::NewSlot;
use super::command::{
    Command, CoordinatorMember, Move, PlannedMove, RebalanceMode, Refusal, Reign, Response,
};
use crate::ids::*;
use crate::invariants::check_map;
use crate::map::{PartitionMap, Source};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const NODES_MAX: usize = 1024;
pub const CONSUMERS_MAX: usize = 1024;
pub const SOURCES_MAX: usize = 1024;
pub const COLLECTIONS_MAX: usize = 16_384;
pub const PARTITIONS_MAX: usize = 262_144;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerRecord {
    /// Drawn by the process at its start.
    pub process_uuid: String,
    pub address: String,
}

/// The last id given of each kind; ids are never given twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastIds {
    pub node: NodeId,
    pub consumer: ConsumerId,
    pub source: SourceId,
    pub collection: CollectionId,
    pub partition: PartitionId,
    pub generation: Generation,
    #[serde(default)]
    pub coordinator: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    pub(super) map: PartitionMap,
    pub(super) members: Vec<CoordinatorMember>,
    pub(super) reign: Option<Reign>,
    pub(super) consumers: BTreeMap<ConsumerId, ConsumerRecord>,
    /// Connection strings; they hold passwords and stay out of the map.
    pub(super) dsns: BTreeMap<SourceId, String>,
    pub(super) last: LastIds,
    /// At most one at a time for a partition.
    #[serde(default)]
    pub(super) moves: BTreeMap<PartitionId, Move>,
    #[serde(default)]
    pub(super) planned: Vec<PlannedMove>,
    #[serde(default)]
    pub(super) rebalance: RebalanceMode,
}

/// What a command's handler answers: the response, and whether the map changed.
pub(super) type Outcome = Result<(Response, MapChanged), Refusal>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MapChanged {
    Yes,
    No,
}

impl From<bool> for MapChanged {
    fn from(changed: bool) -> Self {
        match changed {
            true => Self::Yes,
            false => Self::No,
        }
    }
}

impl ClusterState {
    pub fn map(&self) -> &PartitionMap {
        &self.map
    }

    pub fn members(&self) -> &[CoordinatorMember] {
        &self.members
    }

    /// The reign that the epoch belongs to.
    pub fn reign(&self) -> Option<Reign> {
        self.reign
    }

    pub fn is_initialised(&self) -> bool {
        !self.map.cluster_id.is_empty()
    }

    pub fn consumers(&self) -> &BTreeMap<ConsumerId, ConsumerRecord> {
        &self.consumers
    }

    pub fn dsn(&self, source: SourceId) -> Option<&str> {
        self.dsns.get(&source).map(String::as_str)
    }

    pub fn moves(&self) -> &BTreeMap<PartitionId, Move> {
        &self.moves
    }

    /// What an operator wants moved and has not begun.
    pub fn planned(&self) -> &[PlannedMove] {
        &self.planned
    }

    pub fn rebalance(&self) -> RebalanceMode {
        self.rebalance
    }

    /// The sources that a consumer holds, with their tokens.
    pub fn held_by(&self, consumer: ConsumerId) -> impl Iterator<Item = &Source> {
        self.map
            .sources
            .values()
            .filter(move |s| s.consumer == Some(consumer))
    }

    /// Applies one command. A refused command changes nothing.
    pub fn apply(&mut self, command: Command) -> Response {
        match self.dispatch(command) {
            Ok((response, MapChanged::No)) => response,
            Ok((response, MapChanged::Yes)) => {
                self.map.version = self.map.version.next();
                response
            }
            Err(refusal) => Response::Refused(refusal),
        }
    }

    fn dispatch(&mut self, command: Command) -> Outcome {
        match command {
            Command::Initialise {
                cluster_id,
                members,
            } => {
                return self.initialise(cluster_id, members);
            }
            Command::NewEpoch { reign } => return self.new_epoch(reign),
            _ if !self.is_initialised() => return Err(Refusal::NotInitialised),
            _ => {}
        }
        match command {
            Command::Initialise { .. } | Command::NewEpoch { .. } => {
                unreachable!("answered above")
            }
            Command::JoinNode {
                disk_uuid,
                known_as,
                address,
                zone,
            } => self.join_node(disk_uuid, known_as, address, zone),
            Command::JoinConsumer {
                process_uuid,
                address,
            } => self.join_consumer(process_uuid, address),
            Command::ForgetConsumer { consumer } => self.forget_consumer(consumer),
            Command::AddSource { name, dsn } => self.add_source(name, dsn),
            Command::RemoveSource { source } => self.remove_source(source),
            Command::SetSourcePaused { source, is_paused } => {
                self.set_source_paused(source, is_paused)
            }
            Command::SetSourceDsn { source, dsn } => self.set_source_dsn(source, dsn),
            Command::AssignSource {
                source,
                consumer,
                expected,
            } => self.assign_source(source, consumer, expected),
            Command::ReportSource {
                source,
                token,
                slot,
                server_start,
                problem,
                memberships,
            } => {
                let (response, changed) =
                    self.report_source(source, token, slot, server_start, problem)?;
                let is_noted = self.note_memberships(source, &memberships);
                let is_news = is_noted || changed == MapChanged::Yes;
                Ok((response, is_news.into()))
            }
            Command::BreakHistory {
                source,
                token,
                expected,
                slot,
                slot_name,
                server_start,
                reason,
            } => {
                let new = NewSlot {
                    slot,
                    slot_name,
                    server_start,
                };
                self.break_history(source, token, expected, new, reason)
            }
            Command::FollowTimeline {
                source,
                token,
                from,
                to,
            } => self.follow_timeline(source, token, (from, to)),
            Command::RequestReconcile { collection, reason } => {
                self.request_reconcile(collection, reason)
            }
            Command::CreateCollection {
                token,
                spec,
                placement,
            } => self.create_collection(token, spec, placement),
            Command::DropCollection {
                token,
                source,
                index_oid,
                definition_generation,
            } => self.drop_collection(token, source, index_oid, definition_generation),
            Command::BeginBackfill { token, collection } => self.begin_backfill(token, collection),
            Command::FinishBackfill {
                token,
                collection,
                backfill,
                snapshot,
            } => self.finish_backfill(token, collection, backfill, snapshot),
            Command::FailCollection {
                token,
                collection,
                reason,
            } => self.fail_collection(token, collection, reason),
            Command::StartMove {
                partition,
                to,
                from,
                reason,
            } => self.start_move(partition, to, from, reason),
            Command::CancelMove {
                partition,
                generation,
            } => self.cancel_move(partition, generation),
            Command::PromoteReplica {
                token,
                partition,
                node,
                generation,
                waits_out,
            } => self.promote_replica(token, partition, (node, generation), waits_out),
            Command::DemoteReplica {
                token,
                partition,
                node,
                generation,
                min_required,
            } => self.demote_replica(token, partition, (node, generation), min_required),
            Command::MarkStale {
                token,
                partition,
                node,
                generation,
                reason,
            } => self.mark_stale(token, partition, (node, generation), reason),
            Command::FinishRelease {
                partition,
                node,
                generation,
            } => self.finish_release(partition, node, generation),
            Command::StartSplit { partition, at } => self.start_split(partition, at),
            Command::CancelSplit { partition } => self.cancel_split(partition),
            Command::SetDraining { node, is_draining } => self.set_draining(node, is_draining),
            Command::RemoveNode { node } => self.remove_node(node),
            Command::SetRebalance { mode } => {
                self.rebalance = mode;
                Ok((Response::Done, MapChanged::No))
            }
            Command::SetMembers { members } => self.set_members(members),
            Command::PlanMoves { moves } => self.plan_moves(moves),
            Command::SetSlotHoldLimit {
                source,
                limit_bytes,
            } => self.set_slot_hold_limit(source, limit_bytes),
        }
    }

    /// The first broken invariant of the state, in words.
    pub fn violation(&self) -> Option<String> {
        if let Err(violation) = check_map(&self.map) {
            return Some(violation.to_string());
        }
        let newest = self.map.held_partitions().map(|(p, _)| p.id).max();
        if let Some(id) = newest.filter(|id| *id > self.last.partition) {
            return Some(format!("{id} was never given"));
        }
        let problem = self.moves_violation();
        if let Some(problem) = problem.or_else(|| self.coordinators_violation()) {
            return Some(problem);
        }
        self.map
            .sources
            .keys()
            .find(|id| !self.dsns.contains_key(id))
            .map(|id| format!("{id} has no connection string"))
    }
}
