//! Requests under way: whom a page is asked of, what an answer or a failure
//! means, and when a second replica is asked.
//!
//! After any failure the outcome of a request is unknown: its partition starts
//! again without the keys that the scan has given.

use super::failure::{Failure, FailureKind};
use super::merge::nearest;
use super::partition::{Cursor, PartitionScan};
use super::protocol::*;
use super::replicas::{Serving, mix};
use super::state::{DistributedScan, NO_REPLICA_POLL_MS};
use crate::ids::*;
use std::collections::BTreeMap;
use std::hash::Hash;

#[derive(Debug)]
pub(super) struct Attempt {
    node: NodeId,
    sent_at: Millis,
    is_hedged: bool,
    asks: Vec<PartitionAsk>,
}

impl<K: Ord + Hash + Clone> DistributedScan<K> {
    pub(super) fn answered(
        &mut self,
        attempt: AttemptId,
        mut pages: Vec<(PartitionId, Result<PartitionPage<K>, Failure>)>,
        known: MapStamp,
        now: Millis,
    ) {
        let Some(Attempt { node, asks, .. }) = self.attempts.remove(&attempt) else {
            return;
        };
        self.failed.remove(&node);
        let mut is_estale = false;
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
                (Some(index), Ok(page)) => self.accept(index, attempt, node, ask, page, now),
                (Some(index), Err(failure)) => self.fail(index, attempt, node, failure, now),
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

    fn accept(
        &mut self,
        index: usize,
        attempt: AttemptId,
        node: NodeId,
        ask: PartitionAsk,
        page: PartitionPage<K>,
        now: Millis,
    ) {
        if !page.exhausted && page.resume_token == 0 {
            let message = format!("{node} sent a page of {} that has no next", ask.partition);
            return self.fail(
                index,
                attempt,
                node,
                Failure::new(FailureKind::Unavailable, message),
                now,
            );
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
        if let Some(stats) = self.page.as_mut().map(|page| &mut page.stats) {
            stats.distances += page.distances;
        }
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
            return self.fail(
                index,
                attempt,
                node,
                Failure::new(FailureKind::Unavailable, message),
                now,
            );
        }
        partition.waiting.clear();
        partition.failures = 0;
        partition.last_failure = None;
        partition.failed.remove(&node);
        partition.tail_rows = page.tail_rows;
        let at = Serving {
            node,
            generation: ask.generation,
        };
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
        let partition = &mut self.partitions[index];
        partition.waiting.retain(|waiting| *waiting != attempt);
        partition.last_failure = Some(failure.clone());
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
        if partition.failures >= self.limits.attempts_max {
            self.finish_by_verdict();
        }
    }

    /// Asks for the pages that hold up the order; answers when to look again.
    pub(super) fn ask_for_pages(&mut self, now: Millis) -> Millis {
        let head = nearest(self.partitions.iter().map(|p| &p.stream));
        let mut wake = Millis::MAX;
        let mut by_node: BTreeMap<NodeId, Vec<PartitionAsk>> = BTreeMap::new();
        let (mut misses_replica, mut is_corrupt) = (false, false);
        for partition in &mut self.partitions {
            if !partition.waiting.is_empty() || !partition.stream.holds_up(head) {
                continue;
            }
            if partition.not_before > now {
                wake = wake.min(partition.not_before);
                continue;
            }
            let chosen = || partition.choose(&self.failed, self.seed, |_| false);
            let Some(at) = partition.cursor.map(|c| c.at).or_else(chosen) else {
                let message = if partition.replicas.is_empty() {
                    format!("{} has no serving replica", partition.id)
                } else {
                    is_corrupt = true;
                    format!("no replica of {} can read its data", partition.id)
                };
                let kind = if is_corrupt {
                    FailureKind::Corrupt
                } else {
                    FailureKind::Unavailable
                };
                partition.last_failure = Some(Failure::new(kind, message));
                misses_replica = true;
                wake = wake.min(now + NO_REPLICA_POLL_MS);
                continue;
            };
            by_node.entry(at.node).or_default().push(PartitionAsk {
                partition: partition.id,
                generation: at.generation,
                resume_token: partition.cursor.map_or(0, |c| c.resume_token),
            });
        }
        if is_corrupt {
            // No later answer mends that.
            self.finish_by_verdict();
            return wake;
        }
        if misses_replica {
            self.want_map((self.known.0, self.known.1.next()));
        }
        for (node, asks) in by_node {
            self.send(node, asks, now);
        }
        wake
    }

    /// Asks another replica where one has been silent for long, once per request.
    pub(super) fn hedge(&mut self, now: Millis) -> Millis {
        let (Some(hedge_after), Some(page)) = (self.limits.hedge_after_ms, &self.page) else {
            return Millis::MAX;
        };
        let started = page.started;
        let mut wake = Millis::MAX;
        let mut by_node: BTreeMap<NodeId, Vec<PartitionAsk>> = BTreeMap::new();
        for (id, attempt) in &mut self.attempts {
            if attempt.is_hedged {
                continue;
            }
            if attempt.sent_at + hedge_after > now {
                wake = wake.min(attempt.sent_at + hedge_after);
                continue;
            }
            attempt.is_hedged = true;
            for ask in &attempt.asks {
                let silent = |p: &&PartitionScan<K>| p.id == ask.partition && p.waiting == [*id];
                let Some(partition) = self.partitions.iter().find(silent) else {
                    continue;
                };
                let other = partition.choose(&self.failed, self.seed, |r| {
                    let has_failed = partition
                        .failed
                        .get(&r.node)
                        .is_some_and(|at| *at >= started);
                    r.node == attempt.node || has_failed
                });
                let Some(at) = other else { continue };
                by_node.entry(at.node).or_default().push(PartitionAsk {
                    partition: ask.partition,
                    generation: at.generation,
                    resume_token: 0,
                });
            }
        }
        for (node, asks) in by_node {
            if let Some(page) = &mut self.page {
                page.stats.hedges += 1;
            }
            let attempt = self.send(node, asks, now);
            // A hedge is not hedged.
            if let Some(attempt) = self.attempts.get_mut(&attempt) {
                attempt.is_hedged = true;
            }
        }
        wake
    }

    fn send(&mut self, node: NodeId, asks: Vec<PartitionAsk>, now: Millis) -> AttemptId {
        self.attempts_made += 1;
        let attempt = AttemptId(self.attempts_made);
        let mut failures = 0;
        for partition in &mut self.partitions {
            if asks.iter().any(|ask| ask.partition == partition.id) {
                partition.waiting.push(attempt);
                failures = failures.max(partition.failures);
            }
        }
        let (rows, deadline) = self
            .page
            .as_ref()
            .map_or((1, now), |p| (p.rows, p.deadline));
        let timeout =
            self.limits.attempt_timeout_ms << failures.min(self.limits.attempt_doublings_max);
        self.commands.push(Command::Search(Ask {
            attempt,
            node,
            known: self.known,
            partitions: asks.clone(),
            page_rows: rows_per_partition(rows, self.partitions.len()),
            timeout_ms: timeout.min(deadline.saturating_sub(now)),
        }));
        self.attempts.insert(
            attempt,
            Attempt {
                node,
                sent_at: now,
                is_hedged: false,
                asks,
            },
        );
        attempt
    }
}

/// What one of several partitions is asked for, so that the merged page is
/// almost surely full: rows fall into partitions at random.
fn rows_per_partition(rows: usize, partitions: usize) -> usize {
    let share = rows.div_ceil(partitions.max(1));
    rows.min(share + 3 * share.isqrt() + 8)
}
