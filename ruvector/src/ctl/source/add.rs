//! `ctl source add`: a database is looked at first, and registered if it can be
//! followed.

use super::AddArgs;
use super::checks::{self, lines};
use super::dsn::{Dsn, place};
use crate::ctl::{Ctl, Observed, Report, failure, usage};
use crate::failure::Failure;
use cluster_core::checklist::Check;
use cluster_core::ids::SourceId;
use proto::v1::AddSourceRequest;
use serde::Serialize;

#[derive(Serialize)]
pub struct Added {
    source_id: u64,
    name: String,
    /// Empty when they were skipped.
    checks: Vec<Check>,
    /// Where the consumers must find the password, if it is not stored.
    credentials_file: Option<String>,
}

pub async fn add(ctl: &Ctl, args: AddArgs, json: bool) -> Result<Added, Failure> {
    let dsn = Dsn::read(&args.dsn)?;
    if dsn.has_password() && args.password.is_given() {
        return Err(usage(
            "the connection string has a password as well as --password-file: leave it out, \
             so that the coordinators do not keep it"
                .to_owned(),
        ));
    }
    let place = place(&dsn.config);
    let name = args.name.unwrap_or_else(|| place.clone());
    let postgres = args.password.with(dsn.config.clone())?;
    let seen = ctl.leader_status().await?;
    refuse_detached(&seen, &name)?;
    // Adding once more is no mistake, and finds the database followed by itself.
    let known = seen.map.sources.values().find(|source| source.name == name);
    let known = known.map(|source| source.id);
    let checks = match args.skip_checks {
        true => Vec::new(),
        false => {
            let checked = checks::look(&seen, &postgres, place, known).await;
            checked.or_fail(json, "nothing is registered")?
        }
    };
    let request = AddSourceRequest {
        name: name.clone(),
        dsn: dsn.text.clone(),
    };
    let adding = ctl.client.leader(|mut leader| {
        let request = request.clone();
        async move { leader.add_source(request).await }
    });
    let added = adding.await.map_err(failure)?;
    Ok(Added {
        source_id: SourceId(added.source_id).0,
        credentials_file: args.password.is_given().then(|| name.clone()),
        name,
        checks,
    })
}

fn refuse_detached(seen: &Observed, name: &str) -> Result<(), Failure> {
    let mut sources = seen.map.sources.values();
    match sources.find(|source| source.name == name && source.is_detached()) {
        None => Ok(()),
        Some(source) => Err(usage(format!(
            "source {} ({name}) is {}\nFirst: ruvector ctl source remove {name}",
            source.id.0, source.problem
        ))),
    }
}

impl Report for Added {
    fn text(&self) -> String {
        let mut text = lines(&self.checks);
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!(
            "Source {} ({}) is registered; 'ruvector ctl lag' shows how it is followed\n",
            self.source_id, self.name
        );
        if let Some(file) = &self.credentials_file {
            text += &format!(
                "Its password is not stored: consumers read it from the file {file:?} of their credentials_dir\n"
            );
        }
        text
    }
}
