//! Maps for whoever asks: from the applied state of any coordinator, which may
//! lag behind the leader's, but never goes back.

use crate::coordinator::Coordinator;
use crate::raft::state_machine::StateMachine;
use cluster_core::ids::{LeaseEpoch, MapVersion};
use cluster_core::map::PartitionMap;
use futures::{Stream, StreamExt};
use proto::error::not_ready;
use proto::v1;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// The map, once it is at least as new as asked for.
pub async fn map_at_least(
    coordinator: &Coordinator,
    epoch: LeaseEpoch,
    version: MapVersion,
) -> Result<Arc<PartitionMap>, Status> {
    let mut maps = coordinator.state.watch_map();
    let is_new_enough = |map: &Arc<PartitionMap>| map.stamp() >= (epoch, version);
    let patience = Duration::from_millis(coordinator.config.map_wait_ms);
    match timeout(patience, maps.wait_for(is_new_enough)).await {
        Ok(Ok(map)) => Ok(map.clone()),
        Ok(Err(_closed)) => Err(Status::unavailable("the coordinator is stopping")),
        Err(_elapsed) => Err(not_ready(format!(
            "this coordinator has no map as new as epoch {epoch}, version {version} yet"
        ))),
    }
}

/// The current map, then each newer one; a slow reader skips versions. A
/// coordinator that has left hears of no further change, so its readers must
/// turn to another.
pub fn maps(
    coordinator: &Coordinator,
    shutdown: CancellationToken,
) -> Result<impl Stream<Item = Result<v1::PartitionMap, Status>> + Send + 'static, Status> {
    let (state, id) = (coordinator.state.clone(), coordinator.config.id);
    if state.read(|state| state.has_left(id)) {
        return Err(not_ready(format!("coordinator {id} has left the cluster")));
    }
    let ends = async move {
        tokio::select! {
            () = shutdown.cancelled_owned() => {}
            () = departure(state, id) => {}
        }
    };
    Ok(WatchStream::new(coordinator.state.watch_map())
        .map(|map| Ok(map.as_ref().into()))
        .take_until(ends))
}

async fn departure(state: StateMachine, id: u64) {
    let mut maps = state.watch_map();
    while !state.read(|state| state.has_left(id)) {
        // Its error means that the coordinator is stopping.
        if maps.changed().await.is_err() {
            return;
        }
    }
}
