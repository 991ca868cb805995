//! One attempt at filling a collection.
//!
//! The order is what makes it right. The table is published before the first slot
//! exists: a transaction that began unpublished has ended when the slot is
//! consistent, so the snapshot has it. The backfill is open on every replica,
//! durably, before any snapshot of the attempt exists: none forgets a removal
//! that the snapshot could bring back. A stamp is its slot's consistent point.
//!
//! Nothing closes before all chunks are durable, the stream has passed the last
//! stamp on every replica, and no column is pending there: until then an UPDATE
//! that leaves a row's vector alone may meet a replica that does not know it.
//!
//! A table may have left the publication, and come back, at any time before the copy is
//! done: what changed then the stream has not told. So what a replica holds from before the
//! backfill was opened, under a membership that it has no mark of, is not trusted
//! ([`cluster_core::reconcile::trust_at_opening`]); an attempt in which the membership changes is given up; and
//! each copy ends with a sweep of the rows that no snapshot saw and nothing has changed
//! since. A [reconcile](super::reconcile) is the same over what replicas hold.

use super::Shared;
use super::chunks::Chunks;
use super::reconcile::Reconciling;
use super::reread::{self, RereadError};
use super::snapshot::Snapshot;
use super::table::{self, Published, Table, TableError};
use crate::feed::progress::RunEnd;
use crate::source::{BackfillStanding, coordination};
use anyhow::ensure;
use cluster_core::backfill::{BackfillMark, needs_last_snapshot};
use cluster_core::collection::{BackfillSnapshot, CollectionSpec, CollectionState};
use cluster_core::ids::{BackfillId, CollectionId};
use cluster_core::reconcile::SeenPublished;
use cluster_core::row_key::RowKey;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a row that the stream alone can settle is waited for.
const PENDING_POLL: Duration = Duration::from_millis(200);
/// Rows read again under one snapshot: their keys are remembered.
const REREAD_KEYS_MAX: usize = 100_000;
/// What a page of them may take.
const REREAD_TIME: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub enum Outcome {
    /// The collection cannot be kept.
    Failed(String),
    Retry(anyhow::Error),
}

impl From<anyhow::Error> for Outcome {
    fn from(error: anyhow::Error) -> Self {
        Outcome::Retry(error)
    }
}

impl From<RunEnd> for Outcome {
    fn from(end: RunEnd) -> Self {
        Outcome::Retry(end.into())
    }
}

impl From<TableError> for Outcome {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Unusable(reason) => Outcome::Failed(reason),
            gone @ TableError::Gone(_) => Outcome::Retry(gone.into()),
            TableError::Retry(error) => Outcome::Retry(error),
        }
    }
}

impl From<RereadError> for Outcome {
    fn from(error: RereadError) -> Self {
        match error {
            RereadError::Unusable(reason) => Outcome::Failed(reason),
            RereadError::Retry(error) => Outcome::Retry(error),
        }
    }
}

pub struct Attempt<'a> {
    pub(super) shared: &'a Shared,
    pub(super) id: CollectionId,
    pub(super) spec: CollectionSpec,
    pub(super) backfill: BackfillId,
    pub(super) chunks: Chunks<'a>,
    /// Each slot has a name of its own: the one before may not be gone yet.
    snapshots: u32,
    pub(super) rows_estimated: u64,
    pub(super) blocks_total: u32,
    /// That the table was published by before the backfill was opened.
    membership: u32,
    /// As it was told last.
    mark: Option<BackfillMark>,
    /// What replicas hold is gone over.
    pub(super) reconcile: Option<Reconciling>,
}

impl<'a> Attempt<'a> {
    pub async fn run(shared: &'a Shared, id: CollectionId) -> Result<(), Outcome> {
        let context = &shared.context;
        let backfill = coordination::begin_backfill(context, id).await?;
        let map = coordination::wait_for_map(context, |map| {
            map.collections
                .get(&id)
                .is_none_or(|c| c.last_backfill >= backfill)
        })
        .await?;
        let Some(collection) = map.collections.get(&id) else {
            return Ok(());
        };
        let spec = collection.spec.clone();
        let reconcile = match collection.reconcile.is_some() {
            true => Some(Reconciling::of(&map, id, backfill)?),
            false => None,
        };
        let published = table::publish(shared, &spec).await?;
        let chunks = Chunks::connect(shared, &map, (id, backfill)).await?;
        let mut attempt = Attempt {
            shared,
            id,
            spec,
            backfill,
            chunks,
            snapshots: 0,
            rows_estimated: published.table.rows_estimated,
            blocks_total: 0,
            membership: published.membership,
            mark: None,
            reconcile,
        };
        if let Some(reconcile) = &attempt.reconcile {
            reconcile.wait_until_fed(shared).await?;
        }
        let since = attempt.reconcile.as_ref().map(|r| r.since);
        let seen = SeenPublished {
            membership: published.membership,
            seen_at: shared.progress.following.end_of(published.seen_at),
            is_noted: matches!(collection.state, CollectionState::Ready { .. }),
        };
        let chunks = &attempt.chunks;
        let marks = chunks.open_everywhere(&attempt.spec, since, seen).await?;
        let seen = attempt.fill(marks).await?;
        coordination::finish_backfill(context, id, backfill, &seen).await?;
        Ok(())
    }

