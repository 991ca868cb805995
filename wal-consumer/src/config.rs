//! Everything that can be set, with every default in one place.

use cluster_client::ClientConfig;
use cluster_client::setting::{ZeroSetting, check_not_zero};
use cluster_client::transport::Transport;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// gRPC health only.
    pub listen: String,
    /// `host:port` under which others reach `listen`; `listen` when absent.
    pub advertise: Option<String>,
    pub data_dir: PathBuf,
    pub transport: Transport,
    pub coordinators: Vec<String>,
    /// Passwords of the sources, each in a file with the source's name, read at every
    /// connection. What is there counts before the connection string's.
    pub credentials_dir: Option<PathBuf>,
    /// A transaction beyond this is spilled to a temporary file in `data_dir`.
    pub transaction_memory_bytes: usize,
    /// The most of one transaction that such a file may hold. A source with a larger
    /// one stops before it, and says so.
    pub transaction_spill_bytes_max: u64,
    /// A transaction for which there is no room (the limit, or the disk) is read anew
    /// after pauses that double up to this.
    pub transaction_retry_ms_max: u64,
    /// Received from the server and not yet decoded, per source.
    pub receive_buffer_bytes: usize,
    /// Sent to nodes and not yet durable there, per source, shared evenly.
    pub node_queue_bytes: usize,
    /// The same for replicas that are still learning, beyond the above: past it
    /// a learner that does not move begins anew, and nobody waits for it.
    pub learner_queue_bytes: usize,
    /// The two queues above of all sources that this consumer follows together: beyond,
    /// each gets an even share of this, so that however many there are, and however
    /// slow the nodes of one, the process stays within it.
    pub queues_bytes_max: usize,
    /// Of the log, per source. 0: as fast as the server sends.
    pub stream_bytes_per_second_max: u64,
    pub batch_bytes_max: usize,
    pub batch_changes_max: usize,
    /// Of all batches of a source that are being gathered, one for each partition
    /// that is written to; past it they leave as they are.
    pub batch_buffers_bytes: usize,
    /// "Nothing else up to P" goes to a node at most this often.
    pub nothing_else_every_ms: u64,
    /// The slot is told the confirmed position at least this often.
    pub status_every_ms: u64,
    /// While a search waits, the server is asked this often where it is.
    pub wanted_every_ms: u64,
    /// How often the server is looked at: oldest snapshot, next transaction id, slot,
    /// publication, and whether a heartbeat is due.
    pub oldest_xmin_every_ms: u64,
    /// A connected node that makes nothing durable for this long with a full
    /// queue is no longer waited for.
    pub node_stall_ms: u64,
    /// The same for a learner that logs nothing with its share of the queue full.
    pub learner_stall_ms: u64,
    /// Confirmation pauses at most this long for a learner to reach it, so that
    /// it can be counted.
    pub count_hold_ms: u64,
    /// A required replica that makes nothing durable for this long with work
    /// outstanding, whose node is away for this long, or that lags past
    /// `demote_lag_bytes` for this long is demoted, if enough others serve.
    pub demote_after_ms: u64,
    /// WAL between what was routed and what a replica has made durable.
    pub demote_lag_bytes: u64,
    /// WAL that the server may retain for the slot before the slot passes the
    /// replicas that hold it: the primary's disk outranks the index. One without a
    /// peer that goes on is marked stale, answers `eventual` searches only, flagged,
    /// and its index is reconciled with its table. 0: never, the slot goes on waiting.
    pub slot_hold_limit_bytes: u64,
    /// A source that sends nothing for so long while its slot retains
    /// `heartbeat_wal_bytes` gets a record of ours that the slot can move by, and
    /// another one each time it is quiet for so long again. 0: never.
    pub heartbeat_every_ms: u64,
    pub heartbeat_wal_bytes: u64,
    /// How often replicas are looked at for promotion and demotion.
    pub replicas_every_ms: u64,
    pub publication_lock_timeout_ms: u64,
    /// Creating a slot waits for running transactions at most this long.
    pub slot_lock_timeout_ms: u64,
    pub backfill_chunk_rows: usize,
    pub backfill_chunk_bytes: usize,
    pub backfill_in_flight_bytes: usize,
    /// A snapshot of a backfill is held no longer, so that the server can clean up
    /// behind it; the next one goes on.
    pub backfill_snapshot_seconds_max: u64,
    /// Of keys and vectors, all backfills of a source together. 0: as fast as
    /// the nodes take them.
    pub backfill_bytes_per_second_max: u64,
    /// Collections of a source that are filled at once.
    pub backfills_max: usize,
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
    /// How often a server is asked for what it lacks (extension, wal_level).
    pub preflight_every_ms: u64,
    /// One call to a node, or one catalog query to Postgres.
    pub call_timeout_ms: u64,
    /// Vectors remembered to resolve key changes within one transaction.
    pub key_change_memory_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7601".to_owned(),
            advertise: None,
            data_dir: PathBuf::from("data/consumer"),
            transport: Transport::default(),
            coordinators: vec!["127.0.0.1:7401".to_owned()],
            credentials_dir: None,
            transaction_memory_bytes: 64 << 20,
            transaction_spill_bytes_max: 64 << 30,
            transaction_retry_ms_max: 600_000,
            receive_buffer_bytes: 16 << 20,
            node_queue_bytes: 256 << 20,
            learner_queue_bytes: 128 << 20,
            queues_bytes_max: 2 << 30,
            stream_bytes_per_second_max: 0,
            batch_bytes_max: 4 << 20,
            batch_changes_max: 2_000,
            batch_buffers_bytes: 32 << 20,
            nothing_else_every_ms: 10,
            status_every_ms: 1_000,
            wanted_every_ms: 20,
            oldest_xmin_every_ms: 1_000,
            node_stall_ms: 30_000,
            learner_stall_ms: 5_000,
            count_hold_ms: 2_000,
            demote_after_ms: 10_000,
            demote_lag_bytes: 1 << 30,
            slot_hold_limit_bytes: 64 << 30,
            heartbeat_every_ms: 10_000,
            heartbeat_wal_bytes: 16 << 20,
            replicas_every_ms: 500,
            publication_lock_timeout_ms: 2_000,
            slot_lock_timeout_ms: 60_000,
            backfill_chunk_rows: 1_000,
            backfill_chunk_bytes: 2 << 20,
            backfill_in_flight_bytes: 8 << 20,
            backfill_snapshot_seconds_max: 300,
            backfill_bytes_per_second_max: 100 << 20,
            backfills_max: 2,
            retry_min_ms: 200,
            retry_max_ms: 15_000,
            preflight_every_ms: 5_000,
            call_timeout_ms: 10_000,
            key_change_memory_bytes: 32 << 20,
        }
    }
}

