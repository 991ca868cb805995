//! Steady searches and inserts beside a fault: what fails, falls back or is wrong
//! is counted, and the load goes on.

use crate::cluster::Cluster;
use crate::items::{Items, clustered_vector, literal};
use crate::sql::Session;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Leaves the machine some time for the processes under test.
const READ_PAUSE: Duration = Duration::from_millis(5);
const WRITE_PAUSE: Duration = Duration::from_millis(20);
const PROBES: i64 = 20;
/// Queries are vectors that no row has.
const PROBES_FROM: i64 = 50_000_000;
const LIMIT: usize = 10;
const MISSED_MAX: usize = 1;
/// Twice the default: misses shall be the fault's, not the graph's.
const EF_SEARCH: u32 = 200;
/// How late a row may be found while the consumer is dead or stopped, and succeeded.
const SUCCEEDED_WITHIN: Duration = Duration::from_secs(45);
/// Ids that the load inserts; rows below were there before it.
const INSERTS_FROM: i64 = 2_000_000;
/// Problems that are kept; one tells most of it.
const PROBLEMS_MAX: usize = 10;

pub struct Load {
    tally: Arc<Tally>,
    workers: Vec<JoinHandle<Result<()>>>,
}

/// What a load did, none of it wrong.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub searches: u64,
    pub inserts: u64,
}

struct Tally {
    started: Instant,
    stop: AtomicBool,
    searches: AtomicU64,
    inserts: AtomicU64,
    failures: AtomicU64,
    problems: Mutex<Vec<String>>,
}

/// A query and its answer among the rows that were there before the load.
type Probe = (String, Vec<i64>);

impl Load {
    /// `readers` sessions that search, and one that inserts rows and finds each
    /// of them again at once. None of them falls back.
    pub fn start(cluster: &Cluster, items: &Items, readers: usize) -> Result<Self> {
        let load = Self::of_searches(cluster, items, readers)?;
        load.and(cluster, items, insert)
    }

    /// The same where the consumer dies and sleeps: a row that it must bring first is
    /// waited for. Searches that need none have their usual time.
    pub fn start_without_a_steady_consumer(
        cluster: &Cluster,
        items: &Items,
        readers: usize,
    ) -> Result<Self> {
        let load = Self::of_searches(cluster, items, readers)?;
        let timeout_ms = SUCCEEDED_WITHIN.as_millis();
        load.and(cluster, items, move |session, items, tally| {
            session.batch_execute(&format!("SET ruvector.search_timeout_ms = {timeout_ms}"))?;
            insert(session, items, tally)
        })
    }

    /// Searches only.
    pub fn of_searches(cluster: &Cluster, items: &Items, readers: usize) -> Result<Self> {
        let mut session = cluster.session()?;
        let probes: Vec<Probe> = (0..PROBES)
            .map(|i| {
                let sql = items.nearest(PROBES_FROM + i, LIMIT);
                let want = session.exact_ids(&sql)?;
                Ok((sql, want))
            })
            .collect::<Result<_>>()?;
        let probes = Arc::new(probes);
        let tally = Arc::new(Tally {
            started: Instant::now(),
            stop: AtomicBool::new(false),
            searches: AtomicU64::new(0),
            inserts: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            problems: Mutex::default(),
        });
        let mut load = Self {
            tally,
            workers: Vec::new(),
        };
        for _ in 0..readers {
            let probes = probes.clone();
            load = load.and(cluster, items, move |session, items, tally| {
                read(session, items, tally, &probes)
            })?;
        }
        Ok(load)
    }

    fn and(
        mut self,
        cluster: &Cluster,
        items: &Items,
        work: impl FnOnce(&mut Session, &Items, &Tally) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let mut session = cluster.session()?;
        session.batch_execute(&format!("SET ruvector.ef_search = {EF_SEARCH}"))?;
        let (items, tally) = (items.clone(), self.tally.clone());
        self.workers.push(std::thread::spawn(move || {
            work(&mut session, &items, &tally)?;
            tally.check_fallback(&mut session, &items)
        }));
        Ok(self)
    }

