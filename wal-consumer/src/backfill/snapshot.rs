//! A snapshot that a slot exported: the rows of one moment, where that moment
//! stands in the stream, and for how long it may be held.
//!
//! The slot goes as soon as a transaction holds its snapshot: neither WAL nor
//! catalog rows are kept for the copy's sake. The transaction is ended when its
//! time is over, or somebody waits for it, whatever its holder waits for then: a
//! node's full tail must neither pin the primary's xmin nor hold up its DDL.
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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::Oid;

pub struct Snapshot {
    session: Session,
    waiters: Waiters,
    /// The slot's consistent point: a commit counts as inside when its record
    /// starts before it.
    pub stamp: WalPosition,
    pub seen: BackfillSnapshot,
    pub file: TableFile,
    /// Rows that the snapshot sees are in blocks below.
    pub blocks: BlockNumber,
    until: Instant,
    has_given_way: Arc<AtomicBool>,
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

/// Who waits, for how long at least: for a lock on the table, or, as CREATE INDEX
/// CONCURRENTLY does on any table, for the end of all snapshots.
const IS_WAITED_FOR: &str = "
SELECT EXISTS (SELECT FROM pg_locks
                WHERE NOT granted AND waitstart <= clock_timestamp() - $3::int8 * interval '1 ms'
                  AND (locktype = 'virtualxid' AND virtualxid = $2
                       OR locktype = 'relation' AND relation = $1
                          AND $4 = ANY (pg_blocking_pids(pid))
                          AND database = (SELECT oid FROM pg_database
                                           WHERE datname = current_database())))";

/// How long somebody may wait before the transaction is ended for it.
const PATIENCE: Duration = Duration::from_millis(500);
const LOOKS_EVERY: Duration = Duration::from_millis(250);

/// Who waits for the snapshot's transaction. The snapshot's own session
/// cannot be asked while a range is copied.
#[derive(Clone)]
struct Waiters {
    table: Oid,
    transaction: String,
    /// Of the snapshot's own session: a wait for somebody else is none of ours.
    pid: i32,
}

impl Waiters {
    /// For the transaction that is open on a session.
    async fn of(client: &Client, table: Oid) -> anyhow::Result<Self> {
        let own =
            "SELECT virtualtransaction, pid FROM pg_locks WHERE pid = pg_backend_pid() LIMIT 1";
        let row = client.query_one(own, &[]).await?;
        Ok(Self {
            table,
            transaction: row.try_get(0)?,
            pid: row.try_get(1)?,
        })
    }

    async fn are_there(&self, client: &Client, patience: Duration) -> anyhow::Result<bool> {
        let patience_ms = patience.as_millis() as i64;
        let row = client
            .query_one(
                IS_WAITED_FOR,
                &[&self.table, &self.transaction, &patience_ms, &self.pid],
            )
            .await?;
        Ok(row.try_get(0)?)
    }

    async fn run_out_of_patience(&self, client: &Client) -> anyhow::Result<()> {
        while !self.are_there(client, PATIENCE).await? {
            tokio::time::sleep(LOOKS_EVERY).await;
        }
        Ok(())
    }
}

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
        let waiters = Waiters::of(&session.client, spec.table_oid).await?;
        let has_given_way = Arc::new(AtomicBool::new(false));
        let watchdog = Watchdog {
            session: sql::open(&shared.postgres).await?,
            waiters: waiters.clone(),
            until,
            connection: session.connection.clone(),
            has_given_way: has_given_way.clone(),
        };
        let watchdog = tokio::spawn(watchdog.run());
        let mut snapshot = Self {
            session,
            waiters,
            stamp: shared.progress.following.end_of(created.consistent_point),
            seen: BackfillSnapshot::default(),
            file: TableFile::default(),
            blocks: BlockNumber(0),
            until,
            has_given_way,
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
        self.seen.membership = Some(membership);
        Ok(())
    }

    pub fn client(&self) -> &Client {
        &self.session.client
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until || self.has_given_way.load(Ordering::SeqCst)
    }

    /// Whether there is time for something that takes about so long.
    pub fn has(&self, time: Duration) -> bool {
        Instant::now() + time < self.until
    }

    /// Whether somebody waits: between two ranges giving way costs nothing.
    pub async fn is_waited_for(&self) -> anyhow::Result<bool> {
        match self.waiters.are_there(self.client(), Duration::ZERO).await {
            Err(_) if self.is_over() => Ok(true),
            known => known,
        }
    }
}

/// Ends a snapshot's transaction while its holder may wait for anything.
struct Watchdog {
    /// Of its own.
    session: Session,
    waiters: Waiters,
    until: Instant,
    /// What is ended.
    connection: AbortHandle,
    has_given_way: Arc<AtomicBool>,
}

impl Watchdog {
    async fn run(self) {
        let looking = self.waiters.run_out_of_patience(&self.session.client);
        match tokio::time::timeout_at(self.until, looking).await {
            // Time is over.
            Err(_) => {}
            Ok(Ok(())) => {
                tracing::info!(
                    table = self.waiters.table,
                    "somebody waits for the table: its snapshot ends early"
                );
                self.has_given_way.store(true, Ordering::SeqCst);
            }
            Ok(Err(problem)) => {
                tracing::warn!(
                    problem = format!("{problem:#}"),
                    "cannot see who waits for a snapshot: it ends early"
                );
                self.has_given_way.store(true, Ordering::SeqCst);
            }
        }
        self.connection.abort();
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
    Ok(BackfillSnapshot {
        xmax,
        running,
        membership: None,
    })
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
