//! What the extension's worker wrote down when it advanced the slot: nobody streamed
//! from it, and the WAL that it held was past the limit.
//!
//! A slot that was moved so is a break in the source's history. Without a trace what is
//! missing is told by positions: a replica that stands below the slot lacks rows,
//! whoever moved it.

use super::SourceContext;
use anyhow::Context;
use cluster_core::wal_position::Lsn;
use tokio_postgres::Client;

const NEWEST: &str = "
SELECT began_at::text AS at, from_lsn::text AS before, to_lsn::text AS after, retained_bytes
  FROM ruvector.slot_advances WHERE slot_name = $1::text::name ORDER BY id DESC LIMIT 1";

const BEYOND: &str = "
SELECT began_at::text AS at, from_lsn::text AS before, to_lsn::text AS after
  FROM ruvector.slot_advances
 WHERE slot_name = $1::text::name AND to_lsn > $2::text::pg_lsn ORDER BY id DESC LIMIT 1";
const EXISTS: &str = "SELECT to_regclass('ruvector.slot_advances') IS NOT NULL";

/// Why the stream does not follow from what replicas hold: the server has moved this
/// slot, which was made at `made_at`. Also what is still being filled lacks changes
/// then, and the list of indexes does.
pub async fn jump(
    client: &Client,
    slot_name: &str,
    made_at: Lsn,
) -> anyhow::Result<Option<String>> {
    let exists = client.query_one(EXISTS, &[]).await;
    if !exists.context("looking for slot_advances")?.try_get(0)? {
        return Ok(None);
    }
    let args: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&slot_name, &made_at.to_string()];
    let row = client.query_opt(BEYOND, &args).await;
    let Some(row) = row.context("reading slot_advances")? else {
        return Ok(None);
    };
    let text = |name: &str| row.try_get::<_, String>(name);
    let (at, before, after) = (text("at")?, text("before")?, text("after")?);
    Ok(Some(format!(
        "at {at} the server advanced slot {slot_name} from {before} to {after}, for nobody streamed \
         from it and it was past slot_hold_limit"
    )))
}

/// Says aloud that the server moved the slot beyond `lowest`, what the replica that is
/// furthest behind has made durable.
pub async fn tell(
    context: &SourceContext,
    client: &Client,
    slot_name: &str,
    lowest: Option<Lsn>,
) -> anyhow::Result<()> {
    let exists = client.query_one(EXISTS, &[]).await;
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
