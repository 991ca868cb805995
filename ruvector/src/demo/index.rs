//! The index, and how long until it answers searches and until every row of it
//! is in the graph.

use super::progress_bar::ProgressBar;
use super::{INDEX, TABLE};
use anyhow::{Context, bail};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

const POLL_EVERY: Duration = Duration::from_millis(200);
/// Without any progress for this long, something is wrong.
const STALL_MAX: Duration = Duration::from_secs(120);

#[derive(Default, PartialEq)]
struct IndexStatus {
    state: String,
    reason: String,
    rows: u64,
    tail_rows: u64,
    rows_copied: u64,
    rows_estimated: u64,
}

impl IndexStatus {
    async fn read(client: &Client) -> anyhow::Result<Self> {
        let sql =
            "SELECT state, reason, rows, tail_rows, backfill_rows_copied, backfill_rows_estimated
                   FROM ruvector_index_status($1::text::regclass)";
        let row = client
            .query_one(sql, &[&INDEX])
            .await
            .context("ruvector_index_status failed")?;
        let text = |i| row.get::<_, Option<String>>(i).unwrap_or_default();
        let number = |i| u64::try_from(row.get::<_, Option<i64>>(i).unwrap_or(0)).unwrap_or(0);
        Ok(Self {
            state: text(0),
            reason: text(1),
            rows: number(2),
            tail_rows: number(3),
            rows_copied: number(4),
            rows_estimated: number(5),
        })
    }

    fn is_ready(&self) -> bool {
        self.state == "ready"
    }

    fn is_folded(&self) -> bool {
        self.is_ready() && self.rows > 0 && self.tail_rows == 0
    }
}

/// When the index was created; `None` when it was there already.
pub async fn create(client: &Client) -> anyhow::Result<Option<Instant>> {
    let exists: bool = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&INDEX])
        .await?
        .get(0);
    if exists {
        return Ok(None);
    }
    let started = Instant::now();
    let sql = format!("CREATE INDEX {INDEX} ON {TABLE} USING ruhnsw (embedding vector_l2_ops)");
    client
        .batch_execute(&sql)
        .await
        .context("CREATE INDEX failed")?;
    Ok(Some(started))
}

pub async fn wait_until_ready(client: &Client) -> anyhow::Result<()> {
    wait(client, "index", IndexStatus::is_ready, |status| {
        (
            status
                .rows_copied
                .min(status.rows_estimated.saturating_sub(1)),
            status.rows_estimated,
        )
    })
    .await?;
    Ok(())
}

pub async fn wait_until_folded(client: &Client) -> anyhow::Result<()> {
    if IndexStatus::read(client).await?.is_folded() {
        return Ok(());
    }
    wait(client, "fold", IndexStatus::is_folded, |status| {
        (status.rows.saturating_sub(status.tail_rows), status.rows)
    })
    .await?;
    Ok(())
}

async fn wait(
    client: &Client,
    label: &'static str,
    is_done: fn(&IndexStatus) -> bool,
    progress: fn(&IndexStatus) -> (u64, u64),
) -> anyhow::Result<IndexStatus> {
    let mut bar = ProgressBar::new(label, "rows");
    let mut last = IndexStatus::default();
    let mut moved = Instant::now();
    loop {
        let status = IndexStatus::read(client).await?;
        if is_done(&status) {
            bar.finish(status.rows);
            return Ok(status);
        }
        if status.state == "failed" {
            bail!("the index cannot be kept: {}", status.reason);
        }
        if status != last {
            moved = Instant::now();
        } else if moved.elapsed() > STALL_MAX {
            bail!(
                "no progress for {} s; the index is {:?}{}; 'make status' and 'make logs' tell more",
                STALL_MAX.as_secs(),
                status.state,
                if status.reason.is_empty() {
                    String::new()
                } else {
                    format!(": {}", status.reason)
                }
            );
        }
        let (done, total) = progress(&status);
        bar.set(done, total);
        last = status;
        tokio::time::sleep(POLL_EVERY).await;
    }
}
