//! A source that floods the log, and then the nodes with searches, beside a modest one on
//! another server: the limits per source hold, and the modest one hardly notices.
#![allow(clippy::unwrap_used)]

use anyhow::{Context, Result, ensure};
use integration_tests::{
    Answer, Cluster, DirectSearch, Items, Server, Session, Shape, Wire, clustered_vector,
};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const STREAM_BYTES_PER_SECOND: u64 = 1 << 20;
const QUEUES_BYTES: u64 = 2 << 20;
const BATCH_BYTES: u64 = 128 << 10;
const WAITING_PER_SOURCE: usize = 24;
const MODEST_DIMENSIONS: usize = 8;
const GREEDY_DIMENSIONS: usize = 600;
/// Each flood adds so many rows.
const FLOOD_ROWS: u64 = 49 * 48;
/// Less than the stream carries: the vectors' numbers alone.
const FLOOD_BYTES: u64 = FLOOD_ROWS * GREEDY_DIMENSIONS as u64 * 4;
/// Shorter than what a consumer takes for a lost connection.
const STOPPED: Duration = Duration::from_secs(4);
/// Clients of the greedy source that search all the time: twice as many as may wait.
const GREEDY_CLIENTS: usize = 2 * WAITING_PER_SOURCE;
/// A search of the greedy source costs more than its way there and back.
const GREEDY_EF_SEARCH: u32 = 2_000;

/// A database with a table of its own, on a server of its own.
struct Source {
    session: Session,
    items: Items,
    next_id: i64,
}

impl Source {
    fn new(mut session: Session, dimensions: usize) -> Result<Self> {
        session.batch_execute("SET ruvector.search_timeout_ms = 50000")?;
        let items = Items::indexed(&mut session, "items", 100, dimensions)?;
        Ok(Self {
            session,
            items,
            next_id: 1_000,
        })
    }

    /// How long until a row that is written now is found.
    fn freshness(&mut self) -> Result<Duration> {
        let id = self.next_id;
        self.next_id += 1;
        let began = Instant::now();
        self.items.insert(&mut self.session, id..id + 1)?;
        let found = self.session.ids(&self.items.nearest(id, 1))?;
        ensure!(found == [id], "{found:?} instead of {id}");
        Ok(began.elapsed())
    }

    /// Commits a lot, in so many transactions, without waiting until it is found.
    fn flood(&mut self, transactions: i64) -> Result<()> {
        let first = self.next_id;
        self.next_id += 50 * 50;
        let mut rows = 0;
        for n in 0..transactions {
            let sql = format!(
                "INSERT INTO items SELECT {first} + a.id * 50 + b.id, 0, a.embedding - b.embedding
                   FROM items a, items b
                  WHERE a.id < 50 AND b.id < 50 AND a.id <> b.id AND a.id % {transactions} = {n}"
            );
            rows += self.session.execute(&sql, &[])?;
        }
        ensure!(rows == FLOOD_ROWS, "{rows} rows");
        Ok(())
    }
}

fn slowest(times: impl IntoIterator<Item = Result<Duration>>) -> Result<Duration> {
    times
        .into_iter()
        .try_fold(Duration::ZERO, |most, time| Ok(most.max(time?)))
}

/// What a modest source may take beside a greedy one, by what it takes alone: far more than
/// it should, on a machine that others use, and far less than a flood lasts.
fn bound(alone: Duration) -> Duration {
    Duration::from_secs(2) + 10 * alone
}

