//! pgbench on a table with a vector: followed and indexed; followed by a subscription of
//! Postgres without an index; and by nobody. They take turns, so that noise meets all.
//!
//! All have `wal_level = logical`: what that costs an UPDATE is not part of the ratio.
//! Once the primary and the cluster have cores of their own, as they have machines of
//! their own elsewhere, so that the ratio tells what following costs the primary; and once
//! they share all, where the graph's building takes part of pgbench's.

use super::{Scale, median, rows};
use anyhow::{Context, Result, ensure};
use integration_tests::Cluster;
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

const ROWS: i64 = 10_000;
const DIMENSIONS: usize = 128;
const CLIENTS: &str = "4";
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(120);
const OURS: [&str; 2] = ["node-1", "consumer-1"];

/// Who follows the table that pgbench writes to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Arm {
    /// The cluster, by an index.
    Followed,
    /// A subscription of another Postgres, without an index.
    Subscribed,
    Nobody,
}

const ARMS: [Arm; 3] = [Arm::Followed, Arm::Subscribed, Arm::Nobody];

impl Arm {
    fn table(self) -> &'static str {
        match self {
            Arm::Followed => "bench_followed",
            Arm::Subscribed => "bench_subscribed",
            Arm::Nobody => "bench_plain",
        }
    }
}

/// What the two servers are asked through.
struct Servers<'a> {
    cluster: &'a Cluster,
    source: Client,
    target: Client,
}

pub fn run(cluster: &Cluster, subscriber: &str, scale: Scale) -> Result<Value> {
    let mut servers = Servers {
        cluster,
        source: Client::connect(cluster.dsn(), NoTls)?,
        target: Client::connect(subscriber, NoTls)?,
    };
    let Servers { source, target, .. } = &mut servers;
    rows::create_indexed(source, Arm::Followed.table(), DIMENSIONS)?;
    rows::create(source, Arm::Subscribed.table(), DIMENSIONS)?;
    rows::create(source, Arm::Nobody.table(), DIMENSIONS)?;
    rows::create(target, Arm::Subscribed.table(), DIMENSIONS)?;
    target.batch_execute("ALTER TABLE bench_subscribed ADD hits int NOT NULL DEFAULT 0")?;
    for arm in ARMS {
        let table = arm.table();
        source.batch_execute(&format!(
            "ALTER TABLE {table} ADD hits int NOT NULL DEFAULT 0"
        ))?;
        source.batch_execute(&format!(
            "INSERT INTO {table} SELECT i, ARRAY(SELECT random() + i * 0 FROM generate_series(1, {DIMENSIONS}))::real[]::vector
             FROM generate_series(1, {ROWS}) i"
        ))?;
        source.batch_execute(&format!("VACUUM ANALYZE {table}"))?;
    }
    source.batch_execute("CREATE PUBLICATION path_bench FOR TABLE bench_subscribed")?;
    target.batch_execute(&format!(
        "CREATE SUBSCRIPTION path_bench CONNECTION '{}' PUBLICATION path_bench WITH (binary = true)",
        cluster.dsn()
    ))?;
    subscribed(source, target)?;
    let apart = measure(&mut servers, scale, &Cores::apart()?)?;
    let shared = measure(&mut servers, scale, &Cores::shared()?)?;
    let Servers { source, target, .. } = &mut servers;
    // Not in the block that several statements in one string are.
    target.batch_execute("DROP SUBSCRIPTION path_bench")?;
    target.batch_execute("DROP TABLE bench_subscribed")?;
    source.batch_execute("DROP PUBLICATION path_bench")?;
    for arm in ARMS {
        source.batch_execute(&format!("DROP TABLE {}", arm.table()))?;
    }
    Ok(json!({ "apart": apart, "shared": shared, "goal": 0.95 }))
}

fn measure(servers: &mut Servers, scale: Scale, cores: &Cores) -> Result<Value> {
    let mut found: BTreeMap<Arm, Vec<f64>> = BTreeMap::new();
    let seconds = scale.of(5, 10);
    for round in 0..3 {
        for turn in 0..ARMS.len() {
            let arm = ARMS[(round + turn) % ARMS.len()];
            prepare(servers, arm)?;
            cores.pin(servers)?;
            let tps = pgbench(servers.cluster, arm.table(), seconds, cores)?;
            found.entry(arm).or_default().push(tps);
        }
    }
    prepare(servers, Arm::Followed)?;
    let [with, subscribed, without] = ARMS.map(|arm| median(&found[&arm]));
    let (ratio, of_subscriber) = (with / without, subscribed / without);
    let name = cores.name;
    println!(
        "pgbench, {CLIENTS} clients, one UPDATE each, half of them of the vector, {name}: {with:.0} TPS followed, {subscribed:.0} with a subscription of Postgres instead, {without:.0} with neither: ratios {ratio:.3} (goal >= 0.95) and {of_subscriber:.3}"
    );
    Ok(json!({
        "followed_tps": with,
        "subscribed_tps": subscribed,
        "without_tps": without,
        "ratio": ratio,
        "subscriber_ratio": of_subscriber,
    }))
}

