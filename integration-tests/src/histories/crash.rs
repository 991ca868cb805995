//! Who dies when, and for how long; and what that excuses.

use super::record::Record;
use crate::cluster::Cluster;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long after the last restart an error may still stem from it: leases run out,
/// another consumer takes over, replicas catch up.
const RECOVERS_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    pub at_ms: u64,
    pub process: &'static str,
    pub down_ms: u64,
}

#[derive(Default)]
pub struct Outage {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    down: BTreeSet<&'static str>,
    any_ended: Option<Instant>,
    postgres_ended: Option<Instant>,
}

impl Outage {
    /// Whether something was down, or had been not long before.
    pub fn excuses_since(&self, began: Instant) -> bool {
        let state = self.state.lock().expect("no panic while held");
        !state.down.is_empty()
            || state
                .any_ended
                .is_some_and(|at| at + RECOVERS_WITHIN >= began)
    }

    /// Whether Postgres has ended sessions since.
    pub fn cuts_off_since(&self, began: Instant) -> bool {
        let state = self.state.lock().expect("no panic while held");
        let ended = state.postgres_ended;
        state.down.contains("postgres") || ended.is_some_and(|at| at >= began)
    }

    fn begin(&self, process: &'static str) {
        self.state
            .lock()
            .expect("no panic while held")
            .down
            .insert(process);
    }

    fn end(&self, process: &'static str) {
        let mut state = self.state.lock().expect("no panic while held");
        state.down.remove(process);
        state.any_ended = Some(Instant::now());
        if process == "postgres" {
            state.postgres_ended = Some(Instant::now());
        }
    }
}

/// Kills and starts again, each process for itself: several may be down at once.
/// However it ends, all of them run.
pub fn run(cluster: &Cluster, crashes: &[Crash], record: &Record, outage: &Outage) -> Result<()> {
    let began = Instant::now();
    let processes: BTreeSet<_> = crashes.iter().map(|crash| crash.process).collect();
    std::thread::scope(|scope| {
        let of_process = |process| {
            let mut own = crashes.iter().filter(move |crash| crash.process == process);
            scope
                .spawn(move || own.try_for_each(|crash| one(cluster, crash, began, record, outage)))
        };
        let running: Vec<_> = processes.into_iter().map(of_process).collect();
        let mut ended = running.into_iter();
        ended.try_for_each(|thread| thread.join().expect("a crash does not panic"))
    })
}

fn one(
    cluster: &Cluster,
    crash: &Crash,
    began: Instant,
    record: &Record,
    outage: &Outage,
) -> Result<()> {
    let process = crash.process;
    let due = began + Duration::from_millis(crash.at_ms);
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
    outage.begin(process);
    record.tell("crash", process, "is killed");
    let killed = match process {
        "postgres" => cluster.stop_postgres_immediately(),
        process => cluster.kill(process),
    };
    std::thread::sleep(Duration::from_millis(crash.down_ms));
    let started = cluster.restart(process);
    outage.end(process);
    record.tell("crash", process, "runs again");
    killed
        .and(started)
        .with_context(|| format!("restarting {process}"))
}
