//! Random histories against a real Postgres and real processes, with crashes.
//!
//! In reading order: the tables ([`shape`]), what sessions do to them ([`script`],
//! from the words of [`statement`]), and when processes die, all drawn from one seed
//! before anything runs; who does it ([`session`], [`crash`]); what is asked in
//! between ([`check`]) and at the end ([`settle`]); which errors a user would have met
//! without us, or may meet while something is down ([`verdict`]), and who is in whose way
//! ([`blockers`]); and the file that tells what happened ([`record`]).
//!
//! The model is Postgres itself: each question to the index and the scan that it is
//! compared with are one statement, or one cursor, and so have one snapshot, at every
//! isolation level. Nothing here needs to know how a commit ended that a crash cut off.
//!
//! Caveat: the seed decides every statement and every crash, but not how the sessions
//! interleave, nor where in a statement a process dies. A seed that failed may pass the
//! next time; its record says in which order things were done.

mod blockers;
mod check;
mod crash;
mod record;
mod script;
mod session;
mod settle;
mod shape;
mod statement;
mod verdict;

use crate::{Cluster, Shape, Wire};
use anyhow::{Context, Result};
use crash::Outage;
use record::Record;
use script::Script;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use check::Tally;

/// Everything is there twice, so that one node may be missing.
const SHAPE: Shape = Shape {
    nodes: 2,
    coordinators: 1,
    replicas: 2,
};
/// A consumer that was killed is waited out for as long as its lease lasts.
const LEASES: &str = "leases.ttl_ms = 3000\nleases.renew_every_ms = 750";
/// The age of a row that a search missed is read from its commit.
const POSTGRES: &str = "track_commit_timestamp = on\ndeadlock_timeout = 200ms";
const POSTGRES_COMES_BACK_WITHIN: Duration = Duration::from_secs(60);

/// A cluster that plays one history after the other.
pub struct Stage {
    cluster: Cluster,
    wire: Wire,
    records: PathBuf,
}

/// A history that did not end as it must, and where it is told.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub record: PathBuf,
    pub problem: anyhow::Error,
}

impl Stage {
    pub fn open(name: &str) -> Result<Self> {
        let settings = [("COORDINATOR_SETTINGS", LEASES), ("PG_SETTINGS", POSTGRES)];
        let cluster = Cluster::start_with(name, SHAPE, &settings)?;
        let mut session = cluster.session()?;
        session.batch_execute(statement::FUNCTIONS)?;
        let records = cluster.run_dir().join("histories");
        std::fs::create_dir_all(&records)?;
        Ok(Self {
            wire: cluster.wire()?,
            cluster,
            records,
        })
    }

    /// Plays the history of a seed. The record of one that passed is removed.
    pub fn play(&self, seed: u64) -> std::result::Result<Tally, Failure> {
        let path = self.records.join(format!("seed-{seed}.txt"));
        let played = self.play_into(seed, &path);
        match played {
            Ok(tally) => {
                // It only takes room.
                let _ = std::fs::remove_file(&path);
                Ok(tally)
            }
            Err(problem) => Err(Failure {
                seed,
                record: path,
                problem,
            }),
        }
    }

    fn play_into(&self, seed: u64, path: &Path) -> Result<Tally> {
        let script = Script::of_seed(seed);
        let record = Record::create(path, &script)?;
        let outage = Outage::default();
        let mut setup = self.cluster.session_within(POSTGRES_COMES_BACK_WITHIN)?;
        for sql in &script.setup {
            setup.batch_execute(sql).with_context(|| sql.clone())?;
        }
        let mut tally = Tally::default();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let watching = scope.spawn(|| blockers::watch(&self.cluster, &is_over));
            let mut playing = Vec::new();
            for (number, transactions) in script.sessions.iter().enumerate() {
                let (record, outage) = (&record, &outage);
                playing.push(scope.spawn(move || {
                    session::play(&self.cluster, number, transactions, record, outage)
                }));
            }
            let crashes = crash::run(&self.cluster, &script.crashes, &record, &outage);
            let mut problem = None;
            for session in playing {
                match session.join().expect("a session does not panic") {
                    Ok(done) => tally.add(&done),
                    Err(error) => problem = problem.or(Some(error)),
                }
            }
            is_over.store(true, Ordering::SeqCst);
            let watched = watching.join().expect("the watch does not panic");
            problem.map_or(crashes, Err).and(watched)
        })?;
        tally.searches = settle::searches(&self.cluster)?;
        let settled = settle::check(&self.cluster, &self.wire, &script, &record);
        settled.context("once everything was quiet")?;
        tally.assert_found_enough()?;
        self.assert_nobody_panicked()?;
        let mut session = self.cluster.session()?;
        session.batch_execute(&script.cleanup)?;
        Ok(tally)
    }

    /// A process that nobody killed is still there, or has said why it is not.
    fn assert_nobody_panicked(&self) -> Result<()> {
        let found = self.cluster.shell(
            "grep -l -e 'panicked at' -e 'was terminated by signal 11' -e 'PANIC:' \
             \"$RUN_DIR\"/logs/*.log \"$RUN_DIR\"/cluster/postgres/log/postgres.log || true",
        )?;
        anyhow::ensure!(found.trim().is_empty(), "a process panicked: see {found}");
        Ok(())
    }

    /// Takes the cluster down; after a failure its folder stays, see [`Cluster::finish`].
    pub fn close(self) -> Result<()> {
        self.cluster.finish()
    }
}
