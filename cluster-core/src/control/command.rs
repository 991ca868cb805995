//! What the coordinators agree on, and what the state machine answers.

use crate::collection::{BackfillSnapshot, CollectionSpec};
use crate::ids::*;
use crate::map::{HashRange, Slot};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorMember {
    pub id: u64,
    /// `host:port` of the coordinator's gRPC server.
    pub address: String,
}

/// A leader's term of office, as Raft numbers it, and the process that holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reign {
    pub term: u64,
    pub leader: u64,
    /// Drawn at the process's start. Raft lets a leader that restarts go on in
    /// its term, but it has forgotten every lease: it reigns anew.
    #[serde(default)]
    pub start: u64,
}

impl Reign {
    /// Whether Raft has elected another leader since `other`'s election.
    pub fn is_elected_after(&self, other: &Reign) -> bool {
        (self.term, self.leader) > (other.term, other.leader)
    }
}

/// A partition of a collection to be, with the nodes that shall hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedPartition {
    pub range: HashRange,
    pub nodes: Vec<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Gives the cluster its id, once.
    Initialise {
        cluster_id: String,
        members: Vec<CoordinatorMember>,
    },
    /// A leader's first command: the epoch rises.
    NewEpoch {
        reign: Reign,
    },
    JoinNode {
        disk_uuid: String,
        known_as: Option<NodeId>,
        address: String,
        zone: String,
    },
    JoinConsumer {
        process_uuid: String,
        address: String,
    },
    /// Forgets a consumer that fell silent and holds nothing.
    ForgetConsumer {
        consumer: ConsumerId,
    },
    AddSource {
        name: String,
        dsn: String,
    },
    RemoveSource {
        source: SourceId,
    },
    /// Stops the following of a source, or lets it go on.
    SetSourcePaused {
        source: SourceId,
        is_paused: bool,
    },
    /// Another way to the same database.
    SetSourceDsn {
        source: SourceId,
        dsn: String,
    },
    /// Hands a source to a consumer, if the token still is `expected`.
    AssignSource {
        source: SourceId,
        consumer: ConsumerId,
        expected: ConsumerEpoch,
    },
    ReportSource {
        source: SourceId,
        token: ConsumerEpoch,
        slot: Option<Slot>,
        #[serde(default)]
        server_start: Option<ServerStart>,
        problem: String,
        /// Of complete collections whose membership in the publication is not noted yet.
        #[serde(default)]
        memberships: BTreeMap<CollectionId, u32>,
    },
    /// The source's history broke: what the stream says from now on does not follow
    /// from what the replicas hold. The slot is a new one.
    BreakHistory {
        source: SourceId,
        token: ConsumerEpoch,
        /// Names the break: the incarnation that ends.
        expected: Incarnation,
        slot: Slot,
        slot_name: String,
        server_start: Option<ServerStart>,
        reason: String,
    },
    /// The server went over to another timeline, and no replica holds anything from
    /// beyond the switch: the slot's history goes on.
    FollowTimeline {
        source: SourceId,
        token: ConsumerEpoch,
        /// That the source was known by.
        from: u32,
        to: u32,
    },
    /// Compares a complete collection with its table, and mends it.
    RequestReconcile {
        collection: CollectionId,
        reason: String,
    },
    CreateCollection {
        token: ConsumerEpoch,
        spec: CollectionSpec,
        placement: Vec<PlacedPartition>,
    },
    /// Drops every generation of the index up to `definition_generation`.
    DropCollection {
        token: ConsumerEpoch,
        source: SourceId,
        index_oid: u32,
        definition_generation: u64,
    },
    BeginBackfill {
        token: ConsumerEpoch,
        collection: CollectionId,
    },
    FinishBackfill {
        token: ConsumerEpoch,
        collection: CollectionId,
        backfill: BackfillId,
        snapshot: BackfillSnapshot,
    },
    FailCollection {
        token: ConsumerEpoch,
        collection: CollectionId,
        reason: String,
    },
    /// Makes a learner on `to`, which takes the place of the replica on `from`
    /// once it serves.
    StartMove {
        partition: PartitionId,
        to: NodeId,
        from: Option<NodeId>,
        reason: MoveReason,
    },
    /// Gives up a move whose learner does not serve yet.
    CancelMove {
        partition: PartitionId,
        generation: Generation,
    },
    /// A learner has caught up and the consumer counts it: it serves.
    PromoteReplica {
        token: ConsumerEpoch,
        partition: PartitionId,
        node: NodeId,
        generation: Generation,
        /// Whether a replica that was left behind is waited out as well when it gives
        /// its place. The logs of 0.1.0 say nothing of it, and are applied as 0.1.0
        /// applied them: it went at once.
        #[serde(default)]
        waits_out: bool,
    },
    /// The slot waits no longer for a replica, as long as `min_required` others
    /// are left.
    DemoteReplica {
        token: ConsumerEpoch,
        partition: PartitionId,
        node: NodeId,
        generation: Generation,
        min_required: u32,
    },
    /// At `slot_hold_limit` the slot passes a replica although no peer has what it
    /// lacks; or its table was not published for a while.
    MarkStale {
        token: ConsumerEpoch,
        partition: PartitionId,
        node: NodeId,
        generation: Generation,
        /// Empty, from 0.1.0: the slot has passed it; refused while it is being filled.
        #[serde(default)]
        reason: String,
    },
    /// A releasing replica's node has let go, or its lease is over.
    FinishRelease {
        partition: PartitionId,
        node: NodeId,
        generation: Generation,
    },
    /// Makes two partitions that take the place of one once all their replicas
    /// serve: `[lo, at]` and `[at + 1, hi]`.
    StartSplit {
        partition: PartitionId,
        at: u64,
    },
    /// Gives up a split that has not happened yet.
    CancelSplit {
        partition: PartitionId,
    },
    SetDraining {
        node: NodeId,
        is_draining: bool,
    },
    /// Forgets a node that holds nothing. Its id does not come back.
    RemoveNode {
        node: NodeId,
    },
    SetRebalance {
        mode: RebalanceMode,
    },
    /// The coordinators from now on, as Raft's membership has them.
    SetMembers {
        members: Vec<CoordinatorMember>,
    },
    /// What to move when there is room; replaces what was planned before.
    PlanMoves {
        moves: Vec<PlannedMove>,
    },
    /// How much WAL the source's server may retain for its slot; `None`: as the
    /// consumer's settings say.
    SetSlotHoldLimit {
        source: SourceId,
        limit_bytes: Option<u64>,
    },
}