/// Only who follows this arm's table runs, and has what was written before.
fn prepare(servers: &mut Servers, arm: Arm) -> Result<()> {
    let Servers {
        cluster,
        source,
        target,
    } = servers;
    for process in OURS {
        match arm {
            Arm::Followed => cluster.restart(process)?,
            _ => cluster
                .make(&["stop", &format!("PROC={process}")])
                .map(drop)?,
        }
    }
    match arm {
        Arm::Followed => {
            target.batch_execute("ALTER SUBSCRIPTION path_bench DISABLE")?;
            caught_up(source)
        }
        Arm::Subscribed => {
            target.batch_execute("ALTER SUBSCRIPTION path_bench ENABLE")?;
            subscribed(source, target)
        }
        Arm::Nobody => Ok(target.batch_execute("ALTER SUBSCRIPTION path_bench DISABLE")?),
    }
}

/// What was written before is in the subscriber's table.
fn subscribed(source: &mut Client, target: &mut Client) -> Result<()> {
    let deadline = Instant::now() + CAUGHT_UP_WITHIN;
    let next = "UPDATE bench_subscribed SET hits = hits + 1 WHERE id = 1 RETURNING hits";
    let hits: i32 = source.query_one(next, &[])?.get(0);
    let look = "SELECT FROM bench_subscribed WHERE id = 1 AND hits >= $1";
    while target.query_opt(look, &[&hits])?.is_none() {
        ensure!(
            Instant::now() < deadline,
            "the subscription does not follow"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Where the server with pgbench runs, and where the cluster does, as `taskset` has it.
struct Cores {
    name: &'static str,
    primary: String,
    cluster: String,
}

impl Cores {
    /// As if each had a machine of its own.
    fn apart() -> Result<Self> {
        let all = std::thread::available_parallelism()?.get();
        ensure!(all >= 2, "one core cannot be shared out");
        let half = all / 2;
        Ok(Self {
            name: "each on its own half of the cores",
            primary: format!("0-{}", half - 1),
            cluster: format!("{half}-{}", all - 1),
        })
    }

    fn shared() -> Result<Self> {
        let all = format!("0-{}", std::thread::available_parallelism()?.get() - 1);
        Ok(Self {
            name: "on the same cores",
            primary: all.clone(),
            cluster: all,
        })
    }

    /// Children of the server that come later inherit it.
    fn pin(&self, servers: &mut Servers) -> Result<()> {
        let cluster = servers.cluster;
        for pid in cluster.postgres_pids()? {
            taskset(&self.primary, &pid)?;
        }
        let theirs =
            "SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'logical replication%'";
        for row in servers.target.query(theirs, &[])? {
            let pid: i32 = row.get(0);
            taskset(&self.cluster, &pid.to_string())?;
        }
        for process in OURS.iter().chain(&["coordinator-1"]) {
            // One that is stopped has no number.
            if let Ok(pid) = cluster.pid(process) {
                taskset(&self.cluster, &pid)?;
            }
        }
        Ok(())
    }
}

/// All threads of a process. One that has ended needs none.
fn taskset(cores: &str, pid: &str) -> Result<()> {
    let output = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", cores, pid])
        .output()
        .context("running taskset")?;
    let is_there = std::path::Path::new("/proc").join(pid).exists();
    ensure!(
        output.status.success() || !is_there,
        "taskset {cores} of {pid}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// What was written while nobody streamed has come through.
fn caught_up(source: &mut Client) -> Result<()> {
    source.batch_execute(
        "SET ruvector.on_unavailable = error; SET enable_seqscan = off; SET ruvector.read_consistency = strong;
         SET ruvector.search_timeout_ms = 120000",
    )?;
    let query = rows::literal(1, DIMENSIONS);
    let search = format!("SELECT id FROM bench_followed ORDER BY embedding <-> '{query}' LIMIT 1");
    source.query_one(&search, &[])?;
    Ok(())
}

fn pgbench(cluster: &Cluster, table: &str, seconds: u32, cores: &Cores) -> Result<f64> {
    let mut script = tempfile::NamedTempFile::new()?;
    writeln!(
        script,
        "\\set id random(1, {ROWS})\n\\set from random(1, {ROWS})\n\\if :id % 2 = 0\n\
         UPDATE {table} SET hits = hits + 1 WHERE id = :id;\n\\else\n\
         UPDATE {table} SET embedding = (SELECT embedding FROM {table} WHERE id = :from) WHERE id = :id;\n\\endif"
    )?;
    let pgbench = std::env::var("PGBENCH").unwrap_or_else(|_| "pgbench".to_owned());
    let output = Command::new("taskset")
        .args(["--cpu-list", &cores.primary, &pgbench])
        .args([
            "--no-vacuum",
            "--client",
            CLIENTS,
            "--jobs",
            "2",
            "--protocol",
            "prepared",
        ])
        .args(["--time", &seconds.to_string()])
        .arg("--file")
        .arg(script.path())
        .arg(cluster.dsn())
        .output()
        .with_context(|| format!("running {pgbench}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = "));
    let tps = tps.and_then(|rest| rest.split(' ').next());
    let tps = tps.with_context(|| {
        format!(
            "pgbench says no tps:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    Ok(tps.parse()?)
}
