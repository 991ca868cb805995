//! What Postgres lets only owners do, asked for the way that the role may: through
//! the extension's functions where it has them, plainly where it is of 0.1.0 and the
//! role is a superuser.

use super::sql::{identifier, literal};
use anyhow::Context;
use tokio_postgres::Client;

/// The functions that a role needs which owns nothing.
pub const FUNCTIONS: [&str; 6] = [
    "ruvector.create_publication(name)",
    "ruvector.publish_table(name, oid)",
    "ruvector.unpublish_table(name, oid)",
    "ruvector.drop_publication(name)",
    "ruvector.end_walsender(name)",
    "ruvector.note_slot(name, bigint)",
];

async fn has(client: &Client, function: &str) -> anyhow::Result<bool> {
    let row = client
        .query_one("SELECT to_regprocedure($1) IS NOT NULL", &[&function])
        .await
        .context("looking for the extension's functions")?;
    Ok(row.try_get(0)?)
}

/// SQL that makes the publication, or completes an empty one.
pub async fn create_publication(
    client: &Client,
    publication: &str,
    exists: bool,
) -> anyhow::Result<String> {
    if has(client, FUNCTIONS[0]).await? {
        let name = literal(publication);
        return Ok(format!("SELECT ruvector.create_publication({name})"));
    }
    let name = identifier(publication);
    Ok(match exists {
        false => format!("CREATE PUBLICATION {name} FOR TABLE ruvector.collections"),
        true => format!("ALTER PUBLICATION {name} ADD TABLE ruvector.collections"),
    })
}

/// SQL that puts a table into the publication. `table` is quoted, with its schema.
pub async fn publish(
    client: &Client,
    publication: &str,
    oid: u32,
    table: &str,
) -> anyhow::Result<String> {
    if has(client, FUNCTIONS[1]).await? {
        let name = literal(publication);
        return Ok(format!("SELECT ruvector.publish_table({name}, {oid})"));
    }
    let name = identifier(publication);
    Ok(format!("ALTER PUBLICATION {name} ADD TABLE ONLY {table}"))
}

/// SQL that takes a table out of the publication.
pub async fn unpublish(
    client: &Client,
    publication: &str,
    oid: u32,
    table: &str,
) -> anyhow::Result<String> {
    if has(client, FUNCTIONS[2]).await? {
        let name = literal(publication);
        return Ok(format!("SELECT ruvector.unpublish_table({name}, {oid})"));
    }
    let name = identifier(publication);
    Ok(format!("ALTER PUBLICATION {name} DROP TABLE ONLY {table}"))
}

/// SQL that drops the publication, if it is there.
pub async fn drop_publication(client: &Client, publication: &str) -> anyhow::Result<String> {
    if has(client, FUNCTIONS[3]).await? {
        let name = literal(publication);
        return Ok(format!("SELECT ruvector.drop_publication({name})"));
    }
    let name = identifier(publication);
    Ok(format!("DROP PUBLICATION IF EXISTS {name}"))
}

/// SQL that ends whoever streams from the slot.
pub async fn end_walsender(client: &Client, slot: &str) -> anyhow::Result<String> {
    let name = literal(slot);
    if has(client, FUNCTIONS[4]).await? {
        return Ok(format!("SELECT ruvector.end_walsender({name})"));
    }
    Ok(format!(
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
         WHERE slot_name = {name} AND active_pid IS NOT NULL"
    ))
}
