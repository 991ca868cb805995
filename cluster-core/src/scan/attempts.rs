//! Requests under way: what an answer or a failure means.
//!
//! After any failure the outcome of a request is unknown: its partition starts
//! again without the keys that the scan has given.

use super::failure::{Failure, FailureKind};
use super::partition::Cursor;
use super::protocol::*;
use super::replicas::{Serving, mix};
use super::state::DistributedScan;
use crate::ids::*;
use std::hash::Hash;

#[derive(Debug)]
pub(super) struct Attempt {
    pub node: NodeId,
    pub sent_at: Millis,
    /// Another replica has been asked as well, or will not be.
    pub is_hedged: bool,
    /// It is that other one.
    pub is_hedge: bool,
    pub asks: Vec<PartitionAsk>,
}

impl Attempt {
    /// The replica of a partition that it asks.
    pub fn asks_of(&self, partition: PartitionId) -> Option<Serving> {
        let ask = self.asks.iter().find(|ask| ask.partition == partition)?;
        Some(Serving {
            node: self.node,
            generation: ask.generation,
        })
    }
}

impl<K: Ord + Hash + Clone> DistributedScan<K> {
    pub(super) fn answered(
        &mut self,
        attempt: AttemptId,
        mut pages: Vec<(PartitionId, Result<PartitionPage<K>, Failure>)>,
        known: MapStamp,
        now: Millis,
    ) {
        let Some(sent) = self.attempts.remove(&attempt) else {
            return;
        };
        let Attempt {
            node,
            asks,
            sent_at,
            ..
        } = sent;
        self.failed.remove(&node);
        let (mut is_estale, mut is_used) = (false, false);
        for ask in asks {
            let found = pages.iter().position(|(id, _)| *id == ask.partition);
            let answer = found.map(|at| pages.swap_remove(at).1).unwrap_or_else(|| {
                let message = format!("{node} left {} out of its answer", ask.partition);
                Err(Failure::new(FailureKind::Unavailable, message))
            });
            is_estale |= matches!(&answer, Err(e) if e.kind == FailureKind::Estale);
            let waiting = self
                .partitions
                .iter()
                .position(|p| p.id == ask.partition && p.waiting.contains(&attempt));
            match (waiting, answer) {
                (Some(index), Ok(page)) => {
                    is_used |= self.accept(index, attempt, node, ask, page, now);
                }
                (Some(index), Err(failure)) => {
                    if failure.kind == FailureKind::Lagging {
                        let waited_ms = &mut self.partitions[index].waited_ms;
                        *waited_ms = waited_ms.saturating_add(now.saturating_sub(sent_at));
                    }
                    self.fail(index, attempt, node, failure, now);
                }
                (None, Ok(page)) if page.resume_token != 0 && !page.exhausted => {
                    // A hedge lost, or the partition is gone: nobody will come back.
                    let resume_tokens = vec![page.resume_token];
                    self.commands.push(Command::CloseCursors {
                        node,
                        resume_tokens,
                    });
                }
                (None, _) => {}
            }
        }
        if is_used && sent.is_hedge {
            self.count(|stats| stats.hedges_won += 1);
        }
        if is_estale {
            self.want_map(known);
        }
    }

    pub(super) fn failed(
        &mut self,
        attempt: AttemptId,
        failure: Failure,
        known: Option<MapStamp>,
        now: Millis,
    ) {
        let Some(Attempt { node, asks, .. }) = self.attempts.remove(&attempt) else {
            return;
        };
        self.failed.insert(node, now);
        for ask in asks {
            let waiting = self
                .partitions
                .iter()
                .position(|p| p.id == ask.partition && p.waiting.contains(&attempt));
            if let Some(index) = waiting {
                self.fail(index, attempt, node, failure.clone(), now);
            }
        }
        if let Some(known) = known {
            self.want_map(known);
        }
    }

