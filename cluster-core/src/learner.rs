//! What a learning replica decides: when it goes on, when it begins anew, what
//! it may promise, and when it has caught up.
//!
//! A learner logs the stream above the position `from` at which it was attached,
//! and copies a peer's records meanwhile. The copy is fuzzy: each part is read at a
//! watermark of its own, at or above `from`, perhaps from several peers. It is
//! right all the same, because rows carry positions and everything above `from`
//! is replayed over it in order: what a part has seen already does nothing, and
//! what was removed since is removed again (P3). Two things must hold.
//!
//! - A part is never older than the one before it, whoever sends it. Else a row
//!   could be missing from a late part, because it was removed, and its former
//!   version from an early one, because it was not removed yet (P1).
//! - The replica goes live only once the log reaches as far as the newest part.
//!   Before that it is in no state that a replica of the stream ever has.
//!
//! The caller writes first and then keeps the new state: a `Learner` that others
//! see never says more than the disk holds.

use crate::apply::{self, Admission};
use crate::ids::NodeId;
use crate::map::{Partition, Replica, ReplicaState};
use crate::wal_position::WalPosition;
use std::fmt;

/// The longest pause between two attempts to copy.
const BACKOFF_MS_MAX: u64 = 5_000;
const BACKOFF_MS_MIN: u64 = 100;

/// Where a record stands among its partition's: the storage key without the
/// partition. The empty one stands before all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct CopyKey(pub Box<[u8]>);

/// Numbers the beginnings of a learner: what a copy for an earlier one brings
/// is void.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyRun(u64);

impl fmt::Display for CopyRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy {}", self.0)
    }
}

/// What the stream has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Log {
    /// Everything in `(from, end]` has been logged.
    from: WalPosition,
    end: WalPosition,
    /// How much of it survives a crash.
    durable: WalPosition,
}

/// What the peers have brought; stored with every part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// The first header's watermark.
    pub base: Option<WalPosition>,
    /// Nothing above this is in the records.
    pub high: WalPosition,
    /// The last record's key.
    pub after: CopyKey,
    pub is_complete: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for the consumer: nothing is logged, nothing is copied.
    Unattached,
    /// Logs, while a peer's records come.
    Copying,
    /// The copy is whole: the log is applied over it.
    Replaying,
}

/// What an attachment does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Nothing is missing between what was logged and what will come.
    GoesOn,
    /// Copy and log are void: throw them away.
    BeginsAnew,
}

/// What to ask a peer for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyWanted {
    pub run: CopyRun,
    pub at_least: WalPosition,
    pub after: CopyKey,
}

/// Why what a peer sent cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyRefused {
    #[error("no copy is wanted now")]
    NotWanted,
    #[error("the peer stands at {watermark}, below {at_least}: its records would leave a hole")]
    TooOld {
        watermark: WalPosition,
        at_least: WalPosition,
    },
    #[error("the peer's records are not in the order of their keys")]
    OutOfOrder,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learner {
    log: Option<Log>,
    copied: Copied,
    run: CopyRun,
}

impl Learner {
    /// As the disk remembers it: where it was attached, how far it logged, and
    /// what it copied.
    pub fn restored(log: Option<(WalPosition, WalPosition)>, copied: Copied) -> Self {
        Self {
            log: log.map(|(from, end)| Log {
                from,
                end,
                durable: end,
            }),
            copied,
            run: CopyRun::default(),
        }
    }

    /// Everything above `from` will come from now on.
    pub fn attach(&mut self, from: WalPosition) -> Attached {
        if self.log.is_some_and(|log| from <= log.end) {
            return Attached::GoesOn;
        }
        self.void(Some(Log {
            from,
            end: from,
            durable: from,
        }));
        Attached::BeginsAnew
    }

    /// The log cannot be kept: waits to be attached again.
    pub fn give_up(&mut self) {
        self.void(None);
    }

    fn void(&mut self, log: Option<Log>) {
        self.log = log;
        self.copied = Copied::default();
        self.run.0 += 1;
    }

    /// Whether a batch `(previous, to]` may be logged (P4).
    pub fn admit(&self, previous: WalPosition, to: WalPosition) -> Admission {
        match self.log {
            Some(log) => apply::admit(log.end, previous, to),
            None => Admission::Gap,
        }
    }

    /// An admitted batch was logged, or there is nothing else up to `to`.
    pub fn log_to(&mut self, to: WalPosition) {
        if let Some(log) = &mut self.log {
            log.end = log.end.max(to);
        }
    }

