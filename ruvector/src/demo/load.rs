//! The table and its rows, by one binary COPY in one transaction.

use super::TABLE;
use super::fashion_mnist::{DIMENSIONS, TrainingSet, training_set};
use super::progress_bar::ProgressBar;
use super::vector;
use anyhow::{Context, bail};
use futures::SinkExt;
use std::path::Path;
use std::pin::pin;
use tokio_postgres::Client;
use tokio_postgres::types::private::BytesMut;

/// Bytes handed to the connection at a time.
const COPY_BYTES: usize = 1 << 20;
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_TRAILER: [u8; 2] = (-1i16).to_be_bytes();

/// Seconds that loading took; `None` when the table has rows already.
pub async fn load(client: &mut Client, folder: &Path) -> anyhow::Result<Option<f64>> {
    let exists = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&TABLE])
        .await?;
    if exists.get(0) {
        let rows = row_count(client).await?;
        if rows == 0 {
            bail!("the table {TABLE} exists and is empty: drop it, and run this again");
        }
        println!("  {TABLE} has {rows} rows already");
        return Ok(None);
    }
    let set = training_set(folder)?;
    let mut bar = ProgressBar::new("load", "rows");
    let transaction = client.transaction().await?;
    transaction
        .batch_execute(&format!(
            "CREATE TABLE {TABLE} (id bigint PRIMARY KEY, label int, embedding vector({DIMENSIONS}))"
        ))
        .await?;
    let copy = transaction
        .copy_in(&format!("COPY {TABLE} FROM STDIN (FORMAT binary)"))
        .await?;
    let mut copy = pin!(copy);
    let mut buffer = COPY_HEADER.to_vec();
    for i in 0..set.images.len() {
        append_row(&set, i, &mut buffer)?;
        if buffer.len() >= COPY_BYTES {
            copy.send(BytesMut::from(&buffer[..]).freeze()).await?;
            buffer.clear();
            bar.set(i as u64, set.images.len() as u64);
        }
    }
    buffer.extend_from_slice(&COPY_TRAILER);
    copy.send(BytesMut::from(&buffer[..]).freeze()).await?;
    let rows = copy.finish().await.context("COPY failed")?;
    transaction.commit().await?;
    let seconds = bar.finish(rows);
    // The planner chooses by statistics, which autovacuum would bring only later.
    client.batch_execute(&format!("ANALYZE {TABLE}")).await?;
    Ok(Some(seconds))
}

fn append_row(set: &TrainingSet, i: usize, out: &mut Vec<u8>) -> anyhow::Result<()> {
    out.extend_from_slice(&3i16.to_be_bytes());
    out.extend_from_slice(&8i32.to_be_bytes());
    out.extend_from_slice(&i64::try_from(i + 1)?.to_be_bytes());
    out.extend_from_slice(&4i32.to_be_bytes());
    out.extend_from_slice(&i32::from(set.labels[i]).to_be_bytes());
    let elements = set.images.get(i);
    out.extend_from_slice(&i32::try_from(4 + 4 * elements.len())?.to_be_bytes());
    Ok(vector::encode(elements, out)?)
}

pub async fn row_count(client: &Client) -> anyhow::Result<u64> {
    let row = client
        .query_one(&format!("SELECT count(*) FROM {TABLE}"), &[])
        .await?;
    Ok(u64::try_from(row.get::<_, i64>(0))?)
}
