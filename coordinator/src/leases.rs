//! The reigning leader's memory of who renewed when, and what they reported.
//!
//! Nothing here outlives a reign: a new leader knows no renewal, so it takes
//! every holder for just renewed when its reign began, and waits accordingly.
//! Times are of CLOCK_MONOTONIC, which stands still while the machine sleeps:
//! the grantor then only waits longer, which is the safe side. Holders
//! count on CLOCK_BOOTTIME.

use crate::moves::memory::MoveMemory;
use cluster_core::control::Reign;
use cluster_core::ids::{ConsumerEpoch, ConsumerId, LeaseEpoch, MapVersion, NodeId, SourceId};
use cluster_core::lease::LeaseTerms;
use cluster_core::rebalance::{Liveness, NodeView};
use parking_lot::Mutex;
use proto::v1;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

pub struct Leases {
    terms: LeaseTerms,
    current: Mutex<Option<Reigning>>,
}

struct Reigning {
    reign: Reign,
    epoch: LeaseEpoch,
    since: Instant,
    nodes: HashMap<NodeId, NodeLease>,
    consumers: HashMap<ConsumerId, ConsumerLease>,
    handing_over: Handovers,
    moves: MoveMemory,
}

/// Sources about to be given away, with the token that is taken: a renewal no
/// longer includes a source under that token, whatever the applied map says.
pub type Handovers = BTreeMap<SourceId, ConsumerEpoch>;

pub struct NodeLease {
    pub renewed_at: Instant,
    pub report: v1::NodeReport,
}

pub struct ConsumerLease {
    pub renewed_at: Instant,
    /// The last renewal.
    pub report: v1::RenewConsumerLeaseRequest,
}

/// The reign ended before the renewal could be recorded.
#[derive(Debug, PartialEq, Eq)]
pub struct ReignOver;

impl Leases {
    pub fn new(terms: LeaseTerms) -> Self {
        Self {
            terms,
            current: Mutex::new(None),
        }
    }

    pub fn terms(&self) -> LeaseTerms {
        self.terms
    }

    /// The reign and epoch of this coordinator, while it reigns.
    pub fn reigning(&self) -> Option<(Reign, LeaseEpoch)> {
        self.current
            .lock()
            .as_ref()
            .map(|current| (current.reign, current.epoch))
    }

    pub fn begin_reign(&self, reign: Reign, epoch: LeaseEpoch, now: Instant) {
        *self.current.lock() = Some(Reigning {
            reign,
            epoch,
            since: now,
            nodes: HashMap::new(),
            consumers: HashMap::new(),
            handing_over: Handovers::new(),
            moves: MoveMemory::default(),
        });
    }

    pub fn end_reign(&self) {
        *self.current.lock() = None;
    }

    /// Records a renewal that arrived at `received`. To be called after the
    /// quorum has confirmed the reign, and before the answer. Of two that crossed
    /// on their way the later one counts.
    pub fn renew_node(
        &self,
        reign: Reign,
        node: NodeId,
        received: Instant,
        report: v1::NodeReport,
    ) -> Result<(), ReignOver> {
        self.within(reign, |current| {
            let known = current.nodes.get(&node);
            if known.is_none_or(|lease| lease.renewed_at <= received) {
                let renewed_at = received;
                current.nodes.insert(node, NodeLease { renewed_at, report });
            }
        })
    }

    /// Records a consumer's renewal; answers what it must not be told to hold.
    pub fn renew_consumer(
        &self,
        reign: Reign,
        consumer: ConsumerId,
        received: Instant,
        report: Option<v1::RenewConsumerLeaseRequest>,
    ) -> Result<Handovers, ReignOver> {
        self.within(reign, |current| {
            let lease = current.consumers.entry(consumer).or_insert(ConsumerLease {
                renewed_at: received,
                report: v1::RenewConsumerLeaseRequest::default(),
            });
            lease.renewed_at = lease.renewed_at.max(received);
            if let Some(report) = report {
                lease.report = report;
            }
            current.handing_over.clone()
        })
    }

    fn within<T>(
        &self,
        reign: Reign,
        act: impl FnOnce(&mut Reigning) -> T,
    ) -> Result<T, ReignOver> {
        match self.current.lock().as_mut() {
            Some(current) if current.reign == reign => Ok(act(current)),
            _ => Err(ReignOver),
        }
    }

