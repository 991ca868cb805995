//! A coordinator: what the cluster agrees on, over Raft.
//!
//! In reading order: [`config`], [`raft`] (log, state machine, peers),
//! [`leases`] (the leader's memory of who renewed), [`coordinator`] (how changes
//! are proposed and a reign is confirmed), [`driver`] (the leader's duties),
//! [`assignment`] (who follows which source),
//! [`membership`] (coordinators come, go, and pass the lead on), [`moves`] (of
//! replicas), [`grpc`]. What the commands mean is decided in `cluster_core::control`.
//!
//! Never: decides by a clock who leads; answers a lease renewal without a quorum
//! that spoke after it arrived; initialises because a disk is empty.

mod assignment;
pub mod config;
mod coordinator;
mod driver;
mod grpc;
mod leases;
mod membership;
pub mod metrics;
mod moves;
mod raft;

pub use config::{Config, ConfigError, RaftTuning};

use anyhow::Context;
use cluster_client::transport::listen_address;
use coordinator::Coordinator;
use grpc::coordinator_service::CoordinatorService;
use metrics::Metrics;
use prometheus_client::registry::Registry;
use proto::v1::coordinator_server::CoordinatorServer;
use proto::v1::raft_server::RaftServer;
use raft::disk::Disk;
use raft::log_store::LogStore;
use raft::network::{Network, RaftService};
use raft::state_machine::StateMachine;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// Connections that are open for longer than this after a stop are cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts a coordinator; it is bound and serves when this returns. The handle
/// ends after `shutdown` is cancelled, or with the error that made it stop.
pub async fn start(
    config: Config,
    registry: &mut Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    config.check()?;
    config.transport.check_listen(&config.listen)?;
    let address = listen_address(&config.listen)?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;

    let coordinator = Arc::new(open(config, Metrics::register(registry)).await?);
    // The server must not outlive Raft, whichever of the two ends first.
    let stop = shutdown.child_token();
    let server = tokio::spawn(serve(coordinator.clone(), listener, stop.clone()));
    Ok(tokio::spawn(supervise(coordinator, server, stop)))
}

async fn open(config: Config, metrics: Metrics) -> anyhow::Result<Coordinator> {
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot make {}", config.data_dir.display()))?;
    let disk = Disk::open(&config.data_dir, config.id)
        .with_context(|| format!("cannot open {}", config.data_dir.display()))?;
    let state = StateMachine::open(disk.clone())?;
    let disk_uuid = disk.uuid().to_owned();
    let raft_config = Arc::new(raft::raft_config(&config.raft)?);
    let network = Network::new(config.transport.clone());
    let raft = raft::Raft::new(
        config.id,
        raft_config,
        network.clone(),
        LogStore::new(disk),
        state.clone(),
    )
    .await?;
    Ok(Coordinator {
        raft,
        state,
        disk_uuid,
        leases: leases::Leases::new(config.leases),
        metrics,
        start: rand::random(),
        duties: tokio::sync::Notify::new(),
        placing: tokio::sync::Mutex::new(()),
        asking: tokio::sync::Mutex::new(()),
        network,
        changing_members: tokio::sync::Mutex::new(()),
        disks_asked_at: parking_lot::Mutex::new(None),
        leading: tokio::sync::RwLock::new(()),
        config,
    })
}

async fn serve(
    coordinator: Arc<Coordinator>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<CoordinatorServer<CoordinatorService>>()
        .await;

    let raft = RaftServer::new(RaftService::new(
        coordinator.config.id,
        coordinator.disk_uuid.clone(),
        coordinator.raft.clone(),
    ))
    .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
    .max_encoding_message_size(proto::MESSAGE_BYTES_MAX);
    let service = CoordinatorService::new(coordinator.clone(), shutdown.clone());
    let service = CoordinatorServer::new(service)
        .max_decoding_message_size(proto::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(proto::MESSAGE_BYTES_MAX);
    Server::builder()
        .add_service(health_service)
        .add_service(raft)
        .add_service(service)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.cancelled(),
        )
        .await
        .context("the gRPC server failed")
}

/// Runs the leader's duties beside the server; when one of them ends, so does
/// the other, and the coordinator.
async fn supervise(
    coordinator: Arc<Coordinator>,
    mut server: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let outcome = tokio::select! {
        duties = driver::run(coordinator.clone(), stop.clone()) => duties,
        served = &mut server => served.context("the gRPC server panicked").flatten(),
    };
    coordinator.leases.end_reign();
    stop.cancel();
    if let Err(error) = coordinator.raft.shutdown().await {
        tracing::warn!(%error, "Raft did not stop cleanly");
    }
    if !server.is_finished() && timeout(DRAIN_TIMEOUT, &mut server).await.is_err() {
        server.abort();
    }
    outcome
}