/// Slower, one block's rows might take longer than a snapshot may be held, and a
/// backfill would not come on.
const BACKFILL_PACE_MIN: u64 = 1 << 20;

/// A configuration that cannot work, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Zero(#[from] ZeroSetting),
    #[error("coordinators is empty: write the host:port of one at least")]
    NoCoordinators,
    #[error(
        "backfill_bytes_per_second_max is {0}: write {BACKFILL_PACE_MIN} or more, or 0 for no limit"
    )]
    BackfillPace(u64),
    #[error("retry_max_ms is {max}: write {min} (retry_min_ms) or more")]
    RetriesCross { min: u64, max: u64 },
}

impl Config {
    /// Refuses what would let the consumer start and then do nothing.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.coordinators.is_empty() {
            return Err(ConfigError::NoCoordinators);
        }
        check_not_zero(&[
            (
                "transaction_spill_bytes_max",
                self.transaction_spill_bytes_max,
            ),
            ("receive_buffer_bytes", self.receive_buffer_bytes as u64),
            ("node_queue_bytes", self.node_queue_bytes as u64),
            ("learner_queue_bytes", self.learner_queue_bytes as u64),
            ("queues_bytes_max", self.queues_bytes_max as u64),
            ("batch_bytes_max", self.batch_bytes_max as u64),
            ("batch_changes_max", self.batch_changes_max as u64),
            ("batch_buffers_bytes", self.batch_buffers_bytes as u64),
            ("status_every_ms", self.status_every_ms),
            ("wanted_every_ms", self.wanted_every_ms),
            ("oldest_xmin_every_ms", self.oldest_xmin_every_ms),
            ("node_stall_ms", self.node_stall_ms),
            ("learner_stall_ms", self.learner_stall_ms),
            ("count_hold_ms", self.count_hold_ms),
            ("demote_after_ms", self.demote_after_ms),
            ("demote_lag_bytes", self.demote_lag_bytes),
            ("replicas_every_ms", self.replicas_every_ms),
            ("backfill_chunk_rows", self.backfill_chunk_rows as u64),
            ("backfill_chunk_bytes", self.backfill_chunk_bytes as u64),
            (
                "backfill_in_flight_bytes",
                self.backfill_in_flight_bytes as u64,
            ),
            (
                "backfill_snapshot_seconds_max",
                self.backfill_snapshot_seconds_max,
            ),
            ("backfills_max", self.backfills_max as u64),
            ("retry_min_ms", self.retry_min_ms),
            ("preflight_every_ms", self.preflight_every_ms),
            ("call_timeout_ms", self.call_timeout_ms),
            (
                "key_change_memory_bytes",
                self.key_change_memory_bytes as u64,
            ),
        ])?;
        let pace = self.backfill_bytes_per_second_max;
        if (1..BACKFILL_PACE_MIN).contains(&pace) {
            return Err(ConfigError::BackfillPace(pace));
        }
        let (min, max) = (self.retry_min_ms, self.retry_max_ms);
        if max < min {
            return Err(ConfigError::RetriesCross { min, max });
        }
        Ok(())
    }

    /// What one of so many sources may queue for nodes, and for learners beyond.
    pub fn queue_share(&self, sources: usize) -> (usize, usize) {
        let (node, learner) = (self.node_queue_bytes, self.learner_queue_bytes);
        let share = self.queues_bytes_max / sources.max(1);
        let wanted = node.saturating_add(learner).max(1);
        if wanted <= share {
            return (node, learner);
        }
        let of_share = |bytes: usize| (share as u128 * bytes as u128 / wanted as u128) as usize;
        (of_share(node), of_share(learner))
    }

    pub fn client(&self) -> ClientConfig {
        ClientConfig {
            coordinators: self.coordinators.clone(),
            transport: self.transport.clone(),
            ..ClientConfig::default()
        }
    }

    pub fn advertised(&self) -> String {
        self.advertise
            .clone()
            .unwrap_or_else(|| self.listen.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p10_however_many_sources_their_queues_stay_within_the_limit_of_all() {
        let config = Config {
            node_queue_bytes: 200,
            learner_queue_bytes: 100,
            queues_bytes_max: 900,
            ..Config::default()
        };
        assert_eq!(config.queue_share(1), (200, 100));
        assert_eq!(config.queue_share(3), (200, 100));
        for sources in 4..100 {
            let (node, learner) = config.queue_share(sources);
            assert!((node + learner) * sources <= 900, "{sources}");
            assert!(node >= learner, "in the same proportion");
        }
    }

    #[test]
    fn a_setting_that_stops_the_consumer_is_refused_by_its_name() {
        assert_eq!(Config::default().check(), Ok(()));
        type Spoil = fn(&mut Config);
        let spoil: [(&str, Spoil); 7] = [
            ("backfill_snapshot_seconds_max", |c| {
                c.backfill_snapshot_seconds_max = 0;
            }),
            ("backfill_bytes_per_second_max", |c| {
                c.backfill_bytes_per_second_max = BACKFILL_PACE_MIN - 1;
            }),
            ("demote_after_ms", |c| c.demote_after_ms = 0),
            ("replicas_every_ms", |c| c.replicas_every_ms = 0),
            ("node_queue_bytes", |c| c.node_queue_bytes = 0),
            ("backfills_max", |c| c.backfills_max = 0),
            ("retry_max_ms", |c| c.retry_max_ms = c.retry_min_ms - 1),
        ];
        for (name, spoil) in spoil {
            let mut config = Config::default();
            spoil(&mut config);
            let said = config.check().expect_err(name).to_string();
            assert!(said.starts_with(name) && said.contains("or more"), "{said}");
        }
        let alone = Config {
            coordinators: Vec::new(),
            ..Config::default()
        };
        assert_eq!(alone.check(), Err(ConfigError::NoCoordinators));
    }
}
