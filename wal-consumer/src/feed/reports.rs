//! What a node says of its replicas, and what follows from it: queues shrink, the
//! slot moves, learners are counted, and who is not where the slot needs it is
//! left out.

use super::node::{Counting, NodeFeed, State};
use super::progress::RunEnd;
use super::queue::{LeftOut, Report, Role};
use cluster_core::ids::{Generation, PartitionId};
use cluster_core::wal_position::WalPosition;
use proto::v1;
use std::time::Duration;
use tokio::time::Instant;

/// A learner that did not arrive while confirmation paused for it tries again
/// after this many times as long.
const REST_FACTOR: u32 = 5;

impl Report {
    pub(super) fn from_wire(wire: &v1::PartitionWatermark) -> Result<Self, String> {
        let position = |p: Option<v1::WalPosition>| {
            p.map(WalPosition::from)
                .ok_or_else(|| "a watermark without position".to_owned())
        };
        Ok(Self {
            partition: PartitionId(wire.partition_id),
            generation: Generation(wire.generation),
            applied: position(wire.applied)?,
            durable: position(wire.durable)?,
            is_learning: wire.is_learning,
        })
    }
}

impl NodeFeed {
    /// A stream is open; the node has said where its replicas stand.
    pub(super) fn take_opened(&self, opened: v1::ApplyOpened) -> Result<(), String> {
        let reports = opened
            .partitions
            .iter()
            .map(Report::from_wire)
            .collect::<Result<Vec<_>, _>>()?;
        let following = &self.progress.following;
        let start = following.end_of(following.start);
        // One that did not answer before, and has more than the server had: the server was
        // put back. The next run asks it.
        let most = self.progress.highest_possible();
        let beyond = |report: &&Report| report.durable > most;
        if let Some(report) = reports.iter().find(beyond) {
            let (partition, durable) = (report.partition, report.durable);
            let why = format!(
                "{partition} holds changes up to {durable}, and the server's WAL ended at {most}"
            );
            self.progress.end(RunEnd::restart("put_back", why.clone()));
            return Err(why);
        }
        let mut state = self.state.lock();
        self.leave_out_passed(&mut state, &reports, start);
        for id in state.complete.clone() {
            let Some(known) = state.queue.partition(id).copied() else {
                continue;
            };
            if known.left_out.is_some() {
                continue;
            }
            let held = |r: &&Report| r.partition == id && r.generation == known.generation;
            let report = reports.iter().find(held);
            let floor = start.max(known.durable);
            match report.filter(|report| !report.is_learning) {
                None => {
                    tracing::warn!(node = %self.node, partition = %id, "the node does not hold a replica that it should: the slot waits for it");
                    state.queue.leave_out(id, LeftOut::Absent);
                }
                Some(report) if report.durable < floor => {
                    tracing::warn!(node = %self.node, partition = %id, durable = %report.durable, %floor, "a replica lacks what the slot no longer has");
                    let durable = report.durable;
                    state.queue.leave_out(id, LeftOut::Below { durable, floor });
                    self.progress.replicas_changed.notify_one();
                }
                Some(_) => {}
            }
        }
        state.queue.rewind();
        state.is_up = true;
        let now = Instant::now();
        (state.moved_at, state.learner_moved_at) = (now, now);
        drop(state);
        for report in reports {
            self.report(report);
        }
        self.has_more.notify_one();
        self.progress.wake();
        Ok(())
    }

    /// Replicas that are being filled and have something, but not what leads up to the
    /// slot: it was moved past them while they did not answer.
    fn leave_out_passed(&self, state: &mut State, reports: &[Report], floor: WalPosition) {
        for report in reports {
            let (id, durable) = (report.partition, report.durable);
            let is_passed = WalPosition::ZERO < durable && durable < floor;
            let fed = state.queue.partition(id).copied();
            let is_filled = fed.is_some_and(|fed| {
                (fed.generation, fed.role) == (report.generation, Role::Required)
                    && fed.left_out.is_none()
                    && !state.complete.contains(&id)
            });
            if is_passed && is_filled {
                tracing::warn!(node = %self.node, partition = %id, %durable, %floor, "a replica that is being filled lacks what the slot no longer has");
                state.queue.leave_out(id, LeftOut::Below { durable, floor });
                self.progress.replicas_changed.notify_one();
            }
        }
    }