#[test]
fn p8_p10_a_greedy_source_waits_for_itself_and_a_modest_one_goes_on() -> Result<()> {
    let consumer = format!(
        "stream_bytes_per_second_max = {STREAM_BYTES_PER_SECOND}\nqueues_bytes_max = {QUEUES_BYTES}\n\
         batch_bytes_max = {BATCH_BYTES}"
    );
    let node = format!("search.threads = 1\nsearch.queue_per_source_max = {WAITING_PER_SOURCE}");
    let settings = [
        ("CONSUMER_SETTINGS", consumer.as_str()),
        ("NODE_SETTINGS", node.as_str()),
        ("COORDINATOR_SETTINGS", "partitions_per_collection_max = 1"),
    ];
    let cluster = Cluster::start_with("greedy", Shape::ONE, &settings)?;
    let server = Server::start(&cluster, "postgres-2")?;
    let mut modest = Source::new(cluster.session()?, MODEST_DIMENSIONS)?;
    let mut session = server.session("postgres")?;
    session.batch_execute("CREATE EXTENSION ruvector")?;
    let dsn = server.dsn_of("postgres")?;
    cluster.ctl(&format!("source add {dsn} --name greedy"))?;
    let mut greedy = Source::new(session, GREEDY_DIMENSIONS)?;
    let alone = slowest((0..10).map(|_| modest.freshness()))?;
    println!("alone, the modest source finds a row after {alone:?}");

    a_flood_of_writes_comes_at_its_pace(&mut greedy, &mut modest, alone)?;
    what_waits_for_a_node_is_bounded(&cluster, &mut greedy, &mut modest)?;
    searches_take_turns(&cluster, &mut modest, alone)?;
    drop(server);
    cluster.finish()
}

fn a_flood_of_writes_comes_at_its_pace(
    greedy: &mut Source,
    modest: &mut Source,
    alone: Duration,
) -> Result<()> {
    greedy.flood(1)?;
    let began = Instant::now();
    let (flood, times) = std::thread::scope(|scope| -> Result<_> {
        let flooding = scope.spawn(|| -> Result<Duration> {
            greedy.freshness()?;
            Ok(began.elapsed())
        });
        let mut times = Vec::new();
        while !flooding.is_finished() {
            times.push(modest.freshness()?);
        }
        let flood = flooding.join().expect("the flood panicked")?;
        Ok((flood, times))
    })?;
    let least = Duration::from_secs_f64(FLOOD_BYTES as f64 / STREAM_BYTES_PER_SECOND as f64);
    let worst = times.iter().max().copied().unwrap_or_default();
    println!(
        "{FLOOD_BYTES} bytes took {flood:?}; meanwhile {} rows of the other source, after {worst:?} at most",
        times.len()
    );
    ensure!(
        flood >= least.mul_f64(0.9),
        "{FLOOD_BYTES} bytes came in {flood:?}, not in {least:?}"
    );
    ensure!(
        flood < 3 * least + Duration::from_secs(10),
        "the limit is no stop: {flood:?} instead of {least:?}"
    );
    ensure!(times.len() >= 5, "{} rows are no test", times.len());
    ensure!(
        worst < bound(alone),
        "a modest source's row was found after {worst:?}, alone after {alone:?}"
    );
    Ok(())
}

