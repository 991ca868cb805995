//! The reigning leader's leases: the rules are `cluster_core::lease::Grantor`'s,
//! here they get a clock, a lock and the holders' last reports.
//!
//! Nothing here outlives a reign. Times are of CLOCK_MONOTONIC, which stands
//! still while the machine sleeps: the grantor then only waits longer, which is
//! the safe side. Holders count on CLOCK_BOOTTIME.

use crate::moves::memory::MoveMemory;
use cluster_core::assignment::Candidate;
use cluster_core::control::Reign;
use cluster_core::ids::{
    ConsumerEpoch, ConsumerId, LeaseEpoch, MapStamp, MapVersion, NodeId, SourceId,
};
pub use cluster_core::lease::Handovers;
use cluster_core::lease::{Grantor, LeaseTerms, ReignMs};
use cluster_core::rebalance::{Liveness, NodeView};
use parking_lot::Mutex;
use proto::v1;
use std::collections::HashMap;
use std::time::{Duration, Instant};

pub struct Leases {
    terms: LeaseTerms,
    current: Mutex<Option<Reigning>>,
}

struct Reigning {
    grantor: Grantor,
    since: Instant,
    node_reports: HashMap<NodeId, v1::NodeReport>,
    /// The last renewals.
    consumer_reports: HashMap<ConsumerId, v1::RenewConsumerLeaseRequest>,
    moves: MoveMemory,
}

impl Reigning {
    /// What came before the reign counts from its beginning: longer, not shorter.
    fn ms(&self, at: Instant) -> ReignMs {
        let since = at.saturating_duration_since(self.since);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The reign ended before the renewal could be recorded, or no quorum has
/// confirmed it since the renewal arrived.
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
            .map(|current| (current.grantor.reign(), current.grantor.epoch()))
    }

    pub fn begin_reign(&self, reign: Reign, epoch: LeaseEpoch, now: Instant) {
        *self.current.lock() = Some(Reigning {
            grantor: Grantor::begin(self.terms, reign, epoch),
            since: now,
            node_reports: HashMap::new(),
            consumer_reports: HashMap::new(),
            moves: MoveMemory::default(),
        });
    }

    pub fn end_reign(&self) {
        *self.current.lock() = None;
    }

    /// A quorum has confirmed the reign in a round that began at `begun_at`, within
    /// the reign: renewals that had arrived by then may be granted.
    pub fn confirmed(&self, reign: Reign, begun_at: Instant) -> Result<(), ReignOver> {
        self.within(reign, |current| {
            let begun_at = current.ms(begun_at);
            current.grantor.confirmed(begun_at);
        })
    }

