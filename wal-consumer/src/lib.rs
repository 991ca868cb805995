//! Follows Postgres: one replication stream per source, fanned out to the nodes
//! that hold its rows, and confirmed only up to what all of them have made
//! durable.
//!
//! A row's walk: [`replication`] receives and decodes it, [`transaction`] holds
//! it until its commit, [`source`] gives it a position and decides what it is
//! ([`rows`], [`vector`]), [`feed`] sends it to its partition's replicas and
//! collects what they have made durable, and the status writer tells Postgres.
//! Beside it, [`backfill`] copies what was there before. [`lease`] says which
//! sources are ours.
//!
//! What it must never do: confirm what is not durable, skip what it cannot
//! read, or let a slow node keep it from answering the server.

pub mod backfill;
mod clock;
pub mod config;
pub mod feed;
pub mod lease;
pub mod metrics;
pub mod replication;
mod retry;
pub mod rows;
pub mod source;
mod tasks;
pub mod transaction;
pub mod vector;

pub use config::Config;

use anyhow::Context;
use cluster_client::ClusterClient;
use metrics::Metrics;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

/// Serves health and follows what is assigned; the handle ends after
/// `shutdown`, when every replication connection is closed.
pub async fn start(
    config: Config,
    registry: &mut Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    config.check()?;
    config.transport.check_listen(&config.listen)?;
    let listener = TcpListener::bind(&config.listen)
        .await
        .with_context(|| format!("listening on {}", config.listen))?;
    let metrics = Metrics::register(registry);
    let config = Arc::new(config);
    let client = ClusterClient::new(config.client());
    client
        .metrics()
        .register(registry.sub_registry_with_prefix("ruvector_consumer"));
    let consumer = lease::Consumer::new(config, client.clone(), metrics)?;
    let watching = client.spawn_map_watch(shutdown.clone());

    let (reporter, health) = tonic_health::server::health_reporter();
    reporter
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    let serving = tonic::transport::Server::builder()
        .add_service(health)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            shutdown.clone().cancelled_owned(),
        );
    let serving = tokio::spawn(serving);
    Ok(tokio::spawn(async move {
        consumer.run(shutdown).await?;
        watching.await?;
        serving.await??;
        Ok(())
    }))
}
