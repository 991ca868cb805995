//! How far the slot may be confirmed (P2).
//!
//! A candidate is the end of a transaction that was sent whole, or a position
//! of the server up to which there is nothing else. The slot may be confirmed
//! up to the last candidate at or below which every required replica is
//! durable. A replica that has reported nothing holds everything back. The
//! confirmed position never goes back, also when a new replica is required: it
//! is required from the candidates that follow.
//!
//! A learner is counted only where nothing is confirmed beyond it: from then on
//! the slot can never have passed it, and it may serve.

use crate::ids::{Generation, Incarnation, NodeId, PartitionId};
use crate::wal_position::{Lsn, WalPosition};
use std::collections::{BTreeMap, VecDeque};

/// One copy of a partition, under one assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaKey {
    pub partition: PartitionId,
    pub node: NodeId,
    pub generation: Generation,
}

/// The most candidates that are remembered. Beyond it every second one is
/// forgotten: confirmation becomes coarser, never wrong.
const CANDIDATES_MAX: usize = 1 << 16;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfirmTracker {
    incarnation: Incarnation,
    confirmed: Lsn,
    /// Ascending, all above `confirmed`.
    candidates: VecDeque<Lsn>,
    durable: BTreeMap<ReplicaKey, WalPosition>,
    /// Nearly caught up, and below what is confirmed: nothing further is
    /// confirmed meanwhile, or they would chase it for ever.
    approaching: BTreeMap<ReplicaKey, WalPosition>,
}

impl ConfirmTracker {
    /// `start` is where the stream starts: what the slot has confirmed.
    pub fn new(incarnation: Incarnation, start: Lsn) -> Self {
        Self {
            incarnation,
            confirmed: start,
            candidates: VecDeque::new(),
            durable: BTreeMap::new(),
            approaching: BTreeMap::new(),
        }
    }

    /// From now on the slot waits for this replica.
    pub fn require(&mut self, replica: ReplicaKey) {
        let reached = self.approaching.remove(&replica);
        let reached = reached.unwrap_or(WalPosition::ZERO);
        self.durable.entry(replica).or_insert(reached);
    }

    /// A learner has made everything up to `durable` so, and asks to be waited
    /// for. It is required from now on, and the answer is true, if nothing is
    /// confirmed beyond that. Otherwise confirmation pauses for it until it is
    /// counted by a later report, or let go by [`ConfirmTracker::retain`]: who asks
    /// bounds how long that takes.
    pub fn count(&mut self, replica: ReplicaKey, durable: WalPosition) -> bool {
        if self.durable.contains_key(&replica) {
            self.durable(replica, durable);
            return true;
        }
        let is_counted = durable >= WalPosition::end_of(self.incarnation, self.confirmed);
        if is_counted {
            self.approaching.remove(&replica);
            self.durable.insert(replica, durable);
        } else {
            let reached = self.approaching.entry(replica).or_insert(durable);
            *reached = durable.max(*reached);
        }
        self.advance();
        is_counted
    }

    /// The slot waits no longer for the replicas that `is_required` refuses.
    pub fn retain(&mut self, is_required: impl Fn(&ReplicaKey) -> bool) {
        self.durable.retain(|replica, _| is_required(replica));
        self.approaching.retain(|replica, _| is_required(replica));
        self.advance();
    }

    /// Everything up to `end` has been sent to whom it concerns.
    pub fn sent(&mut self, end: Lsn) {
        if end <= self.candidates.back().copied().unwrap_or(self.confirmed) {
            return;
        }
        if self.candidates.len() == CANDIDATES_MAX {
            let mut index = 0;
            self.candidates.retain(|_| {
                index += 1;
                index % 2 == 0
            });
        }
        self.candidates.push_back(end);
        self.advance();
    }

    /// A replica has made everything up to `position` durable. Reports of
    /// replicas that are not required are void, and so are older ones.
    pub fn durable(&mut self, replica: ReplicaKey, position: WalPosition) {
        let Some(known) = self.durable.get_mut(&replica) else {
            return;
        };
        if position > *known {
            *known = position;
            self.advance();
        }
    }

    pub fn confirmed(&self) -> Lsn {
        self.confirmed
    }

    /// What a required replica has made durable.
    pub fn required_at(&self, replica: ReplicaKey) -> Option<WalPosition> {
        self.durable.get(&replica).copied()
    }

    /// What each required replica has made durable.
    pub fn required_durable(&self) -> impl Iterator<Item = WalPosition> {
        self.durable.values().copied()
    }

    /// The lowest durable position of the required replicas; `None` without any.
    pub fn lowest_durable(&self) -> Option<WalPosition> {
        self.durable.values().min().copied()
    }

