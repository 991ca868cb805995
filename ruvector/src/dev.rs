//! One process with one coordinator, one node and one consumer, over the same
//! loopback gRPC as a cluster of separate processes.
//!
//! The first start gives the cluster its id, writes that to the data folder, and
//! initialises with it; later starts repeat the same idempotent call.

use crate::process::{ProcessConfig, Work};
use crate::settings::Layers;
use anyhow::Context;
use cluster_client::transport::Transport;
use prometheus_client::registry::Registry;
use proto::v1::InitialiseRequest;
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::initialise_request::Member;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const COORDINATOR_ID: u64 = 1;
const INITIALISE_TIMEOUT: Duration = Duration::from_secs(30);
const INITIALISE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Holds a folder for each of the three, unless they name their own.
    pub data_dir: PathBuf,
    pub coordinator: coordinator::Config,
    pub node: cluster_node::Config,
    pub consumer: wal_consumer::Config,
}

/// The metrics are one server for all three: they follow the coordinator's rule.
impl ProcessConfig for Config {
    fn transport(&self) -> &Transport {
        &self.coordinator.transport
    }
}

impl Config {
    /// Defaults, where those of the parts follow from what is set: folders from
    /// `data_dir`, the coordinators' address from the coordinator's own.
    pub fn following(layers: &Layers) -> Self {
        let data_dir = PathBuf::from(
            layers
                .text("data_dir")
                .unwrap_or_else(|| "ruvector-data".to_owned()),
        );
        let coordinator = coordinator::Config {
            id: COORDINATOR_ID,
            data_dir: data_dir.join("coordinator"),
            ..Default::default()
        };
        let address = layers
            .text("coordinator.advertise")
            .or_else(|| layers.text("coordinator.listen"))
            .unwrap_or_else(|| coordinator.listen.clone());
        let node = cluster_node::Config {
            data_dir: data_dir.join("node"),
            coordinators: vec![address.clone()],
            ..Default::default()
        };
        let consumer = wal_consumer::Config {
            data_dir: data_dir.join("consumer"),
            coordinators: vec![address],
            ..Default::default()
        };
        Self {
            data_dir,
            coordinator,
            node,
            consumer,
        }
    }
}

pub async fn start(
    config: Config,
    registry: &mut Registry,
    shutdown: CancellationToken,
) -> anyhow::Result<Work> {
    fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("cannot create data_dir {}", config.data_dir.display()))?;
    let cluster_id = cluster_id(&config.data_dir)?;
    let address = match &config.coordinator.advertise {
        Some(advertise) => advertise.clone(),
        None => config.coordinator.listen.clone(),
    };
    let member = Member {
        coordinator_id: config.coordinator.id,
        address,
    };
    let transport = config.coordinator.transport.clone();

    // Each part ends on a token of its own, so that they end in order.
    let stop = [(); 3].map(|()| CancellationToken::new());
    let stop_on_failure = stop.clone().map(CancellationToken::drop_guard);
    let coordinator = coordinator::start(config.coordinator, registry, stop[0].clone())
        .await
        .context("the coordinator does not start")?;
    initialise(&transport, cluster_id, member).await?;
    let node = cluster_node::start(config.node, registry, stop[1].clone())
        .await
        .context("the node does not start")?;
    let consumer = wal_consumer::start(config.consumer, registry, stop[2].clone())
        .await
        .context("the consumer does not start")?;
    Ok(tokio::spawn(async move {
        let _stop_on_failure = stop_on_failure;
        run_until_stopped(
            [
                ("coordinator", coordinator),
                ("node", node),
                ("consumer", consumer),
            ],
            stop,
            shutdown,
        )
        .await
    }))
}

/// Waits for the stop, or for the first part that fails, and ends the rest:
/// consumer, then node, then coordinator.
async fn run_until_stopped(
    parts: [(&'static str, Work); 3],
    stop: [CancellationToken; 3],
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut running: Vec<_> = parts.into_iter().zip(stop).collect();
    let mut failed = None;
    {
        let ends = running
            .iter_mut()
            .map(|((name, work), _)| Box::pin(async move { (*name, work.await) }));
        tokio::select! {
            () = shutdown.cancelled() => {}
            ((name, ended), _, _) = futures::future::select_all(ends) => failed = Some((name, ended)),
        }
    }
    let mut outcome = Ok(());
    if let Some((name, ended)) = failed {
        running.retain(|((other, _), _)| *other != name);
        let ended = ended
            .with_context(|| format!("the {name} panicked"))
            .and_then(|ended| ended);
        outcome = ended
            .and_then(|()| anyhow::bail!("it ended by itself"))
            .with_context(|| format!("the {name} cannot go on"));
    }
    for ((name, work), stop) in running.into_iter().rev() {
        stop.cancel();
        let ended = work
            .await
            .with_context(|| format!("the {name} panicked"))
            .and_then(|ended| ended);
        outcome = outcome.and(ended.with_context(|| format!("while the {name} stopped")));
    }
    outcome
}

/// Drawn once and synced before anything uses it.
fn cluster_id(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("cluster-id");
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let id = new_cluster_id();
    let new = data_dir.join("cluster-id.new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&new)?;
        writeln!(file, "{id}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(data_dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id)
}

/// 128 random bits in hex.
pub fn new_cluster_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Repeats until the coordinator has a leader, which takes an election.
async fn initialise(
    transport: &Transport,
    cluster_id: String,
    member: Member,
) -> anyhow::Result<()> {
    let channel = transport.channel(&member.address)?;
    let mut coordinator = CoordinatorClient::new(channel);
    let request = InitialiseRequest {
        cluster_id,
        members: vec![member],
    };
    let give_up = Instant::now() + INITIALISE_TIMEOUT;
    loop {
        let refused = match coordinator.initialise(request.clone()).await {
            Ok(_) => return Ok(()),
            Err(status) => status,
        };
        let is_transient = matches!(
            refused.code(),
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded
        );
        if !is_transient || Instant::now() >= give_up {
            anyhow::bail!("cannot initialise the cluster: {}", refused.message());
        }
        tokio::time::sleep(INITIALISE_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_id_is_drawn_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let first = cluster_id(folder.path()).expect("writes");
        assert_eq!(first.len(), 32);
        assert_eq!(cluster_id(folder.path()).expect("reads"), first);
    }
}
