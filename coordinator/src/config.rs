//! Every tunable of a coordinator, with its default, in one place.

use cluster_client::setting::{ZeroSetting, check_not_zero};
use cluster_client::transport::Transport;
use cluster_core::control::CoordinatorMember;
use cluster_core::lease::LeaseTerms;
use cluster_core::placement::PlacementPolicy;
use cluster_core::rebalance::{RebalancePolicy, Throttle};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This coordinator's number among its peers, from 1; never reused.
    pub id: u64,
    pub listen: String,
    /// `host:port` by which others reach this coordinator; by default its entry
    /// among `peers`, then `listen`.
    pub advertise: Option<String>,
    pub data_dir: PathBuf,
    /// Every coordinator, this one included; empty for a single one.
    pub peers: Vec<CoordinatorMember>,
    pub transport: Transport,
    pub leases: LeaseTerms,
    /// Copies of each partition, as far as there are nodes.
    pub replication_factor: u32,
    /// A slow replica is no longer waited for while so many others serve.
    pub min_required: u32,
    /// A node that has been silent for longer is dead: its replicas come into
    /// being elsewhere.
    pub dead_after_ms: u64,
    /// A partition of more rows is split; 0: none is.
    pub split_rows: u64,
    /// Replicas that are copied at once.
    pub moves_max: u32,
    /// Of them to or from one node.
    pub moves_per_node_max: u32,
    /// Partitions of a new collection per node.
    pub partitions_per_node: u32,
    /// Partitions of a new collection, however many nodes there are.
    pub partitions_per_collection_max: u32,
    /// How long a change may wait for its commit before the caller is told that
    /// its outcome is unknown.
    pub propose_timeout_ms: u64,
    /// How long a lease renewal may wait for the quorum's word.
    pub read_index_timeout_ms: u64,
    /// How long GetMap waits for the map that was asked for.
    pub map_wait_ms: u64,
    /// How often the leader looks for sources without a living consumer.
    pub duties_every_ms: u64,
    pub raft: RaftTuning,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftTuning {
    pub heartbeat_ms: u64,
    pub election_timeout_min_ms: u64,
    pub election_timeout_max_ms: u64,
    /// A snapshot is taken after this many log entries.
    pub snapshot_every_entries: u64,
    /// Entries kept behind a snapshot, for followers that lag a little.
    pub log_entries_kept: u64,
    pub snapshot_timeout_ms: u64,
    pub snapshot_chunk_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        let placement = PlacementPolicy::default();
        Self {
            id: 1,
            listen: "127.0.0.1:7401".to_owned(),
            advertise: None,
            data_dir: PathBuf::from("coordinator"),
            peers: Vec::new(),
            transport: Transport::default(),
            leases: LeaseTerms::default(),
            replication_factor: placement.replication_factor,
            min_required: 1,
            dead_after_ms: 300_000,
            split_rows: 5_000_000,
            moves_max: 2,
            moves_per_node_max: 2,
            partitions_per_node: placement.partitions_per_node,
            partitions_per_collection_max: placement.partitions_per_collection_max,
            propose_timeout_ms: 5_000,
            read_index_timeout_ms: 2_000,
            map_wait_ms: 2_000,
            duties_every_ms: 500,
            raft: RaftTuning::default(),
        }
    }
}

impl Default for RaftTuning {
    fn default() -> Self {
        Self {
            heartbeat_ms: 150,
            election_timeout_min_ms: 600,
            election_timeout_max_ms: 1_100,
            snapshot_every_entries: 1_000,
            log_entries_kept: 200,
            snapshot_timeout_ms: 10_000,
            snapshot_chunk_bytes: 1 << 20,
        }
    }
}

