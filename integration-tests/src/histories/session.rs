//! One session's transactions against the server. What an error leaves behind is undone
//! to the last savepoint, or as a whole, as an application would do it.

use super::check::{Asker, Check, Compared, Consistency, Tally};
use super::crash::Outage;
use super::record::Record;
use super::script::{Step, Transaction};
use super::statement::Statement;
use super::verdict::{self, Kind, Verdict};
use crate::cluster::Cluster;
use crate::sql::Session;
use crate::verified::{Difference, Verified};
use anyhow::{Context, Result, anyhow};
use std::io::Write as _;
use std::time::{Duration, Instant};

const RECONNECTS_WITHIN: Duration = Duration::from_secs(60);
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const WAITS_S_MAX: u32 = 2;
/// `bounded` and `strong` searches wait while a consumer's lease runs out.
const SETTINGS: &str = "SET statement_timeout = '30s'; SET ruvector.search_timeout_ms = 15000";

pub fn play(
    cluster: &Cluster,
    number: usize,
    transactions: &[Transaction],
    record: &Record,
    outage: &Outage,
) -> Result<Tally> {
    let mut player = Player {
        cluster,
        name: format!("session {number}"),
        // Rows of the set-up bear 0.
        writer: (number as i32 + 1) * 1_000,
        client: None,
        alive_at: Instant::now(),
        record,
        outage,
        tally: Tally::default(),
        savepoints: Vec::new(),
        cursor: None,
        consistency: Consistency::Strong,
    };
    for transaction in transactions {
        let played = player.transaction(transaction);
        player.tally.transactions += 1;
        match played {
            Ok(()) | Err(Trouble::Aborted) => {}
            Err(Trouble::CutOff) => player.client = None,
            Err(Trouble::Wrong(problem)) => {
                let text = format!("{problem:#}");
                player.record.tell(&player.name, "WRONG", &text);
                return Err(problem.context(player.name));
            }
        }
    }
    Ok(player.tally)
}

enum Trouble {
    /// The statement failed, and with it its transaction or savepoint.
    Aborted,
    CutOff,
    Wrong(anyhow::Error),
}

struct OpenCursor {
    check: Check,
    asker: Asker,
    compared: Compared,
}

struct Player<'a> {
    cluster: &'a Cluster,
    name: String,
    /// Of this connection: each has a number of its own, for a token dies with it.
    writer: i32,
    client: Option<Session>,
    /// When the connection last answered: it may have been cut off between statements.
    alive_at: Instant,
    record: &'a Record,
    outage: &'a Outage,
    tally: Tally,
    /// Whether the cursor was open when each was set.
    savepoints: Vec<bool>,
    cursor: Option<OpenCursor>,
    consistency: Consistency,
}

