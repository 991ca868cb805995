//! Searches on a node: admitted under the lease, waiting for a position, computed
//! exactly, answered only if the lease still holds.

use super::Node;
use crate::checks::{Fact, Served};
use crate::message::{Message, Pages, Search};
use crate::mutant::Mutant;
use crate::process::{Effects, Proc, Ticket, Timer};
use cluster_core::apply::StoredVector;
use cluster_core::collection::CollectionState;
use cluster_core::ids::*;
use cluster_core::lease::Standing;
use cluster_core::map::ReplicaState;
use cluster_core::row_key::RowKey;
use cluster_core::scan::{Failure, FailureKind, Hit, PartitionAsk, PartitionPage};
use cluster_core::wal_position::WalPosition;
use std::collections::BTreeMap;

/// Open cursors of a node; the oldest goes first (P10).
const CURSORS_MAX: usize = 64;
const COMPUTE_MS: (u64, u64) = (1, 25);
/// The node answers this long before the attempt is given up.
const ANSWER_MARGIN_MS: u64 = 50;

struct Waiting {
    from: Proc,
    search: Search,
    deadline: u64,
    is_computing: bool,
    is_held: bool,
}

struct Cursor {
    partition: PartitionId,
    generation: Generation,
    rest: Vec<Hit<RowKey>>,
}

#[derive(Default)]
pub struct Searches {
    waiting: BTreeMap<Ticket, Waiting>,
    cursors: BTreeMap<u64, Cursor>,
}

impl Searches {
    pub fn close(&mut self, tokens: &[u64]) {
        self.cursors.retain(|token, _| !tokens.contains(token));
    }
}

