//! What the extension's worker wrote down when it advanced the slot: nobody streamed
//! from it, and the WAL that it held was past the limit.
//!
//! The trace only explains. Whether anything is missing is told by positions: a
//! replica that stands below the slot lacks rows, whoever moved the slot.

use super::SourceContext;
use anyhow::Context;
use cluster_core::wal_position::Lsn;
use tokio_postgres::Client;

const NEWEST: &str = "
SELECT began_at::text AS at, from_lsn::text AS before, to_lsn::text AS after, retained_bytes
  FROM ruvector.slot_advances WHERE slot_name = $1::text::name ORDER BY id DESC LIMIT 1";

/// Says aloud that the server moved the slot beyond `lowest`, what the replica that is
/// furthest behind has made durable.
pub async fn tell(
    context: &SourceContext,
    client: &Client,
    slot_name: &str,
    lowest: Option<Lsn>,
) -> anyhow::Result<()> {
    let exists = "SELECT to_regclass('ruvector.slot_advances') IS NOT NULL";
    let exists = client.query_one(exists, &[]).await;
    if !exists.context("looking for slot_advances")?.try_get(0)? {
        return Ok(());
    }
    let row = client.query_opt(NEWEST, &[&slot_name]).await;
    let Some(row) = row.context("reading slot_advances")? else {
        return Ok(());
    };
    let position = |name: &str| anyhow::Ok(row.try_get::<_, String>(name)?.parse::<Lsn>()?);
    let (before, after) = (position("before")?, position("after")?);
    if lowest.is_none_or(|lowest| lowest >= after) {
        return Ok(());
    }
    let at: String = row.try_get("at")?;
    let retained_bytes: i64 = row.try_get("retained_bytes")?;
    context.metrics.slot_advanced(context.source);
    tracing::error!(
        source = %context.source, slot = slot_name, at, %before, %after, retained_bytes,
        "while nobody streamed, the server advanced the slot past slot_hold_limit to save its \
         disk: replicas below that position lack rows"
    );
    Ok(())
}
