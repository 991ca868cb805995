//! How a process runs: settings, logs, metrics, pid file, the work itself, and a
//! graceful end at the first signal (an immediate one at the second).

use crate::cli::ProcessArgs;
use crate::failure::{Failure, FailureKind};
use crate::settings::{Settings, to_toml};
use crate::{logging, observe};
use anyhow::Context;
use cluster_client::transport::Transport;
use futures::future::LocalBoxFuture;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const METRICS_COORDINATOR: &str = "127.0.0.1:7402";
pub const METRICS_NODE: &str = "127.0.0.1:7502";
pub const METRICS_CONSUMER: &str = "127.0.0.1:7602";

/// How long blocking work may go on after a graceful end.
const BLOCKING_WORK_MAX: Duration = Duration::from_secs(5);

/// What a process's `start` answers: it serves; the handle ends after a graceful
/// shutdown, or with the reason why it cannot go on.
pub type Work = JoinHandle<anyhow::Result<()>>;

/// A process's settings, as far as the process's frame has to know them.
pub trait ProcessConfig: Serialize {
    fn transport(&self) -> &Transport;
}

impl ProcessConfig for coordinator::Config {
    fn transport(&self) -> &Transport {
        &self.transport
    }
}

impl ProcessConfig for cluster_node::Config {
    fn transport(&self) -> &Transport {
        &self.transport
    }
}

impl ProcessConfig for wal_consumer::Config {
    fn transport(&self) -> &Transport {
        &self.transport
    }
}

pub fn run<C, F>(args: &ProcessArgs, settings: Settings<C>, start: F) -> Result<(), Failure>
where
    C: ProcessConfig,
    F: for<'a> FnOnce(
        C,
        &'a mut Registry,
        CancellationToken,
    ) -> LocalBoxFuture<'a, anyhow::Result<Work>>,
{
    if args.print_config {
        print!("{}", to_toml(&settings));
        return Ok(());
    }
    logging::init(&settings.frame)
        .map_err(|error| Failure::new(FailureKind::Usage, format!("`log`: {error}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(serve(settings, start));
    // A RocksDB call that is still running at the exit would meet destroyed locks
    // and abort; one that takes long may not hold up the exit for ever, for
    // everything acknowledged is on disk.
    runtime.shutdown_timeout(BLOCKING_WORK_MAX);
    Ok(result?)
}

async fn serve<C, F>(settings: Settings<C>, start: F) -> anyhow::Result<()>
where
    C: ProcessConfig,
    F: for<'a> FnOnce(
        C,
        &'a mut Registry,
        CancellationToken,
    ) -> LocalBoxFuture<'a, anyhow::Result<Work>>,
{
    let mut terminate = listen_for(SignalKind::terminate())?;
    let mut interrupt = listen_for(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let frame = settings.frame;
    let metrics_listener =
        observe::bind(settings.process.transport(), &frame.metrics_listen).await?;

    let mut registry = Registry::default();
    let starting = start(settings.process, &mut registry, shutdown.clone());
    let mut work = tokio::select! {
        started = starting => started?,
        name = first_signal(&mut terminate, &mut interrupt) => {
            tracing::info!(signal = name, "stopped while starting");
            return Ok(());
        }
    };
    let observing = tokio::spawn(observe::serve(metrics_listener, registry, shutdown.clone()));
    let _pid_file = frame.pid_file.as_deref().map(PidFile::write).transpose()?;
    tracing::info!(
        metrics = frame.metrics_listen,
        version = env!("CARGO_PKG_VERSION"),
        "serving"
    );

    let ended = tokio::select! {
        ended = &mut work => ended,
        name = first_signal(&mut terminate, &mut interrupt) => {
            tracing::info!(signal = name, "stopping; a second signal ends at once");
            shutdown.cancel();
            tokio::select! {
                ended = &mut work => ended,
                name = first_signal(&mut terminate, &mut interrupt) => {
                    anyhow::bail!("ended by a second signal ({name})");
                }
            }
        }
    };
    let was_asked = shutdown.is_cancelled();
    shutdown.cancel();
    ended.context("the process's main task panicked")??;
    if !was_asked {
        anyhow::bail!("the process ended by itself");
    }
    observing.abort();
    tracing::info!("stopped");
    Ok(())
}

fn listen_for(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

async fn first_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Written once the process serves, removed at its graceful end.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> anyhow::Result<Self> {
        // Renamed into place: a reader never sees half a number.
        let new = path.with_extension("pid.new");
        std::fs::write(&new, format!("{}\n", std::process::id()))
            .and_then(|()| std::fs::rename(&new, path))
            .with_context(|| format!("cannot write the pid file {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "cannot remove the pid file");
        }
    }
}
