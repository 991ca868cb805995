//! The replicas of a collection, and what one of them holds: what a backend asks to
//! compare them with the heap, and how that passes through a slot.

use super::ScanFailure;
use super::codec::{Garbled, IndexName, Reader, Writer};
use super::view::IndexView;
use cluster_client::ClusterClient;
use cluster_client::replica_digest::ReplicaDigest;
use cluster_core::ids::*;
use cluster_core::map::{HashRange, ReplicaState};
use cluster_core::row_key::RowKey;
use cluster_core::server::AskedBy;
use cluster_core::verify::{Piece, RangeDigest, ReplicaRow, RowDigest, RunDigest, Wanted};
use cluster_core::wal_position::{Lsn, WalPosition};

/// Replicas that fit into an answer.
pub const REPLICAS_MAX: usize = 4_000;

/// A copy of a partition, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaPlace {
    pub partition: PartitionId,
    pub range: HashRange,
    pub node: NodeId,
    pub generation: Generation,
    pub state: ReplicaState,
}

/// One question to one replica.
#[derive(Clone, Debug, PartialEq)]
pub struct DigestCall {
    pub index: IndexName,
    pub partition: PartitionId,
    pub node: NodeId,
    pub generation: Generation,
    /// `None`: as it stands.
    pub min_lsn: Option<Lsn>,
    pub timeout_ms: u64,
    pub wanted: Wanted,
}

/// The collection's replicas in the order of their hash ranges.
pub fn of_collection(
    client: &ClusterClient,
    collection: CollectionId,
) -> Result<Vec<ReplicaPlace>, ScanFailure> {
    let map = client.map();
    let mut places = Vec::new();
    for partition in map.partitions_of(collection) {
        places.extend(partition.replicas.iter().map(|replica| ReplicaPlace {
            partition: partition.id,
            range: partition.range,
            node: replica.node,
            generation: replica.generation,
            state: replica.state,
        }));
    }
    match places.len() {
        count if count > REPLICAS_MAX => {
            let text = format!("the index has {count} replicas, more than {REPLICAS_MAX}");
            Err(ScanFailure::Invalid(text))
        }
        _ => Ok(places),
    }
}

impl DigestCall {
    pub fn ask(self, view: &IndexView, asked_by: AskedBy) -> ReplicaDigest {
        ReplicaDigest {
            source: view.source,
            collection: view.collection,
            asked_by,
            node: self.node,
            partition: self.partition,
            generation: self.generation,
            min_lsn: self.min_lsn,
            wanted: self.wanted,
        }
    }

    pub(super) fn write(&self, out: &mut Writer) {
        out.index(self.index);
        out.u64(self.partition.0);
        out.u64(self.node.0);
        out.u64(self.generation.0);
        out.u64(self.min_lsn.map_or(0, |lsn| lsn.0));
        out.u64(self.timeout_ms);
        match &self.wanted {
            Wanted::Runs { after } => {
                out.u8(1);
                write_key_or_none(after.as_ref(), out);
            }
            Wanted::Rows { after, through } => {
                out.u8(2);
                write_key_or_none(after.as_ref(), out);
                write_key_or_none(through.as_ref(), out);
            }
            Wanted::Keys(keys) => {
                out.u8(3);
                out.u32(keys.len() as u32);
                keys.iter().for_each(|key| out.bytes(key.as_bytes()));
            }
        }
    }

    pub(super) fn read(bytes: &mut Reader) -> Result<Self, Garbled> {
        Ok(Self {
            index: bytes.index()?,
            partition: PartitionId(bytes.u64()?),
            node: NodeId(bytes.u64()?),
            generation: Generation(bytes.u64()?),
            min_lsn: Some(Lsn(bytes.u64()?)).filter(|lsn| lsn.0 > 0),
            timeout_ms: bytes.u64()?,
            wanted: match bytes.u8()? {
                1 => Wanted::Runs {
                    after: read_key_or_none(bytes)?,
                },
                2 => Wanted::Rows {
                    after: read_key_or_none(bytes)?,
                    through: read_key_or_none(bytes)?,
                },
                3 => {
                    let count = bytes.u32()?;
                    let keys = (0..count).map(|_| read_key(bytes));
                    Wanted::Keys(keys.collect::<Result<_, _>>()?)
                }
                _ => return Err(Garbled),
            },
        })
    }
}

