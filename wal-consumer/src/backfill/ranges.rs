//! The copy of a table, range by range, under snapshots that follow one another.
//!
//! A range ends at a block, and with a mark on every replica; what a snapshot did
//! not finish in its time is read again under the next. A snapshot ends early
//! when somebody waits for it.

use super::attempt::{Attempt, Outcome};
use super::copy::{CopyReader, Row};
use super::snapshot::Snapshot;
use super::table::{KeyColumn, Table};
use crate::vector;
use anyhow::anyhow;
use cluster_core::backfill::{
    BackfillMark, BlockNumber, FIRST_RANGE_BLOCKS, next_range_blocks, resume,
};
use cluster_core::change::BackfillRow;
use cluster_core::row_key::RowKey;
use futures::StreamExt;
use std::pin::pin;
use std::time::Duration;
use tokio::time::Instant;

/// How long a range shall take: so much is read again after a failure, or when
/// the snapshot gave way.
const RANGE_TIME: Duration = Duration::from_secs(2);
/// A snapshot has time for some ranges at least.
const RANGES_PER_SNAPSHOT: u32 = 4;

/// The whole table is copied.
pub struct Copied {
    pub mark: BackfillMark,
    /// The last snapshot.
    pub seen: cluster_core::collection::BackfillSnapshot,
}

impl Attempt<'_> {
    /// Goes on where every replica has what lies before.
    pub(super) async fn copy_table(
        &mut self,
        mut marks: Vec<Option<BackfillMark>>,
    ) -> Result<Copied, Outcome> {
        let config = self.shared.context.config.clone();
        let limit = Duration::from_secs(config.backfill_snapshot_seconds_max);
        let wished = RANGE_TIME.min(limit / RANGES_PER_SNAPSHOT);
        let mut range_blocks = FIRST_RANGE_BLOCKS;
        loop {
            let table = self.publish_as_before().await?;
            let snapshot = self.take_snapshot(&table).await?;
            let mut mark = self.begin_snapshot(&marks, &snapshot, &table);
            // Each snapshot brings the copy on, however short it may be held.
            let mut has_begun = false;
            while mark.next_block < snapshot.blocks {
                if has_begun && (!snapshot.has(wished) || snapshot.is_waited_for().await?) {
                    break;
                }
                has_begun = true;
                let first = mark.next_block;
                let end = first.0.saturating_add(range_blocks).min(snapshot.blocks.0);
                let range = (first, BlockNumber(end));
                let began = Instant::now();
                let Some(rows) = self.read_range(&table, &snapshot, range).await? else {
                    self.chunks.discard();
                    range_blocks = (range_blocks / 2).max(1);
                    break;
                };
                mark.next_block = BlockNumber(end);
                mark.rows += rows;
                self.chunks.flush(snapshot.stamp, Some(mark)).await?;
                self.tell_standing(mark);
                let took_ms = began.elapsed().as_millis() as u64;
                range_blocks = next_range_blocks(range_blocks, took_ms, wished.as_millis() as u64);
            }
            if mark.next_block >= snapshot.blocks {
                let seen = snapshot.seen.clone();
                drop(snapshot);
                self.chunks.finish_sending().await?;
                return Ok(Copied { mark, seen });
            }
            tracing::debug!(collection = %self.id, next_block = %mark.next_block, blocks = %snapshot.blocks, "backfill goes on under a further snapshot");
            marks = vec![Some(mark)];
        }
    }

    /// Where the copy stands under a new snapshot. Marks of another file, or of
    /// before the table was published again, are void.
    fn begin_snapshot(
        &mut self,
        marks: &[Option<BackfillMark>],
        snapshot: &Snapshot,
        table: &Table,
    ) -> BackfillMark {
        let incarnation = snapshot.stamp.incarnation;
        let resumed = resume(marks.iter().copied(), snapshot.file, incarnation);
        let had_marks = marks.iter().any(Option::is_some);
        match &resumed {
            Some(mark) => {
                tracing::info!(collection = %self.id, backfill = %self.backfill, next_block = %mark.next_block, blocks = %snapshot.blocks, rows = mark.rows, "backfill goes on");
            }
            None if had_marks => {
                tracing::info!(collection = %self.id, backfill = %self.backfill, "the table was rewritten or published again, or a replica is fresh: its ranges begin again");
            }
            None => {}
        }
        let mut mark = resumed.unwrap_or(BackfillMark {
            file: snapshot.file,
            next_block: BlockNumber(0),
            first_stamp: snapshot.stamp,
            last_stamp: snapshot.stamp,
            rows: 0,
            snapshots: 0,
        });
        mark.last_stamp = mark.last_stamp.max(snapshot.stamp);
        mark.snapshots += 1;
        self.rows_estimated = table.rows_estimated;
        self.blocks_total = snapshot.blocks.0.max(mark.next_block.0);
        self.tell_standing(mark);
        mark
    }

    /// Answers how many rows there were; `None`: the snapshot's time was over
    /// first.
    async fn read_range(
        &mut self,
        table: &Table,
        snapshot: &Snapshot,
        (first, end): (BlockNumber, BlockNumber),
    ) -> Result<Option<u64>, Outcome> {
        let columns: Vec<String> = table.keys.iter().map(KeyColumn::selected).collect();
        let copy = format!(
            "COPY (SELECT {}, {vector} FROM ONLY {} WHERE ctid >= '({first},0)'::tid \
             AND ctid < '({end},0)'::tid AND {vector} IS NOT NULL) TO STDOUT (FORMAT binary)",
            columns.join(", "),
            table.name,
            vector = table.vector
        );
        // The watchdog closes the connection under the COPY.
        let failed = |error: anyhow::Error| match snapshot.is_over() {
            true => Ok(None),
            false => Err(Outcome::Retry(error)),
        };
        let stream = match snapshot.client().copy_out(&copy).await {
            Ok(stream) => stream,
            Err(error) => return failed(anyhow::Error::new(error).context("starting COPY")),
        };
        let mut stream = pin!(stream);
        let mut reader = CopyReader::default();
        let mut rows = 0;
        while let Some(bytes) = stream.next().await {
            match bytes {
                Ok(bytes) => reader.push(&bytes),
                Err(error) => return failed(anyhow::Error::new(error).context("COPY")),
            }
            while let Some(row) = reader.next_row()? {
                let row = self.read_row(row, table.keys.len())?;
                rows += 1;
                self.chunks.push(row, snapshot.stamp).await?;
            }
            self.tell_rows(rows);
        }
        if !reader.has_ended() {
            return failed(anyhow!("COPY ended before its end"));
        }
        Ok(Some(rows))
    }

    fn read_row(&self, row: Row, keys: usize) -> Result<BackfillRow, Outcome> {
        let bad = || anyhow!("a COPY row of another shape");
        let values: Option<Vec<_>> = row.into_iter().collect();
        let values = values.filter(|v| v.len() == keys + 1).ok_or_else(bad)?;
        let (vector, key) = values.split_last().ok_or_else(bad)?;
        let key = RowKey::from_columns(key.iter().map(|c| &c[..]))
            .map_err(|e| Outcome::Failed(e.to_string()))?;
        let vector = vector::decode(vector, self.spec.dimensions)
            .map_err(|e| Outcome::Failed(e.to_string()))?;
        Ok(BackfillRow { key, vector })
    }
}
