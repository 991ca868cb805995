//! Plain SQL connections to a source.

use super::postgres::Postgres;
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
pub async fn connect(server: &Postgres) -> anyhow::Result<Client> {
    Ok(begin(server).await?.0)
}

pub async fn open(server: &Postgres) -> anyhow::Result<Session> {
    let (client, connection) = begin(server).await?;
    Ok(Session { client, connection })
}

async fn begin(server: &Postgres) -> anyhow::Result<(Client, AbortHandle)> {
    let mut config = server.config()?;
    config
        .application_name("ruvector-consumer")
        .connect_timeout(CONNECT_TIMEOUT);
    let connecting = async {
        let (client, connection) = config
            .connect(NoTls)
            .await
            .map_err(|error| explain(server, &config, error))
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

/// The driver says only that a password is missing.
fn explain(server: &Postgres, config: &Config, error: tokio_postgres::Error) -> anyhow::Error {
    let is_missing = config.get_password().is_none() && error.code().is_none();
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    match cause.filter(|cause| is_missing && cause.contains("password missing")) {
        Some(_) => anyhow::Error::new(error).context(server.missing_password()),
        None => anyhow::Error::new(error),
    }
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