fn read_key(bytes: &mut Reader) -> Result<RowKey, Garbled> {
    RowKey::from_bytes(bytes.bytes()?).map_err(|_| Garbled)
}

fn write_key_or_none(key: Option<&RowKey>, out: &mut Writer) {
    out.bytes(key.map_or(&[], RowKey::as_bytes));
}

/// No key is empty.
fn read_key_or_none(bytes: &mut Reader) -> Result<Option<RowKey>, Garbled> {
    match bytes.bytes()? {
        [] => Ok(None),
        key => RowKey::from_bytes(key).map(Some).map_err(|_| Garbled),
    }
}

impl ReplicaPlace {
    pub(super) fn write(&self, out: &mut Writer) {
        out.u64(self.partition.0);
        out.u64(self.range.lo);
        out.u64(self.range.hi);
        out.u64(self.node.0);
        out.u64(self.generation.0);
        out.u8(match self.state {
            ReplicaState::Learner => 1,
            ReplicaState::Serving => 2,
            ReplicaState::Demoted => 3,
            ReplicaState::Releasing => 4,
            ReplicaState::Stale => 5,
        });
    }

    pub(super) fn read(bytes: &mut Reader) -> Result<Self, Garbled> {
        Ok(Self {
            partition: PartitionId(bytes.u64()?),
            range: HashRange {
                lo: bytes.u64()?,
                hi: bytes.u64()?,
            },
            node: NodeId(bytes.u64()?),
            generation: Generation(bytes.u64()?),
            state: match bytes.u8()? {
                1 => ReplicaState::Learner,
                2 => ReplicaState::Serving,
                3 => ReplicaState::Demoted,
                4 => ReplicaState::Releasing,
                5 => ReplicaState::Stale,
                _ => return Err(Garbled),
            },
        })
    }
}

fn write_position(position: WalPosition, out: &mut Writer) {
    out.u64(position.incarnation.0);
    out.u64(position.commit_end.0);
    out.u32(position.ordinal);
}

fn read_position(bytes: &mut Reader) -> Result<WalPosition, Garbled> {
    let incarnation = Incarnation(bytes.u64()?);
    let commit_end = Lsn(bytes.u64()?);
    Ok(WalPosition::new(incarnation, commit_end, bytes.u32()?))
}

pub(super) fn write_piece(piece: &Piece, out: &mut Writer) {
    out.u8(piece.is_complete.into());
    out.u8(piece.at.is_some().into());
    write_position(piece.at.unwrap_or(WalPosition::ZERO), out);
    out.u32(piece.runs.len() as u32);
    for run in &piece.runs {
        out.bytes(run.through.as_bytes());
        out.u64(run.digest.rows);
        out.u128(run.digest.sum);
        out.u32(run.unsearchable);
    }
    out.u32(piece.rows.len() as u32);
    for (key, row) in &piece.rows {
        out.bytes(key.as_bytes());
        write_position(row.position, out);
        out.u128(row.digest.0);
        out.u8(row.is_searchable.into());
    }
}

pub(super) fn read_piece(bytes: &mut Reader) -> Result<Piece, Garbled> {
    let is_complete = bytes.u8()? != 0;
    let has_position = bytes.u8()? != 0;
    let at = read_position(bytes)?;
    let mut piece = Piece {
        at: has_position.then_some(at),
        runs: Vec::new(),
        rows: Vec::new(),
        is_complete,
    };
    for _ in 0..bytes.u32()? {
        piece.runs.push(RunDigest {
            through: read_key(bytes)?,
            digest: RangeDigest {
                rows: bytes.u64()?,
                sum: bytes.u128()?,
            },
            unsearchable: bytes.u32()?,
        });
    }
    for _ in 0..bytes.u32()? {
        let key = read_key(bytes)?;
        let row = ReplicaRow {
            position: read_position(bytes)?,
            digest: RowDigest(bytes.u128()?),
            is_searchable: bytes.u8()? != 0,
        };
        piece.rows.push((key, row));
    }
    Ok(piece)
}
