//! What every process has beside its own settings.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// What to log: a level, or targets as in `info,coordinator=debug`.
    pub log: String,
    pub log_format: LogFormat,
    /// `host:port` of `/metrics` and `/healthz`.
    pub metrics_listen: String,
    /// Gets the process id once the process serves.
    pub pid_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

impl Frame {
    pub fn new(metrics_listen: &str) -> Self {
        Self {
            log: "info,openraft=warn".to_owned(),
            log_format: LogFormat::Human,
            metrics_listen: metrics_listen.to_owned(),
            pid_file: None,
        }
    }
}
