//! The replication commands around a slot. Slot and publication names are ours
//! and made of `[a-z0-9_]`; they are checked all the same before they are quoted.

use super::connection::{Connection, FrameReader, FrameWriter};
use anyhow::{Context, ensure};
use cluster_core::wal_position::Lsn;

/// What IDENTIFY_SYSTEM answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_identifier: u64,
    pub timeline: u32,
}

/// A slot just made. The snapshot lives as long as the connection runs no
/// further command.
#[derive(Clone, Debug)]
pub struct CreatedSlot {
    pub consistent_point: Lsn,
    pub snapshot: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    Permanent,
    /// Ends with the connection.
    Temporary,
}

pub async fn identify_system(connection: &mut Connection) -> anyhow::Result<SystemIdentity> {
    let rows = connection.query("IDENTIFY_SYSTEM").await?;
    let row = rows.first().context("IDENTIFY_SYSTEM answered nothing")?;
    let field = |i: usize| {
        row.get(i)
            .and_then(Option::as_deref)
            .context("IDENTIFY_SYSTEM cut off")
    };
    Ok(SystemIdentity {
        system_identifier: field(0)?.parse()?,
        timeline: field(1)?.parse()?,
    })
}

/// The server's record of how it came to a timeline.
pub async fn timeline_history(
    connection: &mut Connection,
    timeline: u32,
) -> anyhow::Result<String> {
    let rows = connection
        .query(&format!("TIMELINE_HISTORY {timeline}"))
        .await?;
    let row = rows.first().context("TIMELINE_HISTORY answered nothing")?;
    let content = row.get(1).cloned().flatten();
    content.context("TIMELINE_HISTORY cut off")
}

/// Waits until every running transaction has ended (bounded by the
/// connection's `lock_timeout`).
pub async fn create(
    connection: &mut Connection,
    name: &str,
    lifetime: Lifetime,
) -> anyhow::Result<CreatedSlot> {
    check_name(name)?;
    let temporary = if lifetime == Lifetime::Temporary {
        " TEMPORARY"
    } else {
        ""
    };
    let command = format!(
        "CREATE_REPLICATION_SLOT \"{name}\"{temporary} LOGICAL pgoutput (SNAPSHOT 'export')"
    );
    let rows = connection.query(&command).await?;
    let row = rows
        .first()
        .context("CREATE_REPLICATION_SLOT answered nothing")?;
    let field = |i: usize| {
        row.get(i)
            .and_then(Option::as_deref)
            .context("CREATE_REPLICATION_SLOT cut off")
    };
    Ok(CreatedSlot {
        consistent_point: field(1)?.parse()?,
        snapshot: field(2)?.to_owned(),
    })
}

/// Streams from `start`, which must be what the slot has confirmed: asked for
/// something older, Postgres would silently start there. Logical messages are asked
/// for because heartbeats are such ([`crate::source::heartbeat`]); all others are
/// dropped as they come.
pub async fn start(
    connection: Connection,
    name: &str,
    publication: &str,
    start: Lsn,
) -> anyhow::Result<(FrameReader, FrameWriter)> {
    check_name(name)?;
    check_name(publication)?;
    let command = format!(
        "START_REPLICATION SLOT \"{name}\" LOGICAL {start} \
         (proto_version '2', binary 'true', messages 'true', \
          publication_names '\"{publication}\"')"
    );
    connection.copy_both(&command).await
}

pub fn check_name(name: &str) -> anyhow::Result<()> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    ensure!(
        !name.is_empty() && name.len() < 64 && name.chars().all(is_plain),
        "not a name of a slot or publication of ours: {name:?}"
    );
    Ok(())
}