    /// Records a renewal that arrived at `received`. To be called after the
    /// quorum has confirmed the reign, and before the answer.
    pub fn renew_node(
        &self,
        reign: Reign,
        node: NodeId,
        received: Instant,
        report: v1::NodeReport,
    ) -> Result<(), ReignOver> {
        self.within(reign, |current| {
            let received = current.ms(received);
            let knows: MapStamp = (LeaseEpoch(report.epoch), MapVersion(report.map_version));
            let renewed = current.grantor.renew_node(node, received, knows);
            renewed.map_err(|_unconfirmed| ReignOver)?;
            current.node_reports.insert(node, report);
            Ok(())
        })?
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
            let received = current.ms(received);
            let renewed = current.grantor.renew_consumer(consumer, received);
            let withheld = renewed.map_err(|_unconfirmed| ReignOver)?.clone();
            let known = current.consumer_reports.entry(consumer).or_default();
            match report {
                Some(report) => {
                    for released in &report.released {
                        let token = ConsumerEpoch(released.consumer_epoch);
                        let source = SourceId(released.source_id);
                        current.grantor.released(source, token);
                    }
                    *known = report;
                }
                // It joins, so that it wants something.
                None => known.is_leaving = false,
            }
            Ok(withheld)
        })?
    }

    /// Those who may be given sources.
    pub fn candidates(
        &self,
        consumers: impl IntoIterator<Item = ConsumerId>,
        now: Instant,
    ) -> Vec<Candidate> {
        let current = self.current.lock();
        let Some(current) = current.as_ref() else {
            return Vec::new();
        };
        let now = current.ms(now);
        let candidate = |consumer| {
            let report = current.consumer_reports.get(&consumer);
            let is_leaving = report.is_some_and(|report| report.is_leaving);
            let is_candidate = current.grantor.is_live(consumer, now) && !is_leaving;
            is_candidate.then(|| Candidate {
                consumer,
                can_release: report.is_some_and(|report| report.can_release),
            })
        };
        consumers.into_iter().filter_map(candidate).collect()
    }

    /// Whether nobody follows a source any more, nor can; see [`Grantor::is_free`].
    pub fn is_free(
        &self,
        reign: Reign,
        source: SourceId,
        holder: Option<ConsumerId>,
        token: ConsumerEpoch,
        now: Instant,
    ) -> bool {
        self.allows(reign, now, |grantor, now| {
            grantor.is_free(source, holder, token, now)
        })
    }

    /// Asks the holders of these sources to let go, and nobody else any more.
    pub fn recall(&self, reign: Reign, all: &[(SourceId, ConsumerEpoch)], recalled: &[SourceId]) {
        let _recalled = self.within(reign, |current| {
            for (source, token) in all {
                match recalled.contains(source) {
                    true => current.grantor.recall(*source, *token),
                    false => current.grantor.end_recall(*source),
                }
            }
        });
    }

    /// Begins to take a source from its holder, unless the holder's lease may
    /// still run; see [`Grantor::begin_handover`].
    pub fn begin_handover(
        &self,
        reign: Reign,
        source: SourceId,
        holder: Option<ConsumerId>,
        token: ConsumerEpoch,
        now: Instant,
    ) -> bool {
        self.allows(reign, now, |grantor, now| {
            grantor.begin_handover(source, holder, token, now)
        })
    }

    /// The handover was refused; the holder keeps the source.
    pub fn end_handover(&self, reign: Reign, source: SourceId) {
        let _ended = self.within(reign, |current| current.grantor.end_handover(source));
    }

    /// How long a consumer has been silent, counted from the reign's beginning
    /// when it never renewed in it.
    pub fn consumer_silence(&self, consumer: ConsumerId, now: Instant) -> Option<Duration> {
        let current = self.current.lock();
        let current = current.as_ref()?;
        let silence = current
            .grantor
            .consumer_silence_ms(consumer, current.ms(now));
        Some(Duration::from_millis(silence))
    }

    pub fn forget_consumer(&self, consumer: ConsumerId) {
        if let Some(current) = self.current.lock().as_mut() {
            current.grantor.forget_consumer(consumer);
            current.consumer_reports.remove(&consumer);
        }
    }

    /// What the node reported last, and how long ago.
    pub fn node(&self, node: NodeId, now: Instant) -> Option<(Duration, v1::NodeReport)> {
        let current = self.current.lock();
        let current = current.as_ref()?;
        let report = current.node_reports.get(&node)?.clone();
        let silence = current.grantor.node_silence_ms(node, current.ms(now));
        Some((Duration::from_millis(silence), report))
    }

    /// What is known of these nodes.
    pub fn liveness(
        &self,
        reign: Reign,
        nodes: impl IntoIterator<Item = NodeId>,
        now: Instant,
    ) -> Result<Liveness, ReignOver> {
        self.within(reign, |current| {
            let now = current.ms(now);
            let view = |node: NodeId| (node, NodeView::of(node, &current.grantor, now));
            Liveness(nodes.into_iter().map(view).collect())
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
        let current = current.as_ref()?;
        let report = current.consumer_reports.get(&consumer)?.clone();
        let silence = current
            .grantor
            .consumer_silence_ms(consumer, current.ms(now));
        Some((Duration::from_millis(silence), report))
    }

    /// What the grantor says at `now`; of a reign that is over, it allows nothing.
    fn allows(
        &self,
        reign: Reign,
        now: Instant,
        ask: impl FnOnce(&mut Grantor, ReignMs) -> bool,
    ) -> bool {
        let said = self.within(reign, |current| {
            let now = current.ms(now);
            ask(&mut current.grantor, now)
        });
        said.unwrap_or(false)
    }

    fn within<T>(
        &self,
        reign: Reign,
        act: impl FnOnce(&mut Reigning) -> T,
    ) -> Result<T, ReignOver> {
        match self.current.lock().as_mut() {
            Some(current) if current.grantor.reign() == reign => Ok(act(current)),
            _ => Err(ReignOver),
        }
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

    /// A renewal with the round that it waited for.
    fn renew(leases: &Leases, at: Instant) -> Result<Handovers, ReignOver> {
        leases.confirmed(REIGN, at)?;
        leases.renew_consumer(REIGN, CONSUMER, at, None)
    }

    #[test]
    fn p5_a_renewal_waits_for_a_round_begun_after_its_arrival() {
        let start = Instant::now();
        let leases = reigning(start);
        let renew = |ms| leases.renew_consumer(REIGN, CONSUMER, after(start, ms), None);
        assert_eq!(renew(500), Err(ReignOver));
        assert_eq!(leases.confirmed(REIGN, after(start, 499)), Ok(()));
        assert_eq!(renew(500), Err(ReignOver));
        assert_eq!(leases.confirmed(REIGN, after(start, 500)), Ok(()));
        assert_eq!(renew(500), Ok(Handovers::new()));
    }

    #[test]
    fn p5_a_source_being_taken_is_not_renewed() {
        let start = Instant::now();
        let leases = reigning(start);
        let renew = |ms| renew(&leases, after(start, ms));
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
        assert_eq!(leases.candidates([CONSUMER], start), []);
    }

    #[test]
    fn p5_a_living_holder_lets_go_before_a_source_changes_hands() {
        let start = Instant::now();
        let leases = reigning(start);
        assert_eq!(renew(&leases, after(start, 100)), Ok(Handovers::new()));
        leases.recall(REIGN, &[(SOURCE, TOKEN)], &[SOURCE]);
        let taken = Handovers::from([(SOURCE, TOKEN)]);
        assert_eq!(renew(&leases, after(start, 200)), Ok(taken));
        let take = |ms| {
            let now = after(start, ms);
            leases.begin_handover(REIGN, SOURCE, Some(CONSUMER), TOKEN, now)
        };
        assert!(!take(201), "it was asked, and has not said anything");
        let says = |token: ConsumerEpoch, ms| {
            let report = v1::RenewConsumerLeaseRequest {
                released: vec![v1::ConsumerAssignment {
                    source_id: SOURCE.0,
                    consumer_epoch: token.0,
                }],
                ..v1::RenewConsumerLeaseRequest::default()
            };
            let at = after(start, ms);
            assert_eq!(leases.confirmed(REIGN, at), Ok(()));
            let renewed = leases.renew_consumer(REIGN, CONSUMER, at, Some(report));
            assert!(renewed.is_ok());
        };
        says(ConsumerEpoch(TOKEN.0 - 1), 300);
        assert!(!take(301), "an earlier holding is not this one");
        says(TOKEN, 400);
        assert!(take(401));
    }

    #[test]
    fn a_consumer_that_leaves_is_given_nothing_until_it_joins_again() {
        let start = Instant::now();
        let leases = reigning(start);
        let report = v1::RenewConsumerLeaseRequest {
            is_leaving: true,
            ..v1::RenewConsumerLeaseRequest::default()
        };
        assert_eq!(leases.confirmed(REIGN, start), Ok(()));
        let renewed = leases.renew_consumer(REIGN, CONSUMER, start, Some(report));
        assert!(renewed.is_ok());
        assert_eq!(leases.candidates([CONSUMER], start), []);
        assert_eq!(renew(&leases, after(start, 10)), Ok(Handovers::new()));
        assert_eq!(leases.candidates([CONSUMER], after(start, 10)).len(), 1);
    }

    #[test]
    fn a_source_without_a_holder_is_given_at_once() {
        let start = Instant::now();
        assert!(reigning(start).begin_handover(REIGN, SOURCE, None, TOKEN, start));
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
        assert_eq!(leases.confirmed(REIGN, later), Ok(()));
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
}
