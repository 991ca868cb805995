//! A copy of a partition that is coming into being (the protocol's step 3): it
//! logs the stream durably from where it was attached, copies a peer's records
//! page by page, and replays its log over them.
//!
//! What must hold: the log has no gap from its beginning on; every page was read
//! at or above the first page's watermark, from which the log is replayed; and
//! the copy goes live only once the log reaches what the newest page had seen, for
//! a row of the future would otherwise stand above the watermark.

use super::checkpoint::CheckpointPage;
use super::disk::ReplicaData;
use super::stage::Stage;
use crate::mutant::Mutant;
use cluster_core::apply::{Admission, admit};
use cluster_core::change::{Batch, PositionedChange};
use cluster_core::row_key::RowKey;
use cluster_core::wal_position::WalPosition;

#[derive(Clone, Debug, Default)]
pub struct Learning {
    /// Where the log begins; `None` before the first attachment.
    from: Option<WalPosition>,
    log: Vec<PositionedChange>,
    logged_to: WalPosition,
    /// The first page's watermark.
    base: Option<WalPosition>,
    copied_to: Option<RowKey>,
    /// The highest watermark of a page.
    seen: WalPosition,
    is_copied: bool,
}

impl Learning {
    fn begin(from: WalPosition) -> Self {
        Self {
            from: Some(from),
            logged_to: from,
            ..Self::default()
        }
    }

    pub fn logged_to(&self) -> WalPosition {
        self.logged_to
    }

    /// What the next page has to bear, and after which key it begins.
    pub fn wants(&self) -> Option<(WalPosition, Option<RowKey>)> {
        let from = self.from?;
        let wants = (self.base.unwrap_or(from), self.copied_to.clone());
        (!self.is_copied).then_some(wants)
    }

    fn is_whole(&self) -> bool {
        self.is_copied && self.logged_to >= self.seen
    }
}

impl ReplicaData {
    /// Whether what is held can be fed from `from` on.
    pub fn reaches(&self, applied: WalPosition, from: WalPosition) -> bool {
        match &self.learning {
            Some(learning) => learning.from.is_some() && learning.logged_to >= from,
            None => applied >= from,
        }
    }

    /// Throws everything away and begins anew.
    pub fn learn_from(&self, from: WalPosition) -> ReplicaData {
        ReplicaData {
            generation: self.generation,
            collection: self.collection,
            learning: Some(Learning::begin(from)),
            ..ReplicaData::default()
        }
    }

    pub fn admit_to_log(&self, batch: &Batch) -> Admission {
        let learning = self.learning.as_ref();
        let logged_to = learning.map_or(WalPosition::ZERO, |l| l.logged_to);
        admit(logged_to, batch.previous, batch.to)
    }

    pub fn log(&self, to: WalPosition, changes: &[PositionedChange]) -> ReplicaData {
        let mut data = self.clone();
        if let Some(learning) = &mut data.learning {
            let logged_to = learning.logged_to;
            let news = changes.iter().filter(|c| c.position > logged_to);
            learning.log.extend(news.cloned());
            learning.logged_to = to.max(logged_to);
        }
        data
    }

    pub fn copy(&self, page: CheckpointPage) -> ReplicaData {
        let mut data = self.clone();
        let Some(learning) = &mut data.learning else {
            return data;
        };
        learning.base.get_or_insert(page.watermark);
        learning.seen = page.watermark.max(learning.seen);
        learning.is_copied = page.is_last;
        if page.last_key.is_some() {
            learning.copied_to = page.last_key;
        }
        data.truncated = page.truncated.max(data.truncated);
        data.stamp_high = page.stamp_high.max(data.stamp_high);
        data.last_backfill = page.last_backfill.max(data.last_backfill);
        data.rows.extend(page.rows);
        let formers = page.formers.into_iter();
        data.formers
            .extend(formers.map(|(key, f)| ((key, f.ended), (f.ended_xid, f.vector))));
        data
    }

    /// The replica with its log replayed, once that can be.
    pub fn go_live(&self, mutant: Option<Mutant>) -> Option<ReplicaData> {
        let learning = self.learning.as_ref().filter(|l| l.is_whole())?;
        let base = learning.base?;
        let mut stage = Stage::new(self, mutant);
        for change in learning.log.iter().filter(|c| c.position > base) {
            stage.change(change);
        }
        let mut data = stage.data;
        data.watermark = learning.logged_to;
        data.learning = None;
        Some(data)
    }
}