    /// The log is on disk up to here.
    pub fn durable_to(&mut self, to: WalPosition) {
        if let Some(log) = &mut self.log {
            let end = log.end;
            assert!(to <= end, "durable {to} is ahead of the log's end {end}");
            log.durable = log.durable.max(to);
        }
    }

    pub fn attached_from(&self) -> Option<WalPosition> {
        self.log.map(|log| log.from)
    }

    pub fn log_end(&self) -> WalPosition {
        self.log.map_or(WalPosition::ZERO, |log| log.end)
    }

    /// What may be reported: everything up to here will be found once it serves.
    pub fn durable(&self) -> WalPosition {
        self.log.map_or(WalPosition::ZERO, |log| log.durable)
    }

    pub fn copied(&self) -> &Copied {
        &self.copied
    }

    pub fn run(&self) -> CopyRun {
        self.run
    }

    pub fn phase(&self) -> Phase {
        match self.log {
            None => Phase::Unattached,
            Some(_) if self.copied.is_complete => Phase::Replaying,
            Some(_) => Phase::Copying,
        }
    }

    pub fn wants(&self) -> Option<CopyWanted> {
        let log = self.log.filter(|_| !self.copied.is_complete)?;
        Some(CopyWanted {
            run: self.run,
            at_least: log.from.max(self.copied.high),
            after: self.copied.after.clone(),
        })
    }

    /// A peer's header: everything up to `watermark` is in what will follow.
    pub fn take_header(&mut self, watermark: WalPosition) -> Result<(), CopyRefused> {
        let wanted = self.wants().ok_or(CopyRefused::NotWanted)?;
        if watermark < wanted.at_least {
            return Err(CopyRefused::TooOld {
                watermark,
                at_least: wanted.at_least,
            });
        }
        self.copied.base.get_or_insert(watermark);
        self.copied.high = self.copied.high.max(watermark);
        Ok(())
    }

    /// Records from `first` to `last`, which hold nothing above `high`.
    pub fn take_records(
        &mut self,
        first: &CopyKey,
        last: CopyKey,
        high: WalPosition,
    ) -> Result<(), CopyRefused> {
        if self.wants().is_none() || self.copied.base.is_none() {
            return Err(CopyRefused::NotWanted);
        }
        if *first <= self.copied.after || last < *first {
            return Err(CopyRefused::OutOfOrder);
        }
        self.copied.after = last;
        self.copied.high = self.copied.high.max(high);
        Ok(())
    }

    /// The peer has said that nothing follows.
    pub fn take_end(&mut self) -> Result<(), CopyRefused> {
        if self.wants().is_none() || self.copied.base.is_none() {
            return Err(CopyRefused::NotWanted);
        }
        self.copied.is_complete = true;
        Ok(())
    }

    /// Records are missing among those that came: copies all of them once more.
    /// Those that are here do no harm, for the log is replayed over them.
    pub fn copy_once_more(&mut self) {
        self.copied.after = CopyKey::default();
    }

    /// The watermark at which it becomes an ordinary replica, once all that was
    /// logged is applied and nothing that was copied lies above.
    pub fn goes_live(&self, is_log_applied: bool) -> Option<WalPosition> {
        let has_caught_up = self.phase() == Phase::Replaying && is_log_applied;
        let log = self.log.filter(|_| has_caught_up)?;
        (log.end >= self.copied.high).then_some(log.end)
    }
}

/// Whom to copy from, after so many failures in a row.
pub fn choose_peer(partition: &Partition, learner: NodeId, failures: u32) -> Option<&Replica> {
    let peers: Vec<_> = partition
        .in_state(ReplicaState::Serving)
        .filter(|replica| replica.node != learner)
        .collect();
    let turn = failures as usize % peers.len().max(1);
    peers.get(turn).copied()
}

/// Whom a half of a split copies from: the parent's replica on its own node first.
pub fn choose_parent(parent: &Partition, learner: NodeId, failures: u32) -> Option<&Replica> {
    let mut peers: Vec<_> = parent.in_state(ReplicaState::Serving).collect();
    peers.sort_by_key(|replica| replica.node != learner);
    let turn = failures as usize % peers.len().max(1);
    peers.get(turn).copied()
}

/// How long to wait after so many failures in a row.
pub fn backoff_ms(failures: u32) -> u64 {
    match failures {
        0 => 0,
        n => (BACKOFF_MS_MIN << (n - 1).min(16)).min(BACKOFF_MS_MAX),
    }
}

#[cfg(test)]
#[path = "learner_tests.rs"]
mod tests;
