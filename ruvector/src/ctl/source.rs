//! `ctl source`: which Postgres databases the cluster follows.

use super::leftovers::Leftovers;
use super::table::{Align, Table, or_dash};
use super::{Ctl, Report, failure, show, usage};
use crate::failure::{Failure, FailureKind};
use clap::Subcommand;
use cluster_core::map::PartitionMap;
use proto::v1::{AddSourceRequest, GetSourceCredentialsRequest, RemoveSourceRequest};
use serde::Serialize;
use std::str::FromStr;
use tokio_postgres::config::Host;

#[derive(Subcommand)]
pub enum SourceCommand {
    /// Follow a Postgres database
    Add {
        /// Its connection string, as libpq takes it; `-` reads it from standard
        /// input, so that no password shows in the process list
        dsn: String,
        /// What to call it; database@host:port by default
        #[arg(long)]
        name: Option<String>,
    },
    /// The databases that are followed
    List,
    /// Stop following a database, and drop what is indexed of it, its replication
    /// slot and its publication
    Remove {
        /// Its number or its name
        source: String,
    },
}

#[derive(Serialize)]
struct Added {
    source_id: u64,
    name: String,
}

#[derive(Serialize)]
struct Removed {
    source_id: u64,
    name: String,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Sources(Vec<SourceLine>);

#[derive(Serialize)]
struct SourceLine {
    id: u64,
    name: String,
    slot: String,
    publication: String,
    system_identifier: Option<String>,
    problem: String,
}

pub async fn run(ctl: &Ctl, command: SourceCommand, json: bool) -> Result<String, Failure> {
    match command {
        SourceCommand::Add { dsn, name } => show(&add(ctl, dsn, name).await?, json),
        SourceCommand::List => show(&list(ctl).await?, json),
        SourceCommand::Remove { source } => show(&remove(ctl, &source).await?, json),
    }
}

async fn add(ctl: &Ctl, dsn: String, name: Option<String>) -> Result<Added, Failure> {
    let dsn = if dsn == "-" { read_line()? } else { dsn };
    let config = tokio_postgres::Config::from_str(&dsn).map_err(|error| {
        let cause =
            std::error::Error::source(&error).map_or_else(|| error.to_string(), |s| s.to_string());
        usage(format!(
            "not a connection string: {cause}; want postgresql://user:password@host:port/database"
        ))
    })?;
    if config.get_dbname().is_none() {
        return Err(usage("the connection string names no database".to_owned()));
    }
    let name = name.unwrap_or_else(|| default_name(&config));
    let request = AddSourceRequest {
        name: name.clone(),
        dsn,
    };
    let added = ctl
        .client
        .leader(|mut leader| {
            let request = request.clone();
            async move { leader.add_source(request).await }
        })
        .await
        .map_err(failure)?;
    Ok(Added {
        source_id: added.source_id,
        name,
    })
}

async fn list(ctl: &Ctl) -> Result<Sources, Failure> {
    let seen = ctl.leader_status().await?;
    let line = |source: &cluster_core::map::Source| SourceLine {
        id: source.id.0,
        name: source.name.clone(),
        slot: source.slot_name.clone(),
        publication: source.publication_name.clone(),
        // As text: JSON readers lose digits of 64-bit numbers.
        system_identifier: source
            .slot
            .as_ref()
            .map(|slot| slot.system_identifier.to_string()),
        problem: problem_of(&seen.map, source),
    };
    Ok(Sources(seen.map.sources.values().map(line).collect()))
}

/// Why it is not followed; or why it is, and its indexes have old rows only.
fn problem_of(map: &PartitionMap, source: &cluster_core::map::Source) -> String {
    if !source.problem.is_empty() {
        return source.problem.clone();
    }
    let of_source = map
        .collections
        .values()
        .filter(|c| c.spec.source == source.id);
    let mut stale = of_source.filter(|c| map.stale_partitions(c.id) > 0);
    let reconcile = stale.find_map(|c| c.reconcile.as_ref());
    reconcile.map(|r| r.reason.clone()).unwrap_or_default()
}

async fn remove(ctl: &Ctl, wanted: &str) -> Result<Removed, Failure> {
    let seen = ctl.leader_status().await?;
    let by_id = wanted.parse::<u64>().ok();
    let found = seen
        .map
        .sources
        .values()
        .find(|source| source.name == wanted || Some(source.id.0) == by_id);
    let Some(source) = found else {
        let names: Vec<_> = seen
            .map
            .sources
            .values()
            .map(|source| source.name.as_str())
            .collect();
        return Err(usage(format!(
            "no source {wanted:?}; there are: {}",
            names.join(", ")
        )));
    };
    let source_id = source.id.0;
    // With the source its connection string is gone.
    let dsn = ctl
        .client
        .leader(|mut leader| async move {
            leader
                .get_source_credentials(GetSourceCredentialsRequest { source_id })
                .await
        })
        .await
        .map_err(failure)?
        .dsn;
    ctl.client
        .leader(|mut leader| async move {
            leader
                .remove_source(RemoveSourceRequest { source_id })
                .await
        })
        .await
        .map_err(failure)?;
    let leftovers = Leftovers::of(source);
    leftovers.remove(&dsn).await.map_err(|error| {
        let name = &source.name;
        let sql = leftovers.sql();
        let message = format!(
            "source {source_id} ({name}) is removed, but its slot is still in Postgres, whose disk it fills: {error:#}\n\
             Run this there, in the source's database:\n{sql}"
        );
        Failure::new(FailureKind::Failed, message)
    })?;
    Ok(Removed {
        source_id,
        name: source.name.clone(),
    })
}

fn read_line() -> Result<String, Failure> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|error| {
        Failure::new(
            FailureKind::Failed,
            format!("cannot read standard input: {error}"),
        )
    })?;
    Ok(line.trim().to_owned())
}

fn default_name(config: &tokio_postgres::Config) -> String {
    let database = config.get_dbname().unwrap_or("postgres");
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("{database}@{host}:{port}")
}

impl Report for Added {
    fn text(&self) -> String {
        format!(
            "Source {} ({}) is registered; 'ruvector ctl lag' shows how it is followed\n",
            self.source_id, self.name
        )
    }
}

impl Report for Removed {
    fn text(&self) -> String {
        format!(
            "Source {} ({}) is removed, and its slot and publication are dropped\n",
            self.source_id, self.name
        )
    }
}

impl Report for Sources {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            ("source", Align::Right),
            ("name", Align::Left),
            ("slot", Align::Left),
            ("publication", Align::Left),
            ("problem", Align::Left),
        ]);
        for line in &self.0 {
            table.row([
                line.id.to_string(),
                line.name.clone(),
                or_dash(&line.slot),
                or_dash(&line.publication),
                or_dash(&line.problem),
            ]);
        }
        table.render("no sources: ruvector ctl source add DSN")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_without_a_name_is_called_by_what_it_is_and_never_shows_its_password() {
        let config = tokio_postgres::Config::from_str("postgresql://u:secret@db.example:5444/shop")
            .expect("a connection string");
        assert_eq!(default_name(&config), "shop@db.example:5444");
    }
}
