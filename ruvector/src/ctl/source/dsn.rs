//! Connection strings, and passwords that stay out of them.

use crate::ctl::{Ctl, failure, usage};
use crate::failure::{Failure, FailureKind};
use clap::Args;
use proto::v1::GetSourceCredentialsRequest;
use std::path::PathBuf;
use std::str::FromStr;
use tokio_postgres::Config;
use tokio_postgres::config::Host;
use wal_consumer::source::postgres::{Postgres, read_password};

#[derive(Args)]
pub struct PasswordFile {
    /// A file with the password, for this command alone: the coordinators do not get
    /// it, and consumers read theirs from their credentials_dir
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl PasswordFile {
    pub fn is_given(&self) -> bool {
        self.password_file.is_some()
    }

    /// The database as this command reaches it.
    pub fn with(&self, config: Config) -> Result<Postgres, Failure> {
        let Some(file) = &self.password_file else {
            return Ok(config.into());
        };
        match read_password(file) {
            Ok(Some(_)) => Ok(Postgres::with_password_file(config, file.clone())),
            Ok(None) => Err(usage(format!("there is no file {}", file.display()))),
            Err(problem) => Err(usage(format!("{problem:#}"))),
        }
    }
}

/// A connection string as it was given, and what it means.
pub struct Dsn {
    pub text: String,
    pub config: Config,
}

impl Dsn {
    /// `-` stands for standard input.
    pub fn read(given: &str) -> Result<Self, Failure> {
        let text = match given {
            "-" => read_line()?,
            dsn => dsn.to_owned(),
        };
        let config = parse(&text)?;
        if config.get_dbname().is_none() {
            return Err(usage("the connection string names no database".to_owned()));
        }
        Ok(Self { text, config })
    }

    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }
}

/// What the coordinators keep for a source.
pub async fn known(ctl: &Ctl, source_id: u64) -> Result<Config, Failure> {
    let asking = ctl.client.leader(|mut leader| async move {
        leader
            .get_source_credentials(GetSourceCredentialsRequest { source_id })
            .await
    });
    parse(&asking.await.map_err(failure)?.dsn)
}

fn parse(text: &str) -> Result<Config, Failure> {
    Config::from_str(text).map_err(|error| {
        let cause = std::error::Error::source(&error);
        let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
        usage(format!(
            "not a connection string: {cause}; want postgresql://user:password@host:port/database"
        ))
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

/// What it is, without who and with what: database@host:port.
pub fn place(config: &Config) -> String {
    let database = config.get_dbname().unwrap_or("postgres");
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    format!("{database}@{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_without_a_name_is_called_by_what_it_is_and_never_shows_its_password() {
        let dsn = Dsn::read("postgresql://u:secret@db.example:5444/shop");
        let dsn = match dsn {
            Ok(dsn) => dsn,
            Err(failure) => panic!("{failure}"),
        };
        assert_eq!(place(&dsn.config), "shop@db.example:5444");
        assert!(dsn.has_password());
    }
}
