//! A restart from a checkpoint, and from what changed since, finds what the rows say.
#![allow(clippy::unwrap_used)]

use super::checkpoint::file as checkpoint_file;
use super::job::Job;
use crate::config::Config;
use crate::storage::checkpoint_format::encode_contents;
use crate::testing::*;
use index_engine::{ColumnType, PartitionIndex, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROWS: u32 = 40;

/// Every change makes a checkpoint due, if somebody asks for one.
fn config() -> Config {
    let mut config = Config::default();
    config.apply.checkpoint_rows = 1;
    config
}

async fn start(dir: &Path) -> TestNode {
    TestNode::start_with(dir, config()).await
}

fn rows(from: u32, to: u32) -> Vec<cluster_core::change::Change> {
    (from..to).map(|n| upsert(n, [n as f32, 1.0])).collect()
}

/// A node with forty rows in the graph.
async fn filled(dir: &Path) -> TestNode {
    let t = start(dir).await;
    t.apply(batch(0, 10, rows(0, ROWS))).await;
    t.replica().live().index().fold(usize::MAX);
    t
}

/// Asks for a checkpoint and waits until it is named.
async fn take(t: &TestNode) {
    let taken = t.node.metrics.checkpoints.get() + 1;
    t.replica().send(Job::Checkpoint).await.unwrap();
    for _ in 0..4_000 {
        if t.node.metrics.checkpoints.get() == taken {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no checkpoint");
}

fn files(dir: &Path) -> Vec<String> {
    let folder = dir.join("checkpoints").join(PARTITION.0.to_string());
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn file(dir: &Path, name: &str) -> PathBuf {
    let folder = dir.join("checkpoints").join(PARTITION.0.to_string());
    folder.join(name)
}

/// What a search finds now and for all snapshots, and what is pending.
async fn found(t: &TestNode) -> (Vec<u32>, Vec<u32>, u64) {
    let (now, ever) = (t.find(CURRENT).await, t.find(ALL_XIDS).await);
    (now, ever, t.replica().pending_rows())
}

/// Rows that were not linked when the node had started: all of them, if it built the
/// index from its rows.
fn tail(t: &TestNode) -> usize {
    t.replica().live().index().tail_len()
}

/// The same after a restart, and after one without the checkpoint.
async fn assert_survives(t: TestNode, dir: &Path, corrected: usize) -> TestNode {
    let before = found(&t).await;
    t.stop().await;
    let t = start(dir).await;
    assert_eq!(found(&t).await, before);
    assert_eq!(
        tail(&t),
        corrected,
        "vectors that were not in the checkpoint"
    );
    assert_eq!(t.node.metrics.checkpoints_unusable.get(), 0);
    t
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_takes_the_checkpoint_and_corrects_what_changed_since() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path()).await;
    take(&t).await;
    assert_eq!(files(dir.path()), ["1"]);
    let t = assert_survives(t, dir.path(), 0).await;
    // A new row, a changed one with its former version, one that goes with its former
    // version, one that is pending.
    let changes = vec![
        upsert(90, [0.5, 1.0]),
        upsert(3, [70.0, 1.0]),
        delete(7),
        unchanged(91),
    ];
    t.apply(batch(10, 20, changes)).await;
    let t = assert_survives(t, dir.path(), 4).await;
    let (now, ever, pending) = found(&t).await;
    assert!(now.contains(&90) && !now.contains(&7) && ever.contains(&7));
    assert_eq!((now.len(), now.last(), pending), (40, Some(&3), 1));
    // And once more, upon what was corrected.
    t.apply(batch(20, 30, vec![upsert(3, [0.1, 1.0]), delete(90)]))
        .await;
    let t = assert_survives(t, dir.path(), 5).await;
    assert_eq!(t.find(CURRENT).await[..2], [0, 3]);
    t.apply(batch(30, 40, rows(100, 112))).await;
    t.replica().live().index().fold(usize::MAX);
    take(&t).await;
    assert_eq!(files(dir.path()), ["2"], "the older one goes");
    let t = assert_survives(t, dir.path(), 4).await;
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_a_checkpoint_is_written_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = filled(dir.path()).await;
    for round in 0..8u64 {
        let taken = t.node.metrics.checkpoints.get() + 1;
        let mut lsn = 10 + round * 1_000;
        while t.node.metrics.checkpoints.get() < taken {
            // Due once enough has changed.
            t.replica().send(Job::Checkpoint).await.unwrap();
            let n = (lsn * 7 % 50) as u32;
            let change = match lsn % 3 {
                0 => delete(n),
                _ => upsert(n, [n as f32, (lsn % 11) as f32]),
            };
            t.apply(batch(lsn, lsn + 1, vec![change])).await;
            t.replica().live().index().fold(usize::MAX);
            lsn += 1;
            assert!(lsn < 10 + round * 1_000 + 990, "no checkpoint");
        }
        t.nothing_else(10 + round * 1_000 + 1_000).await;
        let before = found(&t).await;
        t.stop().await;
        t = start(dir.path()).await;
        assert_eq!(found(&t).await, before, "round {round}");
        assert_eq!(t.node.metrics.checkpoints_unusable.get(), 0);
        // The watermark moved without rows, and is told again.
        t.nothing_else(10 + round * 1_000 + 1_000).await;
        t.replica().live().index().fold(usize::MAX);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_leaves_no_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path()).await;
    take(&t).await;
    let truncate = cluster_core::change::Change::Truncate;
    t.apply(batch(10, 20, vec![truncate, upsert(1, [1.0, 1.0])]))
        .await;
    let t = assert_survives(t, dir.path(), 1).await;
    assert_eq!(t.find(ALL_XIDS).await, [1]);
    assert!(files(dir.path()).is_empty());
    // And one that is taken later is used.
    t.replica().live().index().fold(usize::MAX);
    t.apply(batch(20, 30, rows(2, 30))).await;
    t.replica().live().index().fold(usize::MAX);
    take(&t).await;
    let t = assert_survives(t, dir.path(), 0).await;
    assert_eq!(t.find(CURRENT).await.len(), 29);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_died_while_it_wrote_takes_the_checkpoint_before() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path()).await;
    take(&t).await;
    t.apply(batch(10, 20, vec![upsert(50, [0.5, 0.0])])).await;
    let before = found(&t).await;
    t.stop().await;
    // Half of a file under its temporary name, and a whole one that was not named.
    let whole = std::fs::read(file(dir.path(), "1")).unwrap();
    std::fs::write(file(dir.path(), "2.tmp"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(file(dir.path(), "2"), &whole).unwrap();
    let t = start(dir.path()).await;
    assert_eq!((found(&t).await, tail(&t)), (before, 1));
    assert_eq!(files(dir.path()), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_checkpoint_is_put_aside_and_the_index_built_from_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = filled(dir.path()).await;
    let path = |name: &str| file(dir.path(), name);
    type Spoil = fn(&mut Vec<u8>);
    let spoil: [(&str, Spoil); 6] = [
        ("a vector", |bytes| bytes[5_000] ^= 1),
        ("the header", |bytes| bytes[20] ^= 1),
        ("a key", |bytes| {
            let at = bytes.len() - 60;
            bytes[at] ^= 1;
        }),
        ("the length", |bytes| {
            let at = bytes.len() - 12;
            bytes[at] ^= 0x80;
        }),
        ("the end", |bytes| bytes.truncate(bytes.len() - 1)),
        ("all", Vec::clear),
    ];
    for (lsn, (what, spoil)) in (1..).zip(spoil) {
        take(&t).await;
        t.apply(batch(
            lsn * 10,
            lsn * 10 + 10,
            vec![upsert(3, [lsn as f32, 0.0])],
        ))
        .await;
        let before = found(&t).await;
        t.stop().await;
        let [name] = &files(dir.path())
            .into_iter()
            .filter(|n| n != "corrupt")
            .collect::<Vec<_>>()[..]
        else {
            panic!("{:?}", files(dir.path()));
        };
        let mut bytes = std::fs::read(path(name)).unwrap();
        spoil(&mut bytes);
        std::fs::write(path(name), &bytes).unwrap();
        t = start(dir.path()).await;
        assert_eq!(found(&t).await, before, "{what}");
        assert_eq!(t.node.metrics.checkpoints_unusable.get(), 1, "{what}");
        assert_eq!(t.replica().problem(), None);
        assert_eq!(files(dir.path()), ["corrupt"], "{what}");
        assert_eq!(std::fs::read(path("corrupt")).unwrap(), bytes);
        t.replica().live().index().fold(usize::MAX);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_replica_is_not_used() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let t = filled(one.path()).await;
    take(&t).await;
    t.stop().await;
    let t = filled(other.path()).await;
    t.apply(batch(10, 20, vec![delete(1)])).await;
    take(&t).await;
    let ahead = file(other.path(), "1");
    t.stop().await;
    // Its watermark is beyond the rows here.
    std::fs::copy(ahead, file(one.path(), "1")).unwrap();
    let t = start(one.path()).await;
    assert_eq!(t.find(CURRENT).await.len(), ROWS as usize);
    assert_eq!(t.node.metrics.checkpoints_unusable.get(), 1);
}

/// The engine can have attributes beside vectors, and a node's indexes have none: what a
/// node of another version may write.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_with_columns_of_attributes_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path()).await;
    take(&t).await;
    let path = file(dir.path(), "1");
    let params = t.replica().live().index().params().clone();
    let read = || checkpoint_file::read(&path, PARTITION, &params, 1);
    let (_, contents) = read().unwrap();
    t.stop().await;
    // The same rows in the same slots, each with a number.
    let columns = [ColumnType::Int];
    let index = PartitionIndex::with_columns(params.clone(), &columns, None).unwrap();
    for n in 0..ROWS {
        let number = [Value::Int(i64::from(n))];
        let vector = [n as f32, 1.0];
        let level_hash = u64::from(n);
        (index.insert_with(&vector[..], level_hash, &number, |_| ())).unwrap();
    }
    let contents = encode_contents(PARTITION, &contents);
    checkpoint_file::write(&path, index.checkpoint(), &index, &contents).unwrap();
    let Err(refused) = read() else {
        panic!("it is read");
    };
    assert_eq!(
        refused.to_string(),
        "it is of 1 columns of attributes, and a node's indexes have none"
    );
    let t = start(dir.path()).await;
    assert_eq!(t.find(CURRENT).await.len(), ROWS as usize);
    assert_eq!(t.node.metrics.checkpoints_unusable.get(), 1);
    assert_eq!(files(dir.path()), ["corrupt"], "put aside");
    assert_eq!(t.replica().problem(), None);
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_leaves_takes_its_checkpoints_along() {
    let dir = tempfile::tempdir().unwrap();
    let t = filled(dir.path()).await;
    take(&t).await;
    t.node.replicas.remove(PARTITION).await.unwrap();
    let folder = dir.path().join("checkpoints").join(PARTITION.0.to_string());
    assert!(!folder.exists());
    t.stop().await;
}
