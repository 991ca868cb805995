//! A physical standby of a cluster's Postgres, in the cluster's run folder.

use crate::cluster::{Cluster, run};
use crate::sql::Session;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

pub struct Standby<'a> {
    primary: &'a Cluster,
    dsn: String,
}

const START: &str = r#"
set -euo pipefail
. scripts/env.sh
home=$RUN_DIR/standby
mkdir -p "$home"
if [ "$(id -u)" = 0 ]; then chown postgres:postgres "$home"; fi
as_server "$PG_BIN/pg_basebackup" --dbname "$1" --pgdata "$home/data" --write-recovery-conf \
  --wal-method stream --checkpoint fast
free_port 5533
as_server "$PG_BIN/pg_ctl" --pgdata "$home/data" --log "$home/log" --wait \
  --options "-p $FREE_PORT" start >/dev/null
echo "$FREE_PORT"
"#;

impl<'a> Standby<'a> {
    /// Copies the primary, and starts the copy as a hot standby of it.
    pub fn of(primary: &'a Cluster) -> Result<Self> {
        let mut start = primary.command("bash");
        start.args(["-c", START, "bash", primary.dsn()]);
        let output = run(start)?;
        let port = output.lines().last().context("the standby has no port")?;
        let (before, database) = primary.dsn().rsplit_once('/').context("a DSN")?;
        let (server, _port) = before.rsplit_once(':').context("a DSN with a port")?;
        Ok(Self {
            primary,
            dsn: format!("{server}:{port}/{database}"),
        })
    }

    /// Waits until it has replayed what the primary has on disk by now.
    pub fn session(&self) -> Result<Session> {
        let flushed = self
            .primary
            .session()?
            .value("SELECT pg_current_wal_flush_lsn()")?;
        let mut session = Session::open(&self.dsn)?;
        let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{flushed}'");
        let deadline = Instant::now() + Duration::from_secs(10);
        while session.value(&replayed)? != "t" {
            anyhow::ensure!(Instant::now() < deadline, "replay does not reach {flushed}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(session)
    }

    /// Ends its recovery: a server of its own from here on, on a new timeline.
    pub fn promote(&self) -> Result<Session> {
        self.pg_ctl("promote")?;
        Session::open(&self.dsn)
    }

    pub fn stop(self) -> Result<()> {
        self.pg_ctl("--mode immediate stop")
    }

    fn pg_ctl(&self, what: &str) -> Result<()> {
        let mut command = self.primary.command("bash");
        let script = format!(
            ". scripts/env.sh && as_server \"$PG_BIN/pg_ctl\" --pgdata \"$RUN_DIR/standby/data\" --wait {what}"
        );
        command.args(["-c", &script]);
        run(command).map(drop)
    }
}

impl Drop for Standby<'_> {
    fn drop(&mut self) {
        // Stopped already, unless the test failed.
        let _ = self.pg_ctl("--mode immediate stop");
    }
}
