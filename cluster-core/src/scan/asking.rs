//! Whom a page is asked of, and when a second replica is asked as well.
//!
//! Only replicas that the scan's map shows as serving are asked, each under its
//! generation; where none serves, those that are stale. An answer that may be stale is accepted only after every replica
//! has been asked for a better one.

use super::attempts::Attempt;
use super::failure::{Failure, FailureKind};
use super::merge::nearest;
use super::partition::PartitionScan;
use super::protocol::*;
use super::state::{DistributedScan, NO_REPLICA_POLL_MS};
use crate::ids::*;
use std::collections::BTreeMap;
use std::hash::Hash;

/// Requests to be sent: what is asked of a node, apart by what it may answer.
#[derive(Default)]
struct Requests(BTreeMap<(NodeId, bool), Vec<PartitionAsk>>);

impl Requests {
    fn add(&mut self, node: NodeId, accepts_stale: bool, ask: PartitionAsk) {
        self.0.entry((node, accepts_stale)).or_default().push(ask);
    }
}

impl<K: Ord + Hash + Clone> DistributedScan<K> {
    /// Asks for the pages that hold up the order; answers when to look again.
    pub(super) fn ask_for_pages(&mut self, now: Millis) -> Millis {
        let head = nearest(self.partitions.iter().map(|p| &p.stream));
        let mut wake = Millis::MAX;
        let (mut requests, mut elsewhere) = (Requests::default(), 0);
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
            elsewhere += u32::from(partition.failed_on.is_some_and(|node| node != at.node));
            let ask = PartitionAsk {
                partition: partition.id,
                generation: at.generation,
                resume_token: partition.cursor.map_or(0, |c| c.resume_token),
                is_left_behind: partition.is_left_behind,
            };
            requests.add(at.node, partition.accepts_stale(), ask);
        }
        self.count(|stats| stats.other_replica += elsewhere);
        if is_corrupt {
            // No later answer mends that.
            self.finish_by_verdict();
            return wake;
        }
        if misses_replica {
            self.want_map((self.known.0, self.known.1.next()));
        }
        for ((node, accepts_stale), asks) in requests.0 {
            self.send(node, accepts_stale, asks, false, now);
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
        let mut requests = Requests::default();
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
                let ask = PartitionAsk {
                    partition: ask.partition,
                    generation: at.generation,
                    resume_token: 0,
                    is_left_behind: partition.is_left_behind,
                };
                requests.add(at.node, partition.accepts_stale(), ask);
            }
        }
        for ((node, accepts_stale), asks) in requests.0 {
            self.count(|stats| stats.hedges += 1);
            self.send(node, accepts_stale, asks, true, now);
        }
        wake
    }

    fn send(
        &mut self,
        node: NodeId,
        accepts_stale: bool,
        asks: Vec<PartitionAsk>,
        is_hedge: bool,
        now: Millis,
    ) {
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
            accepts_stale,
        }));
        self.attempts.insert(
            attempt,
            Attempt {
                node,
                sent_at: now,
                // A hedge is not hedged.
                is_hedged: is_hedge,
                is_hedge,
                asks,
            },
        );
    }
}

/// What one of several partitions is asked for, so that the merged page is
/// almost surely full: rows fall into partitions at random.
fn rows_per_partition(rows: usize, partitions: usize) -> usize {
    let share = rows.div_ceil(partitions.max(1));
    rows.min(share + 3 * share.isqrt() + 8)
}
