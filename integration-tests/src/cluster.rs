//! A cluster of real processes, through `make up`, `make start`, `make down`.

use crate::sql::Session;
use crate::wire::Wire;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How many processes of each role.
#[derive(Clone, Copy)]
pub struct Shape {
    pub nodes: u32,
    pub coordinators: u32,
    pub replicas: u32,
}

impl Shape {
    pub const ONE: Shape = Shape {
        nodes: 1,
        coordinators: 1,
        replicas: 1,
    };
    pub const THREE: Shape = Shape {
        nodes: 3,
        coordinators: 3,
        replicas: 2,
    };
}

pub struct Cluster {
    run_dir: PathBuf,
    dsn: String,
    /// Somebody else took it up, and takes it down.
    is_shared: bool,
    /// Variables for every script that is run for this cluster.
    settings: Vec<(String, String)>,
}

impl Cluster {
    /// Starts everything in a fresh run folder named after the test.
    pub fn start(name: &str, shape: Shape) -> Result<Self> {
        Self::start_with(name, shape, &[])
    }

    /// The same, with variables that the scripts read when they write settings:
    /// PG_SETTINGS of scripts/postgres.sh, COORDINATOR_SETTINGS and the like of
    /// scripts/cluster.sh.
    pub fn start_with(name: &str, shape: Shape, settings: &[(&str, &str)]) -> Result<Self> {
        let mut cluster = Self::in_fresh_folder(name);
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        cluster.settings = settings.iter().map(owned).collect();
        let Shape {
            nodes,
            coordinators,
            replicas,
        } = shape;
        let arguments = [
            "up".to_owned(),
            format!("NODES={nodes}"),
            format!("COORDINATORS={coordinators}"),
            format!("REPLICAS={replicas}"),
        ];
        let mut up = cluster.command("make");
        up.args(["--no-print-directory", "-s"]).args(arguments);
        run(up)?;
        cluster.connect()
    }

    /// The embedded default: `ruvector dev`, all of it in one process.
    pub fn start_dev(name: &str) -> Result<Self> {
        let cluster = Self::in_fresh_folder(name);
        for script in ["scripts/build.sh", "scripts/cluster.sh dev"] {
            let mut command = cluster.command("bash");
            command.args(["-c", script]);
            run(command)?;
        }
        cluster.connect()
    }

    fn in_fresh_folder(name: &str) -> Self {
        let run_dir = format!("/var/tmp/ruvector-test-{name}-{}", std::process::id());
        Self {
            run_dir: run_dir.into(),
            dsn: String::new(),
            is_shared: false,
            settings: Vec::new(),
        }
    }

    fn connect(mut self) -> Result<Self> {
        self.dsn = self.make(&["dsn"])?.trim().to_owned();
        ensure!(
            self.dsn.starts_with("postgres"),
            "make dsn printed {:?}",
            self.dsn
        );
        Ok(self)
    }

    /// Takes the cluster down and removes its folder. A test that fails does not
    /// come here: its logs stay.
    pub fn finish(self) -> Result<()> {
        self.make(&["clean"]).map(drop)
    }

    /// The cluster that scripts/integration.sh started for all tests that kill
    /// nothing: two nodes, one coordinator, one consumer.
    pub fn shared() -> Result<Self> {
        let run_dir = std::env::var_os("SHARED_CLUSTER_RUN_DIR")
            .context("these tests need a running cluster: start them by scripts/integration.sh")?;
        Self::attach(run_dir)
    }

    /// A cluster that runs already, by its run folder. It is left running.
    pub fn attach(run_dir: impl Into<PathBuf>) -> Result<Self> {
        let cluster = Self {
            run_dir: run_dir.into(),
            dsn: String::new(),
            is_shared: true,
            settings: Vec::new(),
        };
        cluster.connect()
    }

