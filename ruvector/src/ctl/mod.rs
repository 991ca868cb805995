//! The operator's view of a running cluster. Each command builds one typed
//! report, printed as a table or, with `--json`, as it is.

mod collections;
mod coordinator;
mod drain;
mod init;
mod lag;
mod map;
mod moves;
mod node;
mod nodes;
mod pace;
mod plan;
mod problems;
mod progress;
mod rebalance;
mod reconcile;
mod relocate;
mod slot_limit;
mod source;
mod splits;
mod status;
pub mod table;
#[cfg(test)]
mod testing;
mod words;

use crate::failure::{Failure, FailureKind};
use anyhow::Context;
use clap::{Args, Subcommand};
use cluster_client::transport::Transport;
use cluster_client::{ClientConfig, ClientError, ClusterClient};
use cluster_core::map::PartitionMap;
use proto::v1::coordinator_client::CoordinatorClient;
use proto::v1::{GetStatusRequest, GetStatusResponse};
use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Response, Status};

#[derive(Args)]
pub struct CtlArgs {
    /// host:port of the coordinators, separated by commas
    #[arg(
        long,
        global = true,
        value_name = "ADDRS",
        env = "RUVECTOR_COORDINATORS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7401"
    )]
    coordinators: Vec<String>,
    /// Answer as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Seconds until a command gives up
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    /// Talk plaintext to coordinators elsewhere than on loopback
    #[arg(long, global = true)]
    allow_plaintext_off_loopback: bool,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Subcommand)]
enum CtlCommand {
    /// Give a new cluster its id and its first coordinators, once
    Init(init::InitArgs),
    /// Coordinators, nodes, consumers and sources
    Status,
    /// The partition map
    Map,
    /// Collections: state, rows, unfolded tail
    Collections,
    /// How far each source is followed
    Lag,
    /// How much WAL a source's server may retain for its slot
    SlotLimit(slot_limit::SlotLimitArgs),
    /// The Postgres databases that the cluster follows
    #[command(subcommand)]
    Source(source::SourceCommand),
    /// The processes that hold replicas
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// The processes that agree on everything else
    #[command(subcommand)]
    Coordinator(coordinator::CoordinatorCommand),
    /// What moves by itself, what moves now, what would move
    #[command(subcommand)]
    Rebalance(rebalance::RebalanceCommand),
    /// Move a partition's replica to another node, or give such a move up
    Move(relocate::MoveArgs),
    /// Have an index compared with its table, and mended
    Reconcile(reconcile::ReconcileArgs),
}

/// What a command found out.
trait Report: Serialize {
    fn text(&self) -> String;
}

pub fn run(args: CtlArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let json = args.json;
    let text = runtime.block_on(async move {
        let ctl = Ctl::new(&args);
        match args.command {
            CtlCommand::Init(init) => show(&init::init(&ctl, init).await?, json),
            CtlCommand::Status => match status::status(&ctl).await {
                Ok(status) => show(&status, json),
                Err(failure) => nodes::status(&ctl, failure, json).await,
            },
            CtlCommand::Map => match map::map(&ctl).await {
                Ok(map) => show(&map, json),
                Err(failure) => nodes::map(&ctl, failure, json).await,
            },
            CtlCommand::Collections => show(&collections::collections(&ctl).await?, json),
            CtlCommand::Lag => show(&lag::lag(&ctl).await?, json),
            CtlCommand::SlotLimit(args) => show(&slot_limit::set(&ctl, args).await?, json),
            CtlCommand::Source(command) => source::run(&ctl, command, json).await,
            CtlCommand::Node(command) => node::run(&ctl, command, json).await,
            CtlCommand::Coordinator(command) => coordinator::run(&ctl, command, json).await,
            CtlCommand::Rebalance(command) => rebalance::run(&ctl, command, json).await,
            CtlCommand::Move(args) => relocate::run(&ctl, args, json).await,
            CtlCommand::Reconcile(args) => show(&reconcile::reconcile(&ctl, args).await?, json),
        }
    })?;
    print(&text)
}

fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // `ctl … | head` has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written.context("cannot print the answer")?),
    }
}

fn show(report: &impl Report, json: bool) -> Result<String, Failure> {
    if !json {
        return Ok(report.text());
    }
    let text = serde_json::to_string_pretty(report).context("cannot print the answer as JSON")?;
    Ok(text + "\n")
}

/// How long one coordinator of several is waited for.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between looks for a leader while there is none.
const ELECTION_PAUSE: Duration = Duration::from_millis(200);

/// The cluster, as one command sees it.
struct Ctl {
    client: ClusterClient,
    timeout: Duration,
}

impl Ctl {
    fn new(args: &CtlArgs) -> Self {
        let transport = Transport {
            allow_plaintext_off_loopback: args.allow_plaintext_off_loopback,
            ..Transport::default()
        };
        let timeout = Duration::from_secs(args.timeout);
        let client = ClusterClient::new(ClientConfig {
            coordinators: args.coordinators.clone(),
            transport,
            call_timeout: timeout,
            ..ClientConfig::default()
        });
        Self { client, timeout }
    }

