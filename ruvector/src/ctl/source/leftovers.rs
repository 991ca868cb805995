//! What a source leaves in its Postgres once it is no longer followed. The slot
//! must go: it keeps every WAL segment from then on, until the disk is full.

use anyhow::Context;
use cluster_core::map::Source;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};
use wal_consumer::source::postgres::Postgres;
use wal_consumer::source::rights;
use wal_consumer::source::sql::{identifier, literal};

/// How long the consumer may take to let go of the slot.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_millis(200);
/// For all of it.
const TIMEOUT: Duration = Duration::from_secs(20);
const MAINTENANCE_DATABASE: &str = "postgres";

pub struct Leftovers {
    slot: String,
    publication: String,
}

impl Leftovers {
    pub fn of(source: &Source) -> Self {
        Self {
            slot: source.slot_name.clone(),
            publication: source.publication_name.clone(),
        }
    }

    /// The same by hand.
    pub fn sql(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.terminate(),
            self.drop_slot(),
            self.drop_publication()
        )
    }

    fn terminate(&self) -> String {
        format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = {} AND active_pid IS NOT NULL;",
            literal(&self.slot)
        )
    }

    fn drop_slot(&self) -> String {
        format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {};",
            literal(&self.slot)
        )
    }

    fn drop_publication(&self) -> String {
        format!(
            "DROP PUBLICATION IF EXISTS {};",
            identifier(&self.publication)
        )
    }

    pub async fn remove(&self, postgres: &Postgres) -> anyhow::Result<()> {
        let mut config = postgres.config()?;
        config
            .application_name("ruvector-ctl")
            .connect_timeout(RELEASE_TIMEOUT);
        let removing = async {
            let (client, connection) = match config.connect(NoTls).await {
                Err(error) if error.code() == Some(&SqlState::INVALID_CATALOG_NAME) => {
                    return self.look_from_outside(&config).await;
                }
                connected => connected.context("connecting to Postgres")?,
            };
            let connection = tokio::spawn(connection);
            let removed = self.remove_by(&client).await;
            drop(client);
            connection.abort();
            removed
        };
        timeout(TIMEOUT, removing)
            .await
            .context("Postgres did not answer in time")?
    }

    /// DROP DATABASE has taken everything along; a renamed database has kept it.
    async fn look_from_outside(&self, config: &Config) -> anyhow::Result<()> {
        let mut config = config.clone();
        config.dbname(MAINTENANCE_DATABASE);
        let (client, connection) = config
            .connect(NoTls)
            .await
            .context("the source's database is not there, nor is another to look from")?;
        let connection = tokio::spawn(connection);
        let find = "SELECT database::text FROM pg_replication_slots WHERE slot_name = $1";
        let found = client.query_opt(find, &[&self.slot]).await;
        drop(client);
        connection.abort();
        if let Some(slot) = found.context("looking for the slot")? {
            let database: String = slot.try_get(0)?;
            anyhow::bail!("the source's database is called {database} now");
        }
        Ok(())
    }

    async fn remove_by(&self, client: &Client) -> anyhow::Result<()> {
        let give_up_at = Instant::now() + RELEASE_TIMEOUT;
        let terminate = rights::end_walsender(client, &self.slot).await?;
        loop {
            // Whoever still follows may connect again once before it hears.
            client
                .batch_execute(&terminate)
                .await
                .context("ending the slot's walsender")?;
            let dropped = client.batch_execute(&self.drop_slot()).await;
            match dropped {
                Ok(()) => break,
                Err(_) if Instant::now() < give_up_at => sleep(RETRY_EVERY).await,
                Err(error) => return Err(error).context("dropping the slot"),
            }
        }
        let drop = rights::drop_publication(client, &self.publication).await?;
        client
            .batch_execute(&drop)
            .await
            .context("dropping the publication")?;
        self.await_backfills(client, give_up_at).await
    }

    /// Backfills copy under slots of their own, which end with the consumer's
    /// connections.
    async fn await_backfills(&self, client: &Client, give_up_at: Instant) -> anyhow::Result<()> {
        let find = "SELECT slot_name::text FROM pg_replication_slots \
                    WHERE temporary AND starts_with(slot_name, $1 || '_')";
        loop {
            let left = client.query(find, &[&self.slot]).await;
            let left = left.context("looking for slots of backfills")?;
            let Some(slot) = left.first() else {
                return Ok(());
            };
            let name: String = slot.try_get(0)?;
            if Instant::now() >= give_up_at {
                anyhow::bail!(
                    "slot {name} of a backfill is still in use: a consumer has not let go"
                );
            }
            sleep(RETRY_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sql_to_run_by_hand_names_slot_and_publication() {
        let leftovers = Leftovers {
            slot: "ruvector_c_1".to_owned(),
            publication: "ruvector".to_owned(),
        };
        let sql = leftovers.sql();
        assert!(sql.contains("pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = E'ruvector_c_1'"));
        assert!(sql.contains("DROP PUBLICATION IF EXISTS \"ruvector\""));
    }
}