    /// Answers the snapshot that a query's must cover.
    async fn fill(
        &mut self,
        marks: Vec<Option<BackfillMark>>,
    ) -> Result<BackfillSnapshot, Outcome> {
        let copied = self.copy_table(marks).await?;
        let mut seen = copied.seen;
        let mut had_pending = false;
        // Behind the stream: what it has told of since is not swept.
        self.settle().await?;
        if let Some(reconcile) = &self.reconcile {
            reconcile.check(self.shared)?;
        }
        // Who left the publication meanwhile may have moved rows unseen.
        self.publish_as_before().await?;
        self.chunks
            .sweep_everywhere(copied.mark.first_stamp)
            .await?;
        loop {
            self.settle().await?;
            let pending = self.chunks.list_pending().await?;
            let is_clear = pending.is_empty();
            had_pending |= !is_clear;
            let table = self.publish_as_before().await?;
            if needs_last_snapshot(copied.mark.snapshots, had_pending) {
                let snapshot = self.take_snapshot(&table).await?;
                seen = snapshot.seen.clone();
                self.reread(&table, &snapshot, pending).await?;
            }
            if is_clear && self.chunks.close_everywhere().await? {
                return Ok(seen);
            }
            tokio::time::sleep(PENDING_POLL).await;
        }
    }

    /// The table as it is now, put back if it is out. One that left the publication since
    /// the backfill was opened may have changed unseen.
    pub(super) async fn publish_as_before(&self) -> Result<Table, Outcome> {
        let Published {
            table, membership, ..
        } = table::publish(self.shared, &self.spec).await?;
        self.check_membership(membership)?;
        Ok(table)
    }

    fn check_membership(&self, membership: u32) -> anyhow::Result<()> {
        ensure!(
            membership == self.membership,
            "the table left the publication and came back: changes may be missing, and all of it \
             is copied again"
        );
        Ok(())
    }

    /// Until everything streamed so far, and everything up to the last stamp, is
    /// durable on the collection's replicas.
    async fn settle(&self) -> Result<(), RunEnd> {
        let at = self.shared.barrier().await?.max(self.chunks.stamp_high);
        let partitions = self.chunks.partitions();
        self.shared.progress.wait_durable(at, &partitions).await;
        Ok(())
    }

    pub(super) async fn take_snapshot(&mut self, table: &Table) -> Result<Snapshot, Outcome> {
        self.snapshots += 1;
        let (slot, id) = (&self.shared.slot_name, self.id.0);
        let name = format!("{slot}_b{id}_{}_{}", self.backfill.0, self.snapshots);
        let tell_wait = |waits_for| self.tell_wait(waits_for);
        let snapshot = Snapshot::take(self.shared, &name, &self.spec, table, tell_wait).await?;
        // It may have waited long for its slot.
        self.check_membership(snapshot.file.membership)?;
        Ok(snapshot)
    }

    /// What the next snapshot waits for, beside how far the copy is.
    fn tell_wait(&self, waits_for: String) {
        let unmoved = || BackfillStanding {
            backfill: self.backfill,
            rows_estimated: self.rows_estimated,
            ..BackfillStanding::default()
        };
        self.shared.context.standing.update(|s| {
            let standing = s.backfills.entry(self.id).or_insert_with(unmoved);
            standing.waits_for = waits_for;
        });
    }

    /// Rows whose value neither the stream nor a range's snapshot told: read again
    /// under a snapshot that was taken since. One that is gone by then, or NULL,
    /// is settled by the stream itself.
    async fn reread(
        &mut self,
        table: &Table,
        snapshot: &Snapshot,
        mut pending: BTreeSet<RowKey>,
    ) -> Result<(), Outcome> {
        let mut asked = BTreeSet::new();
        loop {
            pending.retain(|key| !asked.contains(key));
            let has_time = asked.is_empty() || snapshot.has(REREAD_TIME);
            if pending.is_empty() || !has_time || asked.len() >= REREAD_KEYS_MAX {
                return Ok(());
            }
            let keys: Vec<RowKey> = pending.into_iter().collect();
            tracing::info!(collection = %self.id, rows = keys.len(), "reading pending rows again");
            let dimensions = self.spec.dimensions;
            let rows = reread::rows(snapshot.client(), table, dimensions, &keys).await?;
            for row in rows {
                self.chunks.push(row, snapshot.stamp).await?;
            }
            self.chunks.flush(snapshot.stamp, None).await?;
            self.chunks.finish_sending().await?;
            asked.extend(keys);
            pending = self.chunks.list_pending().await?;
        }
    }

    pub(super) fn tell_standing(&mut self, mark: BackfillMark) {
        self.mark = Some(mark);
        self.tell_rows(0);
    }

    /// Rows beyond the last mark.
    pub(super) fn tell_rows(&self, rows: u64) {
        let mark = self.mark;
        let standing = BackfillStanding {
            backfill: self.backfill,
            rows_estimated: self.rows_estimated,
            rows_copied: mark.map_or(0, |mark| mark.rows) + rows,
            blocks_copied: mark.map_or(0, |mark| mark.next_block.0),
            blocks_total: self.blocks_total,
            snapshots: mark.map_or(0, |mark| mark.snapshots),
            waits_for: String::new(),
        };
        self.shared.context.standing.update(|s| {
            s.backfills.insert(self.id, standing);
        });
    }
}
