//! Reaches the cluster on behalf of bridge, nodes, consumers and CLI: the one
//! place that knows about coordinators that moved, maps that aged and nodes that
//! do not answer. What to do about it is decided in `cluster_core::scan`.
//!
//! In reading order: [`transport`], [`config`], the [`client`] with its map
//! cache, how a newer map is fetched (`map_fetch`) and followed (`map_watch`), what
//! a failure means ([`error`], `retry`), the distributed [`scan`] and its single
//! requests (`search`), what a replica holds ([`replica_digest`]), [`metrics`]; [`setting`] is what all processes refuse to start with.

pub mod client;
pub mod config;
pub mod error;
mod map_cache;
mod map_fetch;
mod map_watch;
pub mod metrics;
pub mod replica_digest;
mod retry;
pub mod scan;
mod search;
pub mod setting;
pub mod transport;

pub use client::ClusterClient;
pub use config::ClientConfig;
pub use error::ClientError;
pub use scan::{Consistency, Scan, ScanError, ScanErrorKind, ScanPage, ScanSpec};
