//! The threads that move rows from tails into graphs, longest tail first.

use super::replica::Replica;
use super::replicas::Replicas;
use crate::config::cores;
use crate::metrics::Metrics;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Rows folded between two looks at who needs it most.
const FOLD_ROWS: usize = 256;
const IDLE: Duration = Duration::from_millis(10);

/// Starts the pool; it ends with `shutdown`. `threads` 0 leaves one core free.
pub fn spawn(
    replicas: Arc<Replicas>,
    metrics: Arc<Metrics>,
    threads: usize,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let threads = match threads {
        0 => cores().saturating_sub(1).max(1),
        n => n,
    };
    for n in 0..threads {
        let (replicas, metrics, shutdown) = (replicas.clone(), metrics.clone(), shutdown.clone());
        std::thread::Builder::new()
            .name(format!("fold-{n}"))
            .spawn(move || {
                while !shutdown.is_cancelled() {
                    match fold_longest(&replicas) {
                        0 => std::thread::sleep(IDLE),
                        rows => drop(metrics.folded_rows.inc_by(rows as u64)),
                    }
                }
            })?;
    }
    Ok(())
}

fn fold_longest(replicas: &Replicas) -> usize {
    let mut tails: Vec<(usize, Arc<Replica>)> = replicas
        .all()
        .into_iter()
        .map(|replica| (replica.live().index().tail_len(), replica))
        .filter(|(tail, replica)| *tail > 0 && !replica.is_quarantined())
        .collect();
    tails.sort_by_key(|(tail, _)| std::cmp::Reverse(*tail));
    // The last rows of a tail may be in other threads' hands: try the next.
    for (_, replica) in tails {
        let live = replica.live();
        match catch_unwind(AssertUnwindSafe(|| live.index().fold(FOLD_ROWS))) {
            Ok(0) => {}
            Ok(rows) => return rows,
            Err(_) => replica.quarantine("folding panicked; see the log".to_owned()),
        }
    }
    0
}
