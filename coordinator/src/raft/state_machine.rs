//! The cluster's state in memory, rebuilt at a start from the last snapshot and
//! the log behind it. A snapshot is one synced write.
//!
//! Every applied change of the map is published to the watchers, who may skip
//! versions and never see one twice or an older one. A state that breaks an
//! invariant is our own mistake: the process ends before anybody sees it.

use super::disk::{Disk, DiskError, Sync, blocking, decode, encode};
use super::{LogId, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig};
use cluster_core::control::{ClusterState, Response};
use cluster_core::invariants::check_successor;
use cluster_core::map::PartitionMap;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, Entry, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use parking_lot::{Mutex, RwLock};
use rocksdb::WriteBatch;
use std::io::Cursor;
use std::sync::Arc;
use tokio::sync::watch;

const SNAPSHOT_META: &[u8] = b"snapshot_meta";
const SNAPSHOT_DATA: &[u8] = b"snapshot_data";

#[derive(Default)]
struct Applied {
    last: Option<LogId>,
    membership: StoredMembership,
    state: ClusterState,
}

struct Shared {
    disk: Arc<Disk>,
    applied: RwLock<Applied>,
    /// Held while the stored snapshot is replaced, so that a slow builder does
    /// not put an older one over one that was just installed.
    storing: Mutex<()>,
    maps: watch::Sender<Arc<PartitionMap>>,
}

#[derive(Clone)]
pub struct StateMachine {
    shared: Arc<Shared>,
}

impl StateMachine {
    pub fn open(disk: Arc<Disk>) -> Result<Self, DiskError> {
        let mut applied = Applied::default();
        if let Some((meta, data)) = stored_snapshot(&disk)? {
            applied.state = decode_state(&data, "snapshot")?;
            applied.last = meta.last_log_id;
            applied.membership = meta.last_membership;
        }
        let (maps, _) = watch::channel(Arc::new(applied.state.map().clone()));
        let applied = RwLock::new(applied);
        Ok(Self {
            shared: Arc::new(Shared {
                disk,
                applied,
                storing: Mutex::new(()),
                maps,
            }),
        })
    }

    /// Reads the applied state. It may lag behind what is committed.
    pub fn read<T>(&self, look: impl FnOnce(&ClusterState) -> T) -> T {
        look(&self.shared.applied.read().state)
    }

    pub fn watch_map(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.shared.maps.subscribe()
    }

    fn publish(&self) {
        let applied = self.shared.applied.read();
        let map = applied.state.map();
        self.shared.maps.send_if_modified(|known| {
            let newer = known.is_superseded_by(map);
            if newer {
                assert_eq!(applied.state.violation(), None, "at {:?}", applied.last);
                assert_eq!(check_successor(known, map), Ok(()), "at {:?}", applied.last);
                *known = Arc::new(map.clone());
            }
            newer
        });
    }

    fn store_snapshot(&self, meta: &SnapshotMeta, data: &[u8]) -> Result<(), DiskError> {
        let _storing = self.shared.storing.lock();
        let disk = &self.shared.disk;
        let stored = disk.get::<SnapshotMeta>(SNAPSHOT_META)?;
        if stored.is_some_and(|stored| stored.last_log_id > meta.last_log_id) {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        batch.put_cf(disk.state(), SNAPSHOT_META, encode(meta, "snapshot meta")?);
        batch.put_cf(disk.state(), SNAPSHOT_DATA, data);
        disk.write(batch, Sync::Yes)
    }
}

fn stored_snapshot(disk: &Disk) -> Result<Option<(SnapshotMeta, Vec<u8>)>, DiskError> {
    let Some(meta) = disk.get::<SnapshotMeta>(SNAPSHOT_META)? else {
        return Ok(None);
    };
    let data = disk.db().get_cf(disk.state(), SNAPSHOT_DATA)?;
    Ok(data.map(|data| (meta, data)))
}

fn decode_state(data: &[u8], what: &str) -> Result<ClusterState, DiskError> {
    let state: ClusterState = decode(data, what)?;
    match state.violation() {
        None => Ok(state),
        Some(problem) => Err(DiskError::Broken {
            what: what.to_owned(),
            problem,
        }),
    }
}

fn read_failed(error: &DiskError) -> StorageError {
    StorageIOError::read_snapshot(None, AnyError::new(error)).into()
}

fn write_failed(error: &DiskError) -> StorageError {
    StorageIOError::write_snapshot(None, AnyError::new(error)).into()
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (last_log_id, last_membership, state) = {
            let applied = self.shared.applied.read();
            (
                applied.last,
                applied.membership.clone(),
                applied.state.clone(),
            )
        };
        let position = last_log_id.map_or("0".to_owned(), |id| id.to_string());
        let snapshot_id = format!("{position}-{:016x}", rand::random::<u64>());
        let meta = SnapshotMeta {
            last_log_id,
            last_membership,
            snapshot_id,
        };

        let (this, stored) = (self.clone(), meta.clone());
        let data = blocking(move || {
            let data = encode(&state, "snapshot")?;
            this.store_snapshot(&stored, &data)?;
            Ok(data)
        });
        let data = data.await.map_err(|e| write_failed(&e))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(data)),
        })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = self.shared.applied.read();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Response>, StorageError>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut responses = Vec::new();
        {
            let mut applied = self.shared.applied.write();
            for entry in entries {
                applied.last = Some(entry.log_id);
                responses.push(match entry.payload {
                    EntryPayload::Blank => Response::Done,
                    EntryPayload::Normal(command) => applied.state.apply(command),
                    EntryPayload::Membership(membership) => {
                        applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Response::Done
                    }
                });
            }
        }
        self.publish();
        Ok(responses)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let (this, meta) = (self.clone(), meta.clone());
        let installed = blocking(move || {
            let data = snapshot.into_inner();
            let state = decode_state(&data, "snapshot from the leader")?;
            this.store_snapshot(&meta, &data)?;
            *this.shared.applied.write() = Applied {
                last: meta.last_log_id,
                membership: meta.last_membership,
                state,
            };
            this.publish();
            Ok(())
        });
        installed.await.map_err(|e| write_failed(&e))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let disk = self.shared.disk.clone();
        let stored = blocking(move || stored_snapshot(&disk))
            .await
            .map_err(|e| read_failed(&e))?;
        Ok(stored.map(|(meta, data)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(data)),
        }))
    }
}
