//! Structured logs on stderr.

use clap::{Args, ValueEnum};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

#[derive(Args)]
pub struct LogArgs {
    /// What to log: a level, or targets as in `info,coordinator=debug`
    #[arg(
        long,
        value_name = "FILTER",
        env = "RUVECTOR_LOG",
        default_value = "info,openraft=warn"
    )]
    log: String,
    #[arg(long, value_enum, value_name = "FORMAT", env = "RUVECTOR_LOG_FORMAT", default_value_t = LogFormat::Human)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

pub fn init(args: &LogArgs) -> Result<(), ParseError> {
    let filter: EnvFilter = args.log.parse()?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Human => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
