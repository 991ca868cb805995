//! The threads that move rows from tails into graphs, longest tail first, and take
//! removed vectors out of them, unless apply needs the cores: `cluster_core::folding`
//! says when.

use super::replica::Replica;
use super::replicas::Replicas;
use crate::clock::boot_ms;
use crate::config::{ApplyConfig, cores};
use crate::metrics::Metrics;
use cluster_core::folding::{FoldLoad, FoldPace, FoldTurn};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Rows folded between two looks at who needs it most.
const FOLD_ROWS: usize = 256;
/// Rows folded between two looks at whether apply needs the cores.
const STEP_ROWS: usize = 16;
/// Vectors looked at for removed ones after each slice of folding, and when there is
/// nothing to fold: enough for a table of which every row is replaced again and again,
/// for the tenth of it that may be removed at a time.
const REPAIR_ROWS: usize = 64 * FOLD_ROWS;
const REPAIR_STEP_ROWS: usize = 256;
const IDLE: Duration = Duration::from_millis(10);

struct Folders {
    replicas: Arc<Replicas>,
    metrics: Arc<Metrics>,
    pace: Mutex<FoldPace>,
    tail_rows_max: usize,
}

/// Starts the pool; it ends with `shutdown`. `fold_threads` 0 leaves one core free.
pub fn spawn(
    replicas: Arc<Replicas>,
    metrics: Arc<Metrics>,
    config: &ApplyConfig,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let threads = match config.fold_threads {
        0 => cores().saturating_sub(1).max(1),
        n => n,
    };
    let folders = Arc::new(Folders {
        replicas,
        metrics,
        pace: Mutex::default(),
        tail_rows_max: config.tail_rows_max,
    });
    for n in 0..threads {
        let (folders, shutdown) = (folders.clone(), shutdown.clone());
        std::thread::Builder::new()
            .name(format!("fold-{n}"))
            .spawn(move || {
                while !shutdown.is_cancelled() {
                    if folders.fold_slice() + folders.repair_slice() == 0 {
                        std::thread::sleep(IDLE);
                    }
                }
            })?;
    }
    Ok(())
}

impl Folders {
    /// Folds a slice of the longest tail that another thread has not in hand.
    fn fold_slice(&self) -> usize {
        let replicas = self.replicas.all();
        let mut tails: Vec<(usize, &Arc<Replica>)> = replicas
            .iter()
            .map(|replica| (replica.live().index().tail_len(), replica))
            .filter(|(tail, replica)| *tail > 0 && !replica.is_quarantined())
            .collect();
        tails.sort_by_key(|(tail, _)| std::cmp::Reverse(*tail));
        let Some(longest) = tails.first().map(|(tail, _)| *tail) else {
            return 0;
        };
        let turn = self.turn(&replicas, longest);
        if turn == FoldTurn::GiveWay {
            self.metrics
                .fold_gave_way_ms
                .inc_by(IDLE.as_millis() as u64);
            return 0;
        }
        // The last rows of a tail may be in other threads' hands: try the next.
        for (_, replica) in tails {
            let mut rows = 0;
            while rows < FOLD_ROWS {
                let step = fold(replica);
                rows += step;
                if step == 0 || (turn == FoldTurn::Freely && !self.may_go_on(&replicas, longest)) {
                    break;
                }
            }
            if rows > 0 {
                self.metrics.folded_rows.inc_by(rows as u64);
                return rows;
            }
        }
        0
    }

    /// Looks for removed vectors where there are most.
    fn repair_slice(&self) -> usize {
        let replicas = self.replicas.all();
        let mut removed: Vec<(usize, &Arc<Replica>)> = replicas
            .iter()
            .map(|replica| (replica.live().index().removed_len(), replica))
            .filter(|(removed, replica)| *removed > 0 && !replica.is_quarantined())
            .collect();
        removed.sort_by_key(|(removed, _)| std::cmp::Reverse(*removed));
        let mut looks = 0;
        for (_, replica) in removed {
            while looks < REPAIR_ROWS && self.may_repair(&replicas) {
                let step = repair(replica);
                looks += step;
                if step == 0 {
                    break;
                }
            }
        }
        self.metrics.repair_looks.inc_by(looks as u64);
        looks
    }

    /// Nothing of it is urgent.
    fn may_repair(&self, replicas: &[Arc<Replica>]) -> bool {
        self.turn(replicas, 0) == FoldTurn::Freely
    }

