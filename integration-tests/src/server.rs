//! One more Postgres beside a cluster's own: another primary, with processes and a
//! log of its own.

use crate::cluster::{Cluster, run};
use crate::sql::Session;
use anyhow::Result;

pub struct Server<'a> {
    cluster: &'a Cluster,
    /// Of its pid file, for [`Cluster::signal`].
    name: String,
}

impl<'a> Server<'a> {
    pub fn start(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let server = Self {
            cluster,
            name: name.to_owned(),
        };
        let coordinators = cluster.coordinators()?.join(",");
        server.script(&["create", &coordinators])?;
        server.script(&["start"])?;
        Ok(server)
    }

    fn script(&self, arguments: &[&str]) -> Result<String> {
        let mut script = self.cluster.command("bash");
        let name = &self.name;
        let lines = format!(
            ". scripts/env.sh; export PG_HOME=$RUN_DIR/{name} PG_PID_FILE=$RUN_DIR/pids/{name}.pid PG_DATABASE=postgres
             export PG_SETTINGS='shared_buffers = 32MB'
             exec scripts/postgres.sh \"$@\""
        );
        script.args(["-c", &lines, "postgres.sh"]).args(arguments);
        run(script)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of one of its databases, for its superuser.
    pub fn dsn_of(&self, database: &str) -> Result<String> {
        let dsn = self.script(&["dsn"])?;
        let server = dsn.trim().rsplit_once('/').map_or("", |(server, _)| server);
        Ok(format!("{server}/{database}"))
    }

    pub fn session(&self, database: &str) -> Result<Session> {
        Session::open(&self.dsn_of(database)?)
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.cluster.signal(&self.name, "CONT");
        let _ = self.script(&["stop", "immediate"]);
    }
}
