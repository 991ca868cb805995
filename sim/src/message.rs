//! What processes say to each other. The shells' protobuf, without the wire.

use crate::node::checkpoint::CheckpointPage;
use crate::postgres::{SlotSnapshot, Transaction};
use crate::process::Ticket;
use cluster_core::change::{BackfillRow, Batch};
use cluster_core::collection::CollectionSpec;
use cluster_core::control::{Command, Response};
use cluster_core::ids::*;
use cluster_core::map::{HashRange, PartitionMap};
use cluster_core::row_key::RowKey;
use cluster_core::scan::{Ask, Failure, PartitionPage};
use cluster_core::wal_position::{Lsn, WalPosition};
use cluster_core::xid::FullXid;
use std::sync::Arc;

/// Where a replica stands, as its node tells it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    pub partition: PartitionId,
    pub generation: Generation,
    pub is_learning: bool,
    pub applied: WalPosition,
    pub durable: WalPosition,
}

/// A search of one attempt; `ask` is the core's.
#[derive(Clone, Debug)]
pub struct Search {
    pub ask: Ask,
    pub collection: CollectionId,
    pub query: [f32; 2],
    pub min_lsn: Option<Lsn>,
    pub snapshot_xmin: FullXid,
}

pub type Pages = Vec<(PartitionId, Result<PartitionPage<RowKey>, Failure>)>;

#[derive(Clone, Debug)]
pub enum BackfillStep {
    Open,
    Chunk {
        chunk: u64,
        stamp: WalPosition,
        rows: Arc<Vec<BackfillRow>>,
    },
    ListPending,
    Close,
}

#[derive(Clone, Debug)]
pub enum Message {
    // To and from coordinators.
    RenewNode {
        call: Ticket,
        node: NodeId,
        known: MapStamp,
        /// Of its replicas.
        rows: Vec<(PartitionId, u64)>,
    },
    RenewConsumer {
        call: Ticket,
        consumer: ConsumerId,
    },
    Granted {
        call: Ticket,
        known: MapStamp,
        ttl_ms: u64,
        assigned: Option<(SourceId, ConsumerEpoch)>,
    },
    Propose {
        call: Ticket,
        command: Command,
    },
    CreateCollection {
        call: Ticket,
        token: ConsumerEpoch,
        spec: CollectionSpec,
    },
    Answer {
        call: Ticket,
        response: Response,
    },
    /// Also: the outcome is unknown.
    NotLeader {
        call: Ticket,
        hint: Option<usize>,
    },
    GetMap {
        call: Ticket,
        at_least: MapStamp,
    },
    Map {
        call: Ticket,
        map: Arc<PartitionMap>,
    },
    MapBehind {
        call: Ticket,
    },

    // Between consumer and nodes.
    Install {
        call: Ticket,
        token: ConsumerEpoch,
    },
    Installed {
        call: Ticket,
        result: Result<Vec<Report>, Fenced>,
    },
    OpenStream {
        stream: Ticket,
        token: ConsumerEpoch,
        incarnation: Incarnation,
    },
    Opened {
        stream: Ticket,
        reports: Vec<Report>,
    },
    Refused {
        stream: Ticket,
    },
    Attach {
        stream: Ticket,
        partition: PartitionId,
        generation: Generation,
        from: WalPosition,
    },
    Apply {
        stream: Ticket,
        batch: Batch,
    },
    NothingElse {
        stream: Ticket,
        to: WalPosition,
        /// The replicas that this stream feeds.
        fed: Vec<(PartitionId, Generation)>,
        oldest_xmin: FullXid,
        confirmed: WalPosition,
    },
    Watermarks {
        stream: Ticket,
        reports: Vec<Report>,
    },
    Gap {
        stream: Ticket,
        partition: PartitionId,
    },
    FetchRow {
        call: Ticket,
        partition: PartitionId,
        key: RowKey,
        before: WalPosition,
        /// The replica has to have applied this.
        at_least: WalPosition,
    },
    /// The outer `None`: not here, or not yet.
    Row {
        call: Ticket,
        found: Option<Option<Box<[f32]>>>,
    },
    Backfill {
        call: Ticket,
        token: ConsumerEpoch,
        partition: PartitionId,
        backfill: BackfillId,
        step: BackfillStep,
    },
    BackfillDone {
        call: Ticket,
        /// Keys: what is pending.
        result: Result<Vec<RowKey>, String>,
    },

