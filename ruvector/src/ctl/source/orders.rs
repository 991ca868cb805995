//! `ctl source pause`, `resume` and `set-dsn`.

use super::checks::{self, lines};
use super::dsn::{Dsn, place};
use super::{SetDsnArgs, find};
use crate::ctl::{Ctl, Report, failure, usage};
use crate::failure::Failure;
use cluster_core::checklist::Check;
use cluster_core::map::Source;
use proto::v1::{SetSourceDsnRequest, SetSourcePausedRequest};
use serde::Serialize;

#[derive(Serialize)]
pub struct Ordered {
    source_id: u64,
    name: String,
    is_paused: bool,
}

#[derive(Serialize)]
pub struct Redirected {
    source_id: u64,
    name: String,
    checks: Vec<Check>,
    credentials_file: Option<String>,
}

pub async fn pause(ctl: &Ctl, wanted: &str) -> Result<Ordered, Failure> {
    let seen = ctl.leader_status().await?;
    set_paused(ctl, find(&seen, wanted)?, true).await
}

pub async fn resume(ctl: &Ctl, wanted: &str) -> Result<Ordered, Failure> {
    let seen = ctl.leader_status().await?;
    let source = find(&seen, wanted)?;
    if source.is_detached() {
        let (id, name) = (source.id.0, &source.name);
        return Err(usage(format!(
            "source {id} ({name}) was let go inside its database, and its slot is gone: what came since \
             is not to be had.\nFirst 'ruvector ctl source remove {name}', then 'ruvector ctl source add'"
        )));
    }
    set_paused(ctl, source, false).await
}

async fn set_paused(ctl: &Ctl, source: &Source, is_paused: bool) -> Result<Ordered, Failure> {
    let request = SetSourcePausedRequest {
        source_id: source.id.0,
        is_paused,
    };
    ctl.client
        .leader(|mut leader| async move { leader.set_source_paused(request).await })
        .await
        .map_err(failure)?;
    Ok(Ordered {
        source_id: source.id.0,
        name: source.name.clone(),
        is_paused,
    })
}

pub async fn set_dsn(ctl: &Ctl, args: SetDsnArgs, json: bool) -> Result<Redirected, Failure> {
    let dsn = Dsn::read(&args.dsn)?;
    if dsn.has_password() && args.password.is_given() {
        return Err(usage(
            "the connection string has a password as well as --password-file: leave one out"
                .to_owned(),
        ));
    }
    let postgres = args.password.with(dsn.config.clone())?;
    let seen = ctl.leader_status().await?;
    let source = find(&seen, &args.source)?;
    let checks = match args.skip_checks {
        true => Vec::new(),
        false => {
            let looking = checks::look(&seen, &postgres, place(&dsn.config), Some(source.id));
            // What was wrong with the old way is no reason against the new one.
            let checked = looking.await.without_following();
            checked.or_fail(json, "the connection string stays as it was")?
        }
    };
    let request = SetSourceDsnRequest {
        source_id: source.id.0,
        dsn: dsn.text.clone(),
    };
    let setting = ctl.client.leader(|mut leader| {
        let request = request.clone();
        async move { leader.set_source_dsn(request).await }
    });
    setting.await.map_err(failure)?;
    let name = source.name.clone();
    Ok(Redirected {
        source_id: source.id.0,
        credentials_file: args.password.is_given().then(|| name.clone()),
        name,
        checks,
    })
}

impl Report for Ordered {
    fn text(&self) -> String {
        let (id, name) = (self.source_id, &self.name);
        match self.is_paused {
            true => format!(
                "Source {id} ({name}) is paused: it is not followed, and searches see what was there.\n\
                 ! Its slot stays, and keeps WAL from here on, until 'ruvector ctl source resume {name}';\n\
                 \x20 past its slot_hold_limit the server advances it, and the indexes are reconciled afterwards\n"
            ),
            false => format!(
                "Source {id} ({name}) goes on from where it was left; 'ruvector ctl lag' shows how far it is\n"
            ),
        }
    }
}

impl Report for Redirected {
    fn text(&self) -> String {
        let mut text = lines(&self.checks);
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!(
            "Source {} ({}) is reached by the new connection string from now on\n",
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
