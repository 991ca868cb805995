//! What a replica holds, as digests in key order, to be compared with the heap.
//!
//! Read from the disk as things stand, without a snapshot that would keep what others
//! delete: each key is judged by itself. A request reads one bounded piece, on a
//! blocking thread, few at a time. Of every row the writer says whether searches find
//! it: it alone knows which vector is a key's present one.

use super::pool::PoolError;
use super::search::{MAP_WAIT, PageError, PagingError, SearchError};
use crate::lease::Standing;
use crate::node::Node;
use crate::partition::job::Job;
use crate::partition::replica::Replica;
use crate::storage::{Storage, StorageError};
use cluster_core::apply::{StoredRow, StoredVector};
use cluster_core::ids::*;
use cluster_core::map::ReplicaState;
use cluster_core::row_key::RowKey;
use cluster_core::server::AskedBy;
use cluster_core::verify::{Piece, RangeDigest, ReplicaRow, RowDigest, RunDigest, Wanted};
use cluster_core::wal_position::{Lsn, WalPosition};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Pieces that are read at one time, over all partitions.
pub const DIGESTS_MAX: usize = 2;
/// Rows of a run: what is listed when a run differs.
pub const RUN_ROWS: usize = 512;
/// A piece ends after so many rows, so much time, or an answer of so many bytes.
const PIECE_ROWS_MAX: usize = 32_768;
const PIECE_TIME: Duration = Duration::from_millis(100);
const PIECE_BYTES_MAX: usize = 96 << 10;
/// What a row or run takes in an answer beside its key.
const ENTRY_BYTES: usize = 64;
/// Reading the clock costs more than reading a small row.
const ROWS_PER_LOOK: usize = 64;

#[derive(Clone, Debug)]
pub struct Digest {
    pub epoch: LeaseEpoch,
    pub map_version: MapVersion,
    pub source: SourceId,
    pub asked_by: Option<AskedBy>,
    pub collection: CollectionId,
    pub partition: PartitionId,
    pub generation: Generation,
    /// A position to have applied; `None`: as it stands, of a replica that nobody feeds.
    pub min_lsn: Option<Lsn>,
    pub deadline: Duration,
    pub wanted: Wanted,
}

impl Node {
    /// Answers one piece.
    pub async fn digest(&self, digest: Digest) -> Result<Piece, PagingError> {
        let limit = Duration::from_millis(self.config.search.deadline_ms_max);
        let deadline = Instant::now() + digest.deadline.min(limit);
        let replica = self.comparable_soon(&digest, deadline).await?;
        let at = match digest.min_lsn {
            None => None,
            Some(lsn) => {
                let reached = self.reach(&replica, false, lsn, Standing::Held, deadline);
                Some(reached.await?)
            }
        };
        let read = self.read(&digest, &replica, deadline).await?;
        let rows = searchable(&replica, read.rows, deadline).await?;
        // What was read while the replica left or began to learn anew is no answer.
        let now = self.comparable(&digest)?;
        if !Arc::ptr_eq(&now, &replica) {
            return Err(PageError::Stale("the partition has left this node").into());
        }
        Ok(piece(&digest.wanted, at, rows, read.is_complete))
    }

    async fn comparable_soon(
        &self,
        digest: &Digest,
        deadline: Instant,
    ) -> Result<Arc<Replica>, PagingError> {
        let refused = match self.comparable(digest) {
            Err(PagingError::Page(PageError::Stale(reason))) => PageError::Stale(reason),
            answered => return answered,
        };
        let asked_by = (digest.epoch, digest.map_version);
        let mut maps = self.watch_map();
        let arrives = maps.wait_for(|map| map.stamp() >= asked_by);
        let until = deadline.min(Instant::now() + MAP_WAIT);
        match timeout_at(until, arrives).await {
            Ok(Ok(_)) => self.comparable(digest),
            _ => Err(refused.into()),
        }
    }

    /// The replica, if it is the one that the caller means and its rows are of the
    /// stream: it serves, or was left behind as it stands.
    fn comparable(&self, digest: &Digest) -> Result<Arc<Replica>, PagingError> {
        let stale = |reason| Err(PageError::Stale(reason).into());
        if self.lease.admit(digest.epoch) != Standing::Held {
            return stale("the node's lease, or the request's epoch, is over");
        }
        if !self.lease.lets_answer_by(&self.map()) {
            return stale("the lease came back under a newer map");
        }
        let known = (digest.epoch, digest.map_version);
        self.admit_server(digest.source, digest.asked_by, known)?;
        if let Some(problem) = self.replicas.unreadable().remove(&digest.partition) {
            return Err(PageError::Corrupt(problem).into());
        }
        let held = self.replicas.get(digest.partition);
        let Some(replica) = held.filter(|held| held.id.generation == digest.generation) else {
            return stale("the partition is not held here in this generation");
        };
        if (replica.id.source, replica.id.collection) != (digest.source, digest.collection) {
            let message = format!("{} is of another collection", digest.partition);
            return Err(PagingError::Request(SearchError::Invalid(message)));
        }
        if replica.is_learning() {
            return stale("the replica has not caught up");
        }
        let is_as_asked = match self.assigned(digest.partition, digest.generation) {
            Some(ReplicaState::Serving) => digest.min_lsn.is_some(),
            Some(ReplicaState::Stale | ReplicaState::Demoted) => digest.min_lsn.is_none(),
            _ => false,
        };
        if !is_as_asked {
            return stale("the map has the replica in another state");
        }
        match replica.problem() {
            Some(problem) => Err(PageError::Corrupt(problem).into()),
            None => Ok(replica),
        }
    }