    pub(super) fn report(&self, report: Report) {
        let now = Instant::now();
        let key = self.key(report.partition, report.generation);
        let mut state = self.state.lock();
        let fed = state.queue.partition(report.partition).copied();
        let Some(fed) = fed.filter(|fed| fed.generation == report.generation) else {
            return;
        };
        match fed.left_out {
            // Only the source has what was left out.
            Some(LeftOut::Absent | LeftOut::Overflow)
                if fed.role.holds_the_slot() && !report.is_learning =>
            {
                let detail = format!("{} holds {} again", self.node, report.partition);
                return self.progress.end(RunEnd::restart("replica_back", detail));
            }
            // It may stand already where it will be attached.
            None | Some(LeftOut::Detached) => {}
            Some(_) => return,
        }
        let is_new = state.queue.report(report);
        match fed.role {
            Role::Learner => {
                if is_new {
                    state.learner_moved_at = now;
                }
                if let Some(learner) = state.learners.get_mut(&report.partition) {
                    learner.live = (!report.is_learning).then_some(report.durable);
                }
                self.consider(&mut state, report.partition, now);
            }
            Role::Required | Role::Reconciling | Role::Releasing => {
                if is_new {
                    state.moved_at = now;
                }
                // What a learner has logged is not what a replica has; of one that
                // is not required it is void anyway.
                if is_new && !report.is_learning {
                    self.progress.durable(key, report.durable);
                }
            }
        }
        drop(state);
        if is_new {
            self.progress.wake();
        }
    }

    /// Counts a learner that has caught up, if nothing is confirmed beyond it.
    fn consider(&self, state: &mut State, id: PartitionId, now: Instant) {
        let fed = state.queue.partition(id).copied();
        let Some((fed, learner)) = fed.zip(state.learners.get_mut(&id)) else {
            return;
        };
        // What it held before it was attached anew it is about to throw away.
        let durable = learner.live.filter(|at| fed.is_attached_below(*at));
        let Some(durable) = durable.filter(|_| state.is_up) else {
            return;
        };
        match learner.counting {
            Counting::Refused => return,
            Counting::Resting { until } if now < until => return,
            Counting::No | Counting::Resting { .. } | Counting::Approaching { .. } => {}
        }
        if self.progress.count(self.key(id, fed.generation), durable) {
            state.learners.remove(&id);
            state.queue.count(id);
            state.complete.insert(id);
            tracing::info!(node = %self.node, partition = %id, %durable, "learner counted: the slot waits for it");
        } else if !matches!(learner.counting, Counting::Approaching { .. }) {
            learner.counting = Counting::Approaching { since: now };
        }
    }

    /// Lets go of learners for which confirmation has paused too long, and
    /// looks at the others again.
    pub fn review_learners(&self, hold: Duration) {
        let now = Instant::now();
        let mut state = self.state.lock();
        for id in state.learners.keys().copied().collect::<Vec<_>>() {
            let generation = state.queue.partition(id).map(|fed| fed.generation);
            let learner = state.learners.get_mut(&id);
            let Some((generation, learner)) = generation.zip(learner) else {
                continue;
            };
            match learner.counting {
                Counting::Approaching { since } if now >= since + hold => {
                    let until = now + hold * REST_FACTOR;
                    learner.counting = Counting::Resting { until };
                    self.progress.release(self.key(id, generation));
                }
                _ => self.consider(&mut state, id, now),
            }
        }
    }

    pub(super) fn take_gap(&self, gap: v1::ApplyGap) -> Result<(), String> {
        let id = PartitionId(gap.partition_id);
        let detail = format!(
            "{} has a gap in {id}: {:?} after {:?}",
            self.node, gap.previous, gap.watermark
        );
        let mut state = self.state.lock();
        let fed = state.queue.partition(id).copied();
        let Some(fed) = fed.filter(|fed| fed.left_out.is_none()) else {
            return Ok(());
        };
        match fed.role {
            Role::Required => {
                self.progress.end(RunEnd::restart("gap", &detail));
                Err(detail)
            }
            Role::Learner | Role::Reconciling => {
                self.detach(&mut state, id);
                // Nodes ignore what follows a gap on the same stream.
                Err(format!("{detail}; it is attached anew"))
            }
            Role::Releasing => {
                state.queue.leave_out(id, LeftOut::Overflow);
                Ok(())
            }
        }
    }
}
