//! Plain SQL connections to a source.

use anyhow::Context;
use std::time::Duration;
use tokio::task::AbortHandle;
use tokio_postgres::{Client, Config, NoTls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Names are resolved in pg_catalog only: nobody's objects get in between. Commits
/// are local: where the consumer is a synchronous standby, it must not wait for
/// itself.
const SESSION_SETTINGS: &str = "SET search_path = pg_catalog, pg_temp; \
     SET row_security = off; \
     SET synchronous_commit = local; \
     SET idle_in_transaction_session_timeout = 0; \
     SET statement_timeout = 0; \
     SET client_min_messages = warning";

/// A connection that ends at once when it is dropped, whatever is under way: a
/// client alone waits until the server has answered all that was asked.
pub struct Session {
    pub client: Client,
    pub connection: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The connection ends when the client is dropped.
pub async fn connect(config: &Config) -> anyhow::Result<Client> {
    Ok(begin(config).await?.0)
}

pub async fn open(config: &Config) -> anyhow::Result<Session> {
    let (client, connection) = begin(config).await?;
    Ok(Session { client, connection })
}

async fn begin(config: &Config) -> anyhow::Result<(Client, AbortHandle)> {
    let mut config = config.clone();
    config
        .application_name("ruvector-consumer")
        .connect_timeout(CONNECT_TIMEOUT);
    let connecting = async {
        let (client, connection) = config
            .connect(NoTls)
            .await
            .context("connecting to Postgres")?;
        let running = tokio::spawn(async move {
            if let Err(problem) = connection.await {
                tracing::debug!(%problem, "SQL connection ended");
            }
        });
        client
            .batch_execute(SESSION_SETTINGS)
            .await
            .context("setting up the session")?;
        Ok((client, running.abort_handle()))
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .context("Postgres did not complete the connection in time")?
}

/// A text as an SQL literal. Backslashes are plain characters under
/// `standard_conforming_strings`; E'' makes it independent of that setting.
pub fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_texts_cannot_leave_their_quotes() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("a'b\\"), "E'a''b\\\\'");
    }
}
