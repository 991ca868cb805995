//! A copy of a partition that is coming into being. What it decides is
//! [`cluster_core::learner`]'s; here are its records: the log, kept until it is
//! replayed, and the rows that peers sent.

use super::checkpoint::CheckpointPage;
use super::disk::ReplicaData;
use super::stage::Stage;
use crate::mutant::Mutant;
use cluster_core::apply::Admission;
use cluster_core::change::{Batch, PositionedChange};
use cluster_core::learner::{Attached, CopyKey, CopyRefused, CopyWanted, Learner};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;

#[derive(Clone, Debug, Default)]
pub struct Learning {
    /// As it is once this is on disk.
    pub learner: Learner,
    log: Vec<PositionedChange>,
}

impl Learning {
    pub fn wants(&self) -> Option<CopyWanted> {
        self.learner.wants()
    }

    /// What a process that starts reads from its disk.
    pub fn restored(&self) -> Self {
        let from = self.learner.attached_from();
        let log = from.map(|from| (from, self.learner.log_end()));
        Self {
            learner: Learner::restored(log, self.learner.copied().clone()),
            log: self.log.clone(),
        }
    }
}

fn copy_key(key: &RowKey) -> CopyKey {
    CopyKey(key.as_bytes().into())
}

impl ReplicaData {
    /// What an attachment makes of it; `None`: it goes on as it is.
    pub fn attach(&self, applied: WalPosition, from: WalPosition) -> Option<ReplicaData> {
        let mut learner = match &self.learning {
            Some(learning) => learning.learner.clone(),
            None if applied >= from => return None,
            None => Learner::default(),
        };
        if learner.attach(from) == Attached::GoesOn {
            return None;
        }
        let log = Vec::new();
        Some(ReplicaData {
            generation: self.generation,
            collection: self.collection,
            learning: Some(Learning { learner, log }),
            ..ReplicaData::default()
        })
    }

    pub fn admit_to_log(&self, batch: &Batch) -> Admission {
        let learning = self.learning.as_ref();
        learning.map_or(Admission::Gap, |l| {
            l.learner.admit(batch.previous, batch.to)
        })
    }

    pub fn log(&self, to: WalPosition, changes: &[PositionedChange]) -> ReplicaData {
        let mut data = self.clone();
        if let Some(Learning { learner, log }) = &mut data.learning {
            let end = learner.log_end();
            log.extend(changes.iter().filter(|c| c.position > end).cloned());
            learner.log_to(to);
            learner.durable_to(learner.log_end());
        }
        data
    }

    pub fn copy(&self, page: CheckpointPage) -> Result<ReplicaData, CopyRefused> {
        let mut data = self.clone();
        let Some(Learning { learner, .. }) = &mut data.learning else {
            return Err(CopyRefused::NotWanted);
        };
        learner.take_header(page.watermark)?;
        if let (Some(first), Some(last)) = (&page.first_key, &page.last_key) {
            learner.take_records(&copy_key(first), copy_key(last), page.watermark)?;
        }
        if page.is_last {
            learner.take_end()?;
        }
        data.truncated = page.truncated.max(data.truncated);
        data.stamp_high = page.stamp_high.max(data.stamp_high);
        data.last_backfill = page.last_backfill.max(data.last_backfill);
        data.rows.extend(page.rows);
        let formers = page.formers.into_iter();
        data.formers
            .extend(formers.map(|(key, f)| ((key, f.ended), (f.ended_xid, f.vector))));
        Ok(data)
    }

    /// The replica with its log replayed, once that can be.
    pub fn go_live(&self, mutant: Option<Mutant>) -> Option<ReplicaData> {
        let Learning { learner, log } = self.learning.as_ref()?;
        let at = learner.goes_live(true)?;
        let base = learner.copied().base?;
        let mut stage = Stage::new(self, mutant);
        for change in log.iter().filter(|c| c.position > base) {
            stage.change(change);
        }
        let mut data = stage.data;
        data.watermark = at;
        data.learning = None;
        Some(data)
    }
}
