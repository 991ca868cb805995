//! A node's process is killed in the middle of folding, and in the middle of writing a
//! checkpoint: what it had made durable is found once, and nothing else.
//!
//! The process that dies is this program, run once more for the same test and told where.
#![allow(clippy::unwrap_used)]

use super::checkpoint::file as checkpoint_file;
use crate::config::Config;
use crate::query::search::{PageOf, Search};
use crate::testing::*;
use cluster_core::change::{Change, VectorColumn};
use cluster_core::ids::Generation;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const DIMENSIONS: usize = 128;
/// New ones in a transaction, which also removes one of the last and changes another.
const ROWS: u32 = 500;
const TRANSACTIONS_MAX: u64 = 60;
/// One row in so many is in the tail: a checkpoint begins where it is one in four.
const TAIL_ONE_IN: usize = 5;
const DIES_WITHIN: Duration = Duration::from_secs(60);
const DIR: &str = "RUVECTOR_TEST_DIES_IN";
const THIS_TEST: &str = "partition::crash_tests::p2_p3_a_node_killed_in_mid_fold_and_in_mid_checkpoint_has_every_row_once";

fn config() -> Config {
    let mut config = Config::default();
    config.apply.checkpoint_rows = 1_000;
    config.apply.prune_every_ms = 10;
    config.apply.fold_threads = 1;
    config
}

/// The same for the same number and version.
fn vector(n: u32, version: u32) -> Vec<f32> {
    let mut state = u64::from(n) << 32 | u64::from(version + 1);
    let mut unit = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        (state >> 33) as f32 / (1u64 << 31) as f32
    };
    (0..DIMENSIONS).map(|_| unit()).collect()
}

fn upsert_version(n: u32, version: u32) -> Change {
    Change::Upsert {
        key: key(n),
        vector: VectorColumn::Value(vector(n, version).into()),
    }
}

/// The number of a row that the transaction after its own removes, and of one that it
/// changes.
fn removed(transaction: u64) -> u32 {
    transaction as u32 * ROWS - ROWS + 7
}

fn changed(transaction: u64) -> u32 {
    removed(transaction) + 1
}

/// Transactions count from 1, and commit at ten times their number.
fn changes(transaction: u64) -> Vec<Change> {
    let from = (transaction as u32 - 1) * ROWS;
    let mut changes: Vec<Change> = (from..from + ROWS).map(|n| upsert_version(n, 0)).collect();
    if transaction > 1 {
        changes.push(delete(removed(transaction - 1)));
        changes.push(upsert_version(changed(transaction - 1), 1));
    }
    changes
}

/// What is there after so many.
fn rows_after(transactions: u64) -> BTreeSet<u32> {
    let gone: BTreeSet<u32> = (1..transactions).map(removed).collect();
    let all = 0..transactions as u32 * ROWS;
    all.filter(|n| !gone.contains(n)).collect()
}

async fn start(dir: &Path) -> TestNode {
    TestNode::start_as(dir, NODE, config(), map_of(DIMENSIONS)).await
}

fn applied(t: &TestNode) -> u64 {
    t.replica().progress.applied().commit_end.0 / 10
}

fn tail(t: &TestNode) -> usize {
    t.replica().live().index().tail_len()
}

/// Applies transactions no faster than it folds them, and says how far it has come.
async fn go_on_until_killed(dir: &Path) {
    let t = start(dir).await;
    crate::spawn_workers(&t.node, &CancellationToken::new()).unwrap();
    for transaction in applied(&t) + 1..=TRANSACTIONS_MAX {
        let (from, to) = (transaction * 10 - 10, transaction * 10);
        t.apply(batch(from, to, changes(transaction))).await;
        while tail(&t) > transaction as usize * ROWS as usize / TAIL_ONE_IN {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let checkpoints = t.node.metrics.checkpoints.get();
        let line = format!("@ {} {checkpoints} {transaction}\n", tail(&t));
        std::io::stdout().write_all(line.as_bytes()).unwrap();
        std::io::stdout().flush().unwrap();
    }
    std::thread::sleep(DIES_WITHIN);
}

/// A process that applies, folds and writes checkpoints, and what it said last.
struct Dying {
    process: Child,
    said: Arc<Said>,
}

#[derive(Default)]
struct Said {
    transactions: AtomicU64,
    tail: AtomicU64,
    /// Taken by this process.
    checkpoints: AtomicU64,
}

impl Dying {
    fn start(dir: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", THIS_TEST, "--nocapture"])
            .env(DIR, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let said = Arc::new(Said::default());
        let heard = said.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut words = line.rsplit("@ ").next().unwrap_or_default().split(' ');
                // The number that is waited for comes last.
                for number in [&heard.tail, &heard.checkpoints, &heard.transactions] {
                    let Some(Ok(said)) = words.next().map(str::parse) else {
                        break;
                    };
                    number.store(said, Ordering::SeqCst);
                }
            }
        });
        Self { process, said }
    }

    /// SIGKILL at the first moment that is such; answers transactions and tail of before.
    fn kill_when(mut self, is_it: impl Fn(&Said) -> bool) -> (u64, u64) {
        let deadline = Instant::now() + DIES_WITHIN;
        while !is_it(&self.said) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        assert!(Instant::now() < deadline, "not caught");
        let get = |number: &AtomicU64| number.load(Ordering::SeqCst);
        (get(&self.said.transactions), get(&self.said.tail))
    }
}

