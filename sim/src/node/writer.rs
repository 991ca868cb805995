//! The one writer of a partition: takes jobs in order, writes, and only when the
//! disk has synced moves the watermark and says so.

use super::checkpoint::CheckpointPage;
use super::disk::{NodeWrite, ReplicaData};
use super::stage::Stage;
use super::{Node, Written};
use crate::checks::Fact;
use crate::message::{BackfillStep, Message};
use crate::mutant::Mutant;
use crate::process::{Effects, Proc, Ticket};
use cluster_core::apply::{Admission, admit, is_former_needed};
use cluster_core::change::Batch;
use cluster_core::ids::*;
use cluster_core::wal_position::WalPosition;
use std::collections::VecDeque;
use std::sync::Arc;

pub enum Job {
    Batch(Ticket, Batch),
    NothingElse(Ticket, WalPosition),
    Attach(WalPosition),
    Copy(CheckpointPage),
    GoLive,
    Backfill(Proc, Ticket, BackfillId, BackfillStep),
    Persist,
    Prune,
    Remove,
}

/// What follows once a write is on disk.
#[derive(Clone, Debug)]
pub enum After {
    /// A batch: from which watermark to which.
    Applied(WalPosition, WalPosition),
    /// The records moved, the watermark did not.
    Changed,
    /// The watermark of before the write is durable.
    Persisted(WalPosition),
    Attached,
    Live,
    Answer(Proc, Ticket),
    Removed,
}

/// A replica in memory.
pub struct Replica {
    pub data: Arc<ReplicaData>,
    pub applied: WalPosition,
    pub durable: WalPosition,
    pub jobs: VecDeque<Job>,
    pub is_busy: bool,
    /// The stream on which something is missing.
    pub gap_on: Option<Ticket>,
    /// The stream that says where this learner's feed begins.
    pub attached: Option<Ticket>,
    /// The page that is asked for, and since when.
    pub fetching: Option<(Ticket, u64)>,
}

impl Replica {
    pub fn new(data: Arc<ReplicaData>) -> Self {
        let at = data.watermark;
        Self {
            data,
            applied: at,
            durable: at,
            jobs: VecDeque::new(),
            is_busy: false,
            gap_on: None,
            attached: None,
            fetching: None,
        }
    }
}

impl Node {
    pub fn queue(&mut self, partition: PartitionId, job: Job, effects: &mut Effects<'_>) {
        if let Some(replica) = self.replicas.get_mut(&partition) {
            replica.jobs.push_back(job);
            self.work(partition, effects);
        }
    }

    /// Takes jobs until one waits for the disk.
    pub fn work(&mut self, partition: PartitionId, effects: &mut Effects<'_>) {
        loop {
            let Some(replica) = self.replicas.get_mut(&partition) else {
                return;
            };
            if replica.is_busy {
                return;
            }
            let Some(job) = replica.jobs.pop_front() else {
                return;
            };
            let Some((write, after)) = self.step(partition, job, effects) else {
                continue;
            };
            self.submit(partition, write, after, effects);
        }
    }

    fn submit(
        &mut self,
        partition: PartitionId,
        data: Option<ReplicaData>,
        after: After,
        effects: &mut Effects<'_>,
    ) {
        let Some(replica) = self.replicas.get_mut(&partition) else {
            return;
        };
        let generation = replica.data.generation;
        replica.is_busy = true;
        let data = data.map(Arc::new);
        let ticket = effects.write(match data.clone() {
            Some(data) => NodeWrite::Put(partition, data),
            None => NodeWrite::Remove(partition),
        });
        let mut written = Written::Replica {
            partition,
            generation,
            data,
            after,
        };
        if effects.is_broken(Mutant::AckBeforeSync) {
            let early = written.clone();
            if let Written::Replica { after, data, .. } = &mut written {
                (*after, *data) = (After::Changed, None);
            }
            self.writes.insert(ticket, written);
            self.written(early, effects);
            if let Some(replica) = self.replicas.get_mut(&partition) {
                replica.is_busy = true;
            }
            return;
        }
        self.writes.insert(ticket, written);
    }

