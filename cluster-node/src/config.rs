//! Every tunable of the node with its default.

use crate::storage::StorageConfig;
use cluster_client::setting::{ZeroSetting, check_not_zero};
use cluster_client::transport::Transport;
use cluster_core::lease::LeaseTerms;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub listen: String,
    /// What others call; `listen` when absent.
    pub advertise: Option<String>,
    pub data_dir: PathBuf,
    pub zone: String,
    pub transport: Transport,
    pub coordinators: Vec<String>,
    pub storage: StorageConfig,
    pub apply: ApplyConfig,
    pub search: SearchConfig,
    /// How fast one replica may be copied from its peer; 0: as fast as it goes.
    pub copy_bytes_per_second_max: u64,
    /// Replicas that are copied to this node at once.
    pub copies_max: usize,
    /// Copies that this node sends to others at once; more are told to wait.
    pub checkpoints_max: usize,
    /// How long requests of an older epoch are served after an election.
    pub epoch_grace_ms: u64,
    /// What a node whose lease has run out does with searches that need no
    /// position.
    pub lease_loss: LeaseLoss,
    /// Anonymous memory of the process at which it stops taking more; 0 means four
    /// fifths of what the machine, or its control group, has.
    pub memory_limit_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseLoss {
    /// ESTALE: a search that no other replica answers fails.
    #[default]
    Refuse,
    /// Answers what it has, flagged as possibly out of date, where the request
    /// accepts that.
    ServeStale,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7501".to_owned(),
            advertise: None,
            data_dir: PathBuf::from("node-data"),
            zone: String::new(),
            transport: Transport::default(),
            coordinators: vec!["127.0.0.1:7401".to_owned()],
            storage: StorageConfig::default(),
            apply: ApplyConfig::default(),
            search: SearchConfig::default(),
            copy_bytes_per_second_max: 100 << 20,
            copies_max: 2,
            checkpoints_max: 4,
            epoch_grace_ms: LeaseTerms::default().epoch_grace_ms,
            lease_loss: LeaseLoss::default(),
            memory_limit_bytes: 0,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApplyConfig {
    /// Rows that may wait to be folded before apply waits for them.
    pub tail_rows_max: usize,
    /// A learner that has caught up folds down to so many rows before it serves.
    pub learner_tail_rows_max: usize,
    /// … for no longer than this.
    pub learner_fold_ms_max: u64,
    /// Threads that fold; 0 means one less than there are cores, at least one.
    pub fold_threads: usize,
    /// Jobs that may wait for a partition's writer.
    pub queue_max: usize,
    /// Batches of all partitions that wait may take this much memory together.
    pub waiting_bytes_max: usize,
    /// Changes that one commit takes together when several batches wait.
    pub commit_changes_max: usize,
    /// How late a watermark that moved without rows may become durable.
    pub durable_every_ms: u64,
    /// What a learner may log while it copies its peer; beyond, it begins anew.
    pub learner_log_bytes_max: u64,
    /// How often former versions that nobody needs are removed.
    pub prune_every_ms: u64,
    /// A checkpoint of an index is due when so many of its rows, and a quarter of them,
    /// have changed since the last; 0: none is taken, and a restart builds indexes anew.
    pub checkpoint_rows: u64,
    /// … or when a hundredth has, after so long.
    pub checkpoint_every_ms: u64,
}

impl Default for ApplyConfig {
    fn default() -> Self {
        Self {
            tail_rows_max: 200_000,
            learner_tail_rows_max: 5_000,
            learner_fold_ms_max: 900_000,
            fold_threads: 0,
            queue_max: 64,
            waiting_bytes_max: 256 << 20,
            commit_changes_max: 10_000,
            durable_every_ms: 50,
            learner_log_bytes_max: 4 << 30,
            prune_every_ms: 1_000,
            checkpoint_rows: 20_000,
            checkpoint_every_ms: 900_000,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// Searches that compute at once; 0 means as many as there are cores.
    pub threads: usize,
    /// … for one source; 0 means all of them. Whatever it is, sources take turns.
    pub threads_per_source_max: usize,
    /// Searches that may wait for a thread; beyond, requests are throttled.
    pub queue_max: usize,
    /// … for one source.
    pub queue_per_source_max: usize,
    pub cursors_max: usize,
    pub cursor_ttl_ms: u64,
    pub page_rows_max: usize,
    /// The longest that a request may wait, whatever it asks for.
    pub deadline_ms_max: u64,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            threads: 0,
            threads_per_source_max: 0,
            queue_max: 4_096,
            queue_per_source_max: 1_024,
            cursors_max: 4_096,
            cursor_ttl_ms: 60_000,
            page_rows_max: 4_096,
            deadline_ms_max: 60_000,
        }
    }
}

/// A configuration that cannot work, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Zero(#[from] ZeroSetting),
    #[error("coordinators is empty: write the host:port of one at least")]
    NoCoordinators,
}

