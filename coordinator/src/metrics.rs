//! What a coordinator counts; all names begin with `ruvector_coordinator_`.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HolderLabel {
    /// `node` or `consumer`.
    pub holder: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// `drain`, `balance`, `repair` or `operator`.
    pub reason: &'static str,
}

#[derive(Clone, Default)]
pub struct Metrics {
    pub raft_term: Gauge,
    pub raft_applied_index: Gauge,
    pub raft_log_index: Gauge,
    pub is_leader: Gauge,
    pub epoch: Gauge,
    pub map_version: Gauge,
    /// Reigns that this coordinator has begun.
    pub elections: Counter,
    pub lease_renewals: Family<HolderLabel, Counter>,
    pub lease_refusals: Family<HolderLabel, Counter>,
    pub handovers: Counter,
    pub moves_running: Gauge,
    pub moves_started: Family<ReasonLabel, Counter>,
    pub moves_finished: Counter,
    pub moves_cancelled: Counter,
    pub replicas_demoted: Gauge,
    pub replicas_stale: Gauge,
    pub releases: Counter,
    pub splits_started: Counter,
    pub sources_paused: Gauge,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("ruvector_coordinator");
        let m = metrics.clone();
        registry.register("raft_term", "Raft's current term", m.raft_term);
        registry.register(
            "raft_applied_index",
            "Last applied log entry",
            m.raft_applied_index,
        );
        registry.register("raft_log_index", "Last log entry", m.raft_log_index);
        registry.register("is_leader", "1 while this coordinator reigns", m.is_leader);
        registry.register("epoch", "Lease epoch of the applied map", m.epoch);
        registry.register("map_version", "Version of the applied map", m.map_version);
        registry.register("elections", "Reigns begun by this coordinator", m.elections);
        registry.register("lease_renewals", "Leases renewed", m.lease_renewals);
        registry.register("lease_refusals", "Lease renewals refused", m.lease_refusals);
        registry.register(
            "source_handovers",
            "Sources given to a consumer",
            m.handovers,
        );
        registry.register(
            "moves_running",
            "Moves of replicas that have begun and not ended",
            m.moves_running,
        );
        registry.register(
            "moves_started",
            "Moves begun by this leader",
            m.moves_started,
        );
        registry.register(
            "moves_finished",
            "Moves seen by this leader to end with a serving replica",
            m.moves_finished,
        );
        registry.register(
            "moves_cancelled",
            "Moves seen by this leader to end without a serving replica",
            m.moves_cancelled,
        );
        registry.register(
            "replicas_demoted",
            "Replicas that no slot waits for until they have learned anew",
            m.replicas_demoted,
        );
        registry.register(
            "replicas_stale",
            "Replicas that the slot has passed at slot_hold_limit",
            m.replicas_stale,
        );
        registry.register(
            "releases",
            "Replicas that this leader has let go after they gave their place",
            m.releases,
        );
        registry.register(
            "splits_started",
            "Splits of partitions begun",
            m.splits_started,
        );
        registry.register(
            "sources_paused",
            "Sources that an operator has paused; their slots keep WAL",
            m.sources_paused,
        );
        metrics
    }
}

pub const NODE: HolderLabel = HolderLabel { holder: "node" };
pub const CONSUMER: HolderLabel = HolderLabel { holder: "consumer" };