    /// Waits until so many more searches have been answered.
    pub fn go_on(&self, searches: u64) -> Result<()> {
        let target = self.tally.searches.load(Ordering::Relaxed) + searches;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.tally.searches.load(Ordering::Relaxed) < target {
            self.tally.check()?;
            ensure!(Instant::now() < deadline, "searches do not go on");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends the load. An error if anything failed, fell back or was wrong.
    pub fn finish(mut self) -> Result<Done> {
        self.tally.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join().expect("a worker of the load panicked")?;
        }
        self.tally.check()?;
        let done = Done {
            searches: self.tally.searches.load(Ordering::Relaxed),
            inserts: self.tally.inserts.load(Ordering::Relaxed),
        };
        ensure!(done.searches > 0, "nothing was searched");
        Ok(done)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.tally.stop.store(true, Ordering::Relaxed);
    }
}

impl Tally {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn problem(&self, what: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut problems = self.problems.lock().expect("no panic while held");
        if problems.len() < PROBLEMS_MAX {
            problems.push(format!("after {:.1?}: {what}", self.started.elapsed()));
        }
    }

    fn check(&self) -> Result<()> {
        let failures = self.failures.load(Ordering::Relaxed);
        if failures == 0 {
            return Ok(());
        }
        let problems = self.problems.lock().expect("no panic while held");
        bail!("{failures} failures:\n  {}", problems.join("\n  "))
    }

    /// A scan that had another reason than an outage to be exact says nothing;
    /// its session remembers.
    fn check_fallback(&self, session: &mut Session, items: &Items) -> Result<()> {
        let sql = format!(
            "SELECT coalesce(last_fallback_reason, '') FROM ruvector_index_status('{}')",
            items.index()
        );
        let reason = session.value(&sql)?;
        if !reason.is_empty() {
            self.problem(format!("fell back: {reason}"));
        }
        Ok(())
    }
}

fn read(session: &mut Session, items: &Items, tally: &Tally, probes: &[Probe]) -> Result<()> {
    for (sql, want) in probes.iter().cycle() {
        if tally.is_over() {
            break;
        }
        match session.ids(sql) {
            Ok(got) if is_right(&got, want) => {}
            Ok(got) => tally.problem(format!("{}: got {got:?}, want {want:?}", items.name)),
            Err(error) => tally.problem(format!("search: {error:#}")),
        }
        tally.searches.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(READ_PAUSE);
    }
    Ok(())
}

/// Rows that the load inserts only push others out. One neighbour may be missed, as
/// in every approximate index; an answer that leaves a partition out misses
/// more, sooner or later.
fn is_right(got: &[i64], want: &[i64]) -> bool {
    let old = got.iter().filter(|id| **id < INSERTS_FROM);
    let missed = old.filter(|id| !want.contains(id)).count();
    let distinct: BTreeSet<_> = got.iter().collect();
    got.len() == LIMIT && distinct.len() == LIMIT && missed <= MISSED_MAX
}

fn insert(session: &mut Session, items: &Items, tally: &Tally) -> Result<()> {
    for id in INSERTS_FROM.. {
        if tally.is_over() {
            break;
        }
        let vector = literal(&clustered_vector(id, items.dimensions));
        let table = &items.name;
        session
            .execute(
                &format!("INSERT INTO {table} VALUES ({id}, 0, '{vector}')"),
                &[],
            )
            .with_context(|| format!("insert {id}"))?;
        tally.inserts.fetch_add(1, Ordering::Relaxed);
        let sql = format!("SELECT id FROM {table} ORDER BY embedding <-> '{vector}' LIMIT 1");
        match session.ids(&sql) {
            Ok(got) if got == [id] => {}
            Ok(got) => tally.problem(format!("the row {id} is not found: {got:?}")),
            Err(error) => tally.problem(format!("search of the row {id}: {error:#}")),
        }
        std::thread::sleep(WRITE_PAUSE);
    }
    Ok(())
}