    /// Takes a page; answers whether it could be used.
    fn accept(
        &mut self,
        index: usize,
        attempt: AttemptId,
        node: NodeId,
        ask: PartitionAsk,
        page: PartitionPage<K>,
        now: Millis,
    ) -> bool {
        let at = Serving {
            node,
            generation: ask.generation,
        };
        assert!(
            self.partitions[index].replicas.contains(&at),
            "a page of {} is taken from {node}, which serves it no longer",
            ask.partition
        );
        if !page.exhausted && page.resume_token == 0 {
            let message = format!("{node} sent a page of {} that has no next", ask.partition);
            let failure = Failure::new(FailureKind::Unavailable, message);
            self.fail(index, attempt, node, failure, now);
            return false;
        }
        let drops_given = !self.given.is_empty();
        let continues = |c: Cursor| c.at.node == node && c.resume_token == ask.resume_token;
        let is_next = self.partitions[index].cursor.is_some_and(continues);
        assert!(
            is_next || ask.resume_token == 0,
            "a page of {} continues a cursor that the scan has left",
            ask.partition
        );
        if !is_next {
            self.close_cursor(index);
        }
        self.count(|stats| stats.distances = stats.distances.saturating_add(page.distances));
        let partition = &mut self.partitions[index];
        if ask.resume_token == 0 {
            partition.restart(drops_given);
        }
        let is_barren = page.hits.is_empty() && !page.exhausted;
        partition.barren_pages = if is_barren {
            partition.barren_pages + 1
        } else {
            0
        };
        if partition.barren_pages > self.limits.barren_pages_max {
            let message = format!("{node} makes no headway in {}", ask.partition);
            let failure = Failure::new(FailureKind::Unavailable, message);
            self.fail(index, attempt, node, failure, now);
            return false;
        }
        partition.waiting.clear();
        partition.failures = 0;
        partition.last_failure = None;
        partition.lagging = None;
        partition.waited_ms = partition.waited_ms.saturating_add(page.waited_ms);
        partition.failed_on = None;
        partition.failed.remove(&node);
        partition.tail_rows = page.tail_rows;
        partition.is_stale |= page.is_stale;
        let resume_token = page.resume_token;
        partition.cursor = (!page.exhausted).then_some(Cursor { at, resume_token });
        let given = &mut self.given;
        let drops_given = partition.drops_given;
        let last_distance = page
            .hits
            .last()
            .map_or(f64::NEG_INFINITY, |hit| hit.distance);
        let hits = page
            .hits
            .into_iter()
            .filter(|hit| !(drops_given && given.contains(&hit.key)));
        // The last hit bounds the stream even when it is dropped.
        let bound = if last_distance > page.bound {
            last_distance
        } else {
            page.bound
        };
        partition.stream.push(hits, bound, page.exhausted);
        true
    }

    fn fail(
        &mut self,
        index: usize,
        attempt: AttemptId,
        node: NodeId,
        failure: Failure,
        now: Millis,
    ) {
        let drops_given = !self.given.is_empty();
        let is_late = self.page.as_ref().is_some_and(|page| now >= page.deadline);
        let partition = &mut self.partitions[index];
        partition.waiting.retain(|waiting| *waiting != attempt);
        partition.note_failure(node, failure.clone(), is_late);
        if partition
            .cursor
            .is_some_and(|cursor| cursor.at.node == node)
        {
            partition.restart(drops_given);
        }
        match failure.kind {
            FailureKind::CursorLost => {}
            FailureKind::Corrupt => {
                let corrupt = partition.replicas.iter().find(|r| r.node == node);
                partition.corrupt.extend(corrupt.copied());
            }
            kind if kind.is_final() => return self.finish(Err(failure)),
            _ => {
                partition.failed.insert(node, now);
            }
        }
        let partition = &mut self.partitions[index];
        if !partition.waiting.is_empty() {
            return;
        }
        partition.failures += 1;
        if let Some(page) = &mut self.page {
            page.stats.retries += 1;
        }
        // Every other replica first, then a pause before the next round.
        let replicas = partition.usable_replicas().max(1) as u32;
        if partition.failures.is_multiple_of(replicas) {
            let round = (partition.failures / replicas).min(self.limits.backoff_doublings_max);
            let whole = self.limits.backoff_ms << round;
            let jitter = mix(self.seed ^ mix(self.attempts_made ^ partition.id.0)) % whole.max(1);
            partition.not_before = now + whole / 2 + jitter / 2;
        }
        let is_over =
            partition.failures >= self.limits.attempts_max || partition.never_catches_up();
        if is_over || self.is_hopeless(index, now) {
            self.finish_by_verdict();
        }
    }

    /// Every replica has answered ESTALE again and again, and nobody has a newer
    /// map: without coordinators that will not pass before the deadline.
    fn is_hopeless(&self, index: usize, now: Millis) -> bool {
        let (Some(patience), Some(page)) = (self.limits.stale_patience_ms, &self.page) else {
            return false;
        };
        let partition = &self.partitions[index];
        let is_estale = |failure: &Failure| failure.kind == FailureKind::Estale;
        now >= page.started.saturating_add(patience)
            && self.refreshing.is_none()
            && partition.last_failure.as_ref().is_some_and(is_estale)
            && partition.failures as usize >= 2 * partition.usable_replicas().max(1)
    }
}
