//! Why a call to the cluster did not succeed.

use crate::transport::TransportError;
use cluster_core::ids::{LeaseEpoch, MapVersion, NodeId};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered, and trying again would get the same answer.
    #[error("{0}")]
    Refused(#[from] tonic::Status),
    /// Nobody answered in time. The outcome of a change is unknown; all calls
    /// are idempotent, so it may be made again.
    #[error("no coordinator answered in time (tried {tried}): {last}")]
    Unavailable { tried: String, last: String },
    #[error("the map knows no {0}")]
    UnknownNode(NodeId),
    #[error("no map as new as epoch {}, version {} was to be had: {last}", epoch.0, version.0)]
    MapTooOld {
        epoch: LeaseEpoch,
        version: MapVersion,
        last: String,
    },
    #[error(transparent)]
    Transport(#[from] TransportError),
}