    /// Decides what a job writes; `None` for the records removes the replica.
    fn step(
        &mut self,
        partition: PartitionId,
        job: Job,
        effects: &mut Effects<'_>,
    ) -> Option<(Option<ReplicaData>, After)> {
        let changed = |data| Some((Some(data), After::Changed));
        let retention = self.retention;
        match job {
            Job::Batch(stream, batch) => return self.batch(partition, stream, batch, effects),
            Job::NothingElse(stream, to) => return self.nothing_else(partition, stream, to),
            Job::Backfill(from, call, backfill, step) => {
                return self.backfill(partition, (from, call), backfill, step, effects);
            }
            _ => {}
        }
        let replica = self.replicas.get_mut(&partition)?;
        match job {
            Job::Attach(from) => {
                replica.gap_on = None;
                let data = replica.data.attach(replica.applied, from)?;
                replica.fetching = None;
                Some((Some(data), After::Attached))
            }
            // A page that cannot be taken is asked for again.
            Job::Copy(page) => {
                effects.note(format!("copies {partition} as of {}", page.watermark));
                changed(replica.data.copy(page).ok()?)
            }
            Job::GoLive => {
                let live = replica.data.go_live(effects.mutant)?;
                Some((Some(live), After::Live))
            }
            Job::Persist => {
                let at = replica.applied;
                if at <= replica.durable || replica.data.learning.is_some() {
                    return None;
                }
                let mut data = (*replica.data).clone();
                data.watermark = at;
                Some((Some(data), After::Persisted(at)))
            }
            Job::Prune => {
                let mut data = (*replica.data).clone();
                let (oldest_xmin, confirmed) = retention;
                data.formers.retain(|(_, ended), (xid, _)| {
                    is_former_needed(*ended, *xid, oldest_xmin, confirmed)
                });
                let is_news = data.formers.len() < replica.data.formers.len();
                if is_news {
                    effects.note(format!(
                        "prunes {partition} up to {confirmed} and {oldest_xmin}"
                    ));
                }
                is_news.then_some((Some(data), After::Changed))
            }
            Job::Remove => Some((None, After::Removed)),
            Job::Batch(..) | Job::NothingElse(..) | Job::Backfill(..) => None,
        }
    }

    fn batch(
        &mut self,
        partition: PartitionId,
        stream: Ticket,
        batch: Batch,
        effects: &mut Effects<'_>,
    ) -> Option<(Option<ReplicaData>, After)> {
        let replica = self.replicas.get_mut(&partition)?;
        if replica.gap_on == Some(stream) {
            return None;
        }
        let is_learning = replica.data.learning.is_some();
        let mut admission = match is_learning {
            true => replica.data.admit_to_log(&batch),
            false => admit(replica.applied, batch.previous, batch.to),
        };
        let is_broken = effects.is_broken(Mutant::ApplyWithoutAdmit) && !is_learning;
        if is_broken {
            admission = Admission::Apply;
        }
        match admission {
            Admission::Duplicate => None,
            Admission::Gap => {
                replica.gap_on = Some(stream);
                self.gap(stream, partition, effects);
                None
            }
            Admission::Apply if is_learning => {
                effects.note(format!(
                    "logs {partition} from {} to {}",
                    batch.previous, batch.to
                ));
                let data = replica.data.log(batch.to, &batch.changes);
                Some((Some(data), After::Changed))
            }
            Admission::Apply => {
                let mut stage = Stage::new(&replica.data, effects.mutant);
                let news = batch.changes.iter();
                for change in news.filter(|c| is_broken || c.position > replica.applied) {
                    stage.change(change);
                }
                stage.data.watermark = batch.to;
                Some((Some(stage.data), After::Applied(replica.applied, batch.to)))
            }
        }
    }

    fn nothing_else(
        &mut self,
        partition: PartitionId,
        stream: Ticket,
        to: WalPosition,
    ) -> Option<(Option<ReplicaData>, After)> {
        let replica = self.replicas.get_mut(&partition)?;
        if replica.gap_on == Some(stream) {
            return None;
        }
        match &replica.data.learning {
            Some(learning) if to <= learning.learner.log_end() => None,
            Some(_) => Some((Some(replica.data.log(to, &[])), After::Changed)),
            None => {
                // Not durable before it is persisted by the clock, or by a batch.
                replica.applied = to.max(replica.applied);
                None
            }
        }
    }

