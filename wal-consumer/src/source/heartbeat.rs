//! A record of our own in the WAL of a quiet database, so that its slot moves on
//! while the server's other databases write ([`cluster_core::heartbeat`] says when).
//!
//! It is a logical message outside of any transaction: it takes no transaction id,
//! touches no table, waits for no standby, and anybody may write one. It comes back
//! through the slot's own decoding, and what was committed before it is confirmed by
//! that. The server lets go of WAL at its next record of running transactions, which
//! its background writer makes within 15 s once something was written.
//!
//! It has a connection of its own for each: whatever becomes of one, the run goes on.

use super::SourceContext;
use super::postgres::Postgres;
use super::sql;
use crate::clock::boot_ms;
use crate::feed::progress::Progress;
use anyhow::Context;
use cluster_core::heartbeat::{Heartbeat, Seen, Terms};
use std::sync::Arc;
use std::time::Duration;

const WRITE: &str = "SELECT pg_logical_emit_message(false, 'ruvector', '')";
/// The message's prefix, as pgoutput sends it.
const PREFIX: &[u8] = b"ruvector\0";
/// `M`, flags and the position stand before the prefix.
const PREFIX_AT: usize = 1 + 1 + 8;

pub async fn keep(context: SourceContext, postgres: Postgres, progress: Arc<Progress>) {
    let config = &context.config;
    let terms = Terms {
        every_ms: config.heartbeat_every_ms,
        retained_bytes: config.heartbeat_wal_bytes,
    };
    let mut heartbeat = Heartbeat::new(terms, boot_ms());
    let look_every = Duration::from_millis(config.oldest_xmin_every_ms.max(1));
    let limit = Duration::from_millis(config.call_timeout_ms);
    let mut told = String::new();
    loop {
        tokio::time::sleep(look_every).await;
        let seen = Seen {
            transaction_end: progress.transaction_end(),
            retained_bytes: context.standing.retained_wal_bytes(),
        };
        if !heartbeat.is_due(boot_ms(), seen) {
            continue;
        }
        let written = match tokio::time::timeout(limit, write(&postgres)).await {
            Ok(written) => written,
            Err(_) => Err(anyhow::anyhow!("Postgres does not answer")),
        };
        let outcome = match written {
            Ok(()) => "written",
            Err(problem) => {
                let problem = format!("{problem:#}");
                if problem != told {
                    tracing::warn!(source = %context.source, problem, "no heartbeat: the quiet database's slot moves by keepalives alone");
                    told = problem;
                }
                "failed"
            }
        };
        context.metrics.heartbeat(context.source, outcome);
    }
}

async fn write(postgres: &Postgres) -> anyhow::Result<()> {
    let session = sql::open(postgres).await?;
    let written = session.client.batch_execute(WRITE).await;
    written.context("writing a logical message")
}

pub fn is_message(payload: &[u8]) -> bool {
    payload.first() == Some(&b'M')
}

/// Of a message: whether it is a heartbeat.
pub fn is_ours(payload: &[u8]) -> bool {
    let prefix = payload.get(PREFIX_AT..);
    prefix.is_some_and(|prefix| prefix.starts_with(PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_told_from_anybodys_messages() {
        let message = |prefix: &str| {
            let mut bytes = vec![b'M', 0];
            bytes.extend(7u64.to_be_bytes());
            bytes.extend(prefix.as_bytes());
            bytes.extend([0, 0, 0, 0, 0]);
            bytes
        };
        assert!(is_ours(&message("ruvector")));
        for other in ["", "ruvecto", "ruvector2", "audit"] {
            assert!(is_message(&message(other)) && !is_ours(&message(other)));
        }
        assert!(!is_ours(b"M") && !is_message(b"") && !is_message(b"I"));
    }
}