    /// A call to the leader, repeated elsewhere until one answers.
    async fn lead<T, F, Fut>(&self, call: F) -> Result<T, Failure>
    where
        F: Fn(CoordinatorClient<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        self.client.leader(call).await.map_err(failure)
    }

    /// The same for what takes a leader longer than a commit: it is asked first,
    /// and given all of the time.
    async fn lead_patiently<T, F, Fut>(&self, call: F) -> Result<T, Failure>
    where
        F: Fn(CoordinatorClient<Channel>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let seen = self.leader_status().await?;
        let leader = seen.leader_address().map(str::to_owned);
        let configured = self.client.config();
        let mut coordinators: Vec<String> = leader.into_iter().collect();
        coordinators.extend(configured.coordinators.iter().cloned());
        let client = ClusterClient::new(ClientConfig {
            coordinators,
            coordinator_attempt_timeout: self.timeout,
            ..configured.clone()
        });
        client.leader(call).await.map_err(|error| match error {
            ClientError::Unavailable { last, .. } => {
                let message = format!(
                    "not done in {} s ({last}). It may go on by itself: repeat the command, \
                     with a longer --timeout",
                    self.timeout.as_secs()
                );
                Failure::new(FailureKind::Unreachable, message)
            }
            other => failure(other),
        })
    }

    /// What the leader knows. Any coordinator answers with a status, and only the
    /// leader's has the reports of nodes and consumers in it.
    async fn leader_status(&self) -> Result<Observed, Failure> {
        let give_up = Instant::now() + self.timeout;
        loop {
            let seen = self.any_status().await?;
            if !seen.status.is_initialised || seen.is_of_leader() {
                return Ok(seen);
            }
            let problem = match seen.leader_address() {
                None => "there is no leader".to_owned(),
                Some(address) => match self.status_of(address).await {
                    Ok(answer) => {
                        let leader = Observed::new(answer)?;
                        if leader.is_of_leader() {
                            return Ok(leader);
                        }
                        format!("{address}: it leads no longer")
                    }
                    Err(why) => format!("{address}: {why}"),
                },
            };
            if Instant::now() + ELECTION_PAUSE >= give_up {
                return Err(unreachable(&problem));
            }
            tokio::time::sleep(ELECTION_PAUSE).await;
        }
    }

    /// What one coordinator knows, or why it does not say.
    async fn status_of(&self, address: &str) -> Result<GetStatusResponse, String> {
        let coordinator = self.client.coordinator(address);
        let mut coordinator = coordinator.map_err(|problem| problem.to_string())?;
        let asking = coordinator.get_status(GetStatusRequest {});
        match tokio::time::timeout(self.timeout.min(ATTEMPT_TIMEOUT), asking).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    /// What any coordinator knows, for when there is no leader.
    async fn any_status(&self) -> Result<Observed, Failure> {
        let mut last = None;
        for address in &self.client.config().coordinators {
            self.client.coordinator(address).map_err(failure)?;
            match self.status_of(address).await {
                Ok(answer) => return Observed::new(answer),
                Err(why) => last = Some(format!("{address}: {why}")),
            }
        }
        // One of them may be a node, whose map names the coordinators.
        let named = self.client.seek_map().await;
        for address in named.iter().flat_map(|map| &map.coordinators) {
            if self.client.config().coordinators.contains(address) {
                continue;
            }
            match self.status_of(address).await {
                Ok(answer) => return Observed::new(answer),
                Err(why) => last = Some(format!("{address}: {why}")),
            }
        }
        Err(unreachable(
            &last.unwrap_or_else(|| "none was named".to_owned()),
        ))
    }
}

/// A status with its map decoded.
struct Observed {
    status: GetStatusResponse,
    map: PartitionMap,
}

impl Observed {
    fn new(mut status: GetStatusResponse) -> Result<Self, Failure> {
        let map = match status.map.take() {
            None => PartitionMap::default(),
            Some(map) => PartitionMap::try_from(map).map_err(|problem| {
                let message = format!("the coordinator's answer does not decode: {problem}; do its version and this one differ?");
                Failure::new(FailureKind::Failed, message)
            })?,
        };
        Ok(Self { status, map })
    }

    fn is_of_leader(&self) -> bool {
        self.status.leader_id != 0 && self.status.leader_id == self.status.coordinator_id
    }

    fn leader_address(&self) -> Option<&str> {
        let mut coordinators = self.status.coordinators.iter();
        let leader = coordinators.find(|c| c.coordinator_id == self.status.leader_id)?;
        Some(&leader.address)
    }
}

fn usage(message: String) -> Failure {
    Failure::new(FailureKind::Usage, message)
}

fn unreachable(why: &str) -> Failure {
    let message = format!(
        "no coordinator answers ({why})\n\
         Is the cluster running? --coordinators, or RUVECTOR_COORDINATORS, says where;\n\
         with a node's address among them, `ctl status` and `ctl map` show what nodes know."
    );
    Failure::new(FailureKind::Unreachable, message)
}

fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Refused(status) => Failure::new(
            FailureKind::Refused,
            format!("the cluster refused: {}", status.message()),
        ),
        ClientError::Unavailable { last, .. } => unreachable(&last),
        other => Failure::new(FailureKind::Failed, other.to_string()),
    }
}
