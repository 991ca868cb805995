#![allow(clippy::unwrap_used)]

use super::disk::{Disk, DiskError};
use super::log_store::LogStore;
use super::state_machine::StateMachine;
use super::{LogId, PeerNode, StorageError, TypeConfig, Vote};
use cluster_core::control::{Command, CoordinatorMember};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite, log_id};
use openraft::{Entry, EntryPayload, RaftLogReader, RaftSnapshotBuilder};
use tempfile::TempDir;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = TempDir::new().unwrap();
        let (log, state) = open(&dir);
        Ok((dir, log, state))
    }
}

fn open(dir: &TempDir) -> (LogStore, StateMachine) {
    let disk = Disk::open(dir.path(), 1).unwrap();
    let state = StateMachine::open(disk.clone()).unwrap();
    (LogStore::new(disk), state)
}

fn entry(term: u64, index: u64) -> Entry<TypeConfig> {
    let members = vec![CoordinatorMember {
        id: 1,
        address: "127.0.0.1:1".to_owned(),
    }];
    let cluster_id = format!("cluster-{index}");
    Entry {
        log_id: log_id(term, 1, index),
        payload: EntryPayload::Normal(Command::Initialise {
            cluster_id,
            members,
        }),
    }
}

async fn indexes(log: &mut LogStore) -> Vec<u64> {
    let entries = log.try_get_log_entries(..).await.unwrap();
    entries.iter().map(|entry| entry.log_id.index).collect()
}

#[test]
fn openraft_finds_the_store_correct() {
    Suite::test_all(Builder).unwrap();
}

#[tokio::test]
async fn vote_log_and_marks_survive_a_restart() {
    let dir = TempDir::new().unwrap();
    let (mut log, state) = open(&dir);
    let vote = Vote::new(7, 2);
    log.save_vote(&vote).await.unwrap();
    log.blocking_append((1..=9).map(|index| entry(3, index)))
        .await
        .unwrap();
    log.truncate(log_id(3, 1, 8)).await.unwrap();
    log.blocking_append([entry(4, 8)]).await.unwrap();
    log.purge(log_id(3, 1, 4)).await.unwrap();
    log.save_committed(Some(log_id(3, 1, 6))).await.unwrap();
    drop((log, state));

    let (mut log, _state) = open(&dir);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(indexes(&mut log).await, [5, 6, 7, 8]);
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(3, 1, 6)));
    let marks = log.get_log_state().await.unwrap();
    assert_eq!(marks.last_purged_log_id, Some(log_id(3, 1, 4)));
    assert_eq!(marks.last_log_id, Some(log_id(4, 1, 8)));
    assert_eq!(log.try_get_log_entries(8..9).await.unwrap(), [entry(4, 8)]);
}

#[tokio::test]
async fn a_failed_write_is_final() {
    let dir = TempDir::new().unwrap();
    let disk = Disk::open(dir.path(), 1).unwrap();
    let mut log = LogStore::new(disk.clone());
    log.save_vote(&Vote::new(1, 1)).await.unwrap();
    disk.fail();
    assert!(log.save_vote(&Vote::new(2, 1)).await.is_err());
    assert!(log.blocking_append([entry(2, 1)]).await.is_err());
    assert!(log.truncate(log_id(1, 1, 1)).await.is_err());
    assert!(log.purge(log_id(1, 1, 1)).await.is_err());
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(1, 1)));
}

#[tokio::test]
async fn a_snapshot_survives_a_restart_and_no_older_one_replaces_it() {
    let dir = TempDir::new().unwrap();
    let (log, mut state) = open(&dir);
    state.apply([entry(1, 1)]).await.unwrap();
    let mut old = state.get_snapshot_builder().await;
    let first = old.build_snapshot().await.unwrap();
    state.apply([entry(1, 2)]).await.unwrap();
    let second = state
        .get_snapshot_builder()
        .await
        .build_snapshot()
        .await
        .unwrap();
    assert!(second.meta.last_log_id > first.meta.last_log_id);

    let map = state.read(|s| s.map().clone());
    drop((log, state, old));
    let (log, mut state) = open(&dir);
    assert_eq!(state.read(|s| s.map().clone()), map);
    let (last, _) = state.applied_state().await.unwrap();
    assert_eq!(last, Some(log_id(1, 1, 2)));
    let current = state.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta, second.meta);
    drop(log);
}

#[test]
fn the_disk_of_another_coordinator_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(Disk::open(dir.path(), 1).unwrap());
    assert!(matches!(
        Disk::open(dir.path(), 2),
        Err(DiskError::WrongDisk(_))
    ));
    drop(Disk::open(dir.path(), 1).unwrap());
}

#[test]
fn what_0_1_0_wrote_names_no_disk_and_is_read() {
    let membership: PeerNode = serde_json::from_str(r#"{"addr":"127.0.0.1:1"}"#).unwrap();
    assert_eq!(
        (&*membership.addr, &*membership.disk_uuid),
        ("127.0.0.1:1", "")
    );
    let dir = TempDir::new().unwrap();
    let disk = Disk::open(dir.path(), 1).unwrap();
    let drawn = disk.uuid().to_owned();
    drop(disk);
    let disk = Disk::open(dir.path(), 1).unwrap();
    assert_eq!((disk.uuid(), drawn.len()), (&*drawn, 32), "drawn once");
    let old = serde_json::json!({"format": 1, "coordinator_id": 1});
    disk.put_synced(b"identity", &old).unwrap();
    drop(disk);
    let drawn = Disk::open(dir.path(), 1).unwrap().uuid().to_owned();
    assert_eq!(drawn.len(), 32, "drawn at the first start after it");
    assert_eq!(Disk::open(dir.path(), 1).unwrap().uuid(), drawn);
}

#[tokio::test]
async fn watchers_see_maps_rise_and_never_the_same_twice() {
    let dir = TempDir::new().unwrap();
    let (_log, mut state) = open(&dir);
    let mut maps = state.watch_map();
    let first: LogId = log_id(1, 1, 1);
    state.apply([entry(1, 1)]).await.unwrap();
    assert_eq!(state.applied_state().await.unwrap().0, Some(first));
    assert_eq!(maps.borrow_and_update().version.0, 1);
    // Already initialised: the map does not change.
    state.apply([entry(1, 2)]).await.unwrap();
    assert!(!maps.has_changed().unwrap());
}
