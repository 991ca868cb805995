//! A snapshot that a slot exported: the rows of one moment, where that moment
//! stands in the stream, and for how long it may be held.
//!
//! The slot goes as soon as a transaction holds its snapshot: neither WAL nor
//! catalog rows are kept for the copy's sake. The transaction is ended when its
//! time is over, whatever its holder waits for then: a node's full tail must not
//! pin the primary's xmin.
//!
//! A rewriting ALTER and TRUNCATE are not MVCC-safe: a snapshot of before sees an
//! empty table afterwards. So the table is locked first, and what its catalog row
//! says under the snapshot is compared with the file that there is now.

use super::Shared;
use super::table::{Table, TableError};
use crate::replication::connection::Connection;
use crate::replication::slot::Lifetime;
use crate::source::preflight::begin_at_snapshot;
use crate::source::slot_wait;
use crate::source::sql::{self, Session};
use anyhow::Context;
use cluster_core::backfill::{BlockNumber, TableFile};
use cluster_core::collection::{BackfillSnapshot, CollectionSpec};
use cluster_core::wal_position::WalPosition;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::Oid;

pub struct Snapshot {
    session: Session,
    /// The slot's consistent point: a commit counts as inside when its record
    /// starts before it.
    pub stamp: WalPosition,
    pub seen: BackfillSnapshot,
    pub file: TableFile,
    /// Rows that the snapshot sees are in blocks below.
    pub blocks: BlockNumber,
    until: Instant,
    watchdog: AbortHandle,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.watchdog.abort();
    }
}

/// Ranges are found by their blocks alone: without statistics the planner would
/// read the whole table for each of them.
const PLANS: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off; \
     SET LOCAL enable_bitmapscan = off; SET LOCAL max_parallel_workers_per_gather = 0; \
     SET LOCAL jit = off";

const STANDING: &str = "
SELECT c.relfilenode AS seen_file, pg_relation_filenode(c.oid) AS file,
       pg_relation_size(c.oid) / current_setting('block_size')::int8 AS blocks,
       (SELECT r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
         WHERE p.pubname = $2 AND r.prrelid = c.oid) AS membership,
       to_regclass($3)::oid IS NOT DISTINCT FROM c.oid AS is_named_so,
       pg_current_snapshot()::text AS snapshot
  FROM pg_class c WHERE c.oid = $1";

const IS_WAITED_FOR: &str = "
SELECT EXISTS (SELECT 1 FROM pg_locks
                WHERE locktype = 'relation' AND NOT granted AND relation = $1
                  AND database = (SELECT oid FROM pg_database
                                   WHERE datname = current_database()))";

impl Snapshot {
    pub async fn take(
        shared: &Shared,
        slot_name: &str,
        spec: &CollectionSpec,
        table: &Table,
        tell_wait: impl Fn(String),
    ) -> Result<Self, TableError> {
        let config = &shared.context.config;
        let lock_timeout = config.slot_lock_timeout_ms;
        let options = format!("-c lock_timeout={lock_timeout}");
        let mut connection = Connection::connect(&shared.postgres, &options).await?;
        let wanted = (slot_name, Lifetime::Temporary);
        let created =
            slot_wait::create(&shared.postgres, &mut connection, wanted, tell_wait).await?;
        let until = Instant::now() + Duration::from_secs(config.backfill_snapshot_seconds_max);
        let session = sql::open(&shared.postgres).await?;
        begin_at_snapshot(&session.client, &created.snapshot).await?;
        drop(connection);
        // The server's own limit, should this process be stopped.
        let limit_ms = config.backfill_snapshot_seconds_max.saturating_mul(1_000);
        let limit_ms = limit_ms.min(i32::MAX as u64);
        let lock = format!(
            "{PLANS}; SET LOCAL lock_timeout = {lock_timeout}; \
             SET LOCAL statement_timeout = {limit_ms}; \
             SET LOCAL idle_in_transaction_session_timeout = {limit_ms}; \
             LOCK TABLE ONLY {} IN ACCESS SHARE MODE",
            table.name
        );
        session
            .client
            .batch_execute(&lock)
            .await
            .context("locking the table")?;
        let connection = session.connection.clone();
        let watchdog = tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            connection.abort();
        });
        let mut snapshot = Self {
            session,
            stamp: shared.progress.following.end_of(created.consistent_point),
            seen: BackfillSnapshot::default(),
            file: TableFile::default(),
            blocks: BlockNumber(0),
            until,
            watchdog: watchdog.abort_handle(),
        };
        snapshot.look(shared, spec, table).await?;
        Ok(snapshot)
    }

    async fn look(
        &mut self,
        shared: &Shared,
        spec: &CollectionSpec,
        table: &Table,
    ) -> Result<(), TableError> {
        let error = |e: tokio_postgres::Error| TableError::Retry(anyhow::Error::new(e));
        let again = |why: &str| {
            let name = &table.name;
            Err(TableError::Retry(anyhow::anyhow!("table {name} {why}")))
        };
        let row = self
            .client()
            .query_opt(
                STANDING,
                &[&spec.table_oid, &shared.publication, &table.name],
            )
            .await
            .map_err(error)?
            .ok_or_else(|| TableError::Gone(spec.table_name.clone()))?;
        if !row.try_get::<_, bool>("is_named_so").map_err(error)? {
            return again("has another name now");
        }
        let membership: Option<Oid> = row.try_get("membership").map_err(error)?;
        let Some(membership) = membership else {
            return again("has left the publication");
        };
        let relfilenode: Oid = row.try_get("file").map_err(error)?;
        if row.try_get::<_, Oid>("seen_file").map_err(error)? != relfilenode {
            return again("was rewritten while its snapshot was taken");
        }
        let blocks: i64 = row.try_get("blocks").map_err(error)?;
        self.blocks = BlockNumber(u32::try_from(blocks).unwrap_or(u32::MAX));
        self.file = TableFile {
            relfilenode,
            membership,
        };
        self.seen = parse(row.try_get("snapshot").map_err(error)?)?;
        Ok(())
    }

    pub fn client(&self) -> &Client {
        &self.session.client
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Whether there is time for something that takes about so long.
    pub fn has(&self, time: Duration) -> bool {
        Instant::now() + time < self.until
    }

    /// Whether somebody's DDL waits for the table: it shall have it.
    pub async fn is_waited_for(&self, spec: &CollectionSpec) -> anyhow::Result<bool> {
        let row = self
            .client()
            .query_one(IS_WAITED_FOR, &[&spec.table_oid])
            .await?;
        Ok(row.try_get(0)?)
    }
}

/// `pg_current_snapshot()` prints `xmin:xmax:running,…`.
fn parse(text: &str) -> anyhow::Result<BackfillSnapshot> {
    let mut parts = text.split(':').skip(1);
    let xmax = parts.next().context("a snapshot without xmax")?.parse()?;
    let running = parts
        .next()
        .context("a snapshot without its running transactions")?;
    let running = running.split(',').filter(|xid| !xid.is_empty());
    let mut running = running.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    running.sort_unstable();
    Ok(BackfillSnapshot { xmax, running })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_snapshots_text_is_read() {
        let snapshot = parse("10:20:10,14,15").unwrap();
        assert_eq!((snapshot.xmax, snapshot.running), (20, vec![10, 14, 15]));
        assert_eq!(parse("10:10:").unwrap().running, Vec::<u64>::new());
        assert!(parse("10").is_err());
    }
}
