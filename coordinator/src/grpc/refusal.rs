//! Refusals as gRPC errors: the code says what the caller does next.

use crate::coordinator::Coordinator;
use cluster_core::control::Refusal;
use cluster_core::map::PartitionMap;
use proto::convert::BadMessage;
use proto::error::{estale, not_ready};
use tonic::Status;

/// By the map as it stands.
pub fn refuse(coordinator: &Coordinator, refusal: Refusal) -> Status {
    coordinator
        .state
        .read(|state| refused(&refusal, state.map()))
}

pub fn refused(refusal: &Refusal, map: &PartitionMap) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::NotInitialised
        | Refusal::NoNodes
        | Refusal::AllDraining
        | Refusal::PlacementOutdated { .. } => not_ready(message),
        Refusal::Fenced { .. } | Refusal::BackfillVoid { .. } => {
            estale(message, map.epoch, map.version)
        }
        Refusal::DiskMismatch { .. } | Refusal::UnknownNode { .. } | Refusal::Conflict { .. } => {
            Status::failed_precondition(message)
        }
        Refusal::UnknownConsumer { .. }
        | Refusal::UnknownSource { .. }
        | Refusal::UnknownPartition { .. }
        | Refusal::UnknownCollection { .. } => Status::not_found(message),
        Refusal::Invalid { .. } => Status::invalid_argument(message),
        Refusal::Full { .. } => Status::resource_exhausted(message),
    }
}

pub fn bad_message(error: BadMessage) -> Status {
    Status::invalid_argument(error.to_string())
}