    fn may_go_on(&self, replicas: &[Arc<Replica>], longest: usize) -> bool {
        self.turn(replicas, longest) == FoldTurn::Freely
    }

    fn turn(&self, replicas: &[Arc<Replica>], tail_rows: usize) -> FoldTurn {
        let waiting_changes = replicas.iter().map(|r| r.waiting_changes()).sum();
        let load = FoldLoad {
            waiting_changes,
            tail_rows,
            tail_rows_max: self.tail_rows_max,
        };
        self.pace.lock().turn(boot_ms(), load)
    }
}

fn fold(replica: &Replica) -> usize {
    let live = replica.live();
    let folded = catch_unwind(AssertUnwindSafe(|| live.index().fold(STEP_ROWS)));
    folded.unwrap_or_else(|_| {
        replica.quarantine("folding panicked; see the log".to_owned());
        0
    })
}

fn repair(replica: &Replica) -> usize {
    let live = replica.live();
    let looks = catch_unwind(AssertUnwindSafe(|| live.index().repair(REPAIR_STEP_ROWS)));
    looks.unwrap_or_else(|_| {
        replica.quarantine("repair of the graph panicked; see the log".to_owned());
        0
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{TestNode, batch, upsert};
    use cluster_core::folding::BEHIND_CHANGES;

    #[tokio::test(flavor = "multi_thread")]
    async fn p8_folding_gives_way_while_much_waits_and_then_takes_up_what_it_left() {
        let dir = tempfile::tempdir().unwrap();
        let t = TestNode::start(dir.path()).await;
        let folders = Folders {
            replicas: t.node.replicas.clone(),
            metrics: t.node.metrics.clone(),
            pace: Mutex::default(),
            tail_rows_max: 100_000,
        };
        let rows = |from: u32, count: u32| {
            let rows = from..from + count;
            rows.map(|n| upsert(n, [n as f32, 0.0])).collect()
        };
        t.apply(batch(0, 10, rows(0, 600))).await;
        assert_eq!(folders.fold_slice(), FOLD_ROWS, "nothing waits");
        let replica = t.replica();
        // The writer has the batch in hand and cannot apply it.
        let held = replica.commit_lock.lock();
        let large = batch(10, 20, rows(1_000, BEHIND_CHANGES as u32));
        let queued = replica.apply(large, t.gaps.clone(), None);
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(queued).unwrap();
        });
        assert_eq!(folders.fold_slice(), 0, "what waits has the cores");
        drop(held);
        t.idle().await;
        let tail = || t.replica().live().index().tail_len();
        let full = 600 - FOLD_ROWS + BEHIND_CHANGES;
        assert_eq!(tail(), full);
        while folders.fold_slice() == 0 {
            tokio::time::sleep(IDLE).await;
        }
        while folders.fold_slice() > 0 {}
        assert_eq!(tail(), 0);
        t.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn removed_vectors_leave_the_graph_when_nothing_else_needs_the_cores() {
        let dir = tempfile::tempdir().unwrap();
        let t = TestNode::start(dir.path()).await;
        let folders = Folders {
            replicas: t.node.replicas.clone(),
            metrics: t.node.metrics.clone(),
            pace: Mutex::default(),
            tail_rows_max: 100_000,
        };
        let rows = (0..500).map(|n| upsert(n, [n as f32, 0.0])).collect();
        t.apply(batch(0, 10, rows)).await;
        while folders.fold_slice() > 0 {}
        let live = t.replica().live();
        assert_eq!(folders.repair_slice(), 0, "nothing is removed");
        for id in 0..100 {
            live.index().remove(index_engine::VectorId(id * 3));
        }
        let replica = t.replica();
        let held = replica.commit_lock.lock();
        let large = batch(10, 20, vec![upsert(1_000, [0.0, 1.0]); BEHIND_CHANGES]);
        let queued = replica.apply(large, t.gaps.clone(), None);
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(queued).unwrap();
        });
        assert_eq!(folders.repair_slice(), 0, "what waits has the cores");
        drop(held);
        t.idle().await;
        while live.index().removed_len() > 0 {
            if folders.repair_slice() == 0 {
                tokio::time::sleep(IDLE).await;
            }
        }
        assert!(t.node.metrics.repair_looks.get() >= 500);
        t.stop().await;
    }
}