    // Between nodes.
    FetchCheckpoint {
        call: Ticket,
        partition: PartitionId,
        at_least: WalPosition,
        after: Option<RowKey>,
        /// For a half of a split: only the keys of its range.
        range: Option<HashRange>,
    },
    Checkpoint {
        call: Ticket,
        page: Option<CheckpointPage>,
    },

    // To and from Postgres.
    StartReplication {
        stream: Ticket,
    },
    Started {
        stream: Ticket,
        confirmed: Lsn,
        next_xid: FullXid,
    },
    Wal {
        stream: Ticket,
        transaction: Arc<Transaction>,
    },
    Keepalive {
        stream: Ticket,
        wal_end: Lsn,
        oldest_xmin: FullXid,
        next_xid: FullXid,
    },
    Status {
        stream: Ticket,
        flush: Lsn,
    },
    TakeSnapshot {
        call: Ticket,
    },
    Snapshot {
        call: Ticket,
        snapshot: Arc<SlotSnapshot>,
    },
    Reread {
        call: Ticket,
        key: RowKey,
    },
    RereadDone {
        call: Ticket,
        vector: Option<Box<[f32]>>,
    },

    // Between clients and nodes.
    Search {
        call: Ticket,
        search: Search,
    },
    Found {
        call: Ticket,
        pages: Pages,
        known: MapStamp,
    },
    SearchFailed {
        call: Ticket,
        failure: Failure,
        known: Option<MapStamp>,
    },
    CloseCursors {
        tokens: Vec<u64>,
    },
}

/// A later consumer's token is installed, or the node has no lease.
#[derive(Clone, Copy, Debug)]
pub struct Fenced;

impl Message {
    /// What it is about, beyond its name.
    pub fn detail(&self) -> String {
        match self {
            Message::Apply { batch, .. } => {
                format!("{} ({}, {}]", batch.partition, batch.previous, batch.to)
            }
            Message::Attach {
                partition, from, ..
            } => format!("{partition} from {from}"),
            Message::NothingElse { to, .. } => format!("up to {to}"),
            Message::Status { flush, .. } => format!("flushed {flush}"),
            _ => String::new(),
        }
    }

    /// For the trace.
    pub fn name(&self) -> &'static str {
        match self {
            Message::RenewNode { .. } => "RenewNode",
            Message::RenewConsumer { .. } => "RenewConsumer",
            Message::Granted { .. } => "Granted",
            Message::Propose { .. } => "Propose",
            Message::CreateCollection { .. } => "CreateCollection",
            Message::Answer { .. } => "Answer",
            Message::NotLeader { .. } => "NotLeader",
            Message::GetMap { .. } => "GetMap",
            Message::Map { .. } => "Map",
            Message::MapBehind { .. } => "MapBehind",
            Message::Install { .. } => "Install",
            Message::Installed { .. } => "Installed",
            Message::OpenStream { .. } => "OpenStream",
            Message::Opened { .. } => "Opened",
            Message::Refused { .. } => "Refused",
            Message::Attach { .. } => "Attach",
            Message::Apply { .. } => "Apply",
            Message::NothingElse { .. } => "NothingElse",
            Message::Watermarks { .. } => "Watermarks",
            Message::Gap { .. } => "Gap",
            Message::FetchRow { .. } => "FetchRow",
            Message::Row { .. } => "Row",
            Message::Backfill { .. } => "Backfill",
            Message::BackfillDone { .. } => "BackfillDone",
            Message::FetchCheckpoint { .. } => "FetchCheckpoint",
            Message::Checkpoint { .. } => "Checkpoint",
            Message::StartReplication { .. } => "StartReplication",
            Message::Started { .. } => "Started",
            Message::Wal { .. } => "Wal",
            Message::Keepalive { .. } => "Keepalive",
            Message::Status { .. } => "Status",
            Message::TakeSnapshot { .. } => "TakeSnapshot",
            Message::Snapshot { .. } => "Snapshot",
            Message::Reread { .. } => "Reread",
            Message::RereadDone { .. } => "RereadDone",
            Message::Search { .. } => "Search",
            Message::Found { .. } => "Found",
            Message::SearchFailed { .. } => "SearchFailed",
            Message::CloseCursors { .. } => "CloseCursors",
        }
    }
}