pub fn distance(query: [f32; 2], vector: &[f32]) -> f64 {
    let squares = query
        .iter()
        .zip(vector)
        .map(|(a, b)| f64::from(a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

fn stale(why: &str) -> Failure {
    Failure::new(FailureKind::Estale, why)
}

impl Node {
    pub fn search(&mut self, from: Proc, call: Ticket, search: Search, effects: &mut Effects<'_>) {
        let now = effects.now;
        let epoch = search.ask.known.0;
        let (standing, renews_at_once) = self.lease.admit(epoch, now, self.grace_ms);
        if renews_at_once {
            self.renew_at = self.renew_at.min(now);
        }
        let is_held = standing == Standing::Held;
        if standing == Standing::StaleRequest {
            return self.refuse_search(from, call, stale("the request's epoch is over"), effects);
        }
        let is_broken = effects.is_broken(Mutant::AnswerWithoutLease);
        if !is_held && search.min_lsn.is_none() && !is_broken {
            return self.refuse_search(from, call, stale("the node's lease is over"), effects);
        }
        let patience = search.ask.timeout_ms.saturating_sub(ANSWER_MARGIN_MS);
        let waiting = Waiting {
            from,
            deadline: now + patience.max(1),
            search,
            is_computing: false,
            is_held,
        };
        self.searches.waiting.insert(call, waiting);
        self.look_at_searches(effects);
    }

    fn refuse_search(&self, to: Proc, call: Ticket, failure: Failure, effects: &mut Effects<'_>) {
        let known = Some(self.map_stamp().max(self.lease.floor));
        let failed = Message::SearchFailed {
            call,
            failure,
            known,
        };
        effects.call(to, failed);
    }

    /// Computes what waits for nothing any more.
    pub fn look_at_searches(&mut self, effects: &mut Effects<'_>) {
        let now = effects.now;
        let mut ready = Vec::new();
        for (call, waiting) in self
            .searches
            .waiting
            .iter()
            .filter(|(_, w)| !w.is_computing)
        {
            let lags = |ask: &PartitionAsk| {
                waiting.is_held
                    && self.served(&waiting.search, ask, effects).is_ok()
                    && !self.has_reached(&waiting.search, ask.partition)
            };
            if now >= waiting.deadline || !waiting.search.ask.partitions.iter().any(lags) {
                ready.push(*call);
            }
        }
        for call in ready {
            if let Some(waiting) = self.searches.waiting.get_mut(&call) {
                waiting.is_computing = true;
                let takes = effects.rng.between(COMPUTE_MS.0, COMPUTE_MS.1);
                effects.wake(takes, Timer::Computed(call));
            }
        }
    }

    fn target(&self, search: &Search) -> Option<WalPosition> {
        let source = self.map.sources.get(&crate::coordinator::SOURCE)?;
        let lsn = search.min_lsn?;
        Some(WalPosition::end_of(source.incarnation, lsn))
    }

    fn has_reached(&self, search: &Search, partition: PartitionId) -> bool {
        let applied = self.replicas.get(&partition).map(|r| r.applied);
        self.target(search)
            .is_none_or(|target| applied >= Some(target))
    }

    /// Whether the map lets the replica that is asked for serve.
    fn served(
        &self,
        search: &Search,
        ask: &PartitionAsk,
        effects: &Effects<'_>,
    ) -> Result<(), Failure> {
        if !self.lease.lets_answer_by(self.map_stamp(), effects) {
            return Err(stale("the lease came back under a newer map"));
        }
        let replica = self.replicas.get(&ask.partition);
        let replica = replica.filter(|r| r.data.generation == ask.generation);
        let replica = replica.ok_or_else(|| stale("not held here in this generation"))?;
        if self.assigned(ask.partition, ask.generation) != Some(ReplicaState::Serving) {
            return Err(stale("the map does not let this replica serve"));
        }
        if replica.data.learning.is_some() {
            return Err(stale("the replica is being copied"));
        }
        let collection = self.map.collections.get(&search.collection);
        let is_ready = |state: &CollectionState| matches!(state, CollectionState::Ready { .. });
        let is_complete = collection.is_some_and(|c| is_ready(&c.state));
        if is_complete && replica.applied == WalPosition::ZERO {
            return Err(stale("the replica has not been filled"));
        }
        Ok(())
    }

    pub fn computed(&mut self, call: Ticket, effects: &mut Effects<'_>) {
        let Some(waiting) = self.searches.waiting.remove(&call) else {
            return;
        };
        let search = &waiting.search;
        let mut pages = Pages::new();
        let mut served = Vec::new();
        for ask in &search.ask.partitions {
            let page = self.page(search, ask, &mut served, effects);
            pages.push((ask.partition, page));
        }
        let is_held = waiting.is_held && self.lease.is_held(effects.now);
        let is_broken = effects.is_broken(Mutant::AnswerWithoutLease);
        if search.min_lsn.is_none() && !is_held && !is_broken {
            let failure = stale("the node's lease ran out");
            return self.refuse_search(waiting.from, call, failure, effects);
        }
        let is_unleased = search.min_lsn.is_none();
        for of in served {
            effects.tell(Fact::Answered { is_unleased, of });
        }
        let found = Message::Found {
            call,
            pages,
            known: self.map_stamp().max(self.lease.floor),
        };
        effects.call(waiting.from, found);
    }

    fn page(
        &mut self,
        search: &Search,
        ask: &PartitionAsk,
        served: &mut Vec<Served>,
        effects: &mut Effects<'_>,
    ) -> Result<PartitionPage<RowKey>, Failure> {
        self.served(search, ask, effects)?;
        if !self.has_reached(search, ask.partition) {
            return Err(Failure::new(FailureKind::Lagging, "behind the position"));
        }
        let mut rest = match ask.resume_token {
            0 => self.first_page(search, ask, served),
            token => {
                let cursor = self.searches.cursors.remove(&token);
                let is_same =
                    |c: &Cursor| (c.partition, c.generation) == (ask.partition, ask.generation);
                let lost = || Failure::new(FailureKind::CursorLost, "the cursor is gone");
                cursor.filter(is_same).ok_or_else(lost)?.rest
            }
        };
        let tail = rest.split_off(ask_rows(search, &rest));
        let exhausted = tail.is_empty();
        let bound = match tail.first() {
            Some(next) => next.distance,
            None => f64::INFINITY,
        };
        let resume_token = match exhausted {
            true => 0,
            false => self.keep(ask, tail, effects),
        };
        Ok(PartitionPage {
            is_stale: false,
            hits: rest,
            bound,
            exhausted,
            resume_token,
            tail_rows: 0,
            distances: 0,
            waited_ms: 0,
        })
    }

    fn keep(
        &mut self,
        ask: &PartitionAsk,
        rest: Vec<Hit<RowKey>>,
        effects: &mut Effects<'_>,
    ) -> u64 {
        let token = effects.ticket().0;
        let cursor = Cursor {
            partition: ask.partition,
            generation: ask.generation,
            rest,
        };
        self.searches.cursors.insert(token, cursor);
        if self.searches.cursors.len() > CURSORS_MAX {
            self.searches.cursors.pop_first();
        }
        token
    }

    /// Everything that the replica holds for the snapshot, nearest first.
    fn first_page(
        &self,
        search: &Search,
        ask: &PartitionAsk,
        served: &mut Vec<Served>,
    ) -> Vec<Hit<RowKey>> {
        let Some(replica) = self.replicas.get(&ask.partition) else {
            return Vec::new();
        };
        let data = &replica.data;
        let current = data.rows.iter().filter_map(|(key, row)| match &row.vector {
            StoredVector::Value(vector) => Some((key, vector, false)),
            StoredVector::Pending => None,
        });
        let seen = data
            .formers
            .iter()
            .filter(|(_, (xid, _))| *xid >= search.snapshot_xmin);
        let former = seen.map(|((key, _), (_, vector))| (key, vector, true));
        let all: Vec<_> = current.chain(former).collect();
        served.push(Served {
            partition: ask.partition,
            generation: ask.generation,
            applied: replica.applied,
            stamp_high: data.stamp_high,
            hits: all
                .iter()
                .map(|(k, v, f)| ((*k).clone(), (*v).clone(), *f))
                .collect(),
        });
        let mut hits: Vec<Hit<RowKey>> = all
            .into_iter()
            .map(|(key, vector, _)| Hit {
                key: key.clone(),
                distance: distance(search.query, vector),
            })
            .collect();
        hits.sort_by(|a, b| {
            a.distance
                .total_cmp(&b.distance)
                .then_with(|| a.key.cmp(&b.key))
        });
        hits
    }
}

fn ask_rows(search: &Search, rest: &[Hit<RowKey>]) -> usize {
    search
        .ask
        .page_rows
        .clamp(1, rest.len().max(1))
        .min(rest.len())
}