    /// Begins to take a source from its holder, unless the holder's lease may
    /// still run. From here on the holder's renewals leave the source out, until
    /// the handover has happened or was refused: one whose outcome is unknown
    /// goes on, even when the holder comes back meanwhile.
    pub fn begin_handover(
        &self,
        reign: Reign,
        source: SourceId,
        holder: Option<ConsumerId>,
        token: ConsumerEpoch,
        now: Instant,
    ) -> bool {
        let wait_out = Duration::from_millis(self.terms.wait_out_ms());
        self.within(reign, |current| {
            let silent_since = holder.map(|holder| {
                current
                    .consumers
                    .get(&holder)
                    .map_or(current.since, |lease| lease.renewed_at)
            });
            let free =
                silent_since.is_none_or(|since| now.saturating_duration_since(since) > wait_out);
            if free {
                current.handing_over.insert(source, token);
            }
            free || current.handing_over.get(&source) == Some(&token)
        })
        .unwrap_or(false)
    }

    /// The handover was refused; the holder keeps the source.
    pub fn end_handover(&self, reign: Reign, source: SourceId) {
        let _ended = self.within(reign, |current| current.handing_over.remove(&source));
    }

    /// Whether a consumer has renewed in this reign, within the lease's time.
    pub fn is_live(&self, consumer: ConsumerId, now: Instant) -> bool {
        let ttl = Duration::from_millis(self.terms.ttl_ms);
        self.current.lock().as_ref().is_some_and(|current| {
            let lease = current.consumers.get(&consumer);
            lease.is_some_and(|l| now.saturating_duration_since(l.renewed_at) <= ttl)
        })
    }

    /// How long a consumer has been silent, counted from the reign's beginning
    /// when it never renewed in it.
    pub fn consumer_silence(&self, consumer: ConsumerId, now: Instant) -> Option<Duration> {
        let current = self.current.lock();
        let current = current.as_ref()?;
        let since = current
            .consumers
            .get(&consumer)
            .map_or(current.since, |l| l.renewed_at);
        Some(now.saturating_duration_since(since))
    }

    pub fn forget_consumer(&self, consumer: ConsumerId) {
        if let Some(current) = self.current.lock().as_mut() {
            current.consumers.remove(&consumer);
        }
    }

    /// What the node reported last, and how long ago.
    pub fn node(&self, node: NodeId, now: Instant) -> Option<(Duration, v1::NodeReport)> {
        let current = self.current.lock();
        let lease = current.as_ref()?.nodes.get(&node)?;
        Some((
            now.saturating_duration_since(lease.renewed_at),
            lease.report.clone(),
        ))
    }

    /// What is known of these nodes: one that has not renewed in this reign
    /// has been silent since it began, and may hold a lease of the last one.
    pub fn liveness(
        &self,
        reign: Reign,
        nodes: impl IntoIterator<Item = NodeId>,
        now: Instant,
    ) -> Result<Liveness, ReignOver> {
        let wait_out = Duration::from_millis(self.terms.wait_out_ms());
        self.within(reign, |current| {
            let view = |node: NodeId| {
                let lease = current.nodes.get(&node);
                let since = lease.map_or(current.since, |lease| lease.renewed_at);
                let silent = now.saturating_duration_since(since);
                NodeView {
                    silent_ms: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
                    is_live: lease.is_some() && silent <= wait_out,
                    map: lease.map(|lease| {
                        let report = &lease.report;
                        (LeaseEpoch(report.epoch), MapVersion(report.map_version))
                    }),
                }
            };
            Liveness(nodes.into_iter().map(|node| (node, view(node))).collect())
        })
    }

    /// What the leader remembers of the moves, in this reign.
    pub fn with_moves<T>(
        &self,
        reign: Reign,
        act: impl FnOnce(&mut MoveMemory) -> T,
    ) -> Result<T, ReignOver> {
        self.within(reign, |current| act(&mut current.moves))
    }