/// With the node stopped, both sources write more than may be queued.
fn what_waits_for_a_node_is_bounded(
    cluster: &Cluster,
    greedy: &mut Source,
    modest: &mut Source,
) -> Result<()> {
    let queued = || -> Result<u64> {
        let required = cluster.metric("consumer-1", "ruvector_consumer_queued_bytes")?;
        let learners = "ruvector_consumer_queued_for_learners_bytes";
        Ok((required + cluster.metric("consumer-1", learners)?) as u64)
    };
    cluster.signal("node-1", "STOP")?;
    let until = Instant::now() + STOPPED;
    greedy.flood(49)?;
    for first in (100_000..110_000).step_by(500) {
        modest.session.batch_execute(&format!(
            "INSERT INTO items SELECT n, 0, ARRAY[n, n % 7, n % 11, 1, 1, 1, 1, 1]::real[]::vector
               FROM generate_series({first}, {first} + 499) n"
        ))?;
    }
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(queued()?);
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.signal("node-1", "CONT")?;
    println!("at most {most} bytes were queued, of {QUEUES_BYTES}");
    // A batch of each source goes over.
    ensure!(
        most <= QUEUES_BYTES + 2 * BATCH_BYTES,
        "{most} bytes were queued, {QUEUES_BYTES} may be"
    );
    // Each source has half of it, and two thirds of that are for replicas that serve.
    ensure!(
        most > QUEUES_BYTES / 4,
        "{most} bytes were queued: that is no test"
    );
    // Nothing was lost over it.
    for source in [greedy, modest] {
        source.freshness()?;
        source.items.assert_every_row_once(&mut source.session)?;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    // "Nothing else" is always on its way to some node.
    while queued()? > BATCH_BYTES {
        ensure!(Instant::now() < deadline, "{} stay queued", queued()?);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The searches of one source that were answered, and those that were refused.
#[derive(Default)]
struct Asked {
    times: Mutex<Vec<Duration>>,
    throttled: AtomicU64,
}

impl Asked {
    fn ask(&self, wire: &Wire, search: &DirectSearch, ef_search: u32) -> Result<()> {
        let node = *search.map().nodes.keys().next().context("no node")?;
        let address = search.map().nodes[&node].address.clone();
        let mut request = search.of_node(node, None)?;
        request.ef_search = ef_search;
        let began = Instant::now();
        match wire.search(&address, request)? {
            Answer::Rows(_) => self.times.lock().unwrap().push(began.elapsed()),
            Answer::Other(refusal) if refusal.contains("of this source wait") => {
                self.throttled.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            other => anyhow::bail!("{other:?}"),
        }
        Ok(())
    }

    fn median(&self) -> Result<Duration> {
        let mut times = self.times.lock().unwrap();
        times.sort_unstable();
        let middle = times.get(times.len() / 2);
        middle.copied().context("nothing was answered")
    }
}

/// The node has one thread. Were it first come, first served, the modest source would wait
/// as long as the greedy one does.
fn searches_take_turns(cluster: &Cluster, modest: &mut Source, alone: Duration) -> Result<()> {
    let wire = cluster.wire()?;
    let map = wire.map()?;
    let collection = |is_greedy: bool| {
        let mut all = map.collections.values();
        let found = all.find(|c| (map.sources[&c.spec.source].name == "greedy") == is_greedy);
        found.map(|c| (c.id, c.spec.source))
    };
    let search = |is_greedy: bool, dimensions: usize| -> Result<DirectSearch> {
        let (id, source) = collection(is_greedy).context("a collection")?;
        let query = clustered_vector(7, dimensions);
        Ok(DirectSearch::of_collection(map.clone(), id, source, query))
    };
    let (of_greedy, of_modest) = (
        search(true, GREEDY_DIMENSIONS)?,
        search(false, MODEST_DIMENSIONS)?,
    );
    let (greedy, patient) = (Asked::default(), Asked::default());
    let is_over = AtomicBool::new(false);
    let rows = std::thread::scope(|scope| -> Result<Duration> {
        let flood = || -> Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                greedy.ask(&wire, &of_greedy, GREEDY_EF_SEARCH)?;
            }
            Ok(())
        };
        let flooding: Vec<_> = (0..GREEDY_CLIENTS).map(|_| scope.spawn(flood)).collect();
        std::thread::sleep(Duration::from_millis(500));
        let asked = (0..40).try_for_each(|_| patient.ask(&wire, &of_modest, 100));
        // And by SQL, writes included.
        let rows = slowest((0..10).map(|_| modest.freshness()));
        is_over.store(true, Ordering::Relaxed);
        for client in flooding {
            client.join().expect("a client panicked")?;
        }
        asked?;
        rows
    })?;
    let throttled = greedy.throttled.load(Ordering::Relaxed);
    let (slow, quick) = (greedy.median()?, patient.median()?);
    println!(
        "the greedy source waits {slow:?} for a search, and {throttled} are refused; the modest one waits {quick:?}, \
         and finds a row after {rows:?}"
    );
    ensure!(throttled > 0, "{GREEDY_CLIENTS} clients wait at once");
    ensure!(
        patient.throttled.load(Ordering::Relaxed) == 0,
        "the queue of one source is not another's"
    );
    ensure!(
        4 * quick < slow,
        "a modest source's search waits {quick:?}, those of a greedy one {slow:?}"
    );
    ensure!(
        rows < bound(alone),
        "a modest source's row was found after {rows:?}, alone after {alone:?}"
    );
    Ok(())
}
