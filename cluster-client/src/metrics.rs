//! Plain counters; who embeds the client exports them, with the feature
//! `prometheus` into a registry.

use cluster_core::scan::{FailureKind, PageStats, StaleReason};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct ClientMetrics {
    pub scans: Counter,
    pub pages: Counter,
    pub search_requests: Counter,
    /// Pages that came partly from replicas without a lease.
    pub pages_stale: Counter,
    pub hedges: Counter,
    /// Hedges that answered before the replica asked first.
    pub hedges_won: Counter,
    /// Times that another replica was asked after one had failed.
    pub other_replica: Counter,
    /// Partition attempts that failed, by what the replica said.
    pub failed_estale: EstaleCounters,
    pub failed_lagging: Counter,
    pub failed_unavailable: Counter,
    pub failed_cursor_lost: Counter,
    pub failed_corrupt: Counter,
    /// Scans that ended with an error, whatever it was.
    pub scans_failed: Counter,
    /// Those of them whose time was over.
    pub scans_past_deadline: Counter,
    /// Rounds of asking for a newer map, polls included.
    pub map_fetches: Counter,
    pub map_fetches_in_vain: Counter,
    /// Rounds of asking while no coordinator streamed the map.
    pub map_polls: Counter,
    /// Newer maps that a node gave: what recovery without coordinators lives on.
    pub maps_from_nodes: Counter,
    /// Calls to the leader that went to another coordinator, or were repeated.
    pub leader_retries: Counter,
}

/// ESTALE by reason.
#[derive(Debug, Default)]
pub struct EstaleCounters([Counter; StaleReason::ALL.len()]);

impl EstaleCounters {
    pub fn of(&self, reason: StaleReason) -> &Counter {
        // The order of ALL is the order of declaration.
        &self.0[reason as usize]
    }

    /// Whatever the reason.
    pub fn get(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

impl ClientMetrics {
    /// What a page cost, whether it came or not.
    pub(crate) fn spent(&self, stats: &PageStats) {
        self.hedges.add(u64::from(stats.hedges));
        self.hedges_won.add(u64::from(stats.hedges_won));
        self.other_replica.add(u64::from(stats.other_replica));
    }

    /// A failed attempt that was no ESTALE.
    pub(crate) fn failed(&self, kind: FailureKind) {
        let counter = match kind {
            FailureKind::Lagging => &self.failed_lagging,
            FailureKind::CursorLost => &self.failed_cursor_lost,
            FailureKind::Corrupt => &self.failed_corrupt,
            _ => &self.failed_unavailable,
        };
        counter.add(1);
    }
}

#[cfg(feature = "prometheus")]
mod export {
    use super::{ClientMetrics, Counter};
    use cluster_core::scan::StaleReason;
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
    use prometheus_client::metrics::counter::ConstCounter;
    use prometheus_client::registry::Registry;
    use std::fmt::Error;

    #[derive(Debug)]
    struct Exported {
        plain: Vec<(&'static str, &'static str, Counter)>,
        estale: Vec<(&'static str, Counter)>,
    }

    impl Collector for Exported {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
            for (name, help, counter) in &self.plain {
                let value = ConstCounter::new(counter.get());
                let metric = encoder.encode_descriptor(name, help, None, value.metric_type())?;
                value.encode(metric)?;
            }
            let (name, help) = ("client_estale", "ESTALE that searches met with, by reason");
            let kind = ConstCounter::new(0u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (reason, counter) in &self.estale {
                let labels = [("reason", *reason)];
                ConstCounter::new(counter.get()).encode(family.encode_family(&labels)?)?;
            }
            Ok(())
        }
    }

    impl ClientMetrics {
        #[rustfmt::skip]
        pub fn register(&self, registry: &mut Registry) {
            let plain = vec![
                ("client_search_requests", "Search requests sent to nodes", self.search_requests.clone()),
                ("client_other_replica", "Times that another replica was asked after one had failed", self.other_replica.clone()),
                ("client_hedges", "Second replicas asked because the first was silent", self.hedges.clone()),
                ("client_hedges_won", "Hedges that answered first", self.hedges_won.clone()),
                ("client_stale_pages", "Pages that came partly without a lease", self.pages_stale.clone()),
                ("client_scans_failed", "Searches that ended with an error", self.scans_failed.clone()),
                ("client_scans_past_deadline", "Searches whose time was over", self.scans_past_deadline.clone()),
                ("client_map_fetches", "Rounds of asking for a newer map", self.map_fetches.clone()),
                ("client_map_fetches_in_vain", "Those that brought none", self.map_fetches_in_vain.clone()),
                ("client_map_polls", "Rounds of asking while no coordinator streamed the map", self.map_polls.clone()),
                ("client_maps_from_nodes", "Newer maps that a node gave", self.maps_from_nodes.clone()),
                ("client_leader_retries", "Calls to the leader that were repeated", self.leader_retries.clone()),
            ];
            let by_reason = |reason: StaleReason| (reason.name(), self.failed_estale.of(reason).clone());
            let estale = StaleReason::ALL.map(by_reason).to_vec();
            registry.register_collector(Box::new(Exported { plain, estale }));
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use prometheus_client::encoding::text::encode;

        #[test]
        fn every_reason_is_exported_with_its_count() {
            let metrics = ClientMetrics::default();
            for (n, reason) in StaleReason::ALL.into_iter().enumerate() {
                metrics.failed_estale.of(reason).add(n as u64 + 1);
            }
            metrics.hedges_won.add(7);
            let mut registry = Registry::default();
            metrics.register(registry.sub_registry_with_prefix("ruvector"));
            metrics.maps_from_nodes.add(3);
            let mut text = String::new();
            encode(&mut text, &registry).expect("a string takes everything");
            for line in [
                "ruvector_client_estale_total{reason=\"lease\"} 1",
                "ruvector_client_estale_total{reason=\"not_ready\"} 5",
                "ruvector_client_hedges_won_total 7",
                "ruvector_client_maps_from_nodes_total 3",
            ] {
                assert!(text.contains(line), "{line} in {text}");
            }
        }
    }
}