/// A configuration that cannot work, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("`id` (or one in `peers`) is 0: number coordinators from 1")]
    ZeroId,
    #[error(
        "`id` is {0} and `peers` does not name it: add {0}=HOST:PORT to peers, or leave peers \
         empty to join by `ruvector ctl coordinator add`"
    )]
    NotAmongPeers(u64),
    #[error(
        "peers name coordinator {id} or its address {address} twice: write each \
         coordinator once, as in 1=127.0.0.1:7401,2=127.0.0.1:7402"
    )]
    PeersRepeat { id: u64, address: String },
    #[error(transparent)]
    Zero(#[from] ZeroSetting),
    #[error(
        "leases.renew_every_ms is {renew}: it must be above 0 and below leases.ttl_ms ({ttl}), \
         best a third of it"
    )]
    RenewalTooSlow { renew: u64, ttl: u64 },
    #[error(
        "dead_after_ms is {grace}, but a lease may run for {wait_out} ms after its last renewal: \
         want at least that"
    )]
    DeadTooSoon { grace: u64, wait_out: u64 },
    #[error(
        "min_required is {min_required} of replication_factor {copies}: no slow replica could \
         ever be left behind; write 1 to {}", copies - 1
    )]
    NothingDemoted { min_required: u32, copies: u32 },
    #[error(
        "raft.election_timeout_min_ms is {election} and raft.heartbeat_ms {heartbeat}: one lost \
         heartbeat would depose a leader; write more than {}", heartbeat.saturating_mul(2)
    )]
    ElectionsTooSoon { election: u64, heartbeat: u64 },
}

impl Config {
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.id == 0 || self.peers.iter().any(|peer| peer.id == 0) {
            return Err(ConfigError::ZeroId);
        }
        if !self.peers.is_empty() && !self.peers.iter().any(|peer| peer.id == self.id) {
            return Err(ConfigError::NotAmongPeers(self.id));
        }
        let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for peer in &self.peers {
            if !ids.insert(peer.id) || !addresses.insert(&peer.address) {
                return Err(ConfigError::PeersRepeat {
                    id: peer.id,
                    address: peer.address.clone(),
                });
            }
        }
        self.check_limits()?;
        self.check_times()?;
        let (min_required, copies) = (self.min_required, self.replication_factor);
        if copies > 1 && min_required >= copies {
            return Err(ConfigError::NothingDemoted {
                min_required,
                copies,
            });
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), ZeroSetting> {
        check_not_zero(&[
            ("replication_factor", u64::from(self.replication_factor)),
            ("min_required", u64::from(self.min_required)),
            ("moves_max", u64::from(self.moves_max)),
            ("moves_per_node_max", u64::from(self.moves_per_node_max)),
            ("partitions_per_node", u64::from(self.partitions_per_node)),
            (
                "partitions_per_collection_max",
                u64::from(self.partitions_per_collection_max),
            ),
            ("propose_timeout_ms", self.propose_timeout_ms),
            ("read_index_timeout_ms", self.read_index_timeout_ms),
            ("duties_every_ms", self.duties_every_ms),
            (
                "raft.snapshot_every_entries",
                self.raft.snapshot_every_entries,
            ),
            ("raft.snapshot_chunk_bytes", self.raft.snapshot_chunk_bytes),
            ("raft.snapshot_timeout_ms", self.raft.snapshot_timeout_ms),
            ("raft.heartbeat_ms", self.raft.heartbeat_ms),
        ])
    }

    fn check_times(&self) -> Result<(), ConfigError> {
        let (renew, ttl) = (self.leases.renew_every_ms, self.leases.ttl_ms);
        if renew == 0 || renew >= ttl {
            return Err(ConfigError::RenewalTooSlow { renew, ttl });
        }
        let (grace, wait_out) = (self.dead_after_ms, self.leases.wait_out_ms());
        if grace < wait_out {
            return Err(ConfigError::DeadTooSoon { grace, wait_out });
        }
        let (election, heartbeat) = (self.raft.election_timeout_min_ms, self.raft.heartbeat_ms);
        if election <= heartbeat.saturating_mul(2) {
            return Err(ConfigError::ElectionsTooSoon {
                election,
                heartbeat,
            });
        }
        Ok(())
    }

    /// `host:port` by which others reach this coordinator.
    pub fn advertised(&self) -> String {
        let own_entry = self.peers.iter().find(|peer| peer.id == self.id);
        self.advertise
            .clone()
            .or_else(|| own_entry.map(|peer| peer.address.clone()))
            .unwrap_or_else(|| self.listen.clone())
    }

    /// Every coordinator, ascending; this one alone when no peers are named.
    pub fn members(&self) -> Vec<CoordinatorMember> {
        let mut members = self.peers.clone();
        if members.is_empty() {
            members.push(CoordinatorMember {
                id: self.id,
                address: self.advertised(),
            });
        }
        members.sort_by_key(|member| member.id);
        members
    }