    /// Whether every replica that `concerns` names has made `position` durable.
    pub fn is_durable(
        &self,
        position: WalPosition,
        concerns: impl Fn(&ReplicaKey) -> bool,
    ) -> bool {
        self.durable
            .iter()
            .filter(|(r, _)| concerns(r))
            .all(|(_, at)| *at >= position)
    }

    fn advance(&mut self) {
        let waited_for = self.durable.values().chain(self.approaching.values());
        let lowest = waited_for.min().copied();
        while let Some(next) = self.candidates.front().copied() {
            let end = WalPosition::end_of(self.incarnation, next);
            if lowest.is_some_and(|lowest| lowest < end) {
                break;
            }
            self.confirmed = next;
            self.candidates.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: Incarnation = Incarnation(1);

    fn replica(partition: u64, node: u64) -> ReplicaKey {
        ReplicaKey {
            partition: PartitionId(partition),
            node: NodeId(node),
            generation: Generation(1),
        }
    }

    fn end(lsn: u64) -> WalPosition {
        WalPosition::end_of(ONE, Lsn(lsn))
    }

    #[test]
    fn p2_the_slot_waits_for_the_slowest_required_replica() {
        let mut tracker = ConfirmTracker::new(ONE, Lsn(10));
        tracker.require(replica(1, 1));
        tracker.require(replica(1, 2));
        tracker.sent(Lsn(20));
        tracker.sent(Lsn(30));
        tracker.durable(replica(1, 1), end(30));
        assert_eq!(tracker.confirmed(), Lsn(10));
        tracker.durable(replica(1, 2), end(20));
        assert_eq!(tracker.confirmed(), Lsn(20));
        tracker.retain(|r| r.node == NodeId(1));
        assert_eq!(tracker.confirmed(), Lsn(30));
    }

    #[test]
    fn p2_half_a_transaction_confirms_only_what_came_before_it() {
        let mut tracker = ConfirmTracker::new(ONE, Lsn(10));
        tracker.require(replica(1, 1));
        tracker.sent(Lsn(20));
        tracker.sent(Lsn(30));
        tracker.durable(replica(1, 1), WalPosition::new(ONE, Lsn(30), 7));
        assert_eq!(tracker.confirmed(), Lsn(20));
    }

    #[test]
    fn an_idle_source_confirms_the_servers_position_once_it_is_durable() {
        let mut tracker = ConfirmTracker::new(ONE, Lsn(10));
        tracker.require(replica(1, 1));
        tracker.sent(Lsn(500));
        assert_eq!(tracker.confirmed(), Lsn(10));
        tracker.durable(replica(1, 1), end(500));
        assert_eq!(tracker.confirmed(), Lsn(500));
    }

    #[test]
    fn without_replicas_everything_received_may_be_confirmed() {
        let mut tracker = ConfirmTracker::new(ONE, Lsn(10));
        tracker.sent(Lsn(20));
        assert_eq!(tracker.confirmed(), Lsn(20));
    }

    #[test]
    fn a_new_required_replica_holds_what_follows_and_takes_nothing_back() {
        let mut tracker = ConfirmTracker::new(ONE, Lsn(10));
        tracker.sent(Lsn(20));
        tracker.require(replica(1, 1));
        tracker.sent(Lsn(30));
        assert_eq!(tracker.confirmed(), Lsn(20));
    }

    #[test]
    fn p2_a_learner_is_counted_only_where_nothing_is_confirmed_beyond_it() {
        let mut tracker = ConfirmTracker::new(ONE, Lsn(10));
        tracker.require(replica(1, 1));
        tracker.sent(Lsn(20));
        tracker.sent(Lsn(30));
        tracker.durable(replica(1, 1), end(20));
        assert!(!tracker.count(replica(1, 2), end(15)));
        // Not required, so it is no reason to believe that it has anything; yet
        // what it has to reach stands still.
        tracker.durable(replica(1, 1), end(30));
        assert_eq!(tracker.confirmed(), Lsn(20));
        assert_eq!(tracker.required_durable().collect::<Vec<_>>(), [end(30)]);
        assert!(tracker.count(replica(1, 2), end(20)));
        assert_eq!(tracker.confirmed(), Lsn(20));
        tracker.durable(replica(1, 2), end(30));
        assert_eq!(tracker.confirmed(), Lsn(30));
    }

    #[test]
    fn p11_a_learner_that_does_not_arrive_is_let_go() {
        let mut tracker = ConfirmTracker::new(ONE, Lsn(10));
        tracker.require(replica(1, 1));
        tracker.sent(Lsn(20));
        assert!(!tracker.count(replica(1, 2), end(5)));
        tracker.durable(replica(1, 1), end(20));
        assert_eq!(tracker.confirmed(), Lsn(10));
        tracker.retain(|r| r.node == NodeId(1));
        assert_eq!(tracker.confirmed(), Lsn(20));
    }

    #[test]
    fn p10_candidates_are_bounded_and_thinning_keeps_the_last() {
        let mut tracker = ConfirmTracker::new(ONE, Lsn(0));
        tracker.require(replica(1, 1));
        let last = CANDIDATES_MAX as u64 * 2 + 3;
        for lsn in 1..=last {
            tracker.sent(Lsn(lsn));
            assert!(tracker.candidates.len() <= CANDIDATES_MAX);
        }
        tracker.durable(replica(1, 1), end(last));
        assert_eq!(tracker.confirmed(), Lsn(last));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send(u64),
        Durable {
            partition: u64,
            node: u64,
            lsn: u64,
            whole: bool,
        },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (1..40u64).prop_map(Step::Send),
            (0..2u64, 0..2u64, 0..400u64, any::<bool>()).prop_map(
                |(partition, node, lsn, whole)| Step::Durable {
                    partition,
                    node,
                    lsn,
                    whole
                }
            ),
        ];
        prop::collection::vec(step, 1..60)
    }

    proptest! {
        /// P2: whatever the order of reports, what is confirmed was sent, is
        /// durable on all required replicas, and never goes back.
        #[test]
        fn p2_confirmed_is_sent_durable_everywhere_and_monotone(steps in steps()) {
            let mut tracker = ConfirmTracker::new(ONE, Lsn(5));
            let mut durable = BTreeMap::new();
            for (partition, node) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                tracker.require(replica(partition, node));
                durable.insert((partition, node), WalPosition::ZERO);
            }
            let mut sent = vec![Lsn(5)];
            let mut before = Lsn(5);
            for step in steps {
                match step {
                    Step::Send(more) => {
                        let next = Lsn(sent.last().unwrap_or(&Lsn(5)).0 + more);
                        sent.push(next);
                        tracker.sent(next);
                    }
                    Step::Durable { partition, node, lsn, whole } => {
                        let at = if whole { end(lsn) } else { WalPosition::new(ONE, Lsn(lsn), 3) };
                        tracker.durable(replica(partition, node), at);
                        let known = durable.entry((partition, node)).or_insert(at);
                        *known = at.max(*known);
                    }
                }
                let confirmed = tracker.confirmed();
                let lowest = durable.values().min().copied().unwrap_or(WalPosition::ZERO);
                let want = sent.iter().rev().find(|l| WalPosition::end_of(ONE, **l) <= lowest);
                prop_assert!(confirmed >= before);
                prop_assert!(sent.contains(&confirmed));
                prop_assert_eq!(confirmed, want.copied().unwrap_or(Lsn(5)));
                before = confirmed;
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Counting {
        Send(u64),
        /// A replica of the first partition reports, whatever it is.
        Report {
            node: u64,
            lsn: u64,
        },
        Release(u64),
    }

    fn counting() -> impl Strategy<Value = Vec<Counting>> {
        let step = prop_oneof![
            (1..20u64).prop_map(Counting::Send),
            (0..4u64, 0..300u64).prop_map(|(node, lsn)| Counting::Report { node, lsn }),
            (1..4u64).prop_map(Counting::Release),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        /// P2: from the moment it is counted until it is let go, nothing is
        /// confirmed beyond what a replica has made durable; and one that is not
        /// counted is never taken for one that has.
        #[test]
        fn p2_nothing_is_confirmed_beyond_a_counted_replica(steps in counting()) {
            let mut tracker = ConfirmTracker::new(ONE, Lsn(5));
            tracker.require(replica(0, 0));
            let mut durable = BTreeMap::from([(0, WalPosition::ZERO)]);
            let mut counted = BTreeMap::from([(0, ())]);
            let (mut sent, mut before) = (Lsn(5), Lsn(5));
            for step in steps {
                match step {
                    Counting::Send(more) => {
                        sent = Lsn(sent.0 + more);
                        tracker.sent(sent);
                    }
                    Counting::Report { node, lsn } => {
                        let known = durable.entry(node).or_insert(WalPosition::ZERO);
                        *known = end(lsn).max(*known);
                        if node == 0 {
                            tracker.durable(replica(0, node), *known);
                        } else if tracker.count(replica(0, node), *known) {
                            counted.insert(node, ());
                        } else {
                            prop_assert!(!counted.contains_key(&node));
                            prop_assert!(*known < end(tracker.confirmed().0));
                        }
                    }
                    Counting::Release(node) => {
                        tracker.retain(|r| r.node != NodeId(node));
                        counted.remove(&node);
                    }
                }
                let confirmed = tracker.confirmed();
                prop_assert!(confirmed >= before && confirmed <= sent);
                let required: Vec<WalPosition> = tracker.required_durable().collect();
                prop_assert_eq!(required.len(), counted.len());
                for node in counted.keys().filter(|_| confirmed > Lsn(5)) {
                    prop_assert!(end(confirmed.0) <= durable[node]);
                }
                before = confirmed;
            }
        }
    }
}
