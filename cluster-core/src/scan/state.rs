//! The state of one scan over all partitions of a collection.

use super::attempts::Attempt;
use super::failure::{Failure, FailureKind};
use super::given::GivenKeys;
use super::merge::{nearest, remaining_bound, take_settled};
use super::partition::PartitionScan;
use super::protocol::*;
use super::replicas::FailureTimes;
use crate::ids::*;
use crate::map::{PartitionMap, tiles_whole_space};
use std::collections::BTreeMap;
use std::hash::Hash;

/// How often a scan looks again while the map has no replica to ask.
pub(super) const NO_REPLICA_POLL_MS: Millis = 20;

#[derive(Debug)]
pub struct DistributedScan<K> {
    pub(super) collection: CollectionId,
    pub(super) limits: ScanLimits,
    pub(super) seed: u64,
    pub(super) known: MapStamp,
    /// The map that has been asked for and has not come.
    pub(super) refreshing: Option<MapStamp>,
    /// In hash order, tiling the space; empty while `problem` says why.
    pub(super) partitions: Vec<PartitionScan<K>>,
    pub(super) problem: Option<Failure>,
    pub(super) is_dropped: bool,
    pub(super) given: GivenKeys<K>,
    pub(super) attempts: BTreeMap<AttemptId, Attempt>,
    pub(super) attempts_made: u64,
    /// Nodes that did not answer at all.
    pub(super) failed: FailureTimes,
    pub(super) page: Option<PageInProgress>,
    spent: PageStats,
    pub(super) commands: Vec<Command<K>>,
}

#[derive(Debug)]
pub(super) struct PageInProgress {
    pub(super) rows: usize,
    pub(super) started: Millis,
    pub(super) deadline: Millis,
    pub(super) stats: PageStats,
}

impl<K: Ord + Hash + Clone> DistributedScan<K> {
    /// `recent_failures`: nodes that have failed other scans lately, and when.
    pub fn new(
        collection: CollectionId,
        map: &PartitionMap,
        limits: ScanLimits,
        recent_failures: impl IntoIterator<Item = (NodeId, Millis)>,
        seed: u64,
    ) -> Self {
        let mut scan = Self {
            collection,
            limits,
            seed,
            known: map.stamp(),
            refreshing: None,
            partitions: Vec::new(),
            problem: None,
            is_dropped: false,
            given: GivenKeys::new(limits.given_keys_max),
            attempts: BTreeMap::new(),
            attempts_made: 0,
            failed: recent_failures.into_iter().collect(),
            page: None,
            spent: PageStats::default(),
            commands: Vec::new(),
        };
        scan.place(map);
        scan
    }

    pub fn on(&mut self, event: Event<K>, now: Millis) -> Vec<Command<K>> {
        match event {
            Event::NextPage { rows, deadline } => {
                assert!(self.page.is_none(), "one page at a time");
                let stats = PageStats::default();
                let rows = rows.max(1);
                self.page = Some(PageInProgress {
                    rows,
                    started: now,
                    deadline,
                    stats,
                });
                for partition in &mut self.partitions {
                    partition.failures = 0;
                    partition.lagging = None;
                    partition.waited_ms = 0;
                }
            }
            Event::Answered {
                attempt,
                pages,
                known,
            } => self.answered(attempt, pages, known, now),
            Event::Failed {
                attempt,
                failure,
                known,
            } => self.failed(attempt, failure, known, now),
            Event::Map(map) => self.take_map(&map, now),
            Event::RefreshFailed => self.refreshing = None,
            Event::Tick => {}
        }
        self.advance(now);
        std::mem::take(&mut self.commands)
    }

    /// Ends the scan: which cursors may be closed.
    pub fn close(&mut self) -> Vec<Command<K>> {
        for index in 0..self.partitions.len() {
            self.close_cursor(index);
        }
        self.page = None;
        std::mem::take(&mut self.commands)
    }

    pub fn map_stamp(&self) -> MapStamp {
        self.known
    }

    /// What the last page cost, whether it came or not.
    pub fn spent(&self) -> PageStats {
        self.spent
    }

    pub(super) fn count(&mut self, change: impl FnOnce(&mut PageStats)) {
        if let Some(page) = &mut self.page {
            change(&mut page.stats);
        }
    }

