//! The wire. Protobuf types stop here: [`convert`] checks what comes in, and the
//! handlers below pass core types on. `checkpoint` sends a replica's records to a
//! learner elsewhere, [`fetch`] takes a peer's for one that is here.

mod apply_stream;
mod backfill_stream;
mod checkpoint;
#[cfg(test)]
mod checkpoint_tests;
mod convert;
pub mod fetch;
mod service;
#[cfg(test)]
mod tests;

use crate::node::Node;
use anyhow::Context;
use proto::v1::node_server::NodeServer;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::server::HealthReporter;

pub use service::NodeService;

/// Flow-control windows: gRPC's default of 64 KB stalls batches.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a shutdown waits for requests in flight.
const DRAIN: Duration = Duration::from_secs(5);

/// What the health service says of the node.
pub struct Health(HealthReporter);

impl Health {
    pub async fn set_serving(&self) {
        self.0.set_serving::<NodeServer<NodeService>>().await;
        let all = tonic_health::ServingStatus::Serving;
        self.0.set_service_status("", all).await;
    }

    pub async fn set_not_serving(&self) {
        self.0.set_not_serving::<NodeServer<NodeService>>().await;
        let all = tonic_health::ServingStatus::NotServing;
        self.0.set_service_status("", all).await;
    }
}

/// Serves on a bound listener until `stop`.
pub fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    stop: CancellationToken,
) -> (JoinHandle<anyhow::Result<()>>, Health) {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health(reporter);
    let service = NodeServer::new(NodeService::new(node, stop.clone()))
        .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(proto::MESSAGE_BYTES_MAX);
    let at_start = Health(health.0.clone());
    let server = tokio::spawn(async move {
        at_start.set_not_serving().await;
        let serving = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_service(health_service)
            .add_service(service)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        let cut_off = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = serving => served.context("the gRPC server failed"),
            () = cut_off => Ok(()),
        }
    });
    (server, health)
}
