//! The command line. Settings of a process have a flag where operators set them
//! daily, and `--set key=value` for the rest.

use crate::failure::Failure;
use crate::settings::{Frame, Layer, Layers, LogFormat, SettingsError};
use crate::{ctl, demo, dev, process};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Parser)]
#[command(
    name = "ruvector",
    version,
    about = "A vector search service that PostgreSQL primaries share",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 cluster not reachable, 4 refused by the cluster."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One process with a coordinator, a node and a consumer
    Dev(DevArgs),
    /// Membership, collections, leases and the partition map (Raft)
    Coordinator(CoordinatorArgs),
    /// Partitions: storage and search
    Node(NodeArgs),
    /// Follows Postgres and feeds the nodes
    Consumer(ConsumerArgs),
    /// Ask and change a running cluster
    Ctl(ctl::CtlArgs),
    /// Load Fashion-MNIST into a Postgres, index it, and measure searches
    Demo(demo::DemoArgs),
}

/// What every long-running process takes.
#[derive(Args)]
pub struct ProcessArgs {
    /// TOML file with settings
    #[arg(long, value_name = "FILE", env = "RUVECTOR_CONFIG")]
    config: Option<PathBuf>,
    /// One setting; `--print-config` shows them all
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// Print the effective settings as TOML, and end
    #[arg(long)]
    pub print_config: bool,
    /// Where the process keeps its state
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// host:port of /metrics and /healthz
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    /// File that gets the process id once the process serves
    #[arg(long, value_name = "FILE")]
    pid_file: Option<String>,
    /// What to log: a level, or targets as in `info,coordinator=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Args)]
struct DevArgs {
    #[command(flatten)]
    process: ProcessArgs,
}

#[derive(Args)]
struct ListenArgs {
    /// host:port to serve gRPC on
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// host:port under which others reach this process
    #[arg(long, value_name = "ADDR")]
    advertise: Option<String>,
}

#[derive(Args)]
struct CoordinatorArgs {
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    listen: ListenArgs,
    /// This coordinator's number in the cluster
    #[arg(long)]
    id: Option<String>,
    /// Every coordinator, this one included, as 1=host:port,2=host:port,3=host:port
    #[arg(long, value_name = "MEMBERS")]
    peers: Option<String>,
}

#[derive(Args)]
struct NodeArgs {
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    listen: ListenArgs,
    /// host:port of the coordinators, separated by commas
    #[arg(long, value_name = "ADDRS")]
    coordinators: Option<String>,
}

#[derive(Args)]
struct ConsumerArgs {
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    listen: ListenArgs,
    /// host:port of the coordinators, separated by commas
    #[arg(long, value_name = "ADDRS")]
    coordinators: Option<String>,
}

impl ProcessArgs {
    /// All layers of settings, with `flags` of the process's own.
    fn layers(&self, flags: &[(&str, &Option<String>)]) -> Result<Layers, SettingsError> {
        let log_format = self
            .log_format
            .and_then(|format| format.to_possible_value())
            .map(|format| format.get_name().to_owned());
        let common = [
            ("data_dir", &self.data_dir),
            ("log", &self.log),
            ("log_format", &log_format),
            ("metrics_listen", &self.metrics_listen),
            ("pid_file", &self.pid_file),
        ];
        let mut layers = Vec::new();
        for (key, text) in common.iter().chain(flags) {
            if let Some(text) = text {
                layers.push(Layer::from_flag(
                    &format!("--{}", key.replace('_', "-")),
                    key,
                    text,
                ));
            }
        }
        for assignment in &self.assignments {
            layers.push(Layer::from_assignment(assignment)?);
        }
        let variables = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
        Layers::gather(self.config.as_deref(), variables, layers)
    }
}

impl ListenArgs {
    fn flags(&self) -> [(&str, &Option<String>); 2] {
        [("listen", &self.listen), ("advertise", &self.advertise)]
    }
}

impl Cli {
    pub fn run(self) -> Result<(), Failure> {
        match self.command {
            Command::Dev(args) => {
                let layers = args.process.layers(&[])?;
                let defaults = dev::Config::following(&layers);
                let settings =
                    layers.resolve(Frame::new(process::METRICS_COORDINATOR), &defaults)?;
                process::run(&args.process, settings, |config, registry, shutdown| {
                    Box::pin(dev::start(config, registry, shutdown))
                })
            }
            Command::Coordinator(args) => {
                let [listen, advertise] = args.listen.flags();
                let layers = args.process.layers(&[
                    listen,
                    advertise,
                    ("id", &args.id),
                    ("peers", &args.peers),
                ])?;
                let settings = layers.resolve(
                    Frame::new(process::METRICS_COORDINATOR),
                    &coordinator::Config::default(),
                )?;
                process::run(&args.process, settings, |config, registry, shutdown| {
                    Box::pin(coordinator::start(config, registry, shutdown))
                })
            }
            Command::Node(args) => {
                let [listen, advertise] = args.listen.flags();
                let coordinators = ("coordinators", &args.coordinators);
                let layers = args.process.layers(&[listen, advertise, coordinators])?;
                let settings = layers.resolve(
                    Frame::new(process::METRICS_NODE),
                    &cluster_node::Config::default(),
                )?;
                process::run(&args.process, settings, |config, registry, shutdown| {
                    Box::pin(cluster_node::start(config, registry, shutdown))
                })
            }
            Command::Consumer(args) => {
                let [listen, advertise] = args.listen.flags();
                let coordinators = ("coordinators", &args.coordinators);
                let layers = args.process.layers(&[listen, advertise, coordinators])?;
                let settings = layers.resolve(
                    Frame::new(process::METRICS_CONSUMER),
                    &wal_consumer::Config::default(),
                )?;
                process::run(&args.process, settings, |config, registry, shutdown| {
                    Box::pin(wal_consumer::start(config, registry, shutdown))
                })
            }
            Command::Ctl(args) => ctl::run(args),
            Command::Demo(args) => demo::run(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn operators_commands_parse_as_they_are_documented() {
        let parses = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        for line in [
            "ruvector ctl move 14 --to 3",
            "ruvector ctl move 14 --to 3 --from 1 --json",
            "ruvector ctl move cancel 14",
            "ruvector ctl node drain 2 --wait",
            "ruvector ctl node drain 2 --wait 60",
            "ruvector ctl node remove 2",
            "ruvector ctl coordinator add 4=127.0.0.1:7404",
            "ruvector ctl coordinator transfer-leader",
            "ruvector ctl coordinator transfer-leader 2",
            "ruvector ctl rebalance apply --plan plan.json",
        ] {
            assert!(parses(line), "{line}");
        }
        for line in [
            "ruvector ctl move 14",
            "ruvector ctl move --to 3",
            "ruvector ctl move cancel",
            "ruvector ctl coordinator add 127.0.0.1:7404",
            "ruvector ctl node drain",
        ] {
            assert!(!parses(line), "{line}");
        }
    }
}