    pub fn placement(&self) -> PlacementPolicy {
        PlacementPolicy {
            partitions_per_node: self.partitions_per_node,
            replication_factor: self.replication_factor,
            partitions_per_collection_max: self.partitions_per_collection_max,
        }
    }

    pub fn rebalance(&self) -> RebalancePolicy {
        RebalancePolicy {
            replication_factor: self.replication_factor,
            dead_after_ms: self.dead_after_ms,
        }
    }

    pub fn throttle(&self) -> Throttle {
        Throttle {
            moves_max: self.moves_max,
            moves_per_node_max: self.moves_per_node_max,
        }
    }

    pub fn propose_timeout(&self) -> Duration {
        Duration::from_millis(self.propose_timeout_ms)
    }

    pub fn read_index_timeout(&self) -> Duration {
        Duration::from_millis(self.read_index_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u64, port: u16) -> CoordinatorMember {
        CoordinatorMember {
            id,
            address: format!("127.0.0.1:{port}"),
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        let with = |peers: Vec<_>| Config {
            peers,
            ..Config::default()
        };
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(
            with(vec![peer(2, 1)]).check(),
            Err(ConfigError::NotAmongPeers(1))
        );
        let repeated = with(vec![peer(1, 1), peer(2, 1)]);
        let refused = repeated.check().expect_err("an address twice").to_string();
        assert!(refused.contains("127.0.0.1:1 twice"), "{refused}");
        let zero = Config {
            replication_factor: 0,
            ..Config::default()
        };
        assert_eq!(
            zero.check(),
            Err(ConfigError::Zero(ZeroSetting("replication_factor")))
        );
        let hasty = Config {
            dead_after_ms: 10_999,
            ..Config::default()
        };
        let (grace, wait_out) = (10_999, 11_000);
        assert_eq!(
            hasty.check(),
            Err(ConfigError::DeadTooSoon { grace, wait_out })
        );
        let stuck = Config {
            moves_per_node_max: 0,
            ..Config::default()
        };
        assert_eq!(
            stuck.check(),
            Err(ConfigError::Zero(ZeroSetting("moves_per_node_max")))
        );
    }

    fn refused(config: Config) -> String {
        config.check().expect_err("it cannot work").to_string()
    }

    #[test]
    fn a_refusal_names_the_setting_and_says_what_to_write() {
        let unnamed = refused(Config {
            id: 4,
            peers: vec![peer(1, 1)],
            ..Config::default()
        });
        assert!(unnamed.contains("add 4=HOST:PORT to peers"), "{unnamed}");
        let zero = refused(Config {
            id: 0,
            ..Config::default()
        });
        assert!(zero.contains("number coordinators from 1"), "{zero}");
        let slow = refused(Config {
            leases: LeaseTerms {
                renew_every_ms: 10_000,
                ..LeaseTerms::default()
            },
            ..Config::default()
        });
        assert!(
            slow.starts_with("leases.renew_every_ms is 10000") && slow.contains("(10000)"),
            "{slow}"
        );
    }

    #[test]
    fn some_replica_can_always_be_demoted_unless_there_is_one_alone() {
        let with = |replication_factor, min_required| Config {
            replication_factor,
            min_required,
            ..Config::default()
        };
        assert_eq!(with(1, 1).check(), Ok(()));
        assert_eq!(with(3, 2).check(), Ok(()));
        for (copies, min_required) in [(2, 2), (3, 4)] {
            let said = refused(with(copies, min_required));
            let write = format!("write 1 to {}", copies - 1);
            assert!(
                said.contains("min_required") && said.contains(&write),
                "{said}"
            );
        }
    }

    #[test]
    fn one_lost_heartbeat_is_no_election() {
        let with = |election_timeout_min_ms| Config {
            raft: RaftTuning {
                election_timeout_min_ms,
                ..RaftTuning::default()
            },
            ..Config::default()
        };
        assert_eq!(with(301).check(), Ok(()));
        let said = refused(with(300));
        assert!(said.contains("write more than 300"), "{said}");
    }

    #[test]
    fn a_coordinator_without_peers_is_its_only_member() {
        let alone = Config {
            advertise: Some("h:1".to_owned()),
            ..Config::default()
        };
        assert_eq!(
            alone.members(),
            [CoordinatorMember {
                id: 1,
                address: "h:1".to_owned()
            }]
        );
    }
}