    /// What the consumer reported last, and how long ago.
    pub fn consumer(
        &self,
        consumer: ConsumerId,
        now: Instant,
    ) -> Option<(Duration, v1::RenewConsumerLeaseRequest)> {
        let current = self.current.lock();
        let lease = current.as_ref()?.consumers.get(&consumer)?;
        Some((
            now.saturating_duration_since(lease.renewed_at),
            lease.report.clone(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REIGN: Reign = Reign {
        term: 3,
        leader: 1,
        start: 9,
    };
    const CONSUMER: ConsumerId = ConsumerId(1);
    const SOURCE: SourceId = SourceId(1);
    const TOKEN: ConsumerEpoch = ConsumerEpoch(7);

    fn reigning(now: Instant) -> Leases {
        let leases = Leases::new(LeaseTerms::default());
        leases.begin_reign(REIGN, LeaseEpoch(2), now);
        leases
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn p5_a_new_leader_takes_every_holder_for_just_renewed() {
        let start = Instant::now();
        let leases = reigning(start);
        let take = |ms| {
            let now = after(start, ms);
            leases.begin_handover(REIGN, SOURCE, Some(CONSUMER), TOKEN, now)
        };
        assert!(
            !take(11_000),
            "ttl and drift have not passed since the reign began"
        );
        assert!(take(11_001));
    }

    #[test]
    fn p5_a_source_being_taken_is_not_renewed() {
        let start = Instant::now();
        let leases = reigning(start);
        let renew = |ms| leases.renew_consumer(REIGN, CONSUMER, after(start, ms), None);
        assert_eq!(renew(500), Ok(Handovers::new()));
        let take = |ms| {
            let now = after(start, ms);
            leases.begin_handover(REIGN, SOURCE, Some(CONSUMER), TOKEN, now)
        };
        assert!(!take(11_400));
        assert!(take(11_600));
        assert_eq!(renew(11_601), Ok(Handovers::from([(SOURCE, TOKEN)])));
        assert!(
            take(11_602),
            "the holder is back, but the outcome of taking is unknown"
        );
        leases.end_handover(REIGN, SOURCE);
        assert_eq!(renew(11_603), Ok(Handovers::new()));
        assert!(!take(11_604));
    }

    #[test]
    fn p5_a_renewal_of_a_reign_that_is_over_counts_for_nothing() {
        let start = Instant::now();
        let leases = reigning(start);
        leases.begin_reign(Reign { term: 4, ..REIGN }, LeaseEpoch(3), start);
        let report = v1::NodeReport::default();
        assert_eq!(
            leases.renew_node(REIGN, NodeId(1), start, report),
            Err(ReignOver)
        );
        assert_eq!(
            leases.renew_consumer(REIGN, CONSUMER, start, None),
            Err(ReignOver)
        );
        leases.end_reign();
        assert!(!leases.is_live(CONSUMER, start));
    }

    #[test]
    fn p5_a_new_leader_counts_a_nodes_silence_from_its_reigns_beginning() {
        let start = Instant::now();
        let leases = reigning(start);
        let (known, unknown) = (NodeId(1), NodeId(2));
        let report = v1::NodeReport {
            epoch: 2,
            map_version: 7,
            ..v1::NodeReport::default()
        };
        let later = after(start, 9_000);
        assert_eq!(leases.renew_node(REIGN, known, later, report), Ok(()));
        let crossed = v1::NodeReport::default();
        let earlier = after(start, 8_000);
        assert_eq!(leases.renew_node(REIGN, known, earlier, crossed), Ok(()));
        let view = |node, ms| {
            let seen = leases.liveness(REIGN, [node], after(start, ms));
            seen.expect("in the reign").0[&node]
        };
        let heard = NodeView {
            silent_ms: 1_000,
            is_live: true,
            map: Some((LeaseEpoch(2), MapVersion(7))),
        };
        assert_eq!(view(known, 10_000), heard);
        assert!(!view(known, 20_001).is_live);
        let silent = NodeView {
            silent_ms: 10_000,
            is_live: false,
            map: None,
        };
        assert_eq!(view(unknown, 10_000), silent, "never heard: not live");
        let over = Reign { term: 2, ..REIGN };
        assert_eq!(leases.liveness(over, [known], start), Err(ReignOver));
    }

    #[test]
    fn a_source_without_a_holder_is_given_at_once() {
        let start = Instant::now();
        assert!(reigning(start).begin_handover(REIGN, SOURCE, None, TOKEN, start));
    }
}
