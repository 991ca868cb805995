//! Whether a source was let go from inside its database, by
//! `ruvector_detach_source()`.
//!
//! That function holds the table until its transaction ends and ends every session
//! that is there meanwhile. So whoever is to make a slot looks on the very connection
//! that makes it: either the look waits and sees the row, or the connection is ended.

use super::sql::literal;
use crate::feed::progress::RunEnd;
use crate::replication::connection::Connection;
use anyhow::Context;
use cluster_core::map::DETACHED;
use tokio_postgres::Client;

/// An extension of 0.1.0 has no such table.
const IS_KNOWN: &str = "SELECT to_regclass('ruvector.detachments') IS NOT NULL";

fn look(slot_name: &str) -> String {
    format!(
        "SELECT detached_by || ' at ' || date_trunc('seconds', detached_at)::text \
         FROM ruvector.detachments WHERE slot_name = {}",
        literal(slot_name)
    )
}

fn problem(by: &str) -> RunEnd {
    RunEnd::Problem(format!(
        "{DETACHED} inside the database by {by}: slot and publication are dropped. Remove the source; \
         add it again to follow the database anew"
    ))
}

pub async fn check(client: &Client, slot_name: &str) -> Result<(), RunEnd> {
    let is_known = client.query_one(IS_KNOWN, &[]).await;
    let is_known = is_known.context("looking for ruvector.detachments")?;
    if !is_known.try_get::<_, bool>(0).context("a boolean")? {
        return Ok(());
    }
    let found = client.query_opt(&look(slot_name), &[]).await;
    match found.context("reading ruvector.detachments")? {
        None => Ok(()),
        Some(row) => Err(problem(row.try_get(0).context("a text")?)),
    }
}

/// On the connection that makes the slot next.
pub async fn check_before_slot(connection: &mut Connection, slot_name: &str) -> Result<(), RunEnd> {
    let is_known = connection.query(IS_KNOWN).await?;
    let is_known = is_known.first().and_then(|row| row.first()?.as_deref());
    if is_known != Some("t") {
        return Ok(());
    }
    let found = connection.query(&look(slot_name)).await?;
    match found.first().and_then(|row| row.first()?.as_deref()) {
        None => Ok(()),
        Some(by) => Err(problem(by)),
    }
}