impl Config {
    /// Refuses what would let the node start and then do nothing.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.coordinators.is_empty() {
            return Err(ConfigError::NoCoordinators);
        }
        let (apply, search) = (&self.apply, &self.search);
        let jobs = u64::try_from(self.storage.background_jobs_max).unwrap_or(0);
        check_not_zero(&[
            ("copies_max", self.copies_max as u64),
            ("checkpoints_max", self.checkpoints_max as u64),
            (
                "storage.write_buffer_bytes",
                self.storage.write_buffer_bytes as u64,
            ),
            ("storage.background_jobs_max", jobs),
            ("apply.tail_rows_max", apply.tail_rows_max as u64),
            ("apply.queue_max", apply.queue_max as u64),
            ("apply.waiting_bytes_max", apply.waiting_bytes_max as u64),
            ("apply.commit_changes_max", apply.commit_changes_max as u64),
            ("apply.learner_log_bytes_max", apply.learner_log_bytes_max),
            ("search.queue_max", search.queue_max as u64),
            (
                "search.queue_per_source_max",
                search.queue_per_source_max as u64,
            ),
            ("search.cursors_max", search.cursors_max as u64),
            ("search.cursor_ttl_ms", search.cursor_ttl_ms),
            ("search.page_rows_max", search.page_rows_max as u64),
            ("search.deadline_ms_max", search.deadline_ms_max),
        ])?;
        Ok(())
    }
}

/// Cores of this machine, at least one.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_stops_the_node_is_refused_by_its_name() {
        assert_eq!(Config::default().check(), Ok(()));
        type Spoil = fn(&mut Config);
        let spoil: [(&str, Spoil); 5] = [
            ("copies_max", |c| c.copies_max = 0),
            ("checkpoints_max", |c| c.checkpoints_max = 0),
            ("apply.queue_max", |c| c.apply.queue_max = 0),
            ("search.cursors_max", |c| c.search.cursors_max = 0),
            ("storage.background_jobs_max", |c| {
                c.storage.background_jobs_max = -1;
            }),
        ];
        for (name, spoil) in spoil {
            let mut config = Config::default();
            spoil(&mut config);
            let said = config.check().expect_err(name).to_string();
            assert!(
                said.starts_with(name) && said.contains("1 or more"),
                "{said}"
            );
        }
        let alone = Config {
            coordinators: Vec::new(),
            ..Config::default()
        };
        assert_eq!(alone.check(), Err(ConfigError::NoCoordinators));
    }

    #[test]
    fn zero_stays_allowed_where_it_means_something() {
        let mut config = Config {
            copy_bytes_per_second_max: 0,
            epoch_grace_ms: 0,
            ..Config::default()
        };
        config.apply.fold_threads = 0;
        config.search.threads = 0;
        assert_eq!(config.check(), Ok(()));
    }
}