    fn backfill(
        &mut self,
        partition: PartitionId,
        (from, call): (Proc, Ticket),
        backfill: BackfillId,
        step: BackfillStep,
        effects: &mut Effects<'_>,
    ) -> Option<(Option<ReplicaData>, After)> {
        let data = &self.replicas.get(&partition)?.data;
        let mut stage = Stage::new(data, effects.mutant);
        let mut answer = |result| {
            effects.call(from, Message::BackfillDone { call, result });
            None
        };
        let is_open = backfill == data.last_backfill && data.open_backfill.is_some();
        match step {
            BackfillStep::Open if backfill < data.last_backfill => {
                return answer(Err("older".to_owned()));
            }
            BackfillStep::Open if is_open => return answer(Ok(Vec::new())),
            BackfillStep::Open if backfill == data.last_backfill => {
                return answer(Err("closed".to_owned()));
            }
            BackfillStep::Open => {
                stage.data.last_backfill = backfill;
                stage.data.open_backfill = Some(0);
            }
            BackfillStep::Close if backfill == data.last_backfill && !is_open => {
                return answer(Ok(Vec::new()));
            }
            _ if !is_open => return answer(Err("not open".to_owned())),
            BackfillStep::ListPending => return answer(Ok(data.pending().cloned().collect())),
            BackfillStep::Chunk { chunk, .. } if Some(chunk) <= data.open_backfill => {
                return answer(Ok(Vec::new()));
            }
            BackfillStep::Chunk { chunk, .. } if Some(chunk - 1) != data.open_backfill => {
                return answer(Err("a chunk is missing".to_owned()));
            }
            BackfillStep::Chunk { chunk, stamp, rows } => {
                for row in rows.iter() {
                    stage.backfill(row, stamp);
                }
                stage.data.open_backfill = Some(chunk);
                stage.data.stamp_high = stamp.max(stage.data.stamp_high);
            }
            BackfillStep::Close => {
                let pending: Vec<_> = data.pending().cloned().collect();
                if !pending.is_empty() {
                    return answer(Err("pending".to_owned()));
                }
                stage.data.open_backfill = None;
                stage.data.tombstones.clear();
            }
        }
        Some((Some(stage.data), After::Answer(from, call)))
    }

    /// A write is on disk: what it changed shows now.
    pub fn written(&mut self, written: Written, effects: &mut Effects<'_>) {
        let (partition, generation, data, after) = match written {
            Written::Member(id) => {
                self.member = Some(id);
                return;
            }
            Written::Token(token, then) => return self.installed(token, then, effects),
            Written::Replica {
                partition,
                generation,
                data,
                after,
            } => (partition, generation, data, after),
        };
        let replica = self.replicas.get_mut(&partition);
        let Some(replica) = replica.filter(|r| r.data.generation == generation) else {
            return;
        };
        replica.is_busy = false;
        if let Some(data) = data {
            replica.data = data;
        }
        match after {
            After::Applied(before, to) => {
                replica.applied = to.max(replica.applied);
                replica.durable = to.max(replica.durable);
                effects.tell(Fact::Applied {
                    partition,
                    before,
                    to,
                });
            }
            After::Persisted(at) => replica.durable = at.max(replica.durable),
            After::Attached => {
                replica.applied = WalPosition::ZERO;
                replica.durable = WalPosition::ZERO;
            }
            After::Live => {
                replica.applied = replica.data.watermark;
                replica.durable = replica.data.watermark;
                effects.tell(Fact::Live { partition });
            }
            After::Answer(to, call) => {
                let result = Ok(Vec::new());
                effects.call(to, Message::BackfillDone { call, result });
            }
            After::Removed => {
                self.replicas.remove(&partition);
                return;
            }
            After::Changed => {}
        }
        if replica.data.learning.is_some() {
            replica.jobs.push_front(Job::GoLive);
        }
        self.report(Some(partition), effects);
        self.work(partition, effects);
    }
}