/// Files of checkpoints, and those that are being written.
fn files(dir: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let folder = dir.join("checkpoints").join(PARTITION.0.to_string());
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_whole = |path: &PathBuf| path.extension().is_none();
    entries.map(|entry| entry.path()).partition(is_whole)
}

/// Every row that a search finds, page by page.
async fn all_rows(t: &TestNode) -> Vec<u32> {
    let (mut found, mut token) = (Vec::new(), 0);
    loop {
        let page = t.page(Search {
            vector: vector(0, 0).into(),
            page_rows: 2_000,
            deadline: Duration::from_secs(20),
            partitions: vec![PageOf {
                partition: PARTITION,
                generation: Generation(1),
                token,
            }],
            ..search()
        });
        let page = page.await.unwrap();
        found.extend(page.hits.iter().map(|(key, _)| number(key)));
        if page.exhausted {
            return found;
        }
        token = page.token;
    }
}

/// The node as it starts again: with the checkpoint, whose tail is still one, and with
/// everything that it had said.
async fn assert_whole(dir: &Path, said: u64) {
    let t = start(dir).await;
    let transactions = applied(&t);
    assert!(transactions >= said, "{transactions} of {said} are there");
    let want = rows_after(transactions);
    let in_tail = tail(&t);
    assert!(0 < in_tail && in_tail < want.len(), "{in_tail} in the tail");
    assert_eq!(t.node.metrics.checkpoints_unusable.get(), 0);
    let (whole, unfinished) = files(dir);
    let ([loaded], []) = (&whole[..], &unfinished[..]) else {
        panic!("{whole:?} and {unfinished:?}");
    };
    let params = t.replica().live().index().params().clone();
    let (index, _) = checkpoint_file::read(loaded, PARTITION, &params, 1).unwrap();
    let of_checkpoint = index.tail_len();
    println!(
        "{transactions} transactions, {} rows, {in_tail} of them in the tail; of the checkpoint {of_checkpoint} of {}",
        want.len(),
        index.slots_len()
    );
    assert!(0 < of_checkpoint && of_checkpoint < index.slots_len());
    let mut found = all_rows(&t).await;
    found.sort_unstable();
    assert_eq!(found.len(), want.len(), "once each");
    assert!(found.into_iter().eq(want), "the rows that are there");
    for transaction in 1..transactions {
        let n = changed(transaction);
        let page = t.page(Search {
            vector: vector(n, 1).into(),
            page_rows: 1,
            ..search()
        });
        let (key, distance) = page.await.unwrap().hits.remove(0);
        assert_eq!((number(&key), distance), (n, 0.0), "as it was changed");
    }
    t.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p2_p3_a_node_killed_in_mid_fold_and_in_mid_checkpoint_has_every_row_once() {
    if let Some(dir) = std::env::var_os(DIR) {
        return go_on_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let killed = |transactions: u64, is_it: &dyn Fn(&Said) -> bool| {
        let (said, tail) = Dying::start(dir.path()).kill_when(|said| {
            said.transactions.load(Ordering::SeqCst) >= transactions && is_it(said)
        });
        let rows = said * u64::from(ROWS);
        println!("killed after {said} transactions with {tail} of {rows} rows in the tail");
        assert!(0 < tail && tail < rows, "{tail} of {rows}");
        said
    };
    // With a checkpoint that it took meanwhile.
    let said = killed(20, &|said| said.checkpoints.load(Ordering::SeqCst) > 0);
    assert_whole(dir.path(), said).await;
    // While it writes one.
    let said = killed(said + 1, &|_| !files(dir.path()).1.is_empty());
    assert!(!files(dir.path()).1.is_empty(), "it was whole by then");
    assert_whole(dir.path(), said).await;
}
