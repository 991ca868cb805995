//! Searches between two pages. A token is taken with its cursor and never used
//! twice: a page asked for again could not be the same one.

use crate::config::SearchConfig;
use crate::partition::live_index::LiveCursor;
use cluster_core::ids::{Generation, PartitionId};
use cluster_core::wal_position::WalPosition;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// A cursor with what it was opened for.
pub struct OpenCursor {
    pub partition: PartitionId,
    pub generation: Generation,
    pub cursor: LiveCursor,
    /// The replica's watermark when the cursor was opened: what it holds for sure.
    pub applied: WalPosition,
}

struct Idle {
    since: Instant,
    cursor: OpenCursor,
}

struct Registry {
    last: u64,
    idle: HashMap<u64, Idle>,
}

pub struct Cursors {
    registry: Mutex<Registry>,
    /// Keeps tokens of an earlier start from meaning something now.
    nonce: u64,
    ttl: Duration,
    max: usize,
}

impl Cursors {
    pub fn new(config: &SearchConfig) -> Self {
        Self {
            registry: Mutex::new(Registry {
                last: 0,
                idle: HashMap::new(),
            }),
            nonce: RandomState::new().hash_one(0),
            ttl: Duration::from_millis(config.cursor_ttl_ms),
            max: config.cursors_max.max(1),
        }
    }

    /// Keeps a cursor for its next page; over the limit the oldest goes.
    pub fn keep(&self, cursor: OpenCursor) -> u64 {
        let mut dropped = None;
        let mut registry = self.registry.lock();
        if registry.idle.len() >= self.max {
            let oldest = registry.idle.iter().min_by_key(|(_, idle)| idle.since);
            let oldest = oldest.map(|(token, _)| *token);
            dropped = oldest.and_then(|token| registry.idle.remove(&token));
        }
        let token = loop {
            registry.last += 1;
            let token = registry.last ^ self.nonce;
            // Zero asks for a first page.
            if token != 0 {
                break token;
            }
        };
        let since = Instant::now();
        registry.idle.insert(token, Idle { since, cursor });
        drop(registry);
        // A cursor frees its memory here, not under the lock.
        drop(dropped);
        token
    }

    /// The cursor of a token, if it is still here and of this replica.
    pub fn take(
        &self,
        token: u64,
        partition: PartitionId,
        generation: Generation,
    ) -> Option<OpenCursor> {
        let idle = self.registry.lock().idle.remove(&token)?;
        let fits = idle.cursor.partition == partition && idle.cursor.generation == generation;
        fits.then_some(idle.cursor)
    }

    pub fn close(&self, tokens: &[u64]) {
        let closed: Vec<_> = {
            let mut registry = self.registry.lock();
            tokens
                .iter()
                .filter_map(|token| registry.idle.remove(token))
                .collect()
        };
        drop(closed);
    }

    /// Drops what nobody came back for.
    pub fn sweep(&self) {
        let now = Instant::now();
        let expired: Vec<_> = {
            let mut registry = self.registry.lock();
            let is_expired = |idle: &Idle| now.duration_since(idle.since) > self.ttl;
            registry
                .idle
                .extract_if(|_, idle| is_expired(idle))
                .collect()
        };
        drop(expired);
    }

    pub fn count(&self) -> usize {
        self.registry.lock().idle.len()
    }
}
