//! How far a replica has come. Positions only rise.

use cluster_core::wal_position::WalPosition;
use parking_lot::Mutex;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Everything up to here is searchable.
    pub applied: WalPosition,
    /// Everything up to here survives a crash.
    pub durable: WalPosition,
}

pub struct Progress {
    watermarks: Mutex<Watermarks>,
    applied: watch::Sender<WalPosition>,
}

impl Progress {
    pub fn new(at: WalPosition) -> Self {
        Self {
            watermarks: Mutex::new(Watermarks {
                applied: at,
                durable: at,
            }),
            applied: watch::Sender::new(at),
        }
    }

    pub fn watermarks(&self) -> Watermarks {
        *self.watermarks.lock()
    }

    pub fn applied(&self) -> WalPosition {
        self.watermarks().applied
    }

    /// Says that a position is searchable. True if that is news.
    pub fn apply_to(&self, to: WalPosition) -> bool {
        let mut watermarks = self.watermarks.lock();
        if to <= watermarks.applied {
            return false;
        }
        watermarks.applied = to;
        self.applied.send_replace(to);
        true
    }

    /// Says that a position is on disk.
    pub fn durable_to(&self, to: WalPosition) {
        let mut watermarks = self.watermarks.lock();
        assert!(
            to <= watermarks.applied,
            "durable {to} is ahead of applied {}",
            watermarks.applied
        );
        watermarks.durable = watermarks.durable.max(to);
    }

    /// Follows the applied watermark.
    pub fn watch_applied(&self) -> watch::Receiver<WalPosition> {
        self.applied.subscribe()
    }
}
