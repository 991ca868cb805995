//! A session that reads through the index or fails, and what EXPLAIN says.

use anyhow::{Context, Result, ensure};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

pub struct Session {
    client: Client,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Session {
    /// Opens a session for which an answer that did not come from the cluster is
    /// an error: fallback off, sequential scans the planner's last resort.
    pub fn open(dsn: &str) -> Result<Self> {
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let received = Arc::clone(&warnings);
        let mut config: Config = dsn.parse()?;
        config.notice_callback(move |notice| {
            if let Ok(mut warnings) = received.lock() {
                warnings.push(notice.message().to_owned());
            }
        });
        let mut client = config.connect(NoTls)?;
        client.batch_execute(
            "SET ruvector.on_unavailable = error; SET enable_seqscan = off; SET jit = off;
             SET statement_timeout = '60s'",
        )?;
        Ok(Self { client, warnings })
    }

    /// Warnings and notices since the last call.
    pub fn warnings(&mut self) -> Vec<String> {
        self.warnings
            .lock()
            .map(|mut all| std::mem::take(&mut *all))
            .unwrap_or_default()
    }

    /// Rows of a query that returns one bigint column.
    pub fn ids(&mut self, sql: &str) -> Result<Vec<i64>> {
        let rows = self
            .client
            .query(sql, &[])
            .with_context(|| sql.chars().take(200).collect::<String>())?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The same query answered without the index.
    pub fn exact_ids(&mut self, sql: &str) -> Result<Vec<i64>> {
        self.client
            .batch_execute("SET enable_seqscan = on; SET enable_indexscan = off")?;
        let ids = self.ids(sql);
        self.client
            .batch_execute("SET enable_seqscan = off; SET enable_indexscan = on")?;
        ids
    }

    /// One value as text.
    pub fn value(&mut self, sql: &str) -> Result<String> {
        let messages = self
            .client
            .simple_query(sql)
            .with_context(|| sql.to_owned())?;
        messages
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_owned()),
                _ => None,
            })
            .with_context(|| format!("no row from {sql}"))
    }

    /// The SQLSTATE with which a statement fails, if it does.
    pub fn client_error(&mut self, sql: &str) -> Option<String> {
        let error = self.client.batch_execute(sql).err()?;
        error.code().map(|state| state.code().to_owned())
    }

    /// SQLSTATE, message and detail of the error that a statement fails with.
    pub fn failure(&mut self, sql: &str) -> Result<(String, String)> {
        let outcome = self.client.batch_execute(sql);
        let error = outcome
            .err()
            .with_context(|| format!("{sql} did not fail"))?;
        let error = error.as_db_error().context("not an error of the server")?;
        let detail = error.detail().unwrap_or_default();
        Ok((
            error.code().code().to_owned(),
            format!("{}: {detail}", error.message()),
        ))
    }

    /// Runs EXPLAIN (ANALYZE) and asserts that the cluster answered.
    pub fn explain(&mut self, sql: &str) -> Result<Explained> {
        let lines = self
            .client
            .query(&format!("EXPLAIN (ANALYZE, COSTS OFF) {sql}"), &[])?;
        let text: Vec<String> = lines.iter().map(|row| row.get(0)).collect();
        Ok(Explained {
            text: text.join("\n"),
        })
    }

    /// Waits until the index is ready; with `folded`, until its tail is empty.
    pub fn wait_for(&mut self, index: &str, folded: bool) -> Result<()> {
        let sql = format!("SELECT ruvector_wait_for_index('{index}', 50, {folded})");
        self.client.batch_execute(&sql).with_context(|| sql)
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// The text of an EXPLAIN (ANALYZE).
pub struct Explained {
    pub text: String,
}

impl Explained {
    /// The value of one of our properties.
    pub fn property(&self, name: &str) -> Result<&str> {
        self.text
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("EXPLAIN has no {name:?}:\n{}", self.text))
    }

    /// A number of the line that sums up our scans.
    pub fn count(&self, name: &str) -> Result<u64> {
        let line = self.property("RuVector")?;
        let value = line
            .split(' ')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value
            .with_context(|| format!("no {name} in {line:?}"))?
            .parse()
            .context("a number")
    }

    pub fn assert_answered_by_the_cluster(&self) -> Result<()> {
        ensure!(
            self.text.contains("Index Scan using"),
            "no index scan:\n{}",
            self.text
        );
        ensure!(
            self.property("Fallback")? == "none",
            "fell back:\n{}",
            self.text
        );
        Ok(())
    }
}
