//! What an operator orders of a source while it is followed: the map tells of it,
//! and the run ends, in order, to begin anew or to wait.

use super::SourceContext;
use super::{coordination, sql};
use crate::replication::slot;
use anyhow::Context;
use cluster_core::ids::{DsnVersion, SourceId};
use cluster_core::map::PartitionMap;
use std::time::Duration;

/// How often a paused source's server is asked what its slot keeps.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Under which orders a run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    pub is_paused: bool,
    dsn: DsnVersion,
}

impl Orders {
    pub fn of(map: &PartitionMap, source: SourceId) -> Self {
        let source = map.sources.get(&source);
        source.map_or_else(Self::default, |source| Self {
            is_paused: source.is_paused,
            dsn: source.dsn_version,
        })
    }

    pub fn now(context: &SourceContext) -> Self {
        Self::of(&context.client.map(), context.source)
    }

    /// Returns once others are given.
    pub async fn change(self, context: &SourceContext) {
        let mut map = context.client.watch_map();
        let changed = map.wait_for(|map| Self::of(map, context.source) != self);
        if changed.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for the end of a pause; until then the slot, which nobody reads, is looked
/// at, for it keeps every WAL segment.
pub async fn wait_while_paused(context: &SourceContext, orders: Orders) {
    tracing::warn!(source = %context.source, "paused: not followed, while the slot keeps WAL");
    let looking = async {
        loop {
            if let Err(problem) = look(context).await {
                tracing::debug!(source = %context.source, problem = format!("{problem:#}"), "the paused source's slot cannot be seen");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = orders.change(context) => {}
    }
}

async fn look(context: &SourceContext) -> anyhow::Result<()> {
    let server = coordination::server(context).await?;
    let map = context.client.map();
    let source = map.sources.get(&context.source);
    let slot_name = source.map(|s| s.slot_name.clone()).unwrap_or_default();
    slot::check_name(&slot_name)?;
    let client = sql::connect(&server).await?;
    let row = client
        .query_opt(
            "SELECT pg_current_wal_flush_lsn()::text AS flush, coalesce(wal_status, '') AS wal_status, \
             coalesce(safe_wal_size, 0) AS safe, \
             coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8, 0) AS retained \
             FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot_name],
        )
        .await
        .context("looking at the slot")?;
    let Some(row) = row else { return Ok(()) };
    let flush = row.try_get::<_, String>("flush")?.parse()?;
    let bytes = |name: &str| -> anyhow::Result<u64> {
        Ok(u64::try_from(row.try_get::<_, i64>(name)?).unwrap_or(0))
    };
    let (retained, safe) = (bytes("retained")?, bytes("safe")?);
    let wal_status: String = row.try_get("wal_status")?;
    context.standing.update(|s| {
        s.server_flush = flush;
        s.retained_wal_bytes = retained;
        s.safe_wal_bytes = safe;
        s.wal_status = wal_status;
    });
    context.metrics.positions(context.source, &context.standing);
    Ok(())
}
