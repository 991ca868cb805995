//! Making a slot waits for every transaction of the server that writes and was open
//! before, in whichever database. Who sees an index that does not come on is told
//! for whom it waits, while it waits.

use super::postgres::Postgres;
use super::sql::{self, Session};
use crate::replication::connection::Connection;
use crate::replication::slot::{self, CreatedSlot, Lifetime};
use anyhow::Context;
use std::convert::Infallible;
use std::time::Duration;

/// A wait shorter than this is not told; a longer one is looked at as often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Postgres shows when a transaction began only to who may see all statistics; pid,
/// application and database it shows to everybody. A prepared one has no process.
const BLOCKERS: &str = "
SELECT b.pid, a.datname::text AS database, a.usename::text AS role, a.application_name AS application,
       to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS since,
       p.gid, p.database::text AS prepared_in,
       to_char(p.prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS prepared_at
  FROM unnest(pg_blocking_pids($1)) AS b(pid)
  LEFT JOIN pg_stat_activity a ON a.pid = b.pid
  LEFT JOIN (SELECT gid, database, prepared FROM pg_prepared_xacts ORDER BY prepared LIMIT 1) p
    ON b.pid = 0
 LIMIT 1";

/// Makes the slot; what it waits for goes to `tell`, and an empty text once it is
/// made. After a failure what was told last stands: who tries again waits again.
pub async fn create(
    postgres: &Postgres,
    connection: &mut Connection,
    (name, lifetime): (&str, Lifetime),
    tell: impl Fn(String),
) -> anyhow::Result<CreatedSlot> {
    let pid = connection.server_pid();
    let created = tokio::select! {
        created = slot::create(connection, name, lifetime) => created,
        never = watch(postgres, pid, &tell) => match never {},
    }?;
    tell(String::new());
    Ok(created)
}

/// Telling is a service: it may fail, and the slot is made all the same.
async fn watch(postgres: &Postgres, pid: i32, tell: &impl Fn(String)) -> Infallible {
    let mut session = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match look(postgres, pid, &mut session).await {
            Ok(waits_for) => tell(waits_for.unwrap_or_default()),
            Err(problem) => {
                session = None;
                let problem = format!("{problem:#}");
                tracing::debug!(problem, "it is not known what the slot waits for");
            }
        }
    }
}

async fn look(
    postgres: &Postgres,
    pid: i32,
    session: &mut Option<Session>,
) -> anyhow::Result<Option<String>> {
    if session.is_none() {
        *session = Some(sql::open(postgres).await?);
    }
    let Some(Session { client, .. }) = session else {
        return Ok(None);
    };
    let row = client
        .query_opt(BLOCKERS, &[&pid])
        .await
        .context("looking for what the slot waits for")?;
    let Some(row) = row else { return Ok(None) };
    let blocker = Blocker {
        pid: row.try_get("pid")?,
        database: row.try_get("database")?,
        role: row.try_get("role")?,
        application: row.try_get("application")?,
        since: row.try_get("since")?,
        gid: row.try_get("gid")?,
        prepared_in: row.try_get("prepared_in")?,
        prepared_at: row.try_get("prepared_at")?,
    };
    Ok(Some(blocker.sentence()))
}

#[derive(Clone, Default)]
struct Blocker {
    pid: i32,
    database: Option<String>,
    role: Option<String>,
    application: Option<String>,
    since: Option<String>,
    gid: Option<String>,
    prepared_in: Option<String>,
    prepared_at: Option<String>,
}

impl Blocker {
    /// Without its subject: a slot or a snapshot.
    fn sentence(&self) -> String {
        const WAITS: &str = "waits for transactions that were open before it";
        let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
        if self.pid == 0 {
            let gid = known(&self.gid);
            return format!(
                "{WAITS}: the oldest prepared one, '{gid}', is of database {} and of {} UTC. \
                 COMMIT PREPARED or ROLLBACK PREPARED '{gid}' there",
                known(&self.prepared_in),
                known(&self.prepared_at)
            );
        }
        let application = match self.application.as_deref() {
            None | Some("") => "without a name".to_owned(),
            Some(name) => name.to_owned(),
        };
        let since = match &self.since {
            Some(since) => format!(" since {since} UTC"),
            None => String::new(),
        };
        let pid = self.pid;
        format!(
            "{WAITS}: pid {pid} in database {} (application {application}, role {}) has had one \
             open{since}. Commit it, or end it: SELECT pg_terminate_backend({pid})",
            known(&self.database),
            known(&self.role)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn who_is_waited_for_is_told_with_what_to_do() {
        let session = Blocker {
            pid: 42,
            database: some("shop"),
            role: some("bob"),
            application: some("report"),
            since: some("2026-11-27 07:00:00"),
            ..Blocker::default()
        };
        assert_eq!(
            session.sentence(),
            "waits for transactions that were open before it: pid 42 in database shop \
             (application report, role bob) has had one open since 2026-11-27 07:00:00 UTC. \
             Commit it, or end it: SELECT pg_terminate_backend(42)"
        );
        // A role that may not see others' statistics sees less.
        let hidden = Blocker {
            application: some(""),
            since: None,
            ..session
        };
        let said = hidden.sentence();
        assert!(said.contains("application without a name") && !said.contains("since"));
    }

    #[test]
    fn a_prepared_transaction_has_a_name_and_no_process() {
        let prepared = Blocker {
            gid: some("transfer-7"),
            prepared_in: some("shop"),
            prepared_at: some("2026-11-27 07:00:00"),
            ..Blocker::default()
        };
        let said = prepared.sentence();
        assert!(said.contains("ROLLBACK PREPARED 'transfer-7'"), "{said}");
        assert!(!said.contains("pid"), "{said}");
    }
}
