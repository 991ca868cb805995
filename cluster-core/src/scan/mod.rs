//! How pages of partitions become one ordered, complete answer.
//!
//! A scan asks one replica of every partition for a page, merges what comes by
//! distance, and asks for the next page of those partitions only that hold the
//! order up. It gives a page when the partitions that answered tile the whole
//! hash space, and otherwise goes on asking until the deadline (P7).
//!
//! A cursor lives on one replica and only as long as its answers arrive: after
//! any failure the outcome of the request is unknown, so the partition starts
//! again, there or elsewhere, and drops the keys that the scan has already
//! given. The order across a restart is as good as the replicas' indexes agree;
//! completeness does not depend on it.
//!
//! A replica whose node has lost its lease answers only where the operator has
//! set `lease_loss = serve_stale`, flagged, and only a request that accepts that:
//! the scan does once every replica of the partition has been asked in vain. Where
//! the map has stale replicas only, it accepts that at once; one that lacks a
//! position never reaches it, so that the scan says so without waiting.
//!
//! What may happen is an [`Event`], what is to be done about it a [`Command`];
//! [`DistributedScan`] is the function between them. The sender of requests, the
//! clock and the seed belong to the caller.

mod asking;
mod attempts;
mod failure;
mod given;
mod merge;
mod partition;
mod placing;
mod protocol;
mod replicas;
mod staleness;
mod state;

pub use failure::{Failure, FailureKind};
pub use merge::Hit;
pub use protocol::{
    Ask, AttemptId, Command, Event, MergedPage, Millis, PageStats, PartitionAsk, PartitionPage,
    ScanLimits,
};
pub use staleness::StaleReason;
pub use state::DistributedScan;

#[cfg(test)]
mod lagging_tests;
#[cfg(test)]
mod moving_tests;
#[cfg(test)]
mod scan_tests;