impl Player<'_> {
    fn transaction(&mut self, transaction: &Transaction) -> Result<(), Trouble> {
        self.savepoints.clear();
        self.cursor = None;
        self.connect()?;
        self.consistency = transaction.consistency;
        let settings = format!(
            "{}; {}",
            transaction.settings,
            transaction.consistency.setting()
        );
        self.run(Kind::Change, &settings)?;
        let Some(begin) = transaction.begin else {
            for step in &transaction.steps {
                match self.step(step) {
                    // A string of statements may have opened a transaction.
                    Err(Trouble::Aborted) => self.run(Kind::Change, "ROLLBACK")?,
                    other => other?,
                }
            }
            return Ok(());
        };
        self.run(Kind::Change, begin)?;
        let body = self.body(transaction);
        if let Err(Trouble::Aborted) = body {
            self.cursor = None;
            return self.run(Kind::Change, "ROLLBACK");
        }
        body
    }

    fn body(&mut self, transaction: &Transaction) -> Result<(), Trouble> {
        for step in &transaction.steps {
            match self.step(step) {
                Err(Trouble::Aborted) => self.back_to_savepoint()?,
                other => other?,
            }
        }
        self.finish_cursor()?;
        self.run(
            Kind::Change,
            if transaction.commits {
                "COMMIT"
            } else {
                "ROLLBACK"
            },
        )
    }

    /// A new connection where the last one was cut off.
    fn connect(&mut self) -> Result<(), Trouble> {
        if self.client.is_some() {
            return Ok(());
        }
        self.writer += 1;
        let client = self
            .cluster
            .session_within(RECONNECTS_WITHIN)
            .map_err(Trouble::Wrong)?;
        self.client = Some(client);
        self.alive_at = Instant::now();
        let (writer, lock_ms) = (self.writer, LOCK_TIMEOUT.as_millis());
        let settings =
            format!("{SETTINGS}; SET lock_timeout = {lock_ms}; SET history.writer = {writer}");
        self.run(Kind::Change, &settings)
    }

    fn step(&mut self, step: &Step) -> Result<(), Trouble> {
        match step {
            Step::Change(Statement::Sql(sql)) => self.run(Kind::Change, sql),
            Step::Change(Statement::Copy { sql, lines }) => self.copy(sql, lines),
            Step::Define(sql) => self.run(Kind::Definition, sql),
            Step::Savepoint => {
                self.run(Kind::Change, "SAVEPOINT s")?;
                self.savepoints.push(self.cursor.is_some());
                Ok(())
            }
            Step::RollbackTo if self.savepoints.is_empty() => Ok(()),
            Step::RollbackTo => self.back_to_savepoint(),
            Step::Check(check) => self.check(check),
            Step::Open(check) => self.open(check),
            Step::Fetch(rows) => self.fetch(&rows.to_string()),
            Step::Compare(index) => self.compare(index),
            Step::Wait(index) => self.run(
                Kind::Wait,
                &format!("SELECT ruvector_wait_for_index('{index}', {WAITS_S_MAX}, false)"),
            ),
            Step::Pause { ms } => {
                std::thread::sleep(Duration::from_millis(*ms));
                Ok(())
            }
        }
    }

    /// To the last savepoint, if there is one.
    fn back_to_savepoint(&mut self) -> Result<(), Trouble> {
        let Some(had_cursor) = self.savepoints.pop() else {
            return Err(Trouble::Aborted);
        };
        if !had_cursor {
            self.cursor = None;
        }
        self.run(Kind::Change, "ROLLBACK TO s; RELEASE s")
    }

    fn run(&mut self, kind: Kind, sql: &str) -> Result<(), Trouble> {
        self.attempt(kind, sql, |client| client.batch_execute(sql))
    }

    fn copy(&mut self, sql: &str, lines: &str) -> Result<(), Trouble> {
        let mut has_begun = false;
        let copied = self.attempt(Kind::Change, sql, |client| {
            let mut copy = client.copy_in(sql)?;
            has_begun = true;
            // What fails here fails in `finish`, which knows why.
            let _ = copy.write_all(lines.as_bytes());
            copy.finish().map(drop)
        });
        match copied {
            // The client then takes the end of this statement for the next one's.
            Err(Trouble::Aborted) if !has_begun => Err(Trouble::CutOff),
            copied => copied,
        }
    }

    fn check(&mut self, check: &Check) -> Result<(), Trouble> {
        let asker = Asker::now(self.writer);
        let sql = check.sql();
        let rows = self.attempt(Kind::Check, &sql, |client| client.query(&sql, &[]))?;
        let mut compared = Compared::default();
        let judged = compared
            .take(&rows)
            .and_then(|()| compared.judge(check.limit, self.consistency, &asker));
        self.tally
            .add(&judged.context(sql).map_err(Trouble::Wrong)?);
        Ok(())
    }

    fn open(&mut self, check: &Check) -> Result<(), Trouble> {
        let asker = Asker::now(self.writer);
        self.run(
            Kind::Check,
            &format!("DECLARE held CURSOR FOR {}", check.sql()),
        )?;
        self.cursor = Some(OpenCursor {
            check: check.clone(),
            asker,
            compared: Compared::default(),
        });
        Ok(())
    }

    fn fetch(&mut self, rows: &str) -> Result<(), Trouble> {
        let Some(mut cursor) = self.cursor.take() else {
            return Ok(());
        };
        let sql = format!("FETCH {rows} FROM held");
        let rows = self.attempt(Kind::Check, &sql, |client| client.query(&sql, &[]))?;
        cursor.compared.take(&rows).map_err(Trouble::Wrong)?;
        self.cursor = Some(cursor);
        Ok(())
    }

    /// Reads the cursor to its end, however much has happened since it was opened.
    fn finish_cursor(&mut self) -> Result<(), Trouble> {
        self.fetch("ALL")?;
        let Some(OpenCursor {
            check,
            asker,
            compared,
        }) = self.cursor.take()
        else {
            return Ok(());
        };
        let judged = compared.judge(check.limit, self.consistency, &asker);
        let judged = judged.with_context(|| format!("a cursor for {}", check.sql()));
        self.tally.add(&judged.map_err(Trouble::Wrong)?);
        self.tally.cursors += 1;
        self.run(Kind::Change, "CLOSE held")
    }

    /// P2, P3: no replica that serves differs from the heap, at whatever moment.
    fn compare(&mut self, index: &str) -> Result<(), Trouble> {
        let sql = format!("ruvector_verify({index})");
        let replicas = self.attempt(Kind::Check, &sql, |client| Verified::all(client, index))?;
        let wrong = replicas.iter().filter(|one| one.serves_a_difference());
        let wrong: Vec<_> = wrong.collect();
        if wrong.is_empty() {
            let compared = replicas.iter().filter(|one| one.problem.is_none());
            self.tally.compared += compared.count();
            return Ok(());
        }
        let sql = format!("ruvector_verify_differences({index})");
        let named = self.attempt(Kind::Check, &sql, |client| Difference::all(client, index))?;
        let problem = anyhow!("replicas of {index} differ: {wrong:?}; these keys now: {named:?}");
        Err(Trouble::Wrong(problem))
    }

    fn attempt<T>(
        &mut self,
        kind: Kind,
        sql: &str,
        work: impl FnOnce(&mut postgres::Client) -> Result<T, postgres::Error>,
    ) -> Result<T, Trouble> {
        let began = Instant::now();
        let client = self
            .client
            .as_mut()
            .context("connected")
            .map_err(Trouble::Wrong)?;
        let error = match work(client) {
            Ok(done) => {
                self.record.tell(&self.name, sql, "done");
                self.tally.statements += 1;
                self.alive_at = Instant::now();
                return Ok(done);
            }
            Err(error) => error,
        };
        let verdict = verdict::of(&error, kind, began, self.alive_at, self.outage);
        let text = match error.as_db_error() {
            Some(error) => format!(
                "{}: {} ({})",
                error.code().code(),
                error.message(),
                error.detail().unwrap_or_default()
            ),
            None => format!("{error:?}"),
        };
        self.record
            .tell(&self.name, sql, &format!("{verdict:?}: {text}"));
        Err(match verdict {
            Verdict::Refused => {
                self.tally.refused += 1;
                Trouble::Aborted
            }
            Verdict::Excused => {
                self.tally.excused += 1;
                Trouble::Aborted
            }
            Verdict::CutOff => Trouble::CutOff,
            Verdict::Wrong => Trouble::Wrong(anyhow!("{text}, from {sql}")),
        })
    }
}
