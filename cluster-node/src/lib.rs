//! Holds partitions: applies what consumers stream, keeps it on disk, indexes it
//! in memory and answers searches.
//!
//! In reading order: [`config`]; the disk ([`storage`]); one partition
//! ([`partition`]); what feeds it ([`source`]); who may answer ([`lease`],
//! [`assignment`], [`join`]); what comes from peers ([`copy`]); how much fits ([`memory`]); searching ([`query`]); the whole ([`node`]); the wire
//! ([`grpc`]); [`metrics`].
//!
//! A node decides nothing about rows, leases or placement: `cluster_core` does,
//! and the coordinators' map says what is held here.

pub mod assignment;
mod clock;
pub mod config;
pub mod copy;
pub mod grpc;
pub mod join;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod partition;
pub mod query;
pub mod source;
pub mod storage;
#[cfg(test)]
mod testing;

pub use config::Config;

use anyhow::Context;
use cluster_client::transport::listen_address;
use cluster_client::{ClientConfig, ClusterClient};
use metrics::Metrics;
use node::Node;
use partition::{fold, housekeeping};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// Binds and serves; recovery and joining follow, with the health service saying
/// NOT_SERVING until they are done. The handle ends after a graceful shutdown.
pub async fn start(
    config: Config,
    registry: &mut Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    config.check()?;
    config.transport.check_listen(&config.listen)?;
    let metrics = Arc::new(Metrics::default());
    metrics.register(registry);
    let listener = TcpListener::bind(listen_address(&config.listen)?)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let bound = listener.local_addr()?;
    let address = match &config.advertise {
        Some(address) => address.clone(),
        None if bound.ip().is_unspecified() => {
            anyhow::bail!("{bound} is no address that others can call: set `advertise`")
        }
        None => bound.to_string(),
    };
    let client = ClusterClient::new(ClientConfig {
        coordinators: config.coordinators.clone(),
        transport: config.transport.clone(),
        ..ClientConfig::default()
    });
    client
        .metrics()
        .register(registry.sub_registry_with_prefix("ruvector_node"));
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot create {}", config.data_dir.display()))?;
    let watch = client.watch_map();
    let node = {
        let (config, metrics) = (config.clone(), metrics.clone());
        let client = Some(client.clone());
        tokio::task::spawn_blocking(move || Node::open(config, metrics, watch, client)).await??
    };
    let node = Arc::new(node);
    // Stops the parts when either the process or the server ends.
    let stop = shutdown.child_token();
    let (mut server, health) = grpc::serve(node.clone(), listener, stop.clone());
    tracing::info!(%bound, data_dir = %config.data_dir.display(), "node listens");
    Ok(tokio::spawn(async move {
        let life = live(node.clone(), client, address, health, stop.clone());
        let lived = tokio::select! {
            lived = life => {
                stop.cancel();
                // Requests in flight are answered before their partitions stop.
                let served = (&mut server).await.context("the server panicked");
                lived.and(served.and_then(|result| result))
            }
            served = &mut server => served.context("the server panicked").and_then(|result| result),
        };
        stop.cancel();
        node.replicas.stop_all().await;
        tracing::info!("node stopped");
        lived
    }))
}

/// Recovery, joining, and then everything that runs until shutdown.
async fn live(
    node: Arc<Node>,
    client: ClusterClient,
    address: String,
    health: grpc::Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let at = node.clone();
    tokio::task::spawn_blocking(move || at.replicas.recover()).await??;
    spawn_workers(&node, &stop)?;
    let Some(id) = join::join(&node, &address, &stop).await? else {
        return Ok(());
    };
    tracing::info!(node = %id, address, "joined");
    let watch = client.spawn_map_watch(stop.clone());
    let lease = tokio::spawn(lease::keep(node.clone(), stop.clone()));
    let assignment = tokio::spawn(assignment::follow(node.clone(), stop.clone()));
    let copies = tokio::spawn(copy::follow(node.clone(), stop.clone()));
    health.set_serving().await;
    stop.cancelled().await;
    health.set_not_serving().await;
    for task in [watch, lease, assignment, copies] {
        task.await.context("a part of the node panicked")?;
    }
    Ok(())
}

/// Starts folding and housekeeping on threads of their own.
pub fn spawn_workers(node: &Arc<Node>, stop: &CancellationToken) -> std::io::Result<()> {
    let apply = &node.config.apply;
    fold::spawn(
        node.replicas.clone(),
        node.metrics.clone(),
        apply,
        stop.clone(),
    )?;
    let every = Duration::from_millis(apply.durable_every_ms.max(1));
    let prune_every = Duration::from_millis(apply.prune_every_ms);
    let (node, stop) = (node.clone(), stop.clone());
    std::thread::Builder::new()
        .name("housekeeping".to_owned())
        .spawn(move || {
            let (mut pruned, mut gauged) = (Instant::now(), Instant::now());
            while !stop.is_cancelled() {
                std::thread::sleep(every);
                node.memory.look();
                housekeeping::persist_watermarks(&node.replicas, &node.storage);
                if pruned.elapsed() >= prune_every {
                    pruned = Instant::now();
                    housekeeping::prune(&node.replicas);
                    housekeeping::checkpoint(&node.replicas);
                    node.queries.cursors.sweep();
                }
                if gauged.elapsed() >= GAUGES_EVERY {
                    gauged = Instant::now();
                    housekeeping::end_folding_waits(&node.replicas);
                    housekeeping::refresh_gauges(&node.replicas, &node.metrics);
                    housekeeping::refresh_memory(&node);
                    node.metrics
                        .cursors
                        .set(node.queries.cursors.count() as i64);
                }
            }
        })?;
    Ok(())
}