    async fn read(
        &self,
        digest: &Digest,
        replica: &Arc<Replica>,
        deadline: Instant,
    ) -> Result<Read, PagingError> {
        let throttled = |_| PagingError::Request(SearchError::Throttled(PoolError::Full));
        let turn = timeout_at(deadline, self.queries.digests.acquire()).await;
        let _turn = turn
            .map_err(throttled)?
            .expect("the semaphore is never closed");
        let (storage, partition) = (self.storage.clone(), digest.partition);
        let wanted = digest.wanted.clone();
        let reading = tokio::task::spawn_blocking(move || read(&storage, partition, &wanted));
        match reading.await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(StorageError::Corrupt(corrupt))) => {
                replica.quarantine(corrupt.to_string());
                Err(PageError::Corrupt(corrupt.to_string()).into())
            }
            Ok(Err(error)) => Err(PageError::Unavailable(error.to_string()).into()),
            Err(panic) => Err(PageError::Unavailable(panic.to_string()).into()),
        }
    }
}

/// A row on disk.
struct OnDisk {
    key: RowKey,
    position: WalPosition,
    digest: RowDigest,
    is_pending: bool,
}

impl OnDisk {
    fn new(key: RowKey, row: &StoredRow) -> Self {
        let vector = match &row.vector {
            StoredVector::Value(vector) => Some(&vector[..]),
            StoredVector::Pending => None,
        };
        Self {
            digest: RowDigest::of(&key, vector),
            position: row.position,
            is_pending: vector.is_none(),
            key,
        }
    }
}

struct Read {
    rows: Vec<OnDisk>,
    is_complete: bool,
}

/// Blocks on the disk.
fn read(storage: &Storage, partition: PartitionId, wanted: &Wanted) -> Result<Read, StorageError> {
    let (after, through, rows_per_entry) = match wanted {
        Wanted::Runs { after } => (after.as_ref(), None, RUN_ROWS),
        Wanted::Rows { after, through } => (after.as_ref(), through.as_ref(), 1),
        Wanted::Keys(keys) => {
            let mut rows = Vec::with_capacity(keys.len());
            for key in keys {
                let row = storage.row(partition, key)?;
                rows.extend(row.map(|row| OnDisk::new(key.clone(), &row)));
            }
            return Ok(Read {
                rows,
                is_complete: true,
            });
        }
    };
    let started = std::time::Instant::now();
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for entry in storage.rows_behind(partition, after, through) {
        let (key, row) = entry?;
        rows.push(OnDisk::new(key, &row));
        let count = rows.len();
        if count.is_multiple_of(rows_per_entry) {
            bytes += ENTRY_BYTES
                + rows
                    .last()
                    .map_or(0, |row: &OnDisk| row.key.as_bytes().len());
        }
        let is_late = count.is_multiple_of(ROWS_PER_LOOK) && started.elapsed() > PIECE_TIME;
        if count >= PIECE_ROWS_MAX || bytes >= PIECE_BYTES_MAX || is_late {
            return Ok(Read {
                rows,
                is_complete: false,
            });
        }
    }
    Ok(Read {
        rows,
        is_complete: true,
    })
}

/// Asks the writer which of the rows searches find.
async fn searchable(
    replica: &Replica,
    rows: Vec<OnDisk>,
    deadline: Instant,
) -> Result<Vec<(RowKey, ReplicaRow)>, PagingError> {
    let known = rows.iter().filter(|row| !row.is_pending);
    let keys: Vec<_> = known.map(|row| row.key.clone()).collect();
    let (reply, answer) = oneshot::channel();
    let asking = async {
        replica.send(Job::Find { keys, reply }).await.ok()?;
        answer.await.ok()
    };
    let lost = match timeout_at(deadline, asking).await {
        Ok(Some(lost)) => lost,
        Ok(None) => return Err(PageError::Stale("the replica has stopped").into()),
        Err(_) => {
            return Err(PagingError::Request(SearchError::Throttled(
                PoolError::Full,
            )));
        }
    };
    let mut lost = lost.into_iter().peekable();
    let rows = rows.into_iter().map(|row| {
        let is_lost = lost.next_if(|key| *key == row.key).is_some();
        let digested = ReplicaRow {
            position: row.position,
            digest: row.digest,
            is_searchable: !is_lost,
        };
        (row.key, digested)
    });
    Ok(rows.collect())
}

fn piece(
    wanted: &Wanted,
    at: Option<WalPosition>,
    rows: Vec<(RowKey, ReplicaRow)>,
    is_complete: bool,
) -> Piece {
    let mut piece = Piece {
        at,
        runs: Vec::new(),
        rows: Vec::new(),
        is_complete,
    };
    match wanted {
        Wanted::Runs { .. } => piece.runs = rows.chunks(RUN_ROWS).filter_map(run).collect(),
        Wanted::Rows { .. } | Wanted::Keys(_) => piece.rows = rows,
    }
    piece
}

fn run(rows: &[(RowKey, ReplicaRow)]) -> Option<RunDigest> {
    let digest: RangeDigest = rows.iter().map(|(_, row)| row.digest).collect();
    let unsearchable = rows.iter().filter(|(_, row)| !row.is_searchable).count();
    Some(RunDigest {
        through: rows.last()?.0.clone(),
        digest,
        unsearchable: unsearchable as u32,
    })
}