    /// Where its processes have their data, logs and configuration.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub fn dsn(&self) -> &str {
        &self.dsn
    }

    /// A session that reads through the index or fails.
    pub fn session(&self) -> Result<Session> {
        Session::open(&self.dsn)
    }

    /// Waits until Postgres takes sessions again.
    pub fn session_within(&self, limit: Duration) -> Result<Session> {
        let deadline = Instant::now() + limit;
        loop {
            match self.session() {
                Ok(session) => return Ok(session),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Runs a make target of the project against this cluster's run folder.
    pub fn make(&self, arguments: &[&str]) -> Result<String> {
        let mut make = self.command("make");
        make.args(["--no-print-directory", "-s"]).args(arguments);
        run(make)
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .env("RUN_DIR", &self.run_dir)
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL");
        command
    }

    /// The same server's connection string for another of its databases.
    pub fn dsn_of(&self, database: &str) -> String {
        let server = self.dsn.rsplit_once('/').map_or("", |(server, _)| server);
        format!("{server}/{database}")
    }

    /// Runs lines of bash with the scripts' words at hand: `as_server`, `$PG_BIN`, and
    /// `$RUN_DIR` of this cluster.
    pub fn shell(&self, lines: &str) -> Result<String> {
        let mut shell = self.command("bash");
        shell.args([
            "-c",
            &format!("set -euo pipefail; . scripts/env.sh\n{lines}"),
        ]);
        run(shell)
    }

    /// Sends a signal to a process by the name of its pid file.
    pub fn signal(&self, process: &str, signal: &str) -> Result<()> {
        let pid = self.pid(process)?;
        let status = Command::new("kill")
            .args([&format!("-{signal}"), &pid])
            .status()?;
        ensure!(status.success(), "kill -{signal} {process} ({pid}) failed");
        Ok(())
    }

    /// Starts one more node, and says under which name.
    pub fn add_node(&self) -> Result<String> {
        let before = self.node_processes()?;
        self.make(&["add"])?;
        let mut added = self.node_processes()?;
        added.retain(|name| !before.contains(name));
        let [name] = added.as_slice() else {
            bail!("make add made the nodes {added:?}");
        };
        Ok(name.clone())
    }

    /// node-1, node-2, …: all that have a configuration.
    pub fn node_processes(&self) -> Result<Vec<String>> {
        let folder = self.run_dir.join("cluster/config");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
            let file = entry?.file_name();
            let name = file.to_string_lossy();
            names.extend(
                name.strip_suffix(".toml")
                    .filter(|name| name.starts_with("node-"))
                    .map(str::to_owned),
            );
        }
        names.sort();
        Ok(names)
    }

    /// `host:port` of a process's gRPC server.
    pub fn address(&self, process: &str) -> Result<String> {
        self.setting(process, "listen")
    }

    /// Where a process keeps its data.
    pub fn data_dir(&self, process: &str) -> Result<PathBuf> {
        self.setting(process, "data_dir").map(PathBuf::from)
    }

    /// A setting in a process's configuration file that is a text.
    pub(crate) fn setting(&self, process: &str, name: &str) -> Result<String> {
        let file = self.run_dir.join(format!("cluster/config/{process}.toml"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        let value = |line: &str| {
            let (key, value) = line.split_once(" = ")?;
            let value = value.strip_prefix('"')?.strip_suffix('"')?;
            (key == name).then(|| value.to_owned())
        };
        let found = text.lines().find_map(value);
        found.with_context(|| format!("{} has no {name}", file.display()))
    }

    /// Rewrites a process's configuration file, and returns what it was. The process reads
    /// it when it starts again.
    pub fn change_settings(
        &self,
        process: &str,
        change: impl FnOnce(&str) -> String,
    ) -> Result<String> {
        let file = self.run_dir.join(format!("cluster/config/{process}.toml"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        std::fs::write(&file, change(&text))?;
        Ok(text)
    }

    /// The process that serves at an address: a node's id is what the
    /// coordinators gave it, and says nothing about the name.
    pub fn node_process_at(&self, address: &str) -> Result<String> {
        for name in self.node_processes()? {
            if self.address(&name)? == address {
                return Ok(name);
            }
        }
        bail!("no node process listens on {address}")
    }

    pub fn coordinators(&self) -> Result<Vec<String>> {
        let mut script = self.command("bash");
        script.args(["scripts/cluster.sh", "coordinators"]);
        let list = run(script)?;
        Ok(list.trim().split(',').map(str::to_owned).collect())
    }

    /// The cluster past SQL.
    pub fn wire(&self) -> Result<Wire> {
        Wire::new(self.coordinators()?)
    }

    /// SIGKILL, and waits until the process is gone.
    pub fn kill(&self, process: &str) -> Result<()> {
        self.end(process, "KILL")
    }

    /// What `pg_ctl stop -m immediate` does: no checkpoint, recovery at start.
    pub fn stop_postgres_immediately(&self) -> Result<()> {
        self.end("postgres", "QUIT")
    }

    /// Ends the extension's worker; the server starts another, which knows nothing.
    pub fn end_worker(&self) -> Result<()> {
        for pid in self.postgres_pids()? {
            let cmdline = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            if cmdline.is_ok_and(|text| text.starts_with("postgres: ruvector worker")) {
                let status = Command::new("kill").arg(&pid).status()?;
                ensure!(status.success(), "cannot end the worker {pid}");
                return Ok(());
            }
        }
        bail!("the server has no worker")
    }

    fn end(&self, process: &str, signal: &str) -> Result<()> {
        let pid = self.pid(process)?;
        self.signal(process, signal)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Path::new(&format!("/proc/{pid}/exe")).exists() {
            ensure!(Instant::now() < deadline, "{process} ({pid}) does not die");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Starts a killed process again on its own data.
    pub fn restart(&self, process: &str) -> Result<()> {
        self.make(&["start", &format!("PROC={process}")]).map(drop)
    }

    /// Of the server and of its children as they are now.
    pub fn postgres_pids(&self) -> Result<Vec<String>> {
        let server = self.pid("postgres")?;
        let parent = format!("PPid:\t{server}\n");
        let mut pids = vec![server];
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            // Whoever has ended meanwhile has none.
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            if status.contains(&parent) {
                let pid = path.file_name().context("a process has a number")?;
                pids.push(pid.to_string_lossy().into_owned());
            }
        }
        Ok(pids)
    }

    pub fn pid(&self, process: &str) -> Result<String> {
        let file = self.run_dir.join(format!("pids/{process}.pid"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// `ruvector ctl … --json`, through the project's own wrapper.
    pub fn ctl(&self, arguments: &str) -> Result<serde_json::Value> {
        let text = self.make(&["ctl", &format!("ARGS={arguments} --json")])?;
        serde_json::from_str(&text).with_context(|| format!("ctl {arguments} printed {text:?}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.is_shared && self.run_dir.exists() {
            let _ = self.make(&["down"]);
            eprintln!("logs of the failed test stay in {}", self.run_dir.display());
        }
    }
}

pub(crate) fn run(mut command: Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} does not run"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
