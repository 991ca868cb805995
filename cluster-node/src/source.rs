//! What the node knows of each source: who may feed it, what its former versions
//! are kept for, and who waits for a position.

use crate::storage::{Storage, StorageError};
use cluster_core::ids::{ConsumerEpoch, SourceId};
use cluster_core::lease::{Offer, TokenFence};
use cluster_core::wal_position::WalPosition;
use cluster_core::xid::FullXid;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// What decides how long former versions are kept. The default keeps all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    pub oldest_xmin: FullXid,
    pub confirmed: WalPosition,
}

/// A consumer whose token is lower than one that was seen.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("consumer token {offered} is older than {installed}")]
pub struct OldToken {
    pub offered: ConsumerEpoch,
    pub installed: ConsumerEpoch,
}

pub struct Source {
    pub id: SourceId,
    fence: Mutex<TokenFence>,
    streams: AtomicU64,
    retention: Mutex<Retention>,
    waiters: Mutex<BTreeMap<WalPosition, usize>>,
    changed: watch::Sender<u64>,
}

impl Source {
    fn new(id: SourceId, token: ConsumerEpoch) -> Self {
        Self {
            id,
            fence: Mutex::new(TokenFence::new(token)),
            streams: AtomicU64::new(0),
            retention: Mutex::new(Retention::default()),
            waiters: Mutex::new(BTreeMap::new()),
            changed: watch::Sender::new(0),
        }
    }

    pub fn token(&self) -> ConsumerEpoch {
        self.fence.lock().installed()
    }

    /// Takes a token, durably before it counts (P5). Blocks on the disk.
    pub fn install(
        &self,
        storage: &Storage,
        offered: ConsumerEpoch,
    ) -> Result<Result<(), OldToken>, StorageError> {
        let mut fence = self.fence.lock();
        match fence.offer(offered) {
            Offer::Old { installed } => Ok(Err(OldToken { offered, installed })),
            Offer::Known => Ok(Ok(())),
            Offer::New => {
                storage.put_source_token(self.id, offered)?;
                fence.install(offered);
                Ok(Ok(()))
            }
        }
    }

    /// Numbers a new apply stream; the one before is superseded.
    pub fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub fn is_current_stream(&self, stream: u64) -> bool {
        self.streams.load(Ordering::SeqCst) == stream
    }

    pub fn retention(&self) -> Retention {
        *self.retention.lock()
    }

    pub fn set_retention(&self, retention: Retention) {
        *self.retention.lock() = retention;
    }

    /// Wakes the apply stream: a watermark moved, a gap showed, a search waits.
    pub fn notify(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Says that a search waits for a position, until the guard is dropped.
    pub fn wait_guard(self: &Arc<Self>, position: WalPosition) -> WaitGuard {
        *self.waiters.lock().entry(position).or_insert(0) += 1;
        self.notify();
        WaitGuard {
            source: self.clone(),
            position,
        }
    }

    /// The highest position that a search waits for.
    pub fn wanted(&self) -> Option<WalPosition> {
        self.waiters.lock().last_key_value().map(|(p, _)| *p)
    }
}

pub struct WaitGuard {
    source: Arc<Source>,
    position: WalPosition,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut waiters = self.source.waiters.lock();
        if let Some(count) = waiters.get_mut(&self.position) {
            *count -= 1;
            if *count == 0 {
                waiters.remove(&self.position);
            }
        }
    }
}

/// All sources that the node has heard of; one entry each, never removed.
pub struct Sources {
    storage: Arc<Storage>,
    known: Mutex<BTreeMap<SourceId, Arc<Source>>>,
}

impl Sources {
    pub fn new(storage: Arc<Storage>) -> Self {
        Self {
            storage,
            known: Mutex::new(BTreeMap::new()),
        }
    }

    /// The source, with the token that the disk remembers.
    pub fn get(&self, id: SourceId) -> Result<Arc<Source>, StorageError> {
        let mut known = self.known.lock();
        if let Some(source) = known.get(&id) {
            return Ok(source.clone());
        }
        let token = self.storage.source_token(id)?.unwrap_or_default();
        let source = Arc::new(Source::new(id, token));
        known.insert(id, source.clone());
        Ok(source)
    }
}
