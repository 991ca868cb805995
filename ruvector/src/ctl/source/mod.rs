//! `ctl source`: which Postgres databases the cluster follows. In reading order: a
//! database is reached ([`dsn`]) and looked at ([`checks`]), followed ([`add`]), shown
//! ([`list`]), given orders ([`orders`]), and left ([`remove`], [`leftovers`]).

mod add;
mod checks;
mod dsn;
mod leftovers;
pub mod list;
mod orders;
mod remove;

use super::{Ctl, Observed, show, usage};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use cluster_core::map::Source;
use dsn::PasswordFile;

#[derive(Subcommand)]
pub enum SourceCommand {
    /// Follow a Postgres database, once it has what that needs
    Add(AddArgs),
    /// The databases that are followed
    List,
    /// Whether a database has what following it needs
    Check {
        /// Its number or its name
        source: String,
        #[command(flatten)]
        password: PasswordFile,
    },
    /// Stop following a database for a while; its slot stays, and keeps WAL
    Pause {
        /// Its number or its name
        source: String,
    },
    /// Follow a paused database again, from where it was left
    Resume {
        /// Its number or its name
        source: String,
    },
    /// Reach the same database by another connection string
    SetDsn(SetDsnArgs),
    /// Stop following a database, and drop what is indexed of it, its replication
    /// slot and its publication
    Remove {
        /// Its number or its name
        source: String,
        #[command(flatten)]
        password: PasswordFile,
    },
}

#[derive(Args)]
pub struct AddArgs {
    /// Its connection string, as libpq takes it; `-` reads it from standard
    /// input, so that no password shows in the process list
    dsn: String,
    /// What to call it; database@host:port by default
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    password: PasswordFile,
    /// Register it without a look at it, where only the consumers reach it
    #[arg(long)]
    skip_checks: bool,
}

#[derive(Args)]
pub struct SetDsnArgs {
    /// Its number or its name
    source: String,
    /// The connection string from now on; `-` reads it from standard input
    dsn: String,
    #[command(flatten)]
    password: PasswordFile,
    /// Take it without a look at the database
    #[arg(long)]
    skip_checks: bool,
}

pub async fn run(ctl: &Ctl, command: SourceCommand, json: bool) -> Result<String, Failure> {
    match command {
        SourceCommand::Add(args) => show(&add::add(ctl, args, json).await?, json),
        SourceCommand::List => show(&list::list(ctl).await?, json),
        SourceCommand::Check { source, password } => show(
            &checks::check_known(ctl, &source, &password, json).await?,
            json,
        ),
        SourceCommand::Pause { source } => show(&orders::pause(ctl, &source).await?, json),
        SourceCommand::Resume { source } => show(&orders::resume(ctl, &source).await?, json),
        SourceCommand::SetDsn(args) => show(&orders::set_dsn(ctl, args, json).await?, json),
        SourceCommand::Remove { source, password } => {
            show(&remove::remove(ctl, &source, &password).await?, json)
        }
    }
}

/// By its name, or else by its number.
pub(super) fn find<'a>(seen: &'a Observed, wanted: &str) -> Result<&'a Source, Failure> {
    let sources = || seen.map.sources.values();
    let by_id = wanted.parse::<u64>().ok();
    let by_name = sources().find(|source| source.name == wanted);
    let found = by_name.or_else(|| sources().find(|source| Some(source.id.0) == by_id));
    found.ok_or_else(|| {
        let names: Vec<_> = sources().map(|source| source.name.as_str()).collect();
        usage(match names.as_slice() {
            [] => format!("no source {wanted:?}; there are none yet"),
            names => format!("no source {wanted:?}; there are: {}", names.join(", ")),
        })
    })
}
