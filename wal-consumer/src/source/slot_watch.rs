//! What the server says of the source's slot, read every second; what is told of
//! it, once each time ([`cluster_core::slot_health`]); and the limit, noted down at
//! the server: while no consumer runs, the extension's worker keeps to it there.

use super::SourceContext;
use super::slot_limit;
use anyhow::Context;
use cluster_core::slot_health::{Danger, SlotHealth, SlotReading, WalStatus};
use cluster_core::wal_position::Lsn;
use tokio_postgres::Client;

const READ: &str = "
SELECT pg_current_wal_flush_lsn()::text AS flush, wal_status, safe_wal_size,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 AS retained,
       to_regclass('ruvector.collections') IS NOT NULL AS has_table
  FROM pg_replication_slots WHERE slot_name = $1";

/// Absent where the extension's objects are still those of 0.1.0.
const NOTE: &str = "
SELECT ruvector.note_slot($1::text::name, $2::int8)
 WHERE to_regprocedure('ruvector.note_slot(name,bigint)') IS NOT NULL";
const HAS_NOTE: &str = "SELECT to_regprocedure('ruvector.note_slot(name,bigint)') IS NOT NULL";

pub struct SlotWatch {
    context: SourceContext,
    slot_name: String,
    health: SlotHealth,
    /// The limit that the server has been told, or was not to be told.
    noted: Option<u64>,
}

impl SlotWatch {
    pub fn new(context: SourceContext, slot_name: String) -> Self {
        Self {
            context,
            slot_name,
            health: SlotHealth::default(),
            noted: None,
        }
    }

    pub async fn look(&mut self, client: &Client) -> anyhow::Result<()> {
        let (flush, wal_status, reading) = self.read(client).await?;
        let verdict = self.health.look(&reading);
        for danger in &verdict.new {
            // Of the limit, who knows the replicas that hold the slot tells more.
            if *danger != Danger::Limit {
                let (source, what) = (self.context.source, sentence(*danger, &reading));
                tracing::warn!(%source, slot = self.slot_name, what, "the slot is in danger");
            }
        }
        let sentences = verdict.standing.iter().map(|d| sentence(*d, &reading));
        let sentences: Vec<String> = sentences.collect();
        self.context.standing.update(|s| {
            s.server_flush = flush;
            s.retained_wal_bytes = reading.retained_bytes;
            s.safe_wal_bytes = reading.safe_bytes;
            s.slot_hold_limit_bytes = reading.limit_bytes;
            s.wal_status = wal_status;
            s.slot_warnings = sentences;
        });
        let metrics = &self.context.metrics;
        metrics.slot(self.context.source, &reading, &verdict.standing);
        self.note(client, reading.limit_bytes).await;
        Ok(())
    }

    async fn read(&self, client: &Client) -> anyhow::Result<(Lsn, String, SlotReading)> {
        let row = client
            .query_opt(READ, &[&self.slot_name])
            .await
            .context("looking at the slot")?;
        let Some(row) = row else {
            anyhow::bail!("slot {} is gone", self.slot_name)
        };
        anyhow::ensure!(
            row.try_get::<_, bool>("has_table")?,
            "extension ruvector was dropped"
        );
        let bytes = |number: i64| u64::try_from(number).unwrap_or(0);
        let retained: Option<i64> = row.try_get("retained")?;
        let safe: Option<i64> = row.try_get("safe_wal_size")?;
        let wal_status: Option<String> = row.try_get("wal_status")?;
        let wal_status = wal_status.unwrap_or_default();
        let reading = SlotReading {
            retained_bytes: bytes(retained.unwrap_or(0)),
            safe_bytes: safe.map(bytes),
            wal_status: WalStatus::of(&wal_status),
            limit_bytes: slot_limit::limit_bytes(&self.context),
        };
        let flush = row.try_get::<_, String>("flush")?.parse()?;
        Ok((flush, wal_status, reading))
    }

    /// Tells the server the limit. A role that may not write it down leaves the
    /// server to its own setting.
    async fn note(&mut self, client: &Client, limit_bytes: u64) {
        if self.noted == Some(limit_bytes) {
            return;
        }
        let limit = i64::try_from(limit_bytes).unwrap_or(i64::MAX);
        let noting = async {
            let has_note: bool = client.query_one(HAS_NOTE, &[]).await?.try_get(0)?;
            if has_note {
                client.execute(NOTE, &[&self.slot_name, &limit]).await?;
            }
            Ok::<(), tokio_postgres::Error>(())
        };
        let noted = noting.await;
        if noted.is_ok() {
            self.noted = Some(limit_bytes);
        }
        if let Err(problem) = noted {
            let problem = problem
                .as_db_error()
                .map_or_else(|| problem.to_string(), |error| error.message().to_owned());
            tracing::warn!(source = %self.context.source, problem, "slot_hold_limit is not noted at the server: while no consumer runs, ruvector.slot_hold_limit is in force there");
        }
    }
}

/// What is wrong, and what to do about it.
fn sentence(danger: Danger, reading: &SlotReading) -> String {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let retained = mib(reading.retained_bytes);
    match danger {
        Danger::Limit => format!(
            "the slot retains {retained} of WAL, near its slot_hold_limit of {}: past it the \
             replicas that hold the slot are passed",
            mib(reading.limit_bytes)
        ),
        Danger::Extended => format!(
            "the slot retains {retained} of WAL, more than the server's max_wal_size: find what \
             holds it (ctl lag, long transactions), or raise max_wal_size"
        ),
        Danger::Unreserved => format!(
            "the slot is past max_slot_wal_keep_size with {retained} of WAL: the server drops it at \
             the next checkpoint. Raise max_slot_wal_keep_size now"
        ),
        Danger::Lost => {
            "the server has dropped WAL that the slot needed (max_slot_wal_keep_size)".to_owned()
        }
        Danger::SafeWal => format!(
            "the slot retains {retained} of WAL, and {} more may be written until the server drops \
             it: raise max_slot_wal_keep_size, or lower slot_hold_limit below it",
            mib(reading.safe_bytes.unwrap_or(0))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_each_danger_is_told_with_what_to_do() {
        let reading = SlotReading {
            retained_bytes: 900 << 20,
            safe_bytes: Some(100 << 20),
            wal_status: WalStatus::Extended,
            limit_bytes: 1 << 30,
        };
        let words = [
            "slot_hold_limit of 1024 MiB",
            "max_wal_size",
            "Raise max_slot_wal_keep_size now",
            "has dropped",
            "100 MiB more",
        ];
        for (danger, word) in Danger::ALL.into_iter().zip(words) {
            let said = sentence(danger, &reading);
            assert!(said.contains(word), "{danger:?}: {said}");
        }
    }
}