    fn advance(&mut self, now: Millis) {
        let Some(page) = &self.page else { return };
        let deadline = page.deadline;
        if self.give_page() {
            return;
        }
        if now >= deadline || self.is_dropped {
            return self.finish_by_verdict();
        }
        if self.given.is_overfull() && self.partitions.iter().any(|p| p.drops_given) {
            let message = format!(
                "a replica was lost after more than {} rows had been given",
                self.limits.given_keys_max
            );
            return self.finish(Err(Failure::new(FailureKind::Unavailable, message)));
        }
        if self.problem.is_some() {
            self.want_map((self.known.0, self.known.1.next()));
            return self
                .commands
                .push(Command::WakeAt(deadline.min(now + NO_REPLICA_POLL_MS)));
        }
        let asked = self.ask_for_pages(now);
        let hedged = self.hedge(now);
        if self.page.is_some() {
            self.commands
                .push(Command::WakeAt(deadline.min(asked).min(hedged)));
        }
    }

    /// Gives the page if rows are settled, or if there are none left.
    fn give_page(&mut self) -> bool {
        let Some(page) = &self.page else { return false };
        let has_all =
            !self.partitions.is_empty() && self.partitions.iter().all(|p| p.stream.has_answered());
        if !has_all {
            return false;
        }
        let streams = self.partitions.iter_mut().map(|p| &mut p.stream).collect();
        let rows = take_settled(streams, page.rows);
        let streams = self.partitions.iter().map(|p| &p.stream);
        let exhausted =
            streams.clone().all(|s| s.is_exhausted()) && nearest(streams.clone()).is_none();
        if rows.is_empty() && !exhausted {
            return false;
        }
        let bound = remaining_bound(streams);
        self.given.record(rows.iter().map(|hit| &hit.key));
        self.finish(Ok((rows, bound, exhausted)));
        true
    }

    pub(super) fn finish_by_verdict(&mut self) {
        let verdict = self.verdict();
        self.finish(Err(verdict));
    }

    pub(super) fn finish(&mut self, outcome: Result<(Vec<super::Hit<K>>, f64, bool), Failure>) {
        let Some(mut page) = self.page.take() else {
            return;
        };
        match outcome {
            Ok((rows, bound, exhausted)) => {
                let ranges = || self.partitions.iter().map(|p| p.range);
                assert!(
                    tiles_whole_space(ranges()),
                    "P7: a page of {:?}",
                    ranges().collect::<Vec<_>>()
                );
                page.stats.partitions = self.partitions.len() as u32;
                page.stats.tail_rows = self
                    .partitions
                    .iter()
                    .fold(0, |sum, p| p.tail_rows.saturating_add(sum));
                let stale = self.partitions.iter().filter(|p| p.is_stale);
                page.stats.stale_partitions = stale.count() as u32;
                let waited = self.partitions.iter().map(|p| p.waited_ms).max();
                page.stats.waited_ms = waited.unwrap_or_default();
                self.spent = page.stats;
                self.commands.push(Command::Page(MergedPage {
                    rows,
                    bound,
                    exhausted,
                    stats: page.stats,
                }));
            }
            Err(failure) => {
                self.spent = page.stats;
                self.commands.push(Command::Fail(failure));
            }
        }
    }

    /// Why there is no page: the gravest of what the partitions that are missing
    /// have met with.
    fn verdict(&self) -> Failure {
        if let Some(problem) = &self.problem {
            return problem.clone();
        }
        let head = nearest(self.partitions.iter().map(|p| &p.stream));
        let missing: Vec<_> = self
            .partitions
            .iter()
            .filter(|p| p.stream.holds_up(head))
            .collect();
        let gravest = missing.iter().filter_map(|p| Some((*p, p.trouble()?)));
        let (kind, story) = match gravest.max_by_key(|(_, failure)| failure.kind) {
            Some((partition, failure)) => {
                let kind = match failure.kind {
                    FailureKind::CursorLost => FailureKind::Unavailable,
                    kind => kind,
                };
                (
                    kind,
                    format!("{} {}: {}", partition.id, partition.range, failure.message),
                )
            }
            None => (
                FailureKind::Unavailable,
                "no answer within the deadline".to_owned(),
            ),
        };
        let (missing, all) = (missing.len(), self.partitions.len());
        Failure::new(
            kind,
            format!("{missing} of {all} partitions did not answer; {story}"),
        )
    }
}
