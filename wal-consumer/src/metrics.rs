//! What the consumer counts, as `ruvector_consumer_…`.

use crate::source::Standing;
use cluster_core::ids::SourceId;
use cluster_core::slot_health::{Danger, SlotReading};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfSource {
    source: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReason {
    source: u64,
    reason: &'static str,
}

#[derive(Clone, Default)]
pub struct Metrics {
    rows: Family<OfSource, Counter>,
    transactions: Family<OfSource, Counter>,
    restarts: Family<OfReason, Counter>,
    queued: Family<OfSource, Gauge>,
    queued_for_learners: Family<OfSource, Gauge>,
    learners: Family<OfSource, Gauge>,
    counted: Family<OfSource, Gauge>,
    promotions: Family<OfSource, Counter>,
    demotions: Family<OfReason, Counter>,
    demotions_refused: Family<OfSource, Counter>,
    marked_stale: Family<OfSource, Counter>,
    received: Family<OfSource, Gauge>,
    applied: Family<OfSource, Gauge>,
    confirmed: Family<OfSource, Gauge>,
    lag: Family<OfSource, Gauge>,
    retained: Family<OfSource, Gauge>,
    safe: Family<OfSource, Gauge>,
    hold_limit: Family<OfSource, Gauge>,
    dangers: Family<OfReason, Gauge>,
    slot_advanced: Family<OfSource, Counter>,
    heartbeats: Family<OfReason, Counter>,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("ruvector_consumer");
        registry.register(
            "rows",
            "Row and TRUNCATE changes received",
            metrics.rows.clone(),
        );
        registry.register(
            "transactions",
            "Transactions routed",
            metrics.transactions.clone(),
        );
        registry.register(
            "restarts",
            "Starts over, by reason",
            metrics.restarts.clone(),
        );
        registry.register(
            "learners",
            "Replicas that are fed and not counted yet",
            metrics.learners.clone(),
        );
        registry.register(
            "learners_counted",
            "Learners that the slot waits for, while the coordinators are asked to let them serve",
            metrics.counted.clone(),
        );
        registry.register(
            "promotions",
            "Learners that came to serve",
            metrics.promotions.clone(),
        );
        registry.register(
            "demotions",
            "Replicas that the slot waits for no longer, by reason",
            metrics.demotions.clone(),
        );
        registry.register(
            "demotions_refused",
            "Replicas that the slot goes on waiting for, too few others serving",
            metrics.demotions_refused.clone(),
        );
        registry.register(
            "marked_stale",
            "Replicas that the slot passed at slot_hold_limit, with no peer to copy from",
            metrics.marked_stale.clone(),
        );
        metrics.register_queues(registry);
        registry.register(
            "received_lsn",
            "Received up to here",
            metrics.received.clone(),
        );
        registry.register(
            "applied_lsn",
            "Durable on every required replica up to here",
            metrics.applied.clone(),
        );
        registry.register(
            "confirmed_lsn",
            "Confirmed to the server",
            metrics.confirmed.clone(),
        );
        registry.register(
            "lag_bytes",
            "WAL that the server has flushed and a required replica lacks",
            metrics.lag.clone(),
        );
        registry.register(
            "retained_wal_bytes",
            "WAL that the server keeps for the slot",
            metrics.retained.clone(),
        );
        metrics.register_slot(registry);
        metrics
    }

    fn register_queues(&self, registry: &mut Registry) {
        registry.register(
            "queued_bytes",
            "Changes on their way to nodes, not yet durable there",
            self.queued.clone(),
        );
        registry.register(
            "queued_for_learners_bytes",
            "The same for replicas that are still learning",
            self.queued_for_learners.clone(),
        );
    }

    /// What waits for nodes, and beyond for learners.
    pub fn queued(&self, source: SourceId, bytes: usize, for_learners: usize) {
        let label = OfSource { source: source.0 };
        let set = |family: &Family<OfSource, Gauge>, bytes: usize| {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            family.get_or_create(&label).set(bytes);
        };
        set(&self.queued, bytes);
        set(&self.queued_for_learners, for_learners);
    }

    fn register_slot(&self, registry: &mut Registry) {
        registry.register(
            "safe_wal_bytes",
            "WAL that may be written until the server drops what the slot needs; -1: no limit",
            self.safe.clone(),
        );
        registry.register(
            "slot_hold_limit_bytes",
            "Retained WAL past which the slot passes the replicas that hold it; 0: never",
            self.hold_limit.clone(),
        );
        registry.register(
            "slot_danger",
            "1 while the slot's WAL is in danger, by reason",
            self.dangers.clone(),
        );
        registry.register(
            "slot_advanced_by_server",
            "Times that the slot was found advanced by the server, past slot_hold_limit",
            self.slot_advanced.clone(),
        );
        registry.register(
            "heartbeats",
            "Records written into a quiet source's WAL so that its slot can move, by what became of them",
            self.heartbeats.clone(),
        );
    }

    /// `outcome`: `written`, `received` through the stream, or `failed`.
    pub fn heartbeat(&self, source: SourceId, outcome: &'static str) {
        let label = OfReason {
            source: source.0,
            reason: outcome,
        };
        self.heartbeats.get_or_create(&label).inc();
    }

    /// What the slot costs the server, and what may become of it.
    pub fn slot(&self, source: SourceId, reading: &SlotReading, standing: &[Danger]) {
        let label = OfSource { source: source.0 };
        let safe = reading
            .safe_bytes
            .map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        self.safe.get_or_create(&label).set(safe);
        let limit = i64::try_from(reading.limit_bytes).unwrap_or(i64::MAX);
        self.hold_limit.get_or_create(&label).set(limit);
        for danger in Danger::ALL {
            let label = OfReason {
                source: source.0,
                reason: danger.name(),
            };
            let stands = standing.contains(&danger);
            self.dangers.get_or_create(&label).set(stands.into());
        }
    }

    pub fn slot_advanced(&self, source: SourceId) {
        let label = OfSource { source: source.0 };
        self.slot_advanced.get_or_create(&label).inc();
    }

    pub fn transaction(&self, source: SourceId, rows: u64) {
        let label = OfSource { source: source.0 };
        self.rows.get_or_create(&label).inc_by(rows);
        self.transactions.get_or_create(&label).inc();
    }

    pub fn restarted(&self, source: SourceId, reason: &'static str) {
        self.restarts
            .get_or_create(&OfReason {
                source: source.0,
                reason,
            })
            .inc();
    }

    /// How many learn, and how many are counted and do not serve yet.
    pub fn learners(&self, source: SourceId, learning: usize, counted: usize) {
        let label = OfSource { source: source.0 };
        let set = |family: &Family<OfSource, Gauge>, value: usize| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            family.get_or_create(&label).set(value);
        };
        set(&self.learners, learning);
        set(&self.counted, counted);
    }

    pub fn promoted(&self, source: SourceId) {
        let label = OfSource { source: source.0 };
        self.promotions.get_or_create(&label).inc();
    }

    pub fn demoted(&self, source: SourceId, reason: &'static str) {
        let label = OfReason {
            source: source.0,
            reason,
        };
        self.demotions.get_or_create(&label).inc();
    }

    pub fn demotion_refused(&self, source: SourceId) {
        let label = OfSource { source: source.0 };
        self.demotions_refused.get_or_create(&label).inc();
    }

    pub fn marked_stale(&self, source: SourceId) {
        let label = OfSource { source: source.0 };
        self.marked_stale.get_or_create(&label).inc();
    }

    pub fn positions(&self, source: SourceId, standing: &Standing) {
        let progress = standing.report(source);
        let label = OfSource { source: source.0 };
        let set = |family: &Family<OfSource, Gauge>, value: u64| {
            family
                .get_or_create(&label)
                .set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.received, progress.received_lsn);
        set(&self.applied, progress.applied_lsn);
        set(&self.confirmed, progress.confirmed_lsn);
        set(
            &self.lag,
            progress
                .server_flush_lsn
                .saturating_sub(progress.applied_lsn),
        );
        set(&self.retained, progress.retained_wal_bytes);
    }
}
