//! pgbench on a table with a vector: followed and indexed (A), and with neither index nor
//! running consumer and node (B). The two take turns, so that noise meets both.
//!
//! Both have `wal_level = logical`: what that costs an UPDATE is not part of the ratio.
//! Once the primary and the cluster have cores of their own, as they have machines of
//! their own elsewhere, so that the ratio tells what following costs the primary; and once
//! they share all, where the graph's building takes part of pgbench's.

use super::{Scale, median, rows};
use anyhow::{Context, Result, ensure};
use integration_tests::Cluster;
use postgres::{Client, NoTls};
use serde_json::{Value, json};
use std::io::Write;
use std::process::Command;

const ROWS: i64 = 10_000;
const DIMENSIONS: usize = 128;
const CLIENTS: &str = "4";
const OURS: [&str; 2] = ["node-1", "consumer-1"];

pub fn run(cluster: &Cluster, scale: Scale) -> Result<Value> {
    let mut source = Client::connect(cluster.dsn(), NoTls)?;
    rows::create_indexed(&mut source, "bench_followed", DIMENSIONS)?;
    rows::create(&mut source, "bench_plain", DIMENSIONS)?;
    for table in ["bench_followed", "bench_plain"] {
        source.batch_execute(&format!(
            "ALTER TABLE {table} ADD hits int NOT NULL DEFAULT 0"
        ))?;
        source.batch_execute(&format!(
            "INSERT INTO {table} SELECT i, ARRAY(SELECT random() + i * 0 FROM generate_series(1, {DIMENSIONS}))::real[]::vector
             FROM generate_series(1, {ROWS}) i"
        ))?;
        source.batch_execute(&format!("VACUUM ANALYZE {table}"))?;
    }
    let apart = Cores::apart()?;
    let apart = measure(cluster, &mut source, scale, &apart)?;
    let shared = Cores::shared()?;
    let shared = measure(cluster, &mut source, scale, &shared)?;
    source.batch_execute("DROP TABLE bench_followed; DROP TABLE bench_plain")?;
    Ok(json!({ "apart": apart, "shared": shared, "goal": 0.95 }))
}

fn measure(cluster: &Cluster, source: &mut Client, scale: Scale, cores: &Cores) -> Result<Value> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let seconds = scale.of(5, 15);
    for round in 0..3 {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                for process in OURS {
                    cluster.restart(process)?;
                }
                caught_up(source)?;
                cores.pin(cluster)?;
                with.push(pgbench(cluster, "bench_followed", seconds, cores)?);
            } else {
                for process in OURS {
                    cluster.make(&["stop", &format!("PROC={process}")])?;
                }
                cores.pin(cluster)?;
                without.push(pgbench(cluster, "bench_plain", seconds, cores)?);
            }
        }
    }
    for process in OURS {
        cluster.restart(process)?;
    }
    let (with, without) = (median(&with), median(&without));
    let ratio = with / without;
    let name = cores.name;
    println!(
        "pgbench, {CLIENTS} clients, one UPDATE each, half of them of the vector, {name}: {with:.0} TPS followed, {without:.0} without us, ratio {ratio:.3} (goal >= 0.95)"
    );
    Ok(json!({
        "followed_tps": with,
        "without_tps": without,
        "ratio": ratio,
    }))
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
    fn pin(&self, cluster: &Cluster) -> Result<()> {
        for pid in cluster.postgres_pids()? {
            taskset(&self.primary, &pid)?;
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