/// A copy of a partition that is to come into being on a node, and the one whose
/// place it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedMove {
    pub partition: PartitionId,
    pub to: NodeId,
    pub from: Option<NodeId>,
    pub reason: MoveReason,
}

/// A move that has begun: its learner is in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub to: NodeId,
    /// Of the replica on `to`.
    pub generation: Generation,
    pub from: Option<NodeId>,
    pub reason: MoveReason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveReason {
    /// Its node is to be emptied.
    Drain,
    /// Another node holds less.
    Balance,
    /// Fewer replicas serve than should, or one's node is gone.
    Repair,
    /// An operator asked for it.
    Operator,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RebalanceMode {
    /// The leader repairs, drains and balances by itself.
    #[default]
    Auto,
    /// It repairs and drains; it balances what an operator applies.
    Manual,
    /// It starts no move.
    Paused,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Nothing to tell: the command has taken effect, now or before.
    Done,
    Initialised {
        cluster_id: String,
    },
    Epoch {
        epoch: LeaseEpoch,
    },
    NodeJoined {
        node: NodeId,
    },
    ConsumerJoined {
        consumer: ConsumerId,
    },
    SourceAdded {
        source: SourceId,
    },
    SourceAssigned {
        token: ConsumerEpoch,
    },
    CollectionCreated {
        collection: CollectionId,
    },
    BackfillBegun {
        backfill: BackfillId,
    },
    Refused(Refusal),
}

/// Why a command changed nothing. The kind says what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    #[error("the cluster is not initialised yet: run `ruvector ctl init` once")]
    NotInitialised,
    #[error("{node} is known with disk {known}, not with disk {given}: {explanation}")]
    DiskMismatch {
        node: NodeId,
        known: String,
        given: String,
        explanation: String,
    },
    #[error(
        "{node} is unknown to this cluster: it was removed, or belongs to another cluster. \
         With an empty disk it joins as a new node"
    )]
    UnknownNode { node: NodeId },
    #[error("{consumer} is unknown to this cluster: join again")]
    UnknownConsumer { consumer: ConsumerId },
    #[error("there is no {of}: it was removed")]
    UnknownSource { of: SourceId },
    #[error("there is no {collection}: it was dropped")]
    UnknownCollection { collection: CollectionId },
    #[error("there is no {partition}: its collection was dropped, or it was split")]
    UnknownPartition { partition: PartitionId },
    #[error("consumer token {given} of {of} is void: the current one is {current}")]
    Fenced {
        of: SourceId,
        given: ConsumerEpoch,
        current: ConsumerEpoch,
    },
    #[error("backfill {given} of {collection} is void: the last one is {last}")]
    BackfillVoid {
        collection: CollectionId,
        given: BackfillId,
        last: BackfillId,
    },
    #[error("no node has joined yet: try again once one has")]
    NoNodes,
    #[error("every node is draining: add one, or let one stay, and try again")]
    AllDraining,
    #[error("the proposed placement does not fit the cluster any more: {what}")]
    PlacementOutdated { what: String },
    #[error("{what}")]
    Conflict { what: String },
    #[error("{what}")]
    Invalid { what: String },
    #[error("limit reached: at most {limit} {of}")]
    Full { of: String, limit: usize },
}
