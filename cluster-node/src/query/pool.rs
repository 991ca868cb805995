//! Threads for computing, apart from those that serve the network: at most as
//! many searches compute at once as there are cores, and a bounded number waits.

use crate::config::{SearchConfig, cores};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

pub struct Pool {
    free: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("too many searches wait for a thread")]
    Full,
    #[error("the search panicked")]
    Panicked,
}

impl Pool {
    pub fn new(config: &SearchConfig) -> Self {
        let threads = match config.threads {
            0 => cores(),
            n => n,
        };
        Self {
            free: Semaphore::new(threads),
            waiting: AtomicUsize::new(0),
            waiting_max: config.queue_max,
        }
    }

    pub async fn run<T: Send + 'static>(
        &self,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let waiting = Waiting::enter(&self.waiting, self.waiting_max)?;
        let turn = self.free.acquire().await;
        let _turn = turn.expect("the pool's semaphore is never closed");
        drop(waiting);
        tokio::task::spawn_blocking(compute)
            .await
            .map_err(|_| PoolError::Panicked)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize, max: usize) -> Result<Self, PoolError> {
        let entered = Self(count);
        if count.fetch_add(1, Ordering::Relaxed) >= max {
            return Err(PoolError::Full);
        }
        Ok(entered)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
