//! One partition of a scan.

use super::failure::{Failure, FailureKind};
use super::merge::Stream;
use super::protocol::*;
use super::replicas::{FailureTimes, Serving, askable, choose};
use crate::ids::{NodeId, PartitionId};
use crate::map::{HashRange, Partition};

/// Where the next page of a partition is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub at: Serving,
    pub resume_token: u64,
}

#[derive(Debug)]
pub(super) struct PartitionScan<K> {
    pub id: PartitionId,
    pub range: HashRange,
    pub replicas: Vec<Serving>,
    /// None serves: these are stale, and get no further.
    pub is_left_behind: bool,
    /// Replicas that cannot read their data, not asked again by this scan.
    pub corrupt: Vec<Serving>,
    pub cursor: Option<Cursor>,
    pub stream: Stream<K>,
    /// Whether hits may have been given before: the stream has been restarted.
    pub drops_given: bool,
    /// Attempts of which any may bring the next page.
    pub waiting: Vec<AttemptId>,
    /// Failures in a row.
    pub failures: u32,
    pub last_failure: Option<Failure>,
    /// A replica that answers, and said that it has not come to the position.
    pub lagging: Option<(NodeId, Failure)>,
    /// Spent on waiting for the position, on this page.
    pub waited_ms: Millis,
    /// Where it happened; `None` after a page.
    pub failed_on: Option<NodeId>,
    /// Which nodes failed for this partition; others may do well there.
    pub failed: FailureTimes,
    pub not_before: Millis,
    pub barren_pages: u32,
    pub tail_rows: u64,
    /// Whether rows since the last restart came without a lease, or from a stale
    /// replica.
    pub is_stale: bool,
}

impl<K: Ord> PartitionScan<K> {
    pub fn new(partition: &Partition, drops_given: bool) -> Self {
        Self {
            id: partition.id,
            range: partition.range,
            replicas: askable(partition),
            is_left_behind: partition.needs_reconcile(),
            corrupt: Vec::new(),
            cursor: None,
            stream: Stream::default(),
            drops_given,
            waiting: Vec::new(),
            failures: 0,
            last_failure: None,
            lagging: None,
            waited_ms: 0,
            failed_on: None,
            failed: FailureTimes::new(),
            not_before: 0,
            barren_pages: 0,
            tail_rows: 0,
            is_stale: false,
        }
    }

    pub fn is_same_as(&self, partition: &Partition) -> bool {
        self.id == partition.id && self.range == partition.range
    }

    pub fn is_corrupt(&self, replica: Serving) -> bool {
        self.corrupt.contains(&replica)
    }

    /// The replica to ask next: see [`choose`].
    pub fn choose(
        &self,
        failed_nodes: &FailureTimes,
        seed: u64,
        is_barred: impl Fn(Serving) -> bool,
    ) -> Option<Serving> {
        let failed_at = |node| self.failed.get(&node).max(failed_nodes.get(&node)).copied();
        choose(&self.replicas, failed_at, seed, |r| {
            self.is_corrupt(r) || is_barred(r)
        })
    }

    pub fn usable_replicas(&self) -> usize {
        self.replicas
            .iter()
            .filter(|r| !self.is_corrupt(**r))
            .count()
    }

    /// Whether a flagged answer is better than none: there is no other, or no
    /// replica has given one since the last page.
    pub fn accepts_stale(&self) -> bool {
        self.is_left_behind
            || self.is_stale
            || self.failures as usize >= self.usable_replicas().max(1)
    }

    /// Each replica was asked for a position that it will never reach.
    pub fn never_catches_up(&self) -> bool {
        let lags = |failure: &Failure| failure.kind == FailureKind::Lagging;
        self.is_left_behind
            && self.last_failure.as_ref().is_some_and(lags)
            && self.failures as usize >= self.usable_replicas().max(1)
    }

    /// What stands between the scan and this partition. A replica that answers but
    /// lags outweighs others that do not answer: there is something to wait for.
    pub fn trouble(&self) -> Option<&Failure> {
        let last = self.last_failure.as_ref()?;
        let gives_way = matches!(
            last.kind,
            FailureKind::Estale | FailureKind::CursorLost | FailureKind::Unavailable
        );
        match &self.lagging {
            Some((_, lagging)) if gives_way => Some(lagging),
            _ => Some(last),
        }
    }

    /// Takes note of a failure. One at the deadline says nothing new of a replica
    /// that lags: the request was cut off.
    pub fn note_failure(&mut self, node: NodeId, failure: Failure, is_late: bool) {
        if failure.kind == FailureKind::Lagging {
            self.lagging = Some((node, failure.clone()));
        } else if !is_late {
            self.lagging.take_if(|(lagging, _)| *lagging == node);
        }
        self.last_failure = Some(failure);
        self.failed_on = Some(node);
    }

    /// Forgets everything that a replica has said and the scan has not given.
    pub fn restart(&mut self, drops_given: bool) {
        self.cursor = None;
        self.stream = Stream::default();
        self.drops_given = drops_given;
        self.barren_pages = 0;
        self.is_stale = false;
    }
}
