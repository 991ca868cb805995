//! Threads for computing, apart from those that serve the network: at most as
//! many searches compute at once as there are cores, and a bounded number waits.
//! Sources take turns, and none has more than its share of threads and of places in
//! the queue: one that asks for a lot waits for itself.

use crate::config::{SearchConfig, cores};
use cluster_core::fair_queue::{FairLimits, FairQueue, Refused};
use cluster_core::ids::SourceId;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::oneshot;

#[derive(Clone)]
pub struct Pool {
    queue: Arc<Mutex<FairQueue<oneshot::Sender<Turn>>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("too many searches wait for a thread")]
    Full,
    #[error("too many searches of this source wait for a thread")]
    SourceFull,
    #[error("the search panicked")]
    Panicked,
}

/// A place among those that compute; given back when it is dropped.
struct Turn {
    /// `None` once it was given back.
    pool: Option<Pool>,
    source: SourceId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.queue.lock().done(self.source);
            pool.give_turns();
        }
    }
}

impl Pool {
    pub fn new(config: &SearchConfig) -> Self {
        let threads = match config.threads {
            0 => cores(),
            n => n,
        };
        let per_source = match config.threads_per_source_max {
            0 => threads,
            n => n.min(threads),
        };
        let queue = FairQueue::new(FairLimits {
            places: threads,
            places_per_source: per_source,
            waiting: config.queue_max,
            waiting_per_source: config.queue_per_source_max,
        });
        Self {
            queue: Arc::new(Mutex::new(queue)),
        }
    }

    pub async fn run<T: Send + 'static>(
        &self,
        source: SourceId,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let (ticket, turn) = oneshot::channel();
        let pushed = self.queue.lock().push(source, ticket);
        pushed.map_err(|refused| match refused {
            Refused::Full => PoolError::Full,
            Refused::SourceFull => PoolError::SourceFull,
        })?;
        self.give_turns();
        let turn = turn.await;
        let turn = turn.expect("a ticket is never dropped without its turn");
        // The place is taken as long as the thread computes, even when nobody waits
        // for it any more.
        let computing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            compute()
        });
        computing.await.map_err(|_| PoolError::Panicked)
    }

    fn give_turns(&self) {
        loop {
            let next = self.queue.lock().turn();
            let Some((source, ticket)) = next else {
                return;
            };
            let turn = Turn {
                pool: Some(self.clone()),
                source,
            };
            // Who has given up waiting leaves its turn to the next of this loop.
            if let Err(mut unused) = ticket.send(turn) {
                unused.pool = None;
                self.queue.lock().done(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    fn pool(threads: usize, per_source: usize, queue_per_source: usize) -> Pool {
        Pool::new(&SearchConfig {
            threads,
            threads_per_source_max: per_source,
            queue_per_source_max: queue_per_source,
            ..SearchConfig::default()
        })
    }

    const GREEDY: SourceId = SourceId(1);
    const MODEST: SourceId = SourceId(2);

    #[tokio::test(flavor = "multi_thread")]
    async fn p10_a_source_that_floods_a_node_is_throttled_and_another_is_served() {
        let pool = pool(2, 1, 3);
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let flood = |pool: Pool| {
            let held = held.clone();
            tokio::spawn(async move { pool.run(GREEDY, move || held.lock().recv().is_ok()).await })
        };
        let mut running: Vec<_> = (0..4).map(|_| flood(pool.clone())).collect();
        while pool.queue.lock().waiting() < 3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let refused = pool.run(GREEDY, || ()).await;
        assert_eq!(refused, Err(PoolError::SourceFull));
        assert_eq!(
            pool.run(MODEST, || 7).await,
            Ok(7),
            "the other thread is its"
        );
        for _ in 0..4 {
            release.send(()).unwrap();
        }
        for search in running.drain(..) {
            assert_eq!(search.await.unwrap(), Ok(true));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p8_with_one_thread_the_next_turn_is_the_other_sources_however_many_wait() {
        let pool = pool(1, 0, 10);
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let done = Arc::new(Mutex::new(Vec::new()));
        let mut asked = Vec::new();
        for (waiting, source) in [GREEDY, GREEDY, GREEDY, GREEDY, MODEST].iter().enumerate() {
            let (pool, held, done) = (pool.clone(), held.clone(), done.clone());
            let source = *source;
            let queue = pool.queue.clone();
            asked.push(tokio::spawn(async move {
                let search = move || {
                    held.lock().recv().unwrap();
                    done.lock().push(source);
                };
                pool.run(source, search).await
            }));
            // One has the thread, and each of the others its place in the queue.
            while queue.lock().waiting() < waiting {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        for _ in &asked {
            release.send(()).unwrap();
        }
        for search in asked {
            search.await.unwrap().unwrap();
        }
        assert_eq!(*done.lock(), [GREEDY, MODEST, GREEDY, GREEDY, GREEDY]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_gives_up_waiting_leaves_its_turn_to_the_next() {
        let pool = pool(1, 0, 10);
        let (release, held) = mpsc::channel::<()>();
        let first = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(GREEDY, move || held.recv().is_ok()).await }
        });
        while pool.queue.lock().waiting() > 0 || first.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let gives_up = pool.run(GREEDY, || ());
        let gave_up = tokio::time::timeout(Duration::from_millis(20), gives_up).await;
        assert!(gave_up.is_err());
        let last = pool.run(GREEDY, || 3);
        release.send(()).unwrap();
        assert_eq!(last.await, Ok(3));
        assert_eq!(first.await.unwrap(), Ok(true));
        let panicked = pool.run(GREEDY, || panic!("on purpose")).await;
        assert_eq!(panicked, Err(PoolError::Panicked));
        assert_eq!(
            pool.run(GREEDY, || 4).await,
            Ok(4),
            "its place is free again"
        );
    }
}
